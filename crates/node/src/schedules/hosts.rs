//! The revisions that serve on this node, and their hosts, as the schedules' owner needs them.

use std::sync::Arc;

use api::agent::{Called, ScheduledCall};
use api::run::{RunFrame, RunRequest};
use api::{Code, Problem};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use model::{AppName, Revision, TenantName};

use super::{Planned, Source};
use crate::agent::HostIndex;
use crate::converge;
use crate::serving::{Serving, ServingIndex};
use crate::supervisor::{HostRef, HostState};

/// What serves, and where.
pub(crate) struct Hosts {
    pub(crate) index: Arc<ServingIndex>,
    pub(crate) hosts: Arc<HostIndex>,
}

impl Hosts {
    /// What serves, and a host of it that answers.
    fn find(&self, tenant: &TenantName, app: &AppName) -> Option<(Arc<Serving>, HostRef)> {
        let serving = self.index.get(tenant, app).filter(|serving| !serving.suspended)?;
        let mut ready = self.hosts.of(tenant);
        ready.retain(|host| {
            *host.state.borrow() == HostState::Ready && serving.home.is_none_or(|home| home == host.shard)
        });
        if ready.is_empty() {
            return None;
        }
        let at = usize::try_from(converge::preference(app) % ready.len() as u64).unwrap_or(0);
        Some((serving, ready.swap_remove(at)))
    }

    /// Runs a program once, on a host of its app that answers. The revision stays on its hosts as long as the stream is held.
    pub(crate) async fn run(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &RunRequest,
    ) -> Result<BoxStream<'static, Result<RunFrame, Problem>>, Problem> {
        let found = self.find(tenant, app);
        let (serving, host) = found.ok_or_else(|| Problem::new(Code::Unreachable, "no host is ready"))?;
        let target = serving.target(Some(&request.component));
        let frames = host.client.run(&serving.prepared.app, serving.prepared.revision, request).await?;
        let held = frames.map(move |frame| {
            // As long as it is read.
            let _target = &target;
            frame
        });
        Ok(held.boxed())
    }
}

impl Source for Hosts {
    fn schedules(&self, tenant: &TenantName, app: &AppName) -> Option<(Revision, Arc<[Planned]>)> {
        let serving = self.index.get(tenant, app).filter(|serving| !serving.suspended)?;
        Some((serving.prepared.revision, serving.prepared.schedules.clone()))
    }

    fn ready(&self, tenant: &TenantName, app: &AppName) -> bool {
        self.find(tenant, app).is_some()
    }

    fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        planned: &Planned,
        due_ms: u64,
    ) -> BoxFuture<'static, Result<Called, Problem>> {
        let found = self.find(tenant, app);
        let (entrance, export) = planned.entrance.clone();
        let (component, schedule) = (planned.schedule.component.clone(), planned.name.clone());
        let call = ScheduledCall { component, entrance, export, schedule, due_ms };
        Box::pin(async move {
            let (serving, host) = found.ok_or_else(|| Problem::new(Code::NotFound, "no host is ready"))?;
            // As long as somebody holds the target, the revision does not leave its hosts.
            let target = serving.target(Some(&call.component));
            let called = host.client.scheduled(&serving.prepared.app, serving.prepared.revision, &call).await;
            drop(target);
            called
        })
    }
}
