//! What the control plane asks of a node that runs: what hosts say of themselves, logs, calls, and that what is left of an app goes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::agent::{HostStatus, LogLine};
use api::flows::{FlowQuery, FlowRecord};
use api::metrics::{Kept, TenantMetrics};
use api::node::{CopyOutcome, CopyStep, LogQuery, NodeApi};
use api::{Code, Problem};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use model::schedule::Ended;
use model::{AppName, ComponentName, Digest, ScheduleName, TenantName};

use super::Node;
use crate::agent::Hosted;
use crate::copying::{self, Copying};
use crate::ingress::{Refused, Room, forward};
use crate::supervisor::{HostRef, HostState};
use crate::tenant::Tenant;

/// How long a host may take to say how it is.
const STATUS: Duration = Duration::from_secs(2);
/// The longest a call from inside may take, and its largest answer, bytes.
const CALL: Duration = Duration::from_secs(15 * 60);
const MAX_ANSWER: usize = api::control::MAX_CALL_BODY;
/// Bytes of answers to calls from inside that are held in memory, all calls together; one tenant has half of them at most.
pub(super) const ANSWERS: usize = 8 * MAX_ANSWER;

/// What the hosts that are ready say of themselves; `None` for one that does not say it. Many may ask at once, and what each
/// host answers is in memory: so it is asked by one of them after the other.
async fn statuses(tenant: &Tenant, hosts: &[HostRef]) -> Vec<Option<HostStatus>> {
    let _turn = tenant.asking.lock().await;
    let most = tenant.named.most();
    let ready = hosts.iter().filter(|host| *host.state.borrow() == HostState::Ready);
    let asked = ready.map(|host| tokio::time::timeout(STATUS, host.client.status(most)));
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().map(|answer| answer.ok()?.ok()).collect()
}

/// Whether every host that is ready says that it has no revision of the app.
async fn all_left((tenant, hosts): &Hosted, app: &AppName) -> bool {
    let said = statuses(tenant, hosts).await;
    said.iter().all(|status| status.as_ref().is_some_and(|status| status.apps.iter().all(|a| a.app != *app)))
}

/// What a call is refused with where its tenant has as many requests as it may have.
fn over_quota(refused: Refused) -> Problem {
    match refused {
        Refused::Concurrent => {
            let text = "as many requests are under way as this account may have at once";
            Problem::new(Code::Busy, text).help("try again in a moment")
        }
        Refused::Rate(_) => Problem::new(Code::RateLimited, "more requests a second than this account may have")
            .help("try again in a moment"),
    }
}

