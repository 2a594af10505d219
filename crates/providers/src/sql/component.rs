//! A component that exports `sidereal:sql/client` as a database. Each call is one call of it: open, the operation, drop.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::sql::{Answer, Call, ConstraintKind, Rows, STATEMENT_MS, SqlError, Statement};
use runtime::wasmtime::component::{Instance, InstancePre};
use runtime::wasmtime::{self, Store};
use runtime::{Callee, Ctx};

use super::adapter::bindings::sidereal::sql::types;
use super::adapter::{guests, ours};
use super::{Backend, fitting};
use crate::exported::{Exported, Failed, Functions};
use bindings::exports::sidereal::sql::client;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/sql",
        inline: "
            package sidereal:exported;
            world provider {
                export sidereal:sql/client@0.1.0;
            }
        ",
        world: "sidereal:exported/provider",
        exports: { default: async },
        require_store_data_send: true,
        with: { "sidereal:sql/types@0.1.0": crate::sql::adapter::bindings::sidereal::sql::types },
    });
}

/// Where a component has the functions of the contract.
struct Indices(client::GuestIndices);

impl Functions for Indices {
    fn of(pre: &InstancePre<Ctx>) -> wasmtime::Result<Self> {
        client::GuestIndices::new(pre).map(Self)
    }
}

/// A component of the app as a database.
pub struct ComponentSql {
    label: String,
    exported: Exported<Indices>,
}

impl ComponentSql {
    /// The database that `callee` opens under the label of the link.
    pub fn new(label: &model::Label, callee: Arc<dyn Callee>) -> Self {
        Self { label: label.as_str().to_owned(), exported: Exported::new(callee) }
    }

    async fn ask(&self, call: Call) -> Result<Answer, SqlError> {
        let (label, statements) = (self.label.clone(), call.statements().len());
        let called = self.exported.call(move |store, instance, indices| {
            Box::pin(async move { perform(store, &instance, &indices, &label, call).await })
        });
        let said = called.await.map_err(|failed| match failed {
            Failed::TimedOut { ms } => SqlError::TimedOut { ms },
            Failed::TooLarge(why) => SqlError::TooLarge(why),
            Failed::Unavailable(why) => SqlError::Unavailable(why),
        })?;
        let answer = said.map_err(|error| self.failed(error))?;
        fitting(answer, statements, |what| format!("the component behind the link answered {what}"))
    }

    fn failed(&self, error: types::Error) -> SqlError {
        match error {
            types::Error::NoSuchDatabase => {
                SqlError::Unavailable(format!("the component behind the link has no database `{}`", self.label))
            }
            types::Error::Invalid(message) => SqlError::Invalid(message),
            types::Error::Value(message) => SqlError::Value(message),
            types::Error::Constraint(types::Violation { kind, message }) => {
                let kind = match kind {
                    types::ConstraintKind::Unique => ConstraintKind::Unique,
                    types::ConstraintKind::NotNull => ConstraintKind::NotNull,
                    types::ConstraintKind::ForeignKey => ConstraintKind::ForeignKey,
                    types::ConstraintKind::Check => ConstraintKind::Check,
                    types::ConstraintKind::Other => ConstraintKind::Other,
                };
                SqlError::Constraint { kind, message }
            }
            types::Error::Conflict(message) => SqlError::Conflict(message),
            types::Error::Denied(message) => SqlError::Denied(message),
            types::Error::TooLarge(message) => SqlError::TooLarge(message),
            // How long it was is in the words only; what a statement has is the same on every database.
            types::Error::Timeout(_) => SqlError::TimedOut { ms: STATEMENT_MS },
            types::Error::Unavailable(message) => SqlError::Unavailable(message),
        }
    }
}

async fn perform(
    s: &mut Store<Ctx>,
    instance: &Instance,
    indices: &Indices,
    label: &str,
    call: Call,
) -> wasmtime::Result<Result<Answer, types::Error>> {
    let client = indices.0.load(&mut *s, instance)?;
    let open = match client.call_open(&mut *s, label).await? {
        Ok(open) => open,
        Err(error) => return Ok(Err(error)),
    };
    let database = client.database();
    let answer = match call {
        Call::Query(Statement { sql, params }) => {
            let rows = database.call_query(&mut *s, open, &sql, &guests(params)).await?;
            rows.map(|types::Rows { columns, rows }| {
                Answer::Rows(Rows { columns, rows: rows.into_iter().map(ours).collect() })
            })
        }
        Call::Execute(Statement { sql, params }) => {
            database.call_execute(&mut *s, open, &sql, &guests(params)).await?.map(Answer::Changed)
        }
        Call::Batch(statements) => {
            let one = |Statement { sql, params }| types::Statement { sql, params: guests(params) };
            let statements: Vec<_> = statements.into_iter().map(one).collect();
            database.call_batch(&mut *s, open, &statements).await?.map(Answer::Each)
        }
    };
    open.resource_drop_async(&mut *s).await?;
    Ok(answer)
}

impl Backend for ComponentSql {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, SqlError>> {
        self.ask(call).boxed()
    }
}
