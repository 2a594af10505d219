//! One tenant's components behind the agent API, in one single-threaded process.
//!
//! ```text
//! agent.sock ─▶ agent ─▶ apps (what runs) ◀─ data ◀─ data.sock
//!                          │ first call: code ─▶ node (compiled code)
//!                          └ links ─▶ providers ─▶ embedded, dialer ─▶ node (key-value, connections)
//! ```
//! A host has no files, no network and no store. The node that starts it hands it every socket it begins with; what else it
//! needs it asks for over them, and it ends when that node ends. Whoever runs it confines it in the middle of [`run`]: after
//! what only an open process can have, before anything of a tenant.
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
pub mod environment;
mod error;
mod external;
mod fault;
mod folder;
pub mod folders;
mod handed;
mod hold;
mod line;
mod links;
mod logs;
mod memory;
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
mod untried;
mod watches;

pub use broker::NodeBroker;
pub use embedded::Embedded;
pub use error::HostError;
pub use folder::Folder;
pub use handed::Handed;
use model::TenantName;
pub use runtime::RuntimeSettings;
pub use secrets::NodeSecrets;
pub use serve::{run, run_with};
pub use sql::NodeSql;

/// Who this host is; given by whoever starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostArgs {
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
        Ok(settings)
    }
}

impl Default for HostSettings {
    fn default() -> Self {
        let runtime = RuntimeSettings::default();
        Self { max_loaded: 2000, code_budget: 1 << 30, runtime, drain_ms: 10_000 }
    }
}
