//! What the SQL contracts share wherever they are answered: values, statements, errors, and the limits and refusals that
//! are the same for every database, so that an app that works on one works on the other.

use serde::{Deserialize, Deserializer, Serialize};

/// The contract by which databases are interchangeable.
pub const CONTRACT: &str = "sidereal:sql";
/// The contract that only a Postgres can answer.
pub const POSTGRES: &str = "wasmcloud:postgres";

/// The longest statement, bytes.
pub const MAX_SQL: usize = 256 << 10;
/// The most parameters of one statement.
pub const MAX_PARAMS: usize = 1000;
/// The most statements in one batch.
pub const MAX_BATCH: usize = 1000;
/// The most parameters all statements of a call have together.
pub const MAX_VALUES: usize = 32 << 10;
/// The most bytes one call sends, statements and parameters together.
pub const MAX_CALL: usize = 8 << 20;
/// The most rows one answer has.
pub const MAX_ROWS: usize = 10_000;
/// The most bytes one answer has.
pub const MAX_ANSWER: usize = 8 << 20;
/// How long the statements of one call may run together, milliseconds.
pub const STATEMENT_MS: u64 = 10_000;

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// SQL's `NULL`.
    Null,
    /// True or false.
    Boolean(bool),
    /// A whole number.
    Int64(i64),
    /// A floating point number; never NaN where it is a parameter.
    Float64(f64),
    /// Text, and everything that has no kind of its own here: times, decimal numbers, UUIDs, JSON.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// Bytes it counts for in the limits.
    pub fn size(&self) -> usize {
        match self {
            Self::Null | Self::Boolean(_) => 1,
            Self::Int64(_) | Self::Float64(_) => 8,
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// A statement with the values of `$1`, `$2`, ….
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// One statement.
    pub sql: String,
    /// Its parameters.
    #[serde(deserialize_with = "crate::listed::at_most::<_, _, MAX_PARAMS>")]
    pub params: Vec<Value>,
}

/// Rows and the names of their columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// In order.
    pub columns: Vec<String>,
    /// As many values in each as there are columns.
    pub rows: Vec<Vec<Value>>,
}

/// One call to a database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// Gives back rows.
    Query(Statement),
    /// Gives back how many rows it changed.
    Execute(Statement),
    /// One transaction, all or none.
    Batch(#[serde(deserialize_with = "batch")] Vec<Statement>),
}

/// A value is a byte on the wire and dozens in memory: no more of them are read than a call may have.
fn batch<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Statement>, D::Error> {
    crate::listed::at_most_together::<_, _, MAX_BATCH>(from, MAX_VALUES, |statement: &Statement| statement.params.len())
}

impl Call {
    /// Its statements.
    pub fn statements(&self) -> &[Statement] {
        match self {
            Self::Query(one) | Self::Execute(one) => std::slice::from_ref(one),
            Self::Batch(all) => all,
        }
    }
}

/// What a [`Call`] gives back, variant by variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Query.
    Rows(Rows),
    /// Execute: rows changed.
    Changed(u64),
    /// Batch: rows changed by each.
    Each(Vec<u64>),
}

/// Gathers rows for as long as they are within the limits of an answer.
#[derive(Debug, Default)]
pub struct Gathered {
    rows: Rows,
    bytes: usize,
}

impl Gathered {
    /// No rows yet.
    pub fn new(columns: Vec<String>) -> Self {
        let bytes = columns.iter().map(String::len).sum();
        Self { rows: Rows { columns, rows: Vec::new() }, bytes }
    }

    /// One more.
    ///
    /// # Errors
    /// [`SqlError::TooLarge`].
    pub fn push(&mut self, row: Vec<Value>) -> Result<(), SqlError> {
        self.bytes = row.iter().map(Value::size).fold(self.bytes + row.len(), usize::saturating_add);
        if self.rows.rows.len() >= MAX_ROWS || self.bytes > MAX_ANSWER {
            return Err(SqlError::TooLarge(format!(
                "the answer has more than {MAX_ROWS} rows or {MAX_ANSWER} bytes; ask for fewer, for example with LIMIT"
            )));
        }
        self.rows.rows.push(row);
        Ok(())
    }

    /// All of them.
    pub fn done(self) -> Rows {
        self.rows
    }
}

