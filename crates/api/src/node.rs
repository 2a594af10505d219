//! What the control plane asks of nodes beside the store: logs, counters, and calls that bypass the ingress. On one machine the
//! node is in the same process; a cluster puts a network client behind the same trait.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use model::schedule::Ended;
use model::unit::Millis;
use model::{AppName, ComponentName, Digest, Revision, ScheduleName, TenantName};

use crate::Problem;
use crate::agent::{HostStatus, LogLevel, LogLine};
use crate::copy::{CopyRequest, Cursor, Keys, Step};
use crate::flows::{FlowQuery, FlowRecord};
use crate::metrics::TenantMetrics;

/// Which log lines.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Only this component.
    pub component: Option<ComponentName>,
    /// Only this instance, as [`LogLine::instance`] says it.
    pub instance: Option<String>,
    /// Only lines that matter as much as this, or more.
    pub level: Option<LogLevel>,
    /// Only past lines that are not older.
    pub since: Option<Since>,
    /// At most this many past lines.
    pub last: usize,
    /// Go on with new lines.
    pub follow: bool,
}

/// A moment in the past. A duration is taken from the clock of whoever has the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// This long ago.
    Ago(Millis),
    /// Milliseconds since 1970.
    At(u64),
}

impl Since {
    /// Milliseconds since 1970, where it is `now_ms` now.
    pub fn at(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(ago) => now_ms.saturating_sub(ago.0),
            Self::At(ms) => ms,
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ago(ago) => write!(f, "{}ms", ago.0),
            Self::At(ms) => write!(f, "{ms}"),
        }
    }
}

impl FromStr for Since {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let moment = text.parse().map(Self::At).ok();
        let moment = moment.or_else(|| text.parse().map(Self::Ago).ok());
        moment.ok_or_else(|| "expected a duration such as 10m, or milliseconds since 1970".to_owned())
    }
}

/// The longest name of an instance that is asked for, bytes.
pub const MAX_INSTANCE: usize = 64;

/// One step of a move of data, see [`crate::copy`].
#[derive(Debug, Clone)]
pub enum CopyStep {
    /// Open both providers on every host of the tenant; note what is written.
    Begin(Box<CopyRequest>),
    /// Copy one page.
    Page(Cursor),
    /// Of one page of the target, the keys the source lacks.
    Extra(Cursor),
    /// What all hosts noted in this round.
    Noted(u64),
    /// Make these keys what they are in the source.
    Keys(Vec<String>),
    /// Let new calls of the revision wait, and all of revisions still to come; those in flight have this many
    /// milliseconds.
    Hold(Revision, u64),
    /// Let the calls of the held app go on: on this revision, or each on its own.
    Release(Option<Revision>),
    /// Forget the copy.
    End,
}

/// What a [`CopyStep`] brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyOutcome {
    /// Begin, Hold, Release, End.
    Done,
    /// Page, Keys.
    Step(Step),
    /// Extra, Noted.
    Keys(Keys),
}

/// A node, seen from the control plane.
pub trait NodeApi: Send + Sync + 'static {
    /// Past and, if asked, coming lines of an app.
    fn logs(&self, tenant: &TenantName, app: &AppName, query: LogQuery) -> BoxStream<'static, LogLine>;

    /// Past and, if asked, coming flow records of a tenant.
    fn flows(&self, tenant: &TenantName, query: FlowQuery) -> BoxStream<'static, FlowRecord>;

    /// Sends a request to a component of the serving revision without the ingress.
    fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        component: Option<&ComponentName>,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Bytes>, Problem>>;

    /// What is counted of the tenant's components and links. Hosts are asked for it, at most a few times a second.
    fn metrics(&self, tenant: &TenantName) -> BoxFuture<'static, Arc<TenantMetrics>>;

    /// What the tenant's hosts report now, in shard order; a host that does not answer in time is left out.
    fn status(&self, tenant: &TenantName) -> BoxFuture<'static, Vec<HostStatus>>;

    /// Removes the data that the node keeps of an app that is deleted: embedded keys, objects, messages. What lies on
    /// servers elsewhere is not the node's. `busy` while a host still has the app; asking again is harmless.
    fn purge(&self, tenant: &TenantName, app: &AppName) -> BoxFuture<'static, Result<(), Problem>>;

    /// No revision names these artifacts any more: their compiled code goes, and code of earlier versions of the engine.
    /// Answers which of them still run, and stay.
    fn tidy(&self, unnamed: Vec<Digest>) -> BoxFuture<'static, Vec<Digest>>;
    /// Runs a schedule of the serving revision now, and answers when that has ended.
    fn run_schedule(
        &self,
        tenant: &TenantName,
        app: &AppName,
        schedule: &ScheduleName,
    ) -> BoxFuture<'static, Result<Ended, Problem>>;

    /// One step of moving an app's data, under an id that whoever directs it chose.
    fn copy(
        &self,
        tenant: &TenantName,
        app: &AppName,
        id: &str,
        step: CopyStep,
    ) -> BoxFuture<'static, Result<CopyOutcome, Problem>>;
}
