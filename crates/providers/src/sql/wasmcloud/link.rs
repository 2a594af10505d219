//! What a link of `wasmcloud:postgres` gives: a Postgres, or a component that exports the contract. Both are asked within the
//! same limits, and the statements behind tokens are kept here for both.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use model::Digest;
use model::sql::{MAX_CALL, MAX_PARAMS, MAX_SQL, SqlError, Statement};
use runtime::Callee;

use super::bindings::wasmcloud::postgres::types::{
    PgValue, PreparedStatementExecError, QueryError, ResultRow, ResultRowEntry, StatementPrepareError,
};
use super::component::ComponentPostgres;
use super::{params, values};
use crate::meter::{ErrorKind, Kind, LinkMeter};
use crate::share::{Share, Sharing};
use crate::sql::connection;
use crate::sql::postgres::{MAX_CONNECTIONS, Param, Postgres, Reader};

/// Statements a component keeps prepared; of more, the oldest is forgotten.
const MAX_PREPARED: usize = 1024;

/// The database of a component: a binding, immutable. Another link is another revision.
#[derive(Clone)]
pub struct PostgresLink {
    database: Database,
    meter: Arc<LinkMeter>,
    share: Share,
    prepared: Arc<Mutex<Prepared>>,
}

/// Who answers.
#[derive(Clone)]
enum Database {
    Server(Arc<Postgres>),
    Component(Arc<ComponentPostgres>),
}

/// The statements behind tokens. The same text has the same token, in every instance of the component.
#[derive(Default)]
struct Prepared {
    by_token: HashMap<String, String>,
    oldest: VecDeque<String>,
}

/// Why a call has no answer: the contract's own error, as a component said it, or ours.
#[derive(Debug)]
pub(super) enum No<E> {
    Said(E),
    Failed(SqlError),
}

impl<E> From<SqlError> for No<E> {
    fn from(error: SqlError) -> Self {
        Self::Failed(error)
    }
}

impl<E> fmt::Display for No<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(_) => f.write_str("the component behind the link refuses"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl<E> Kind for No<E> {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Said(_) => ErrorKind::Refused,
            Self::Failed(error) => error.kind(),
        }
    }
}

impl PostgresLink {
    /// Everything a component asks goes to `database`.
    pub fn new(database: Arc<Postgres>, meter: Arc<LinkMeter>, sharing: Sharing) -> Self {
        let share = Share::new(Some(MAX_CONNECTIONS), sharing);
        Self { database: Database::Server(database), meter, share, prepared: Arc::default() }
    }

    /// Everything a component asks is asked of another one, `callee`.
    pub fn component(callee: Arc<dyn Callee>, meter: Arc<LinkMeter>) -> Self {
        let database = Database::Component(Arc::new(ComponentPostgres::new(callee)));
        Self { database, meter, share: Share::new(None, Sharing::Alone), prepared: Arc::default() }
    }

