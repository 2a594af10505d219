//! What every database must do, run against each of them. It works in tables of its own, named `conf_…`, and leaves
//! nothing behind.

use std::fmt;
use std::time::{Duration, Instant};

use model::sql::{Answer, Call, ConstraintKind, MAX_ROWS, Rows, STATEMENT_MS, SqlError, Statement, Value};

use super::Backend;

/// A database that does something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: expected {expected}, got {got}")]
pub struct Mismatch {
    /// What was tried.
    pub step: String,
    /// What the contract says.
    pub expected: String,
    /// What happened.
    pub got: String,
}

fn cut(what: &dyn fmt::Debug) -> String {
    format!("{what:?}").chars().take(400).collect()
}

fn same<T: PartialEq + fmt::Debug>(step: &str, got: T, expected: T) -> Result<(), Mismatch> {
    if got == expected {
        return Ok(());
    }
    Err(Mismatch { step: step.to_owned(), expected: cut(&expected), got: cut(&got) })
}

/// The kind of an error, without its words.
fn kind<T>(result: Result<T, SqlError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(SqlError::Invalid(_)) => "invalid",
        Err(SqlError::Value(_)) => "value",
        Err(SqlError::Constraint { kind, .. }) => match kind {
            ConstraintKind::Unique => "unique",
            ConstraintKind::NotNull => "not-null",
            ConstraintKind::ForeignKey => "foreign-key",
            ConstraintKind::Check => "check",
            ConstraintKind::Other => "other constraint",
        },
        Err(SqlError::Conflict(_)) => "conflict",
        Err(SqlError::Denied(_)) => "denied",
        Err(SqlError::TooLarge(_)) => "too-large",
        Err(SqlError::TimedOut { .. }) => "timeout",
        Err(SqlError::Unavailable(_)) => "unavailable",
    }
}

fn statement(sql: &str, params: &[Value]) -> Statement {
    Statement { sql: sql.to_owned(), params: params.to_vec() }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A database as the suite asks it: with the checks that stand before every backend.
struct Asked<'a>(&'a dyn Backend);

impl Asked<'_> {
    async fn call(&self, call: Call) -> Result<Answer, SqlError> {
        model::sql::check(call.statements())?;
        self.0.call(call).await
    }

    async fn query(&self, sql: &str, params: &[Value]) -> Result<Rows, SqlError> {
        match self.call(Call::Query(statement(sql, params))).await? {
            Answer::Rows(rows) => Ok(rows),
            other => Err(SqlError::Unavailable(format!("answered {other:?}"))),
        }
    }

    async fn rows(&self, sql: &str, params: &[Value]) -> Result<Vec<Vec<Value>>, SqlError> {
        Ok(self.query(sql, params).await?.rows)
    }

    async fn execute(&self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        match self.call(Call::Execute(statement(sql, params))).await? {
            Answer::Changed(rows) => Ok(rows),
            other => Err(SqlError::Unavailable(format!("answered {other:?}"))),
        }
    }

    async fn batch(&self, statements: &[(&str, &[Value])]) -> Result<Vec<u64>, SqlError> {
        let statements = statements.iter().map(|(sql, params)| statement(sql, params)).collect();
        match self.call(Call::Batch(statements)).await? {
            Answer::Each(rows) => Ok(rows),
            other => Err(SqlError::Unavailable(format!("answered {other:?}"))),
        }
    }
}

/// Runs everything but what takes as long as a statement may.
///
/// # Errors
/// The first thing that is not as the contract says.
pub async fn run(backend: &dyn Backend) -> Result<(), Mismatch> {
    let database = Asked(backend);
    clean(&database).await?;
    values(&database).await?;
    parameters(&database).await?;
    counts(&database).await?;
    errors(&database).await?;
    batches(&database).await?;
    refusals(&database).await?;
    limits(&database).await?;
    together(&database).await?;
    clean(&database).await
}

/// A statement that does not end is ended, in time, and nothing else has to wait for it afterwards.
///
/// # Errors
/// As [`run`].
pub async fn endless(backend: &dyn Backend) -> Result<(), Mismatch> {
    let database = Asked(backend);
    let began = Instant::now();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    same("a statement without end", kind(database.query(sql, &[]).await), "timeout")?;
    same("it ends in time", began.elapsed() < Duration::from_millis(STATEMENT_MS * 2), true)?;
    same("the next one is answered", kind(database.query("SELECT 1", &[]).await), "ok")
}

