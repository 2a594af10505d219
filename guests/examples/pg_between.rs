//! Exports `wasmcloud:postgres`, and imports it: a component that stands before a Postgres and drops no table. Asked for
//! `SELECT rows N`, `SELECT bytes N` or `SELECT ragged` it asks nobody and makes up what no Postgres would answer.
mod bindings {
    wit_bindgen::generate!({
        path: "../wit/postgres",
        inline: "
            package sidereal:pg-between;
            world provider {
                import wasmcloud:postgres/query@0.1.1-draft;
                import wasmcloud:postgres/prepared@0.1.1-draft;
                export wasmcloud:postgres/query@0.1.1-draft;
                export wasmcloud:postgres/prepared@0.1.1-draft;
            }
        ",
        world: "sidereal:pg-between/provider",
        generate_all,
    });
}

use bindings::exports::wasmcloud::postgres::{prepared, query};
use bindings::wasmcloud::postgres::types::{
    PgValue, PreparedStatementExecError, QueryError, ResultRow, ResultRowEntry, StatementPrepareError,
};
use bindings::wasmcloud::postgres::{prepared as statements, query as database};

struct Between;

fn drops(sql: &str) -> bool {
    sql.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("drop"))
}

const KEPT: &str = "the go-between drops nothing";

fn row(column: &str, value: PgValue) -> ResultRow {
    vec![ResultRowEntry { column_name: column.to_owned(), value }]
}

fn made_up(sql: &str) -> Option<Vec<ResultRow>> {
    let number = |of: &str| sql.strip_prefix(of)?.parse::<usize>().ok();
    if let Some(count) = number("SELECT rows ") {
        return Some(vec![row("n", PgValue::Null); count]);
    }
    if let Some(count) = number("SELECT bytes ") {
        return Some(vec![row("t", PgValue::Text("x".repeat(count)))]);
    }
    (sql == "SELECT ragged").then(|| vec![row("a", PgValue::Int4(1)), row("b", PgValue::Int4(2))])
}

impl query::Guest for Between {
    fn query(sql: String, params: Vec<PgValue>) -> Result<Vec<ResultRow>, QueryError> {
        match made_up(&sql) {
            Some(rows) => Ok(rows),
            None if drops(&sql) => Err(QueryError::Unexpected(KEPT.to_owned())),
            None => database::query(&sql, &params),
        }
    }

    fn query_batch(sql: String) -> Result<(), QueryError> {
        match sql.split(';').any(drops) {
            true => Err(QueryError::Unexpected(KEPT.to_owned())),
            false => database::query_batch(&sql),
        }
    }
}

impl prepared::Guest for Between {
    fn prepare(sql: String) -> Result<String, StatementPrepareError> {
        match drops(&sql) {
            true => Err(StatementPrepareError::Unexpected(KEPT.to_owned())),
            false => statements::prepare(&sql),
        }
    }

    fn exec(token: String, params: Vec<PgValue>) -> Result<u64, PreparedStatementExecError> {
        statements::exec(&token, &params)
    }
}

bindings::export!(Between with_types_in bindings);
