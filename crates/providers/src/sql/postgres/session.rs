//! One connection that is logged in, and how statements run on it.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use model::sql::{MAX_ANSWER, MAX_ROWS, SqlError, only_reads};
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Connection, Statement};

use super::connect::Io;
use super::error::translate;
use super::guard::{Guarded, Oversize};
use super::params::Param;
use super::pool::AbortOnDrop;
use super::rest::Rest;
use super::values::{Raw, Reader};

/// Statements a connection keeps prepared.
const MAX_PREPARED: usize = 64;

pub(super) struct Session {
    client: Client,
    /// See [`super::pool`].
    pub(super) generation: u64,
    oversize: Oversize,
    rest: Rest,
    prepared: Mutex<HashMap<String, Statement>>,
    /// A statement was refused because its tables changed since it was prepared.
    outdated: AtomicBool,
    /// No transaction is open.
    at_rest: AtomicBool,
    /// Reads and writes; ends at once with the session, whatever it waits for.
    _driver: AbortOnDrop,
}

impl Session {
    /// One that just logged in, set up.
    pub(super) async fn new(
        client: Client,
        connection: Connection<Guarded<Box<dyn Io>>, NoTlsStream>,
        oversize: Oversize,
    ) -> Result<Self, SqlError> {
        let driver = tokio::spawn(async move {
            if let Err(cause) = connection.await {
                tracing::debug!(%cause, "a connection to Postgres ended");
            }
        });
        let driver = AbortOnDrop(driver);
        let rest = Rest::new(&client).await.map_err(|cause| translate(&cause, &oversize))?;
        Ok(Self {
            client,
            generation: 0,
            oversize,
            rest,
            prepared: Mutex::default(),
            outdated: AtomicBool::new(false),
            at_rest: AtomicBool::new(true),
            _driver: driver,
        })
    }

    /// Whether nothing that a call did is met by the next one.
    pub(super) async fn is_cleared(&self) -> bool {
        let ours = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.is_at_rest() && self.rest.again(&self.client, ours).await
    }

    /// Whether somebody is at the other end.
    pub(super) async fn answers(&self, within: Duration) -> bool {
        matches!(tokio::time::timeout(within, self.client.batch_execute("")).await, Ok(Ok(())))
    }

    pub(super) fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    fn is_at_rest(&self) -> bool {
        self.at_rest.load(Relaxed)
    }

    fn refused(&self, cause: &tokio_postgres::Error) -> SqlError {
        translate(cause, &self.oversize)
    }

    /// The statement, prepared now or before.
    pub(super) async fn prepared(&self, sql: &str) -> Result<Statement, SqlError> {
        let lock = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(sql).cloned() {
            return Ok(known);
        }
        let fresh = self.client.prepare(sql).await.map_err(|cause| self.refused(&cause))?;
        let mut known = lock();
        if known.len() >= MAX_PREPARED {
            known.clear();
        }
        known.insert(sql.to_owned(), fresh.clone());
        Ok(fresh)
    }

    async fn ready(&self, sql: &str, params: &[Param]) -> Result<Statement, SqlError> {
        let statement = self.prepared(sql).await?;
        let (wanted, given) = (statement.params().len(), params.len());
        if wanted == given {
            return Ok(statement);
        }
        Err(SqlError::Value(format!("the statement has {wanted} parameters, and {given} values were given")))
    }

    /// Whether a call is to be made once more: its statement was prepared for tables that are others now, and has not
    /// begun.
    fn again<T>(&self, result: &Result<T, SqlError>) -> bool {
        result.is_err() && self.outdated.swap(false, Relaxed) && self.is_at_rest()
    }

    pub(super) async fn rows<T: Send>(
        &self,
        sql: &str,
        params: &[Param],
        reader: &Reader<T>,
    ) -> Result<(Vec<String>, Vec<Vec<T>>), SqlError> {
        let result = self.rows_once(sql, params, reader).await;
        if self.again(&result) { self.rows_once(sql, params, reader).await } else { result }
    }

