//! What a statement of a component may do in a database: nothing outside its file, nothing that outlives its call, and
//! nothing that takes longer than it may.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

/// Steps of SQLite's machine between two looks at the clock.
const STEPS: i32 = 2000;

/// Pragmas that tell something, and `user_version`, by which apps number their schema.
const PRAGMAS: [&str; 14] = [
    "collation_list",
    "data_version",
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "page_count",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];
/// Kinds of virtual table that keep what they hold in the same file.
const MODULES: [&str; 2] = ["fts5", "rtree"];
/// Functions that reach out of the database.
const FUNCTIONS: [&str; 5] = ["load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"];

/// Watches the statements of one connection while they are a component's.
pub(super) struct Guard {
    began: Instant,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// A component's statement is prepared or runs.
    theirs: AtomicBool,
    /// When it must end, milliseconds after `began`; 0: no end.
    until_ms: AtomicU64,
    /// What was refused last.
    refused: Mutex<Option<String>>,
}

/// Ends the watch.
pub(super) struct Watched<'a>(&'a State);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.theirs.store(false, Relaxed);
        self.0.until_ms.store(0, Relaxed);
    }
}

impl Guard {
    pub(super) fn set(connection: &mut Connection) -> rusqlite::Result<Self> {
        let (began, state) = (Instant::now(), Arc::<State>::default());
        let clock = state.clone();
        let late = move || {
            let until = clock.until_ms.load(Relaxed);
            until != 0 && u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX) >= until
        };
        connection.progress_handler(STEPS, Some(late))?;
        let judge = state.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            if !judge.theirs.load(Relaxed) {
                return Authorization::Allow;
            }
            match judged(&context.action) {
                Ok(()) => Authorization::Allow,
                Err(what) => {
                    *judge.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
                    Authorization::Deny
                }
            }
        }))?;
        Ok(Self { began, state })
    }

    /// From now on statements are a component's, for at most `ms`.
    pub(super) fn watch(&self, ms: u64) -> Watched<'_> {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.state.until_ms.store(now.saturating_add(ms).max(1), Relaxed);
        self.state.theirs.store(true, Relaxed);
        Watched(&self.state)
    }

    /// What was refused since this was asked last.
    pub(super) fn refused(&self) -> Option<String> {
        self.state.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn judged(action: &AuthAction<'_>) -> Result<(), String> {
    let is = |known: &[&str], name: &str| known.iter().any(|one| one.eq_ignore_ascii_case(name));
    let what = match action {
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => "another database file".to_owned(),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => "a transaction of its own".to_owned(),
        AuthAction::Pragma { pragma_name, .. } if !is(&PRAGMAS, pragma_name) => format!("`PRAGMA {pragma_name}`"),
        AuthAction::Function { function_name } if is(&FUNCTIONS, function_name) => format!("`{function_name}`"),
        AuthAction::CreateVtable { module_name, .. } if !is(&MODULES, module_name) => {
            format!("a virtual table of `{module_name}`")
        }
        AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::CreateTempTrigger { .. } => "something temporary, which the next call would meet".to_owned(),
        AuthAction::Unknown { code, .. } => format!("action {code}"),
        _ => return Ok(()),
    };
    Err(what)
}
