//! A Postgres database, over connections that the `Dialer` makes: few, kept, each used by one call at a time.
//!
//! A connection goes back only from a call that ended with an answer, and after what it left was undone (see [`rest`]).
//! Whatever ends otherwise, with a lost answer, a time-out, or a caller that gave up, closes its connection, and the
//! server rolls back what was not committed.

mod connect;
mod error;
mod guard;
mod params;
mod pool;
mod rest;
mod session;
pub(crate) mod text;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use model::rules::postgres::place;
use model::sql::{Answer, Call, Rows, STATEMENT_MS, SqlError, only_reads};
use model::{AppName, ProviderName, TenantName};
use tokio::sync::Semaphore;

use super::{Backend, MAX_WAIT};
use crate::breaker::{Breaker, Pass, Pauses};
use crate::dial::{Caller, Dialer, Target};
use crate::http_json::SettingsError;
use crate::http_json::certificates;
use crate::http_out::{Tls, public_roots};
use crate::secrets::Credentials;
use connect::Connector;
pub(crate) use params::{Param, float};
use pool::{Lease, Pool};
pub(crate) use values::Reader;

/// Connections of one provider of one app on one host.
pub const MAX_CONNECTIONS: usize = 8;
/// The whole of a call, connecting included: longer than the server itself gives a statement.
const CALL: Duration = Duration::from_millis(STATEMENT_MS + 2000);
/// When calls stop going out.
const PAUSES: Pauses = Pauses { after: 1, least: Duration::from_millis(50), most: Duration::from_secs(2) };

/// One app's Postgres database.
pub struct Postgres {
    pool: Arc<Pool>,
    room: Semaphore,
    breaker: Breaker<SqlError>,
}

/// Where a call failed.
enum Failure {
    /// There is no connection: the next call need not try at once.
    Connect(SqlError),
    /// On a connection.
    Call(SqlError),
}

type Tried<T> = Result<T, Failure>;

impl Postgres {
    /// The database that the settings name, for one app. Nothing is connected before the first call.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        config: &BTreeMap<String, String>,
        secrets: Credentials,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, SettingsError> {
        let text = |setting: &str| config.get(setting).map(String::as_str);
        let place = place(text("url").unwrap_or_default()).map_err(|_| SettingsError::Value {
            name: "url",
            why: "is not `postgres://host[:port]/database`".to_owned(),
        })?;
        let tls = match text("tls") {
            Some("off") => None,
            _ => {
                let roots = text("ca").map_or_else(|| Ok(public_roots()), certificates)?;
                Some(Tls::new(roots).map_err(|cause| SettingsError::Ca(cause.to_string()))?)
            }
        };
        let connector = Connector {
            target: Target {
                app: app.clone(),
                caller: Caller::Provider(provider.clone()),
                host: place.host,
                port: place.port,
            },
            database: place.database,
            username: text("username").map(str::to_owned),
            name: format!("sidereal {tenant}/{app}/{provider}"),
            tls,
            secrets,
            dialer,
        };
        Ok(Self {
            pool: Arc::new(Pool::new(connector)),
            room: Semaphore::new(MAX_CONNECTIONS),
            breaker: Breaker::new(PAUSES).or_silent(late()),
        })
    }

