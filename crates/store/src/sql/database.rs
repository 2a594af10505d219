//! One open database and how a call runs in it: one transaction, committed whole and synced, or rolled back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::sql::{Answer, Call, Gathered, Rows, STATEMENT_MS, SqlError, Statement, Value, only_reads};
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, ToSql};

use super::MAX_DATABASE;
use super::guard::Guard;
use super::quota::Account;
use super::refusal::translate;
use super::watch::Watch;

/// The largest text, blob or row, bytes: more than one call can bring or take.
const MAX_ROW: i32 = 16 << 20;
/// Bytes of one page.
const PAGE: u64 = 4096;
/// How long another connection to the same file may be closing, milliseconds.
const BUSY_MS: u64 = 5000;
/// The log of a database is cut to this after it was written back, bytes.
const LOG: i64 = 64 << 20;
/// Memory that all databases of the process together may have, bytes: pages, and what statements sort and gather. A
/// statement that would have more fails. The databases of a tenant have a process of their own.
const HEAP: i64 = 256 << 20;

pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    guard: Guard,
    /// Pages it may have now: fewer than [`MOST_PAGES`] where its tenant has a quota.
    most: u64,
    /// The tenant's, during a call that may write.
    share: Option<Arc<dyn Account>>,
}

/// Pages of the largest database.
const MOST_PAGES: u64 = MAX_DATABASE / PAGE;

impl Database {
    /// Opens a file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, SqlError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let opened = || {
            let mut connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
            connection.pragma_update(None, "page_size", PAGE as i64)?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            // What is acknowledged is on disk, not only in the log's file.
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            connection.pragma_update(None, "cell_size_check", true)?;
            connection.pragma_update(None, "journal_size_limit", LOG)?;
            connection.pragma_update(None, "max_page_count", MOST_PAGES as i64)?;
            // In files, what is sorted would fill the disk of the node outside of every quota.
            connection.pragma_update(None, "temp_store", "memory")?;
            connection.pragma_update(None, "hard_heap_limit", HEAP)?;
            // Text is written in single quotes, as everywhere else.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
            for (limit, most) in [
                (Limit::SQLITE_LIMIT_LENGTH, MAX_ROW),
                (Limit::SQLITE_LIMIT_SQL_LENGTH, model::sql::MAX_SQL as i32),
                (Limit::SQLITE_LIMIT_COLUMN, 500),
                (Limit::SQLITE_LIMIT_EXPR_DEPTH, 200),
                (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 100),
                (Limit::SQLITE_LIMIT_VDBE_OP, 100_000),
                (Limit::SQLITE_LIMIT_ATTACHED, 0),
                (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
                (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, model::sql::MAX_PARAMS as i32),
                (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 20),
                (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
            ] {
                connection.set_limit(limit, most)?;
            }
            let guard = Guard::set(&mut connection)?;
            Ok(Self { connection, path: path.to_owned(), guard, most: MOST_PAGES, share: None })
        };
        opened().map_err(|cause: rusqlite::Error| translate(cause, None, None))
    }

    /// Whether no transaction is open.
    pub(super) fn is_at_rest(&self) -> bool {
        self.connection.is_autocommit()
    }

    /// Runs a call. What it adds takes room of `share`, or is undone.
    pub(super) fn call(
        &mut self,
        call: &Call,
        share: Option<&Arc<dyn Account>>,
        watch: &Watch,
    ) -> Result<Answer, SqlError> {
        // Whoever may write takes the lock first, so that nothing fails halfway for the want of it.
        let reads = call.statements().iter().all(|statement| only_reads(&statement.sql));
        let share = share.filter(|_| !reads);
        self.may_have(share)?;
        self.ours(if reads { "BEGIN" } else { "BEGIN IMMEDIATE" })?;
        let result = {
            let _running = watch.begin();
            let _watched = self.guard.watch(STATEMENT_MS);
            self.run(call)
        };
        let result = match result {
            Ok(answer) => self.commit(share).map(|()| answer),
            Err(refusal) => Err(refusal),
        };
        if !self.is_at_rest() {
            // Where even this fails the database is closed, which does the same.
            drop(self.connection.execute_batch("ROLLBACK"));
        }
        result
    }

    /// How far it may grow in the call to come: not beyond what its tenant has room for.
    fn may_have(&mut self, share: Option<&Arc<dyn Account>>) -> Result<(), SqlError> {
        self.share = share.cloned();
        let most = match share {
            None => MOST_PAGES,
            Some(share) => {
                let pages = self.pages().map_err(|cause| self.refused(cause))?;
                MOST_PAGES.min(pages + share.begin(pages * PAGE) / PAGE)
            }
        };
        if most != self.most {
            let set = self.connection.pragma_update(None, "max_page_count", most.max(1) as i64);
            set.map_err(|cause| self.refused(cause))?;
            self.most = most;
        }
        Ok(())
    }

    /// What was added takes its room before it counts: nobody else has taken that meanwhile.
    fn commit(&self, share: Option<&Arc<dyn Account>>) -> Result<(), SqlError> {
        let Some(share) = share else { return self.ours("COMMIT") };
        let pages = self.pages().map_err(|cause| self.refused(cause))?;
        let before = share.grow(pages * PAGE).map_err(SqlError::TooLarge)?;
        self.ours("COMMIT").inspect_err(|_| share.is(before))
    }