    pub(super) async fn changed(&self, sql: &str, params: &[Param]) -> Result<u64, SqlError> {
        let result = self.changed_once(sql, params).await;
        if self.again(&result) { self.changed_once(sql, params).await } else { result }
    }

    async fn rows_once<T: Send>(
        &self,
        sql: &str,
        params: &[Param],
        reader: &Reader<T>,
    ) -> Result<(Vec<String>, Vec<Vec<T>>), SqlError> {
        let statement = self.ready(sql, params).await?;
        let columns: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
        let mut bytes: usize = columns.iter().map(String::len).sum();
        let mut rows = Vec::new();
        let stream = self.client.query_raw(&statement, params).await.map_err(|cause| self.stale(&cause))?;
        let mut stream = pin!(stream);
        while let Some(row) = stream.try_next().await.map_err(|cause| self.stale(&cause))? {
            let mut values = Vec::with_capacity(columns.len());
            for (index, column) in statement.columns().iter().enumerate() {
                let raw = row.try_get::<_, Option<Raw<'_>>>(index).map_err(|cause| self.refused(&cause))?;
                bytes = bytes.saturating_add(raw.as_ref().map_or(0, |raw| raw.0.len()) + 1);
                values.push(match raw {
                    None => (reader.null)(),
                    Some(Raw(raw)) => (reader.read)(column.type_(), raw).map_err(|why| {
                        SqlError::Value(format!("the column `{}` cannot be read: {why}", column.name()))
                    })?,
                });
            }
            if rows.len() >= MAX_ROWS || bytes > MAX_ANSWER {
                return Err(SqlError::TooLarge(format!(
                    "the answer has more than {MAX_ROWS} rows or {MAX_ANSWER} bytes; ask for fewer, for example with LIMIT"
                )));
            }
            rows.push(values);
        }
        Ok((columns, rows))
    }

    async fn changed_once(&self, sql: &str, params: &[Param]) -> Result<u64, SqlError> {
        let statement = self.ready(sql, params).await?;
        let count = self.client.execute_raw(&statement, params).await.map_err(|cause| self.stale(&cause))?;
        // The server counts the rows that a statement read, too.
        Ok(if only_reads(sql) { 0 } else { count })
    }

    /// Runs statements, the server splits them.
    pub(super) async fn script(&self, sql: &str) -> Result<(), SqlError> {
        self.client.batch_execute(sql).await.map_err(|cause| self.refused(&cause))
    }

    /// As one transaction: committed where `work` succeeds, undone where it does not.
    pub(super) async fn whole<T>(&self, work: impl Future<Output = Result<T, SqlError>>) -> Result<T, SqlError> {
        self.at_rest.store(false, Relaxed);
        self.script("BEGIN").await?;
        let result = match work.await {
            Ok(done) => self.script("COMMIT").await.map(|()| done),
            Err(error) => Err(error),
        };
        match result {
            Ok(done) => {
                self.at_rest.store(true, Relaxed);
                Ok(done)
            }
            // Of what broke the connection closes, which undoes as much.
            Err(error @ (SqlError::Unavailable(_) | SqlError::TimedOut { .. } | SqlError::TooLarge(_))) => Err(error),
            Err(error) => {
                if self.script("ROLLBACK").await.is_ok() {
                    self.at_rest.store(true, Relaxed);
                }
                Err(error)
            }
        }
    }

    /// An error of a statement that runs. The server plans one for the tables of its time; after a change of theirs it
    /// is prepared anew.
    fn stale(&self, cause: &tokio_postgres::Error) -> SqlError {
        let planned = |said: &tokio_postgres::error::DbError| said.routine() == Some("RevalidateCachedQuery");
        if cause.as_db_error().is_some_and(planned) {
            self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clear();
            self.outdated.store(true, Relaxed);
            return SqlError::Conflict("the tables changed since the statement was prepared".to_owned());
        }
        self.refused(cause)
    }
}
