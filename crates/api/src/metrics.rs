//! Counters: what a host reports over the agent API, and what the control plane shows of a tenant. Plain numbers; who
//! watches takes two readings and compares.
//!
//! Counters only grow for as long as the app exists: a revision that leaves hands its counts on, and the node adds up
//! what hosts counted that have ended. A host that is killed takes along what nobody had read yet.

use model::{AppName, ComponentName, ContractId, Label, ProviderName, TenantName};
use serde::{Deserialize, Serialize};

/// The most entries of [`LinkCounts::took`]. Entry `n` counts calls that took less than 2^n microseconds, the last one
/// all others.
pub const BUCKETS: usize = 25;

/// What one host counted since its process started, all revisions together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostMetrics {
    /// When the process started, microseconds since 1970: counters of another process start at 0.
    pub since_us: u64,
    /// Calls that run now.
    pub in_flight: u32,
    /// Resident memory, bytes.
    pub rss: u64,
    /// By app and component.
    pub components: Vec<ComponentMetrics>,
    /// By app, component, contract, label and provider.
    pub links: Vec<LinkMetrics>,
}

/// What a tenant keeps: keys, messages that wait on disk, objects and databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Kept {
    /// Bytes.
    pub bytes: u64,
    /// Bytes it may keep.
    pub most: u64,
    /// Writes that found no room, since the node started.
    pub refused: u64,
}

/// One component of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ComponentMetrics {
    /// Whose.
    pub app: AppName,
    /// Which.
    pub component: ComponentName,
    /// The numbers.
    #[serde(flatten)]
    pub counts: ComponentCounts,
}

/// What is counted of a component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ComponentCounts {
    /// Calls that run now.
    pub in_flight: u32,
    /// Calls ended.
    pub calls: u64,
    /// Of those, how many ended in a trap or a limit.
    pub failed: u64,
    /// Calls refused by the concurrency limit; not among `calls`.
    pub refused: u64,
    /// CPU time used, microseconds.
    pub cpu_us: u64,
    /// Bytes of log dropped by its limits.
    pub log_dropped: u64,
}

/// One link of a component to a provider. Moving the link to another provider begins another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkMetrics {
    /// Which.
    #[serde(flatten)]
    pub link: LinkKey,
    /// The numbers.
    #[serde(flatten)]
    pub counts: LinkCounts,
}

/// Names a link within a tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkKey {
    /// The app.
    pub app: AppName,
    /// Whose import.
    pub component: ComponentName,
    /// Which contract.
    pub contract: ContractId,
    /// Which label of the contract.
    pub label: Label,
    /// What answers.
    pub provider: ProviderName,
}

/// What is counted of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkCounts {
    /// Calls that wait for their answer now.
    pub in_flight: u32,
    /// Calls ended.
    pub calls: u64,
    /// Of those, how many failed, by kind.
    pub errors: LinkErrors,
    /// How many took how long: see [`BUCKETS`]. Zeros at the end are left out.
    pub took: Vec<u64>,
    /// All durations together, microseconds.
    pub took_us: u64,
}

/// The kinds of error a call over a link can end with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct LinkErrors {
    /// The provider refuses what was asked: wrong value, too large, not there.
    pub refused: u64,
    /// Credentials or policy.
    pub denied: u64,
    /// The provider cannot be reached or cannot do it now.
    pub unavailable: u64,
    /// No answer in time.
    pub timed_out: u64,
    /// Given up before its answer: the component's own call ended first.
    pub cancelled: u64,
}

impl LinkErrors {
    /// Every kind with its name and count.
    pub fn by_kind(&self) -> [(&'static str, u64); 5] {
        [
            ("refused", self.refused),
            ("denied", self.denied),
            ("unavailable", self.unavailable),
            ("timed-out", self.timed_out),
            ("cancelled", self.cancelled),
        ]
    }

    /// All kinds together.
    pub fn sum(&self) -> u64 {
        self.by_kind().iter().map(|(_, count)| count).sum()
    }
}

/// Everything counted of one tenant, on every shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TenantMetrics {
    /// The tenant.
    pub tenant: TenantName,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
    /// Its host processes.
    pub hosts: Vec<HostLoad>,
    /// By app and component.
    pub components: Vec<ComponentMetrics>,
    /// By app, component, contract, label and provider.
    pub links: Vec<LinkMetrics>,
    /// What it keeps on this node, where it has a quota of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// One host process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostLoad {
    /// Which shard.
    pub shard: u32,
    /// Calls that run now.
    pub in_flight: u32,
    /// Resident memory, bytes.
    pub rss: u64,
}

/// Adds what was counted elsewhere, or takes it off.
pub trait Counts {
    /// Adds the counters of `past`; gauges stay as they are.
    fn add(&mut self, past: &Self);
    /// Calls ended: what tells a counter that began anew from one that went on.
    fn calls(&self) -> u64;
}

impl Counts for ComponentCounts {
    fn add(&mut self, past: &Self) {
        add(&mut self.calls, past.calls);
        add(&mut self.failed, past.failed);
        add(&mut self.refused, past.refused);
        add(&mut self.cpu_us, past.cpu_us);
        add(&mut self.log_dropped, past.log_dropped);
    }

    fn calls(&self) -> u64 {
        self.calls
    }
}

/// A host may say any number.
fn add(sum: &mut u64, past: u64) {
    *sum = sum.saturating_add(past);
}

impl Counts for LinkCounts {
    fn add(&mut self, past: &Self) {
        add(&mut self.calls, past.calls);
        add(&mut self.errors.refused, past.errors.refused);
        add(&mut self.errors.denied, past.errors.denied);
        add(&mut self.errors.unavailable, past.errors.unavailable);
        add(&mut self.errors.timed_out, past.errors.timed_out);
        add(&mut self.errors.cancelled, past.errors.cancelled);
        add(&mut self.took_us, past.took_us);
        if self.took.len() < past.took.len() {
            self.took.resize(past.took.len().min(BUCKETS), 0);
        }
        for (sum, past) in self.took.iter_mut().zip(&past.took) {
            add(sum, *past);
        }
    }

    fn calls(&self) -> u64 {
        self.calls
    }
}
