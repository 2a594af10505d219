//! The agent API: HTTP/1.1 and JSON over the host's `agent.sock`, the only way into a host.
//!
//! | Request | Meaning |
//! |---|---|
//! | `GET /v1/info` | [`HostInfo`] |
//! | `PUT /v1/apps/{app}/revisions/{n}` ([`StartRequest`]) | make a revision answer; idempotent; 200 or a problem |
//! | `POST /v1/apps/{app}/revisions/{n}/drain` ([`DrainRequest`]) | finish calls in flight, then forget the revision; [`Drained`] |
//! | `PUT /v1/apps/{app}/revisions/{n}/taking` ([`TakingRequest`]) | take messages for a revision, or stop and finish those under way |
//! | `POST /v1/apps/{app}/revisions/{n}/scheduled` ([`ScheduledCall`]) | call a component for a schedule, once; [`Called`] |
//! | `POST /v1/apps/{app}/revisions/{n}/run` ([`RunRequest`](crate::run::RunRequest)) | run a program once; the frames of [`crate::run`] until it has ended |
//! | `GET /v1/status` | [`HostStatus`] |
//! | `GET /v1/metrics` | [`crate::metrics::HostMetrics`]: counters over all revisions |
//! | `GET /v1/logs` | newline-delimited [`LogLine`]s, from now on, until the caller hangs up |
//! | `GET /v1/spans?roots=` | newline-delimited [`SpanBatch`]es; calls make spans only while somebody reads them; `roots` is the part of the traces that begin here which is recorded |
//! | `POST /v1/drain` ([`DrainRequest`]) | refuse new calls, finish those in flight, exit 0 |
//!
//! Requests of an app arrive on `data.sock` beside it: plain HTTP/1.1 with the header [`ROUTE_HEADER`] set by the
//! ingress to `app/revision/component`. A host answers 503 with [`FAULT_HEADER`] for a revision it does not have. Those that are
//! whole may come on a line instead ([`crate::data_line`]).

use std::collections::BTreeMap;

use model::schedule::Entrance;
use model::trace::{Span, SpanOrigin};
use model::{AppName, ComponentName, LockedApp, Revision, ScheduleName, TenantName, World};
use serde::{Deserialize, Serialize};

pub use crate::agent_document::openapi;
use crate::metrics::LinkKey;

/// Set by the ingress on every request to a host: `app/revision/component`. Never accepted from outside.
pub const ROUTE_HEADER: &str = "sidereal-route";
/// Set by the host when it, not the component, made the answer: one of the [`crate::Code`] texts.
pub const FAULT_HEADER: &str = "sidereal-fault";
/// File name of the agent API's socket in a host's directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// File name of the data socket in a host's directory.
pub const DATA_SOCKET: &str = "data.sock";
/// What a host is handed when it starts, in this order: listeners at [`AGENT_SOCKET`], at [`DATA_SOCKET`] and of its line,
/// its first connection to the node, and the folder that compiled code is read from.
pub const HANDED: usize = 5;

/// Environment variable of a host: bytes of compiled code it keeps in memory.
pub const CODE_BUDGET_ENV: &str = "SIDEREAL_HOST_CODE_BUDGET";

/// Who a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostInfo {
    /// Its process.
    pub pid: u32,
    /// The product's version.
    pub version: String,
    /// Whose components it runs.
    pub tenant: TenantName,
    /// Which of the tenant's hosts it is.
    pub shard: u32,
    /// The fingerprint of each engine: compiled code loads only where it matches.
    pub fingerprints: BTreeMap<World, String>,
    /// Interfaces it offers without a link, and per link, for `provider list --contracts`.
    pub interfaces: Vec<String>,
}

/// Make a revision answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StartRequest {
    /// The revision.
    pub app: LockedApp,
    /// Load and link every component before answering (a deploy), or on its first call (a restart).
    pub load: bool,
}

/// How long calls in flight may take to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DrainRequest {
    /// Milliseconds; then they are ended.
    pub deadline_ms: u64,
}

/// Whether a revision is to take messages; a revision that was only started takes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TakingRequest {
    /// It is.
    pub taking: bool,
}