    fn pages(&self) -> rusqlite::Result<u64> {
        let pages = self.connection.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
        pages.map(i64::unsigned_abs)
    }

    fn ours(&self, sql: &str) -> Result<(), SqlError> {
        self.connection.execute_batch(sql).map_err(|cause| self.refused(cause))
    }

    fn refused(&self, cause: rusqlite::Error) -> SqlError {
        translate(cause, self.guard.refused(), self.full())
    }

    /// Why it cannot grow, where it has as many pages as it may.
    fn full(&self) -> Option<String> {
        match (self.pages().ok()?, &self.share) {
            (MOST_PAGES.., _) => Some(format!("the database has the {MAX_DATABASE} bytes that one may have")),
            // What was added is taken back by now. A disk without room is another thing.
            (_, Some(share)) if self.most < MOST_PAGES && has_room(&self.path) => Some(share.full(PAGE)),
            _ => None,
        }
    }

    fn run(&self, call: &Call) -> Result<Answer, SqlError> {
        Ok(match call {
            Call::Query(statement) => Answer::Rows(self.step(statement, true)?.0),
            Call::Execute(statement) => Answer::Changed(self.step(statement, false)?.1),
            Call::Batch(statements) => {
                let each = statements.iter().map(|statement| Ok(self.step(statement, false)?.1));
                Answer::Each(each.collect::<Result<_, SqlError>>()?)
            }
        })
    }

    /// Runs one statement to its end: its rows where they are wanted, and how many it changed.
    fn step(&self, statement: &Statement, wanted: bool) -> Result<(Rows, u64), SqlError> {
        let refused = |cause| self.refused(cause);
        let before = self.connection.total_changes();
        let mut prepared = self.connection.prepare(&statement.sql).map_err(refused)?;
        bind(&mut prepared, &statement.params).map_err(|problem| problem.or(refused))?;
        let (columns, booleans): (Vec<String>, Vec<bool>) =
            prepared.columns().map(|column| (column.name().to_owned(), is_boolean(column.decl_type()))).unzip();
        let mut gathered = Gathered::new(columns);
        let mut rows = prepared.raw_query();
        while let Some(row) = rows.next().map_err(refused)? {
            if wanted {
                let values = booleans.iter().enumerate().map(|(index, boolean)| {
                    let value = row.get_ref(index).map_err(refused)?;
                    read(value, *boolean)
                });
                gathered.push(values.collect::<Result<_, SqlError>>()?)?;
            }
        }
        drop(rows);
        // The count of the last statement that changed something stands until the next one does.
        let changed = if self.connection.total_changes() == before { 0 } else { self.connection.changes() };
        Ok((gathered.done(), changed))
    }
}

/// Whether the disk could take another page.
fn has_room(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= PAGE)
}

/// Why parameters cannot be bound.
enum Unbound {
    Ours(SqlError),
    Theirs(rusqlite::Error),
}

impl Unbound {
    fn or(self, refused: impl Fn(rusqlite::Error) -> SqlError) -> SqlError {
        match self {
            Self::Ours(error) => error,
            Self::Theirs(cause) => refused(cause),
        }
    }
}

/// Binds by the numbers in the names: SQLite counts `$2, $1` in the order it meets them.
fn bind(prepared: &mut rusqlite::Statement<'_>, params: &[Value]) -> Result<(), Unbound> {
    let value = |text: String| Unbound::Ours(SqlError::Value(text));
    let mut most = 0;
    for index in 1..=prepared.parameter_count() {
        let name = prepared.parameter_name(index).map(str::to_owned);
        let number = name.as_deref().and_then(|name| name.strip_prefix('$')).and_then(|n| n.parse::<usize>().ok());
        let Some(number) = number.filter(|number| *number > 0) else {
            let name = name.unwrap_or_else(|| "?".to_owned());
            let help = match name.contains("::") {
                true => "; SQLite has no `::`, write `CAST($1 AS type)`",
                false => "",
            };
            return Err(value(format!("parameters are written `$1`, `$2`, and `{name}` is none{help}")));
        };
        most = most.max(number);
        let Some(given) = params.get(number - 1) else {
            return Err(value(format!("there is no value for `${number}`: {} were given", params.len())));
        };
        prepared.raw_bind_parameter(index, Bound(given)).map_err(Unbound::Theirs)?;
    }
    if most < params.len() {
        return Err(value(format!("the statement has {most} parameters, and {} values were given", params.len())));
    }
    Ok(())
}

struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Boolean(value) => ValueRef::Integer((*value).into()),
            Value::Int64(value) => ValueRef::Integer(*value),
            Value::Float64(value) => ValueRef::Real(*value),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Whether a column was declared to hold true and false: SQLite itself keeps numbers.
fn is_boolean(declared: Option<&str>) -> bool {
    declared.is_some_and(|name| name.eq_ignore_ascii_case("boolean") || name.eq_ignore_ascii_case("bool"))
}

fn read(value: ValueRef<'_>, boolean: bool) -> Result<Value, SqlError> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number @ (0 | 1)) if boolean => Value::Boolean(number == 1),
        ValueRef::Integer(number) => Value::Int64(number),
        ValueRef::Real(number) => Value::Float64(number),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => return Err(SqlError::Value("a text in the answer is not UTF-8".to_owned())),
        },
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
    })
}
