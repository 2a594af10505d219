//! What the control plane asks of nodes beside the store: logs, counters, and calls that bypass the ingress. On one machine the
//! node is in the same process; a cluster puts a network client behind the same trait.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use model::schedule::Ended;
use model::{AppName, ComponentName, Revision, ScheduleName, TenantName};

use crate::Problem;
use crate::agent::{HostStatus, LogLine};
use crate::copy::{CopyRequest, Cursor, Keys, Step};
use crate::metrics::TenantMetrics;

/// Which log lines.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Only this component.
    pub component: Option<ComponentName>,
    /// At most this many past lines.
    pub last: usize,
    /// Go on with new lines.
    pub follow: bool,
}

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
    /// Let new calls of the revision wait; those in flight have this many milliseconds.
    Hold(Revision, u64),
    /// Let the calls of a held revision go on: on the second one, or their own.
    Release(Revision, Option<Revision>),
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