async fn clean(database: &Asked<'_>) -> Result<(), Mismatch> {
    for table in ["conf_child", "conf_values", "conf_rows", "conf_parent"] {
        same("drop", database.execute(&format!("DROP TABLE IF EXISTS {table}"), &[]).await, Ok(0))?;
    }
    Ok(())
}

async fn values(database: &Asked<'_>) -> Result<(), Mismatch> {
    let made =
        "CREATE TABLE conf_values (id BIGINT PRIMARY KEY, b BOOLEAN, i BIGINT, f DOUBLE PRECISION, t TEXT, y BYTEA)";
    same("create", database.execute(made, &[]).await, Ok(0))?;
    let columns = ["id", "b", "i", "f", "t", "y"].map(str::to_owned).to_vec();
    let select = "SELECT id, b, i, f, t, y FROM conf_values ORDER BY id";
    same("no rows", database.query(select, &[]).await, Ok(Rows { columns: columns.clone(), rows: vec![] }))?;
    let rows: Vec<Vec<Value>> = vec![
        vec![
            Value::Int64(1),
            Value::Boolean(true),
            Value::Int64(i64::MAX),
            Value::Float64(0.1),
            text("naïve ☃ \u{1F9C0}"),
            Value::Bytes((0..=255).collect()),
        ],
        vec![
            Value::Int64(2),
            Value::Boolean(false),
            Value::Int64(i64::MIN),
            Value::Float64(-1.5e300),
            text(""),
            Value::Bytes(vec![]),
        ],
        vec![Value::Int64(3), Value::Null, Value::Null, Value::Null, Value::Null, Value::Null],
        vec![
            Value::Int64(4),
            Value::Boolean(true),
            Value::Int64(0),
            Value::Float64(5e-324),
            text("it's \"quoted\" \\ $1 -- ; /*"),
            Value::Bytes(vec![0, 92, 39]),
        ],
        vec![
            Value::Int64(5),
            Value::Boolean(false),
            Value::Int64(-1),
            Value::Float64(f64::INFINITY),
            text(&"x".repeat(100_000)),
            Value::Bytes(vec![7; 100_000]),
        ],
    ];
    for row in &rows {
        let insert = "INSERT INTO conf_values (id, b, i, f, t, y) VALUES ($1, $2, $3, $4, $5, $6)";
        same("insert", database.execute(insert, row).await, Ok(1))?;
    }
    same("every value comes back", database.query(select, &[]).await, Ok(Rows { columns, rows }))?;
    let named = database.query("SELECT count(*) AS how_many, 'x' AS \"A b\" FROM conf_values", &[]).await;
    let expected =
        Rows { columns: vec!["how_many".to_owned(), "A b".to_owned()], rows: vec![vec![Value::Int64(5), text("x")]] };
    same("columns are named", named, Ok(expected))
}

async fn parameters(database: &Asked<'_>) -> Result<(), Mismatch> {
    let swapped = "SELECT id FROM conf_values WHERE t = $2 AND id = $1";
    let found = database.rows(swapped, &[Value::Int64(2), text("")]).await;
    same("parameters go by their number", found, Ok(vec![vec![Value::Int64(2)]]))?;
    let twice = "SELECT id FROM conf_values WHERE id = $1 OR i = $1 ORDER BY id";
    same("one may stand twice", database.rows(twice, &[Value::Int64(1)]).await, Ok(vec![vec![Value::Int64(1)]]))?;
    let one = "SELECT id FROM conf_values WHERE id = $1";
    same("a value too few", kind(database.rows(one, &[]).await), "value")?;
    same("a value too many", kind(database.rows(one, &[Value::Int64(1), Value::Int64(2)]).await), "value")?;
    let hostile = "x'; DROP TABLE conf_values; --";
    let found = database.rows("SELECT id FROM conf_values WHERE t = $1", &[text(hostile)]).await;
    same("a parameter is never SQL", found, Ok(vec![]))?;
    same("the table is there", kind(database.rows("SELECT 1 FROM conf_values", &[]).await), "ok")?;
    same("NaN", kind(database.rows(one, &[Value::Float64(f64::NAN)]).await), "value")?;
    same("NUL in text", kind(database.rows("SELECT 1 FROM conf_values WHERE t = $1", &[text("a\0b")]).await), "value")
}

