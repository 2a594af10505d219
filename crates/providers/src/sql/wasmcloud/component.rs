//! A component that exports `wasmcloud:postgres` as the database of another one. Each operation is one call of it. What was
//! prepared is prepared again in the call that runs it: no instance of the component has to remember a statement.

use std::sync::Arc;

use model::sql::{MAX_ANSWER, MAX_ROWS, SqlError};
use runtime::wasmtime::component::InstancePre;
use runtime::{Callee, Ctx, wasmtime};

use super::bindings::wasmcloud::postgres::types::{
    PgValue, PreparedStatementExecError, QueryError, ResultRow, ResultRowEntry, StatementPrepareError,
};
use super::link::No;
use super::params;
use crate::exported::{Exported, Failed, Functions};
use crate::sql::postgres::Param;
use bindings::exports::wasmcloud::postgres::{prepared, query};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/postgres",
        inline: "
            package sidereal:exported;
            world provider {
                export wasmcloud:postgres/query@0.1.1-draft;
                export wasmcloud:postgres/prepared@0.1.1-draft;
            }
        ",
        world: "sidereal:exported/provider",
        exports: { default: async },
        require_store_data_send: true,
        with: { "wasmcloud:postgres/types@0.1.1-draft": crate::sql::wasmcloud::bindings::wasmcloud::postgres::types },
    });
}

/// Where a component has the functions of the contract, of those interfaces that it exports. A deploy is refused where its
/// caller imports another one.
struct Indices {
    query: Option<query::GuestIndices>,
    prepared: Option<prepared::GuestIndices>,
}

impl Functions for Indices {
    fn of(pre: &InstancePre<Ctx>) -> wasmtime::Result<Self> {
        Ok(Self { query: query::GuestIndices::new(pre).ok(), prepared: prepared::GuestIndices::new(pre).ok() })
    }
}

fn missing(interface: &str) -> wasmtime::Error {
    wasmtime::format_err!("it does not export `wasmcloud:postgres/{interface}@0.1.1-draft`")
}

impl Indices {
    fn query(&self) -> wasmtime::Result<&query::GuestIndices> {
        self.query.as_ref().ok_or_else(|| missing("query"))
    }

    fn prepared(&self) -> wasmtime::Result<&prepared::GuestIndices> {
        self.prepared.as_ref().ok_or_else(|| missing("prepared"))
    }
}

/// A component of the app as a Postgres.
pub(super) struct ComponentPostgres {
    exported: Exported<Indices>,
}

impl ComponentPostgres {
    /// The database that `callee` exports.
    pub(super) fn new(callee: Arc<dyn Callee>) -> Self {
        Self { exported: Exported::new(callee) }
    }

    pub(super) async fn query(&self, sql: String, given: Vec<PgValue>) -> Result<Vec<ResultRow>, No<QueryError>> {
        let called = self.exported.call(move |store, instance, indices| {
            Box::pin(
                async move { indices.query()?.load(&mut *store, &instance)?.call_query(store, &sql, &given).await },
            )
        });
        let rows = called.await?.map_err(No::Said)?;
        fitting(&rows)?;
        Ok(rows)
    }

    pub(super) async fn script(&self, sql: String) -> Result<(), No<QueryError>> {
        let called = self.exported.call(move |store, instance, indices| {
            Box::pin(async move { indices.query()?.load(&mut *store, &instance)?.call_query_batch(store, &sql).await })
        });
        called.await?.map_err(No::Said)
    }

    /// Whether it takes the statement.
    pub(super) async fn prepare(&self, sql: String) -> Result<(), No<StatementPrepareError>> {
        let called = self.exported.call(move |store, instance, indices| {
            Box::pin(async move { indices.prepared()?.load(&mut *store, &instance)?.call_prepare(store, &sql).await })
        });
        called.await?.map(drop).map_err(No::Said)
    }

    /// How many rows a statement changed.
    pub(super) async fn exec(&self, sql: String, given: Vec<PgValue>) -> Result<u64, No<PreparedStatementExecError>> {
        let called = self.exported.call(move |store, instance, indices| {
            Box::pin(async move {
                let statements = indices.prepared()?.load(&mut *store, &instance)?;
                match statements.call_prepare(&mut *store, &sql).await? {
                    Ok(token) => statements.call_exec(store, &token, &given).await,
                    Err(StatementPrepareError::Unexpected(why)) => Ok(Err(PreparedStatementExecError::Unexpected(why))),
                }
            })
        });
        called.await?.map_err(No::Said)
    }
}

impl<E> From<Failed> for No<E> {
    fn from(failed: Failed) -> Self {
        Self::Failed(match failed {
            Failed::TimedOut { ms } => SqlError::TimedOut { ms },
            Failed::TooLarge(why) => SqlError::TooLarge(why),
            Failed::Unavailable(why) => SqlError::Unavailable(why),
        })
    }
}

/// Whether a Postgres could have answered this: within the limits of an answer, and of one shape.
fn fitting(rows: &[ResultRow]) -> Result<(), SqlError> {
    let wrong = |what: String| SqlError::Unavailable(format!("the component behind the link answered {what}"));
    let names = |row: &ResultRow| row.iter().map(|entry| entry.column_name.len()).sum::<usize>();
    let first = rows.first();
    let mut bytes = first.map_or(0, names);
    for row in rows {
        let same = |first: &ResultRow| {
            first.len() == row.len() && first.iter().zip(row).all(|(a, b)| a.column_name == b.column_name)
        };
        if !first.is_some_and(same) {
            return Err(wrong("rows of other columns than its first row has".to_owned()));
        }
        for ResultRowEntry { column_name, value } in row {
            let value =
                params::of(value).map_err(|why| wrong(format!("a value of the column `{column_name}` that {why}")))?;
            bytes = bytes.saturating_add(match value {
                Param::Null => 1,
                Param::Text(text) => text.len() + 1,
                Param::Bytes(bytes) => bytes.len() + 1,
            });
            if bytes > MAX_ANSWER {
                break;
            }
        }
    }
    if rows.len() > MAX_ROWS || bytes > MAX_ANSWER {
        return Err(SqlError::TooLarge(format!(
            "the answer has more than {MAX_ROWS} rows or {MAX_ANSWER} bytes; ask for fewer, for example with LIMIT"
        )));
    }
    Ok(())
}