/// Call a component for one due time of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ScheduledCall {
    /// Which component.
    pub component: ComponentName,
    /// How it is called.
    pub entrance: Entrance,
    /// The instance it exports that has `run`, for example `sidereal:schedule/handler@0.1.0`.
    pub export: String,
    /// For which schedule.
    pub schedule: ScheduleName,
    /// For which due time, milliseconds since 1970.
    pub due_ms: u64,
}

/// A component was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Called {
    /// Why the call failed; absent where it did not.
    #[serde(default)]
    pub error: Option<String>,
}

/// What became of the calls in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Drained {
    /// Calls that were ended by the deadline.
    pub ended: u64,
}

/// Counters of one component since its revision started on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ComponentStatus {
    /// Its compiled code is in memory.
    pub loaded: bool,
    /// Calls that run now.
    pub in_flight: u32,
    /// Calls ended, by outcome.
    pub calls: u64,
    /// Calls that ended in a trap or a limit.
    pub failed: u64,
    /// Calls refused by the concurrency limit.
    pub refused: u64,
    /// CPU time used, microseconds.
    pub cpu_us: u64,
    /// Bytes of log dropped by its limits.
    pub log_dropped: u64,
    /// The last failure.
    pub last_fault: Option<String>,
}

/// Everything a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostStatus {
    /// Calls that run now, all apps together.
    pub in_flight: u32,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Every revision it answers for.
    pub apps: Vec<AppOnHost>,
}

/// One revision on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppOnHost {
    /// The app.
    pub app: AppName,
    /// Its revision.
    pub revision: Revision,
    /// Refuses new calls.
    pub draining: bool,
    /// Its components.
    pub components: BTreeMap<ComponentName, ComponentStatus>,
    /// Links of the app whose last call over this host found that they do not work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<LinkTrouble>,
}

/// Why a link does not work. It is gone once a call is answered again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkTrouble {
    /// Which.
    #[serde(flatten)]
    pub link: LinkKey,
    /// `denied`, `unavailable` or `timed-out`.
    pub kind: String,
    /// In words.
    pub reason: String,
    /// Since when no call was answered, milliseconds since 1970, UTC.
    pub since_ms: u64,
}

/// Spans that have ended since the last batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanBatch {
    /// The spans.
    pub spans: Vec<HostSpan>,
    /// Spans that were lost before these, because their reader was too slow.
    pub dropped: u64,
}

/// A span and whose it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostSpan {
    /// Whose.
    pub origin: SpanOrigin,
    /// What.
    pub span: Span,
}

/// One line of a component's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogLine {
    /// Milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// Whose.
    pub app: AppName,
    /// Which component.
    pub component: ComponentName,
    /// Which revision.
    pub revision: Revision,
    /// Which shard of the tenant.
    pub shard: u32,
    /// Which instance of the component, unique on its node: `shard-process-number`. Empty in lines of the platform's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// `stdout`, `stderr`, or the level of `wasi:logging`.
    pub stream: LogStream,
    /// The context of `wasi:logging`; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub context: String,
    /// One line without its end; control characters escaped, at most 16 KiB.
    pub text: String,
}

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// `wasi:cli` standard output.
    Stdout,
    /// `wasi:cli` standard error.
    Stderr,
    /// `wasi:logging`.
    Trace,
    /// `wasi:logging`.
    Debug,
    /// `wasi:logging`.
    Info,
    /// `wasi:logging`.
    Warn,
    /// `wasi:logging`.
    Error,
    /// `wasi:logging`.
    Critical,
    /// The platform's own remark about the component: a trap, a limit, dropped lines.
    Platform,
}

/// How much a line matters. `stdout` and `stderr` count as `info`, the platform's own lines as `warn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// `debug` and above.
    Debug,
    /// `info` and above; standard output and error are here.
    Info,
    /// `warn` and above; the platform's own lines are here.
    Warn,
    /// `error` and above.
    Error,
    /// `critical` only.
    Critical,
}

impl LogLevel {
    /// Every level, the least first.
    pub const ALL: [Self; 6] = [Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Critical];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

impl LogStream {
    /// How much its lines matter.
    pub fn level(self) -> LogLevel {
        match self {
            Self::Trace => LogLevel::Trace,
            Self::Debug => LogLevel::Debug,
            Self::Stdout | Self::Stderr | Self::Info => LogLevel::Info,
            Self::Warn | Self::Platform => LogLevel::Warn,
            Self::Error => LogLevel::Error,
            Self::Critical => LogLevel::Critical,
        }
    }
}
