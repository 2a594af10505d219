//! `sidereal:sql` 0.1.0: the [`Backend`] every database implements, and the [`SqlLinks`] that say which of them a
//! component may open. What goes through is the model's: the limits and refusals are the same for every backend.

mod adapter;
mod component;
pub mod conformance;
pub mod external;
mod postgres;
mod wasmcloud;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use model::sql::{Answer, Call, Gathered, Rows, SqlError, Statement, Value};

pub use adapter::Sql;
pub use component::ComponentSql;
pub use postgres::Postgres;
pub use wasmcloud::{PostgresLink, WasmcloudPostgres};

use crate::meter::{ErrorKind, Kind, LinkMeter};
use crate::share::{Share, Sharing, Taken};

impl Kind for SqlError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) | Self::Value(_) | Self::Constraint { .. } | Self::Conflict(_) | Self::TooLarge(_) => {
                ErrorKind::Refused
            }
            Self::Denied(_) => ErrorKind::Denied,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
        }
    }
}

/// One database, already narrowed to one provider of one app of one tenant.
pub trait Backend: Send + Sync + 'static {
    /// One call whose statements passed [`model::sql::check`], as one transaction: all of it, durably, when it is
    /// answered, or nothing. A call that is dropped may still happen, whole.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, SqlError>>;
    /// How many calls it has under way at once, where that is bounded.
    fn connections(&self) -> Option<usize> {
        None
    }
}

/// What somebody else's program answered to so many statements, if an answer of ours could be that: within the limits of one
/// and of its shape. `garbage` says whose it is and what is wrong with it.
fn fitting(answer: Answer, statements: usize, garbage: impl Fn(&str) -> String) -> Result<Answer, SqlError> {
    match answer {
        Answer::Rows(Rows { columns, rows }) => {
            let (width, mut gathered) = (columns.len(), Gathered::new(columns));
            for row in rows {
                if row.len() != width {
                    return Err(SqlError::Unavailable(garbage("rows of another width than it has columns")));
                }
                gathered.push(row)?;
            }
            Ok(Answer::Rows(gathered.done()))
        }
        Answer::Each(each) if each.len() != statements => {
            Err(SqlError::Unavailable(garbage("for other statements than those asked for")))
        }
        Answer::Changed(_) | Answer::Each(_) => Ok(answer),
    }
}

/// How long a call waits for a connection.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// One of the connections that a link may have at once.
async fn connection(share: &Share) -> Result<Taken, SqlError> {
    let busy = || SqlError::Unavailable(format!("the {} connections that one link may have are in use", share.most()));
    share.within(MAX_WAIT).await.ok_or_else(busy)
}

/// What one component of one revision may open: a binding, immutable. Another link is another revision.
#[derive(Default)]
pub struct SqlLinks(HashMap<String, Database>);

/// A database, shared with every instance that opens it.
#[derive(Clone)]
pub struct Database {
    backend: Arc<dyn Backend>,
    meter: Arc<LinkMeter>,
    share: Share,
}

impl Database {
    /// One by way of `backend`, which the link has alone or with others, counted by `meter`.
    pub fn new(backend: Arc<dyn Backend>, meter: Arc<LinkMeter>, sharing: Sharing) -> Self {
        let share = Share::new(backend.connections(), sharing);
        Self { backend, meter, share }
    }

    /// Runs one statement and gives back its rows.
    ///
    /// # Errors
    /// Any [`SqlError`].
    pub async fn query(&self, sql: String, params: Vec<Value>) -> Result<Rows, SqlError> {
        match self.call("query", Call::Query(Statement { sql, params })).await? {
            Answer::Rows(rows) => Ok(rows),
            other => Err(wrong(&other)),
        }
    }

    /// Runs one statement and gives back how many rows it changed.
    ///
    /// # Errors
    /// Any [`SqlError`].
    pub async fn execute(&self, sql: String, params: Vec<Value>) -> Result<u64, SqlError> {
        match self.call("execute", Call::Execute(Statement { sql, params })).await? {
            Answer::Changed(rows) => Ok(rows),
            other => Err(wrong(&other)),
        }
    }

    /// Runs statements as one transaction and gives back how many rows each changed.
    ///
    /// # Errors
    /// Any [`SqlError`].
    pub async fn batch(&self, statements: Vec<Statement>) -> Result<Vec<u64>, SqlError> {
        match self.call("batch", Call::Batch(statements)).await? {
            Answer::Each(rows) => Ok(rows),
            other => Err(wrong(&other)),
        }
    }

    async fn call(&self, operation: &'static str, call: Call) -> Result<Answer, SqlError> {
        self.meter
            .call(operation, async {
                model::sql::check(call.statements())?;
                let _connection = connection(&self.share).await?;
                self.backend.call(call).await
            })
            .await
    }
}

fn wrong(answer: &Answer) -> SqlError {
    let got = match answer {
        Answer::Rows(_) => "rows",
        Answer::Changed(_) => "a count",
        Answer::Each(_) => "counts",
    };
    SqlError::Unavailable(format!("it answered another question, with {got}"))
}

/// The label of `open("")`.
const DEFAULT_LABEL: &str = "default";

impl SqlLinks {
    /// Adds what `open(label)` gives.
    #[must_use]
    pub fn with(
        mut self,
        label: &model::Label,
        backend: Arc<dyn Backend>,
        meter: Arc<LinkMeter>,
        sharing: Sharing,
    ) -> Self {
        self.0.insert(label.as_str().to_owned(), Database::new(backend, meter, sharing));
        self
    }

    fn find(&self, name: &str) -> Option<&Database> {
        self.0.get(if name.is_empty() { DEFAULT_LABEL } else { name })
    }

    /// The labels, for the message that one is missing.
    fn labels(&self) -> String {
        let mut labels: Vec<_> = self.0.keys().map(String::as_str).collect();
        labels.sort_unstable();
        if labels.is_empty() { "nothing is linked".to_owned() } else { format!("linked: {}", labels.join(", ")) }
    }
}