/// Which kind of rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConstraintKind {
    /// A unique index or a primary key.
    Unique,
    /// `NOT NULL`.
    NotNull,
    /// A reference to a row that is not there, or a referenced row that would go.
    ForeignKey,
    /// `CHECK`.
    Check,
    /// Another one, or a trigger that refuses.
    Other,
}

/// Why a call has no answer. The same database error is the same kind on every database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SqlError {
    /// Syntax, or a table or column that is not there.
    #[error("the database does not understand the statement: {0}")]
    Invalid(String),
    /// Parameters that do not fit in number or kind.
    #[error("{0}")]
    Value(String),
    /// A rule of the database; nothing was changed.
    #[error("{message}")]
    Constraint {
        /// Which kind.
        kind: ConstraintKind,
        /// What the database says.
        message: String,
    },
    /// Another transaction was in the way; nothing was changed.
    #[error("another transaction was in the way; try again: {0}")]
    Conflict(String),
    /// Not allowed.
    #[error("{0}")]
    Denied(String),
    /// Above a limit; nothing was changed.
    #[error("{0}")]
    TooLarge(String),
    /// Not done in time. Whether a write happened is not known.
    #[error("not done within {ms} ms")]
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
    /// The database cannot be reached or cannot do it now. Whether a write happened is not known.
    #[error("the database is not available: {0}")]
    Unavailable(String),
}

/// First words of statements that the platform keeps for itself, because connections are shared by the calls of an app:
/// what one call left behind would meet the next.
const KEPT: [&str; 21] = [
    "begin",
    "start",
    "commit",
    "end",
    "rollback",
    "abort",
    "savepoint",
    "release",
    "prepare",
    "execute",
    "deallocate",
    "declare",
    "set",
    "reset",
    "discard",
    "listen",
    "unlisten",
    "copy",
    "attach",
    "detach",
    "vacuum",
];

/// Checks the statements of one call before any database sees them.
///
/// # Errors
/// [`SqlError::TooLarge`], [`SqlError::Value`], [`SqlError::Denied`], [`SqlError::Invalid`].
pub fn check(statements: &[Statement]) -> Result<(), SqlError> {
    if statements.len() > MAX_BATCH {
        return Err(SqlError::TooLarge(format!("a batch has at most {MAX_BATCH} statements")));
    }
    let values: usize = statements.iter().map(|statement| statement.params.len()).sum();
    if values > MAX_VALUES {
        return Err(SqlError::TooLarge(format!(
            "the statements of a call have at most {MAX_VALUES} parameters together"
        )));
    }
    let mut bytes = 0_usize;
    for statement in statements {
        if statement.sql.len() > MAX_SQL {
            return Err(SqlError::TooLarge(format!("a statement has at most {MAX_SQL} bytes")));
        }
        if statement.params.len() > MAX_PARAMS {
            return Err(SqlError::TooLarge(format!("a statement has at most {MAX_PARAMS} parameters")));
        }
        bytes = statement.params.iter().map(Value::size).fold(bytes + statement.sql.len(), usize::saturating_add);
        if bytes > MAX_CALL {
            return Err(SqlError::TooLarge(format!(
                "the statements and parameters of a call have at most {MAX_CALL} bytes"
            )));
        }
        if statement.sql.contains('\0') {
            return Err(SqlError::Invalid("it has a NUL character".to_owned()));
        }
        for (index, value) in statement.params.iter().enumerate() {
            let number = index + 1;
            match value {
                Value::Text(text) if text.contains('\0') => {
                    return Err(SqlError::Value(format!(
                        "the text of ${number} has a NUL character, which no database keeps"
                    )));
                }
                Value::Float64(float) if float.is_nan() => {
                    return Err(SqlError::Value(format!(
                        "${number} is not a number (NaN), which not every database keeps"
                    )));
                }
                _ => {}
            }
        }
        check_kept(&statement.sql)?;
    }
    Ok(())
}

