//! What a call may leave on its connection, through functions, triggers and blocks that no check of a text sees, and
//! how it is undone before the next call gets the connection: settings, locks, listening, cursors and sequences are put
//! back; a connection on which names mean something else (temporary tables, another search path or role, prepared
//! names) is closed, because what the platform keeps prepared there was understood by those names.

use std::time::Duration;

use model::sql::STATEMENT_MS;
use tokio_postgres::{Client, Error, Statement};

/// The server has this long to clear a connection.
const CLEAR: Duration = Duration::from_secs(2);

/// Every name with its schema and no operator: a call may have put other ones in their place.
const LEFT: &str = "SELECT pg_catalog.pg_my_temp_schema(), pg_catalog.current_setting('search_path'), \
    current_user::pg_catalog.text, pg_catalog.count(*) FILTER (WHERE s.from_sql), \
    pg_catalog.count(*) FILTER (WHERE NOT s.from_sql) FROM pg_catalog.pg_prepared_statement() s";

/// `DISCARD ALL` without the statements that are prepared.
const UNDO: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD SEQUENCES";

/// How a connection is set up: times without a zone are UTC, and the server itself ends what takes too long.
fn setup() -> String {
    format!(
        "SET statement_timeout = {STATEMENT_MS}; SET idle_in_transaction_session_timeout = {}; SET timezone = 'UTC'",
        STATEMENT_MS * 2
    )
}

/// What names mean on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    /// Where its temporary tables are; 0 where it never had one.
    temporary: u32,
    path: String,
    role: String,
    /// Statements that a call prepared itself.
    theirs: i64,
}

/// How a connection was when it was new.
pub(super) struct Rest {
    left: Statement,
    names: Names,
    undo: String,
}

impl Rest {
    /// Sets up a new connection.
    pub(super) async fn new(client: &Client) -> Result<Self, Error> {
        let setup = setup();
        client.batch_execute(&setup).await?;
        let left = client.prepare(LEFT).await?;
        let (names, _) = ask(client, &left).await?;
        Ok(Self { left, names, undo: format!("{UNDO}; {setup}") })
    }

    /// Whether the connection is as new again, with `ours` statements prepared by the platform. Both questions go out
    /// at once.
    pub(super) async fn again(&self, client: &Client, ours: usize) -> bool {
        let both = async { tokio::join!(ask(client, &self.left), client.batch_execute(&self.undo)) };
        let Ok((Ok((names, prepared)), Ok(()))) = tokio::time::timeout(CLEAR, both).await else { return false };
        // The one that asks is prepared, too. There are more where others still close.
        names == self.names && usize::try_from(prepared).is_ok_and(|prepared| prepared > ours)
    }
}

/// What names mean now, and how many statements the platform has prepared.
async fn ask(client: &Client, left: &Statement) -> Result<(Names, i64), Error> {
    let row = client.query_one(left, &[]).await?;
    let names =
        Names { temporary: row.try_get(0)?, path: row.try_get(1)?, role: row.try_get(2)?, theirs: row.try_get(3)? };
    Ok((names, row.try_get(4)?))
}