impl NodeApi for Node {
    fn purge(&self, tenant: &TenantName, app: &AppName) -> BoxFuture<'static, Result<(), Problem>> {
        let known = self.hosts.all().iter().any(|(known, _)| known.name == *tenant && known.knows(app));
        let (hosted, services) = (self.hosts.hosted(tenant), self.services.clone());
        let (tenant, app) = (tenant.clone(), app.clone());
        Box::pin(async move {
            let left = match &hosted {
                Some(hosted) => all_left(hosted, &app).await,
                None => true,
            };
            // A call that is still running would write its data anew behind the removal.
            if known || !left {
                let text = format!("calls of `{app}` are still ending on this node");
                return Err(Problem::new(Code::Busy, text).help("its data goes once they have ended"));
            }
            services.purge(&tenant, &app).await
        })
    }

    fn tidy(&self, unnamed: Vec<Digest>) -> BoxFuture<'static, Vec<Digest>> {
        let (all, artifacts) = (self.hosts.all(), self.artifacts.clone());
        let runs = |digest: &Digest| all.iter().any(|(tenant, _)| tenant.runs(digest));
        let (running, unnamed): (Vec<_>, Vec<_>) = unnamed.into_iter().partition(runs);
        let infos = all.iter().flat_map(|(_, hosts)| hosts).filter_map(|host| host.info.load_full());
        let engines: BTreeSet<String> =
            infos.flat_map(|info| info.fingerprints.values().cloned().collect::<Vec<_>>()).collect();
        Box::pin(async move {
            let work = move || artifacts.tidy(&unnamed, &engines);
            if let Err(cause) = tokio::task::spawn_blocking(work).await {
                tracing::error!(%cause, "compiled code was not tidied");
            }
            running
        })
    }

    fn logs(&self, tenant: &TenantName, app: &AppName, query: LogQuery) -> BoxStream<'static, LogLine> {
        self.logs.query(tenant, app, query)
    }

    fn flows(&self, tenant: &TenantName, query: FlowQuery) -> BoxStream<'static, FlowRecord> {
        // A tenant without hosts has connected nowhere yet.
        let known = self.hosts.all().into_iter().find(|(known, _)| known.name == *tenant);
        known.map_or_else(|| futures::stream::empty().boxed(), |(known, _)| known.flows.query(query))
    }

    fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        component: Option<&ComponentName>,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Bytes>, Problem>> {
        let target = self.index.get(tenant, app).ok_or_else(|| {
            Problem::new(Code::NotFound, format!("{tenant}/{app} does not serve on this node"))
                .help("`sidereal status` says where it stands")
        });
        let target = target.and_then(|serving| {
            if serving.suspended {
                return Err(Problem::new(Code::Suspended, format!("{tenant}/{app} is suspended")));
            }
            serving.target(component).ok_or_else(|| match component {
                Some(name) => Problem::new(Code::NotFound, format!("{tenant}/{app} has no component `{name}`")),
                None => Problem::new(
                    Code::NotFound,
                    format!("{tenant}/{app} has not exactly one component that answers HTTP"),
                )
                .help("name the component"),
            })
        });
        let held = self.answers.hold(tenant);
        Box::pin(async move {
            let target = target?;
            // As any request of the tenant; it counts until its answer was read.
            let _entered = target.gate.enter().map_err(over_quota)?;
            let room = Room { most: MAX_ANSWER, held };
            let answer = forward(target.as_ref(), request, CALL, room).await;
            let fault = answer.headers().get(api::agent::FAULT_HEADER).map(http::HeaderValue::as_bytes);
            if answer.status() == http::StatusCode::BAD_GATEWAY && fault == Some(Code::TooLarge.as_str().as_bytes()) {
                let text = format!("the component answered more than {MAX_ANSWER} bytes");
                return Err(Problem::new(Code::TooLarge, text).help("call it through its route"));
            }
            Ok(answer)
        })
    }

    fn metrics(&self, tenant: &TenantName) -> BoxFuture<'static, Arc<TenantMetrics>> {
        let (metrics, tenant) = (self.metrics.clone(), tenant.clone());
        let (hosted, services) = (self.hosts.hosted(&tenant), self.services.clone());
        Box::pin(async move {
            let Some((tenant, hosts)) = hosted else { return Arc::new(metrics.past(&tenant)) };
            let counted = metrics.read(&tenant, &hosts).await;
            let room = &tenant.kept.room;
            let Some(most) = room.most() else { return counted };
            if let Err(cause) = services.counted(&tenant).await {
                tracing::warn!(tenant = %tenant.name, cause, "what a tenant keeps is not in its metrics");
                return counted;
            }
            let kept = Kept { bytes: room.used(), most, refused: room.refused() };
            Arc::new(TenantMetrics { kept: Some(kept), ..TenantMetrics::clone(&counted) })
        })
    }

    fn status(&self, tenant: &TenantName) -> BoxFuture<'static, Vec<HostStatus>> {
        let hosted = self.hosts.hosted(tenant);
        Box::pin(async move {
            let Some((tenant, hosts)) = hosted else { return Vec::new() };
            statuses(&tenant, &hosts).await.into_iter().flatten().map(|status| tenant.named.seen(status)).collect()
        })
    }

    fn run_schedule(
        &self,
        tenant: &TenantName,
        app: &AppName,
        schedule: &ScheduleName,
    ) -> BoxFuture<'static, Result<Ended, Problem>> {
        let (tenant, app, schedule) = (tenant.clone(), app.clone(), schedule.clone());
        let schedules = self.schedules.clone();
        Box::pin(async move { schedules.run_now(tenant, app, schedule).await })
    }

    fn copy(
        &self,
        tenant: &TenantName,
        app: &AppName,
        id: &str,
        step: CopyStep,
    ) -> BoxFuture<'static, Result<CopyOutcome, Problem>> {
        let (index, tenant) = (self.hosts.clone(), tenant.clone());
        let (app, id, lent) = (app.clone(), id.to_owned(), self.lent.clone());
        let externals = Some(self.externals.clone());
        let mut begun = self.begun.clone();
        Box::pin(async move {
            // Before that it is not known whose calls wait, and nobody could let them go on.
            if begun.wait_for(|begun| *begun).await.is_err() {
                return Err(Problem::new(Code::Unreachable, "the node has ended"));
            }
            let hosted = || {
                let missing = || Problem::new(Code::Unreachable, "nothing of the tenant runs on this node");
                index.hosted(&tenant).ok_or_else(missing)
            };
            let since = match step {
                CopyStep::Begin(_) => copying::settled(&hosted()?.0).await?,
                _ => 0,
            };
            let (tenant, hosts) = hosted()?;
            Copying { hosts, tenant, app, id, since, lent, externals }.step(step).await
        })
    }
}
