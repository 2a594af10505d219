//! One tenant's components behind the agent API, in one single-threaded process.
//!
//! ```text
//! agent.sock ─▶ agent ─▶ apps (what runs) ◀─ data ◀─ data.sock
//!                          │ first call: code ─▶ node.sock (compiled code)
//!                          └ links ─▶ providers ─▶ embedded, dialer ─▶ node.sock (key-value, connections)
//! ```
//! A host has no files, no network and no store: what it needs comes over `node.sock` from the node that started it,
//! and it ends when that node ends.
#![forbid(unsafe_code)]

mod agent;
mod apps;
mod broker;
mod code;
mod copies;
mod data;
mod dialer;
mod embedded;
mod entry;
mod error;
mod escape;
mod external;
mod fault;
mod folder;
mod folders;
mod hold;
mod line;
mod links;
mod listen;
mod logs;
mod message;
mod program;
mod scheduled;
mod secrets;
mod serve;
mod sockets;
mod spans;
mod sql;
mod taking;
mod totals;
mod watches;

use std::path::PathBuf;

pub use broker::NodeBroker;
pub use embedded::Embedded;
pub use error::HostError;
pub use folder::Folder;
use model::TenantName;
pub use runtime::RuntimeSettings;
pub use serve::{run, run_with};
pub use sql::NodeSql;

/// Who this host is; given by whoever starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostArgs {
    /// The directory with the host's sockets: `node.sock` is there already, the others are made.
    pub dir: PathBuf,
    /// Whose components it runs.
    pub tenant: TenantName,
    /// Which of the tenant's hosts it is.
    pub shard: u32,
}

/// How much a host keeps in memory.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Components whose compiled code is kept at once: each takes some of the process's memory mappings.
    pub max_loaded: usize,
    /// Bytes of compiled code that are kept; beyond either, what was idle longest is unloaded.
    pub code_budget: u64,
    /// Sizes of the instance pool.
    pub runtime: RuntimeSettings,
    /// How long calls in flight may take after SIGTERM, milliseconds.
    pub drain_ms: u64,
    /// Control groups it joins before it does anything for anybody.
    pub groups: Vec<PathBuf>,
}

/// Environment variable with [`HostSettings::code_budget`], bytes, from whoever starts the host.
pub const CODE_BUDGET_ENV: &str = api::agent::CODE_BUDGET_ENV;

impl HostSettings {
    /// The defaults, and what the environment says otherwise.
    ///
    /// # Errors
    /// [`HostError::Setting`] where it says something that is no number above 0.
    pub fn from_env() -> Result<Self, HostError> {
        let mut settings = Self::default();
        if let Some(text) = std::env::var_os(CODE_BUDGET_ENV) {
            let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
            settings.code_budget = number.ok_or(HostError::Setting(CODE_BUDGET_ENV))?;
        }
        folders::granted()?;
        if let Some(groups) = std::env::var_os(api::agent::GROUPS_ENV) {
            settings.groups = std::env::split_paths(&groups).collect();
        }
        Ok(settings)
    }
}

impl Default for HostSettings {
    fn default() -> Self {
        let runtime = RuntimeSettings::default();
        Self { max_loaded: 2000, code_budget: 1 << 30, runtime, drain_ms: 10_000, groups: Vec::new() }
    }
}
