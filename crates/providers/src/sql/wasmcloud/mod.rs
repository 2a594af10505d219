//! `wasmcloud:postgres` 0.1.1-draft, as existing components import it: one database, without a name, that only a Postgres
//! can be, or a component that exports the contract. Statements and limits are those of [`Postgres`](super::Postgres); only
//! the values are the contract's own.

mod component;
mod link;
mod params;
mod values;

use runtime::wasmtime::component::{HasData, Linker};
use runtime::{Capability, Ctx, LogStreamKind};

pub use link::PostgresLink;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/postgres",
        world: "imports",
        imports: { default: async | trappable },
    });
}
use bindings::wasmcloud::postgres::types::{
    PgValue, PreparedStatementExecError, QueryError, ResultRow, StatementPrepareError,
};
use bindings::wasmcloud::postgres::{prepared, query, types};

/// The capability `wasmcloud:postgres`. Which database a component has is in its [`PostgresLink`] binding.
#[derive(Debug, Clone, Copy, Default)]
pub struct WasmcloudPostgres;

impl Capability for WasmcloudPostgres {
    fn interfaces(&self) -> &'static [&'static str] {
        &[
            "wasmcloud:postgres/types@0.1.1-draft",
            "wasmcloud:postgres/query@0.1.1-draft",
            "wasmcloud:postgres/prepared@0.1.1-draft",
        ]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        types::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        query::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        prepared::add_to_linker::<_, Views>(linker, |ctx| View(ctx))
    }
}

struct Views;

impl HasData for Views {
    type Data<'a> = View<'a>;
}

/// The store's data as the contract's functions see it.
struct View<'a>(&'a mut Ctx);

impl View<'_> {
    fn linked(&mut self) -> Result<PostgresLink, String> {
        if let Some(link) = self.0.binding::<PostgresLink>() {
            return Ok(PostgresLink::clone(link));
        }
        let why = "no link of `wasmcloud:postgres` has the label `default`, and the contract has no names";
        self.0.log(LogStreamKind::Warn, "wasmcloud:postgres", why.as_bytes());
        Err(why.to_owned())
    }
}

impl types::Host for View<'_> {}

impl query::Host for View<'_> {
    async fn query(
        &mut self,
        sql: String,
        given: Vec<PgValue>,
    ) -> wasmtime::Result<Result<Vec<ResultRow>, QueryError>> {
        Ok(match self.linked() {
            Ok(link) => link.query(sql, given).await,
            Err(why) => Err(QueryError::Unexpected(why)),
        })
    }

    async fn query_batch(&mut self, sql: String) -> wasmtime::Result<Result<(), QueryError>> {
        Ok(match self.linked() {
            Ok(link) => link.script(sql).await,
            Err(why) => Err(QueryError::Unexpected(why)),
        })
    }
}

impl prepared::Host for View<'_> {
    async fn prepare(&mut self, sql: String) -> wasmtime::Result<Result<String, StatementPrepareError>> {
        Ok(match self.linked() {
            Ok(link) => link.prepare(sql).await,
            Err(why) => Err(StatementPrepareError::Unexpected(why)),
        })
    }

    async fn exec(
        &mut self,
        token: String,
        given: Vec<PgValue>,
    ) -> wasmtime::Result<Result<u64, PreparedStatementExecError>> {
        Ok(match self.linked() {
            Ok(link) => link.exec(&token, given).await,
            Err(why) => Err(PreparedStatementExecError::Unexpected(why)),
        })
    }
}
