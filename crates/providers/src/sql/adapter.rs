//! The one place where `sidereal:sql` meets a [`Backend`](super::Backend): finds the link, and turns values and errors
//! into the contract's.

use model::sql::{ConstraintKind, SqlError, Statement, Value};
use runtime::wasmtime::component::{HasData, Linker, Resource, ResourceTableError};
use runtime::{Capability, Ctx, LogStreamKind};

use super::{Database, SqlLinks};

pub(super) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/sql",
        world: "imports",
        imports: { default: async | trappable },
        with: { "sidereal:sql/client.database": crate::sql::Database },
        trappable_error_type: { "sidereal:sql/types.error" => super::Refusal },
    });
}
use bindings::sidereal::sql::{client, types};

/// How a call ends without an answer.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub enum Refusal {
    /// The guest is told.
    Error(types::Error),
    /// The guest broke the contract, for example its limit of handles.
    Trap(wasmtime::Error),
}

impl From<SqlError> for Refusal {
    fn from(error: SqlError) -> Self {
        let text = error.to_string();
        Self::Error(match error {
            SqlError::Invalid(message) => types::Error::Invalid(message),
            SqlError::Value(message) => types::Error::Value(message),
            SqlError::Constraint { kind, message } => {
                let kind = match kind {
                    ConstraintKind::Unique => types::ConstraintKind::Unique,
                    ConstraintKind::NotNull => types::ConstraintKind::NotNull,
                    ConstraintKind::ForeignKey => types::ConstraintKind::ForeignKey,
                    ConstraintKind::Check => types::ConstraintKind::Check,
                    ConstraintKind::Other => types::ConstraintKind::Other,
                };
                types::Error::Constraint(types::Violation { kind, message })
            }
            SqlError::Conflict(message) => types::Error::Conflict(message),
            SqlError::Denied(message) => types::Error::Denied(message),
            SqlError::TooLarge(message) => types::Error::TooLarge(message),
            SqlError::TimedOut { .. } => types::Error::Timeout(text),
            SqlError::Unavailable(_) => types::Error::Unavailable(text),
        })
    }
}

impl From<ResourceTableError> for Refusal {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

/// The capability `sidereal:sql`. Which databases a component has is in its [`SqlLinks`] binding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sql;

impl Capability for Sql {
    fn interfaces(&self) -> &'static [&'static str] {
        &["sidereal:sql/types@0.1.0", "sidereal:sql/client@0.1.0"]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        types::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        client::add_to_linker::<_, Views>(linker, |ctx| View(ctx))
    }
}

struct Views;

impl HasData for Views {
    type Data<'a> = View<'a>;
}

/// The store's data as the contract's functions see it.
struct View<'a>(&'a mut Ctx);

pub(super) fn ours(values: Vec<types::Value>) -> Vec<Value> {
    let one = |value| match value {
        types::Value::Null => Value::Null,
        types::Value::Boolean(value) => Value::Boolean(value),
        types::Value::Int64(value) => Value::Int64(value),
        types::Value::Float64(value) => Value::Float64(value),
        types::Value::Text(value) => Value::Text(value),
        types::Value::Bytes(value) => Value::Bytes(value),
    };
    values.into_iter().map(one).collect()
}

pub(super) fn guests(values: Vec<Value>) -> Vec<types::Value> {
    let one = |value| match value {
        Value::Null => types::Value::Null,
        Value::Boolean(value) => types::Value::Boolean(value),
        Value::Int64(value) => types::Value::Int64(value),
        Value::Float64(value) => types::Value::Float64(value),
        Value::Text(value) => types::Value::Text(value),
        Value::Bytes(value) => types::Value::Bytes(value),
    };
    values.into_iter().map(one).collect()
}

impl View<'_> {
    fn database(&mut self, handle: &Resource<Database>) -> Result<Database, Refusal> {
        Ok(self.0.table().get(handle)?.clone())
    }
}

impl types::Host for View<'_> {
    fn convert_error(&mut self, refusal: Refusal) -> wasmtime::Result<types::Error> {
        match refusal {
            Refusal::Error(error) => Ok(error),
            Refusal::Trap(trap) => Err(trap),
        }
    }
}

impl client::Host for View<'_> {
    async fn open(&mut self, name: String) -> Result<Resource<Database>, Refusal> {
        let (found, labels) = match self.0.binding::<SqlLinks>() {
            Some(links) => (links.find(&name).cloned(), links.labels()),
            None => (None, "nothing is linked".to_owned()),
        };
        let Some(database) = found else {
            let name = name.chars().take(80).collect::<String>();
            let remark = format!("no SQL link has the label `{}`; {labels}", name.escape_debug());
            self.0.log(LogStreamKind::Warn, "sidereal:sql", remark.as_bytes());
            return Err(Refusal::Error(types::Error::NoSuchDatabase));
        };
        Ok(self.0.table().push(database)?)
    }
}

impl client::HostDatabase for View<'_> {
    async fn query(
        &mut self,
        database: Resource<Database>,
        sql: String,
        params: Vec<types::Value>,
    ) -> Result<types::Rows, Refusal> {
        let rows = self.database(&database)?.query(sql, ours(params)).await?;
        Ok(types::Rows { columns: rows.columns, rows: rows.rows.into_iter().map(guests).collect() })
    }

    async fn execute(
        &mut self,
        database: Resource<Database>,
        sql: String,
        params: Vec<types::Value>,
    ) -> Result<u64, Refusal> {
        Ok(self.database(&database)?.execute(sql, ours(params)).await?)
    }

    async fn batch(
        &mut self,
        database: Resource<Database>,
        statements: Vec<types::Statement>,
    ) -> Result<Vec<u64>, Refusal> {
        let one = |statement: types::Statement| Statement { sql: statement.sql, params: ours(statement.params) };
        Ok(self.database(&database)?.batch(statements.into_iter().map(one).collect()).await?)
    }

    async fn drop(&mut self, database: Resource<Database>) -> wasmtime::Result<()> {
        self.0.table().delete(database)?;
        Ok(())
    }
}