    /// Connects: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), SqlError> {
        self.guarded(async {
            let lease = self.lease().await?;
            lease.settle(Ok(())).map_err(Failure::Call)
        })
        .await
    }

    /// Rows of one statement, each value read by `reader`. A statement that may write is undone where its answer is
    /// above the limits.
    pub(crate) async fn rows<T: Send>(
        &self,
        sql: &str,
        params: &[Param],
        reader: &Reader<T>,
    ) -> Result<(Vec<String>, Vec<Vec<T>>), SqlError> {
        self.guarded(async {
            let mut lease = self.lease().await?;
            let session = lease.session().map_err(Failure::Call)?;
            let result = match only_reads(sql) {
                true => session.rows(sql, params, reader).await,
                false => session.whole(session.rows(sql, params, reader)).await,
            };
            lease.settle(result).map_err(Failure::Call)
        })
        .await
    }

    /// How many rows one statement changed.
    pub(crate) async fn changed(&self, sql: &str, params: &[Param]) -> Result<u64, SqlError> {
        self.guarded(async {
            let mut lease = self.lease().await?;
            let session = lease.session().map_err(Failure::Call)?;
            let result = session.changed(sql, params).await;
            lease.settle(result).map_err(Failure::Call)
        })
        .await
    }

    /// Whether the server takes the statement.
    pub(crate) async fn prepare(&self, sql: &str) -> Result<(), SqlError> {
        self.guarded(async {
            let mut lease = self.lease().await?;
            let session = lease.session().map_err(Failure::Call)?;
            let result = session.prepared(sql).await.map(drop);
            lease.settle(result).map_err(Failure::Call)
        })
        .await
    }

    /// Statements with semicolons between them, as the server runs them. Its connection is not used again: what such a
    /// script leaves behind ends with it, an open transaction undone.
    pub(crate) async fn script(&self, sql: &str) -> Result<(), SqlError> {
        self.guarded(async {
            let mut lease = self.lease().await?;
            let session = lease.session().map_err(Failure::Call)?;
            session.script(sql).await.map_err(Failure::Call)
        })
        .await
    }

    async fn each(&self, statements: &[model::sql::Statement]) -> Result<Vec<u64>, SqlError> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        self.guarded(async {
            let mut lease = self.lease().await?;
            let session = lease.session().map_err(Failure::Call)?;
            let all = async {
                let mut counts = Vec::with_capacity(statements.len());
                for statement in statements {
                    let params = params::of(&statement.params);
                    counts.push(session.changed(&statement.sql, &params).await?);
                }
                Ok(counts)
            };
            let result = session.whole(all).await;
            lease.settle(result).map_err(Failure::Call)
        })
        .await
    }

    async fn lease(&self) -> Tried<Lease> {
        self.pool.lease().await.map_err(Failure::Connect)
    }

    /// One call with its time, and what it says about the server.
    async fn guarded<T>(&self, call: impl Future<Output = Tried<T>>) -> Result<T, SqlError> {
        let busy = || SqlError::Unavailable(format!("its {MAX_CONNECTIONS} connections are in use"));
        let Ok(Ok(_permit)) = tokio::time::timeout(MAX_WAIT, self.room.acquire()).await else { return Err(busy()) };
        let mut asking = Asking { pass: Some(self.breaker.enter()?), pool: &self.pool };
        let Ok(done) = tokio::time::timeout(CALL, call).await else { return Err(asking.late()) };
        let pass = asking.pass.take();
        match (&done, pass) {
            (_, None) => {}
            (Err(Failure::Connect(error) | Failure::Call(error @ SqlError::Unavailable(_))), Some(pass)) => {
                pass.failed(error.clone());
            }
            (Ok(_) | Err(Failure::Call(_)), Some(pass)) => pass.answered(),
        }
        done.map_err(|(Failure::Connect(error) | Failure::Call(error))| error)
    }
}

fn late() -> SqlError {
    SqlError::TimedOut { ms: CALL.as_millis() as u64 }
}

/// A call under way. Given up while the server is silent, or without an answer in its time, it closes its own connection, and
/// those at rest are asked before they are used: nobody may be at the other end of them either, and nothing would ever
/// tell. Where it is only this call that takes long, the other links keep theirs.
struct Asking<'a> {
    pass: Option<Pass<SqlError>>,
    pool: &'a Pool,
}

impl Asking<'_> {
    fn late(mut self) -> SqlError {
        if self.pass.take().is_some_and(|pass| pass.late(late())) {
            self.pool.doubt();
        }
        late()
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.pass.take().is_some_and(Pass::given_up) {
            self.pool.doubt();
        }
    }
}

impl Backend for Postgres {
    fn connections(&self) -> Option<usize> {
        Some(MAX_CONNECTIONS)
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, SqlError>> {
        async move {
            Ok(match call {
                Call::Query(one) => {
                    let reader = Reader { read: values::value, null: || model::sql::Value::Null };
                    let (columns, rows) = self.rows(&one.sql, &params::of(&one.params), &reader).await?;
                    Answer::Rows(Rows { columns, rows })
                }
                Call::Execute(one) => Answer::Changed(self.changed(&one.sql, &params::of(&one.params)).await?),
                Call::Batch(all) => Answer::Each(self.each(&all).await?),
            })
        }
        .boxed()
    }
}