async fn counts(database: &Asked<'_>) -> Result<(), Mismatch> {
    same("create", database.execute("CREATE TABLE conf_rows (n BIGINT)", &[]).await, Ok(0))?;
    same("insert", database.execute("INSERT INTO conf_rows VALUES (1), (2), (3)", &[]).await, Ok(3))?;
    let update = "UPDATE conf_rows SET n = n + 10 WHERE n > $1";
    same("update", database.execute(update, &[Value::Int64(1)]).await, Ok(2))?;
    same("update nothing", database.execute(update, &[Value::Int64(1000)]).await, Ok(0))?;
    same("select changes nothing", database.execute("SELECT * FROM conf_rows", &[]).await, Ok(0))?;
    let returning = database.rows("INSERT INTO conf_rows VALUES (20) RETURNING n, n + 1", &[]).await;
    same("returning", returning, Ok(vec![vec![Value::Int64(20), Value::Int64(21)]]))?;
    let counted = database.execute("DELETE FROM conf_rows WHERE n = 20 RETURNING n", &[]).await;
    same("rows that are not asked for", counted, Ok(1))?;
    same("query that gives no rows", database.rows("DELETE FROM conf_rows WHERE n = 1", &[]).await, Ok(vec![]))?;
    same("delete", database.execute("DELETE FROM conf_rows", &[]).await, Ok(2))
}

async fn errors(database: &Asked<'_>) -> Result<(), Mismatch> {
    let parent = "CREATE TABLE conf_parent (id BIGINT PRIMARY KEY, name TEXT NOT NULL, age BIGINT CHECK (age >= 0))";
    same("create", database.execute(parent, &[]).await, Ok(0))?;
    let child = "CREATE TABLE conf_child (parent BIGINT NOT NULL REFERENCES conf_parent (id), word TEXT UNIQUE)";
    same("create", database.execute(child, &[]).await, Ok(0))?;
    same("insert", database.execute("INSERT INTO conf_parent VALUES (1, 'one', 1)", &[]).await, Ok(1))?;
    same("insert", database.execute("INSERT INTO conf_child VALUES (1, 'w')", &[]).await, Ok(1))?;
    for (sql, expected) in [
        ("SELEC 1", "invalid"),
        ("SELECT * FROM conf_nowhere", "invalid"),
        ("SELECT nothing FROM conf_parent", "invalid"),
        ("SELECT 1; SELECT 2", "invalid"),
        ("INSERT INTO conf_parent VALUES (1, 2, 3, 4, 5)", "invalid"),
        ("CREATE TABLE conf_parent (id BIGINT)", "invalid"),
        ("  -- nothing", "invalid"),
        ("INSERT INTO conf_parent VALUES (1, 'again', 1)", "unique"),
        ("INSERT INTO conf_child VALUES (1, 'w')", "unique"),
        ("INSERT INTO conf_parent VALUES (2, NULL, 1)", "not-null"),
        ("INSERT INTO conf_parent VALUES (2, 'two', -1)", "check"),
        ("INSERT INTO conf_child VALUES (7, 'v')", "foreign-key"),
        ("DELETE FROM conf_parent WHERE id = 1", "foreign-key"),
    ] {
        same(sql, kind(database.execute(sql, &[]).await), expected)?;
        same(sql, kind(database.query(sql, &[]).await), expected)?;
    }
    let left = database.rows("SELECT (SELECT count(*) FROM conf_parent), (SELECT count(*) FROM conf_child)", &[]).await;
    same("nothing was changed", left, Ok(vec![vec![Value::Int64(1), Value::Int64(1)]]))
}

