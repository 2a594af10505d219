//! `wasmcloud:postgres` 0.1.1-draft, as existing components import it: one database, without a name, that only a Postgres
//! can be. Statements, limits and connections are those of [`Postgres`]; only the values are the contract's own.

mod params;
mod values;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use model::Digest;
use model::sql::{MAX_CALL, MAX_PARAMS, MAX_SQL, SqlError, Statement};
use runtime::wasmtime::component::{HasData, Linker};
use runtime::{Capability, Ctx, LogStreamKind};

use super::connection;
use super::postgres::{MAX_CONNECTIONS, Param, Postgres, Reader};
use crate::meter::LinkMeter;
use crate::share::{Share, Sharing};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/postgres",
        world: "imports",
        imports: { default: async | trappable },
    });
}
use bindings::wasmcloud::postgres::types::{
    PgValue, PreparedStatementExecError, QueryError, ResultRow, ResultRowEntry, StatementPrepareError,
};
use bindings::wasmcloud::postgres::{prepared, query, types};

/// Statements a component keeps prepared; of more, the oldest is forgotten.
const MAX_PREPARED: usize = 1024;

/// The database of a component: a binding, immutable. Another link is another revision.
#[derive(Clone)]
pub struct PostgresLink {
    database: Arc<Postgres>,
    meter: Arc<LinkMeter>,
    share: Share,
    prepared: Arc<Mutex<Prepared>>,
}

/// The statements behind tokens. The same text has the same token, in every instance of the component.
#[derive(Default)]
struct Prepared {
    by_token: HashMap<String, String>,
    oldest: VecDeque<String>,
}

impl PostgresLink {
    /// Everything a component asks goes to `database`.
    pub fn new(database: Arc<Postgres>, meter: Arc<LinkMeter>, sharing: Sharing) -> Self {
        let share = Share::new(Some(MAX_CONNECTIONS), sharing);
        Self { database, meter, share, prepared: Arc::default() }
    }

    /// A call, by one of the connections that the link may have, counted.
    async fn call<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, SqlError>>,
    ) -> Result<T, SqlError> {
        let work = async {
            let _connection = connection(&self.share).await?;
            work.await
        };
        self.meter.call(operation, work).await
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
        let link = match self.linked() {
            Ok(link) => link,
            Err(why) => return Ok(Err(QueryError::Unexpected(why))),
        };
        let reader = Reader { read: values::value, null: || PgValue::Null };
        let asked =
            link.call("query", async { link.database.rows(&sql, &checked(&sql, &given)?, &reader).await }).await;
        Ok(asked.map_err(refused).map(|(columns, rows)| {
            let row = |values: Vec<PgValue>| {
                let entry = |(name, value): (&String, PgValue)| ResultRowEntry { column_name: name.clone(), value };
                columns.iter().zip(values).map(entry).collect()
            };
            rows.into_iter().map(row).collect()
        }))
    }

    async fn query_batch(&mut self, sql: String) -> wasmtime::Result<Result<(), QueryError>> {
        let link = match self.linked() {
            Ok(link) => link,
            Err(why) => return Ok(Err(QueryError::Unexpected(why))),
        };
        let script = async {
            if sql.len() > MAX_SQL {
                return Err(SqlError::TooLarge(format!("a script has at most {MAX_SQL} bytes")));
            }
            if sql.contains('\0') {
                return Err(SqlError::Invalid("it has a NUL character".to_owned()));
            }
            link.database.script(&sql).await
        };
        Ok(link.call("query-batch", script).await.map_err(refused))
    }
}

impl prepared::Host for View<'_> {
    async fn prepare(&mut self, sql: String) -> wasmtime::Result<Result<String, StatementPrepareError>> {
        let unexpected = StatementPrepareError::Unexpected;
        let link = match self.linked() {
            Ok(link) => link,
            Err(why) => return Ok(Err(unexpected(why))),
        };
        let asked = async {
            checked(&sql, &[])?;
            link.database.prepare(&sql).await
        };
        let asked = link.call("prepare", asked).await;
        Ok(asked.map(|()| link.keep(sql)).map_err(|cause| unexpected(cause.to_string())))
    }

    async fn exec(
        &mut self,
        token: String,
        given: Vec<PgValue>,
    ) -> wasmtime::Result<Result<u64, PreparedStatementExecError>> {
        let link = match self.linked() {
            Ok(link) => link,
            Err(why) => return Ok(Err(PreparedStatementExecError::Unexpected(why))),
        };
        let Some(sql) = link.kept(&token) else {
            return Ok(Err(PreparedStatementExecError::UnknownPreparedQuery));
        };
        let asked = link.call("exec", async { link.database.changed(&sql, &checked(&sql, &given)?).await }).await;
        Ok(asked.map_err(|cause| PreparedStatementExecError::QueryError(refused(cause))))
    }
}