/// Refuses a statement that would outlive its call.
fn check_kept(sql: &str) -> Result<(), SqlError> {
    let word = first_word(sql);
    if word.is_empty() {
        return Err(SqlError::Invalid("there is no statement in it".to_owned()));
    }
    match word.as_str() {
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            Err(SqlError::Denied(format!("`{word}` is not for components: `batch` runs statements as one transaction")))
        }
        kept if KEPT.contains(&kept) => Err(SqlError::Denied(format!(
            "`{kept}` is not for components: it would change more than its own call, and connections are shared"
        ))),
        _ => Ok(()),
    }
}

/// Whether a statement only reads, as far as its first word tells.
pub fn only_reads(sql: &str) -> bool {
    matches!(first_word(sql).as_str(), "select" | "values" | "table" | "show")
}

/// The first word of a statement in lower case, past blanks, comments and opening parentheses; empty where there is none.
pub fn first_word(sql: &str) -> String {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == ';' || c == '\u{feff}');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = after_comment(comment);
        } else {
            break;
        }
    }
    rest.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '_').take(32).collect::<String>().to_ascii_lowercase()
}

/// What follows a comment that was opened. Comments nest in Postgres and not in SQLite; where the two differ nothing is
/// left, so that the statement is refused on both.
fn after_comment(comment: &str) -> &str {
    match comment.split_once("*/") {
        Some((inside, after)) if !inside.contains("/*") => after,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(sql: &str, params: Vec<Value>) -> Result<(), SqlError> {
        check(&[Statement { sql: sql.to_owned(), params }])
    }

    #[test]
    fn the_first_word_is_found_behind_what_stands_before_it() {
        for (sql, word) in [
            ("SELECT 1", "select"),
            ("  -- a remark\n\t/* and */ ( vAlues (1))", "values"),
            (";;commit", "commit"),
            ("", ""),
            ("-- only a remark", ""),
            ("/* open", ""),
            ("/* a /* b */ commit", ""),
            ("\"quoted\"", ""),
        ] {
            assert_eq!(first_word(sql), word, "{sql}");
        }
    }

    #[test]
    fn what_would_outlive_its_call_is_refused() {
        for sql in ["BEGIN", "/**/ commit", "SET statement_timeout = 0", "attach 'x' as y", "; rollback", "(((end"] {
            assert!(matches!(one(sql, vec![]), Err(SqlError::Denied(_))), "{sql}");
        }
        for sql in ["SELECT 1", "WITH a AS (SELECT 1) SELECT * FROM a", "INSERT INTO t VALUES ($1)", "settle"] {
            assert_eq!(one(sql, vec![]), Ok(()), "{sql}");
        }
        assert!(matches!(one(" ", vec![]), Err(SqlError::Invalid(_))));
    }

    #[test]
    fn the_limits_are_inclusive() {
        assert_eq!(one("select $1", vec![Value::Bytes(vec![0; MAX_CALL - 9])]), Ok(()));
        assert!(matches!(one("select $1", vec![Value::Bytes(vec![0; MAX_CALL])]), Err(SqlError::TooLarge(_))));
        assert_eq!(one("select", vec![Value::Null; MAX_PARAMS]), Ok(()));
        assert!(matches!(one("select", vec![Value::Null; MAX_PARAMS + 1]), Err(SqlError::TooLarge(_))));
        assert!(matches!(one(&"x".repeat(MAX_SQL + 1), vec![]), Err(SqlError::TooLarge(_))));
        assert!(matches!(one("select $1", vec![Value::Float64(f64::NAN)]), Err(SqlError::Value(_))));
        assert!(matches!(one("select $1", vec![Value::Text("a\0".into())]), Err(SqlError::Value(_))));
    }

    #[test]
    fn a_batch_of_more_values_than_a_call_may_have_is_refused_while_it_is_read() {
        let statement = |params| Statement { sql: String::new(), params: vec![Value::Null; params] };
        let read = |call: &Call| serde_json::from_str::<Call>(&serde_json::to_string(call).unwrap());
        let mut statements = vec![statement(MAX_PARAMS); MAX_VALUES / MAX_PARAMS];
        statements.push(statement(MAX_VALUES % MAX_PARAMS));
        let most = Call::Batch(statements.clone());
        assert_eq!(read(&most).unwrap(), most);
        statements.push(statement(1));
        let refused = read(&Call::Batch(statements)).unwrap_err().to_string();
        assert!(refused.contains(&format!("more than {MAX_VALUES} together")), "{refused}");
    }
}