    /// A call, by one of the connections that the link may have, counted.
    async fn call<T, E>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, No<E>>>,
    ) -> Result<T, No<E>> {
        let work = async {
            let _connection = connection(&self.share).await?;
            work.await
        };
        self.meter.call(operation, work).await
    }

    pub(super) async fn query(&self, sql: String, given: Vec<PgValue>) -> Result<Vec<ResultRow>, QueryError> {
        let asked = self.call("query", async {
            let params = checked(&sql, &given)?;
            match &self.database {
                Database::Component(component) => component.query(sql, given).await,
                Database::Server(postgres) => {
                    let reader = Reader { read: values::value, null: || PgValue::Null };
                    let (columns, rows) = postgres.rows(&sql, &params, &reader).await?;
                    let row = |values: Vec<PgValue>| {
                        let entry =
                            |(name, value): (&String, PgValue)| ResultRowEntry { column_name: name.clone(), value };
                        columns.iter().zip(values).map(entry).collect()
                    };
                    Ok(rows.into_iter().map(row).collect())
                }
            }
        });
        asked.await.map_err(failed)
    }

    pub(super) async fn script(&self, sql: String) -> Result<(), QueryError> {
        let asked = self.call("query-batch", async {
            if sql.len() > MAX_SQL {
                return Err(SqlError::TooLarge(format!("a script has at most {MAX_SQL} bytes")).into());
            }
            if sql.contains('\0') {
                return Err(SqlError::Invalid("it has a NUL character".to_owned()).into());
            }
            match &self.database {
                Database::Server(postgres) => Ok(postgres.script(&sql).await?),
                Database::Component(component) => component.script(sql).await,
            }
        });
        asked.await.map_err(failed)
    }

    /// The token of a statement that can be run.
    pub(super) async fn prepare(&self, sql: String) -> Result<String, StatementPrepareError> {
        let asked = self.call("prepare", async {
            checked(&sql, &[])?;
            match &self.database {
                Database::Server(postgres) => Ok(postgres.prepare(&sql).await?),
                Database::Component(component) => component.prepare(sql.clone()).await,
            }
        });
        match asked.await {
            Ok(()) => Ok(self.keep(sql)),
            Err(No::Said(error)) => Err(error),
            Err(No::Failed(error)) => Err(StatementPrepareError::Unexpected(error.to_string())),
        }
    }

    pub(super) async fn exec(&self, token: &str, given: Vec<PgValue>) -> Result<u64, PreparedStatementExecError> {
        let Some(sql) = self.kept(token) else { return Err(PreparedStatementExecError::UnknownPreparedQuery) };
        let asked = self.call("exec", async {
            let params = checked(&sql, &given)?;
            match &self.database {
                Database::Server(postgres) => Ok(postgres.changed(&sql, &params).await?),
                Database::Component(component) => component.exec(sql, given).await,
            }
        });
        asked.await.map_err(|no| match no {
            No::Said(error) => error,
            No::Failed(error) => PreparedStatementExecError::QueryError(refused(error)),
        })
    }

    fn keep(&self, sql: String) -> String {
        let token = Digest::of(sql.as_bytes()).hex().to_string();
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if prepared.by_token.insert(token.clone(), sql).is_none() {
            prepared.oldest.push_back(token.clone());
        }
        while prepared.oldest.len() > MAX_PREPARED {
            if let Some(oldest) = prepared.oldest.pop_front() {
                prepared.by_token.remove(&oldest);
            }
        }
        token
    }

    fn kept(&self, token: &str) -> Option<String> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).by_token.get(token).cloned()
    }
}

/// Checks a statement as every backend has it, and turns its parameters into the server's.
fn checked(sql: &str, given: &[PgValue]) -> Result<Vec<Param>, SqlError> {
    model::sql::check(&[Statement { sql: sql.to_owned(), params: Vec::new() }])?;
    if given.len() > MAX_PARAMS {
        return Err(SqlError::TooLarge(format!("a statement has at most {MAX_PARAMS} parameters")));
    }
    let mut bytes = sql.len();
    let mut all = Vec::with_capacity(given.len());
    for (index, value) in given.iter().enumerate() {
        let number = index + 1;
        let param = params::of(value).map_err(|why| SqlError::Value(format!("${number} {why}")))?;
        bytes = bytes.saturating_add(match &param {
            Param::Null => 1,
            Param::Text(text) if text.contains('\0') => {
                return Err(SqlError::Value(format!("the text of ${number} has a NUL character")));
            }
            Param::Text(text) => text.len(),
            Param::Bytes(bytes) => bytes.len(),
        });
        if bytes > MAX_CALL {
            return Err(SqlError::TooLarge(format!("a statement and its parameters have at most {MAX_CALL} bytes")));
        }
        all.push(param);
    }
    Ok(all)
}

fn refused(error: SqlError) -> QueryError {
    match error {
        SqlError::Invalid(why) => QueryError::InvalidQuery(why),
        SqlError::Value(why) => QueryError::InvalidParams(why),
        other => QueryError::Unexpected(other.to_string()),
    }
}

fn failed(no: No<QueryError>) -> QueryError {
    match no {
        No::Said(error) => error,
        No::Failed(error) => refused(error),
    }
}