async fn batches(database: &Asked<'_>) -> Result<(), Mismatch> {
    same("an empty batch", database.batch(&[]).await, Ok(vec![]))?;
    let insert = "INSERT INTO conf_rows VALUES ($1)";
    let done = database
        .batch(&[
            (insert, &[Value::Int64(1)]),
            ("INSERT INTO conf_rows VALUES (2), (3)", &[]),
            ("UPDATE conf_rows SET n = n * 10", &[]),
            ("SELECT n FROM conf_rows", &[]),
        ])
        .await;
    same("a batch counts each", done, Ok(vec![1, 2, 3, 0]))?;
    let sum = "SELECT count(*), CAST(sum(n) AS BIGINT) FROM conf_rows";
    let is = |count, sum| Ok(vec![vec![Value::Int64(count), Value::Int64(sum)]]);
    same("all of it happened", database.rows(sum, &[]).await, is(3, 60))?;
    for (broken, params, expected) in [
        ("INSERT INTO conf_parent VALUES (1, 'again', 1)", vec![], "unique"),
        ("INSERT INTO conf_nowhere VALUES (1)", vec![], "invalid"),
        (insert, vec![], "value"),
        ("COMMIT", vec![], "denied"),
    ] {
        let failed =
            database.batch(&[(insert, &[Value::Int64(4)]), ("DELETE FROM conf_rows", &[]), (broken, &params)]).await;
        same(broken, kind(failed), expected)?;
        same("none of it happened", database.rows(sum, &[]).await, is(3, 60))?;
    }
    let schema =
        database.batch(&[("CREATE TABLE conf_half (n BIGINT)", &[]), ("SELECT * FROM conf_nowhere", &[])]).await;
    same("a table made in a batch that fails", kind(schema), "invalid")?;
    same("is not there", kind(database.rows("SELECT * FROM conf_half", &[]).await), "invalid")
}

async fn refusals(database: &Asked<'_>) -> Result<(), Mismatch> {
    for sql in ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "SET x = 1", "ATTACH 'x' AS y", "VACUUM", "/**/ begin"] {
        same(sql, kind(database.execute(sql, &[]).await), "denied")?;
        same(sql, kind(database.query(sql, &[]).await), "denied")?;
    }
    Ok(())
}

async fn limits(database: &Asked<'_>) -> Result<(), Mismatch> {
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) SELECT i FROM n";
    let most = i64::try_from(MAX_ROWS).unwrap_or(i64::MAX);
    let got = database.rows(many, &[Value::Int64(most)]).await.map(|rows| rows.len());
    same("as many rows as an answer may have", got, Ok(MAX_ROWS))?;
    same("one row more", kind(database.rows(many, &[Value::Int64(most + 1)]).await), "too-large")?;
    let wide = "SELECT v.t, v.t, v.t, v.t, v.t, v.t, v.t, v.t FROM conf_values v, conf_rows, conf_values again WHERE v.id = $1";
    same("an answer of too many bytes", kind(database.rows(wide, &[Value::Int64(5)]).await), "too-large")?;
    let writes = "INSERT INTO conf_rows SELECT a.n FROM conf_rows a, conf_rows b, conf_rows c, conf_rows d, conf_rows e, \
                  conf_rows f, conf_rows g, conf_rows h, conf_rows i RETURNING n";
    same("a write whose rows are too many", kind(database.rows(writes, &[]).await), "too-large")?;
    let left = database.rows("SELECT count(*) FROM conf_rows", &[]).await;
    same("changed nothing", left, Ok(vec![vec![Value::Int64(3)]]))?;
    same("a long statement", kind(database.rows(&"x".repeat(model::sql::MAX_SQL + 1), &[]).await), "too-large")
}

/// Calls at once lose nothing.
async fn together(database: &Asked<'_>) -> Result<(), Mismatch> {
    same("delete", database.execute("DELETE FROM conf_rows", &[]).await.is_ok(), true)?;
    same("insert", database.execute("INSERT INTO conf_rows VALUES (0)", &[]).await, Ok(1))?;
    let add = || database.execute("UPDATE conf_rows SET n = n + 1", &[]);
    let all = futures::future::join_all((0..40).map(|_| add())).await;
    same("forty at once", all.iter().all(|one| *one == Ok(1)), true)?;
    same("are forty", database.rows("SELECT n FROM conf_rows", &[]).await, Ok(vec![vec![Value::Int64(40)]]))
}
