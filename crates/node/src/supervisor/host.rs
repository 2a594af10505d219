//! A host as the rest of the node sees it: what it is started with, how it stands, what happens to it, and how to stop it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use api::Problem;
use api::agent::{AGENT_SOCKET, HostInfo};
use api::agent_client::HostClient;
use arc_swap::ArcSwapOption;
use model::observed::Reason;
use model::{AppName, Revision, TenantName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::Supervisor;
use crate::confine::Confinement;
use crate::front::Front;
use crate::logs::Logs;
use crate::otlp::Exporter;
use crate::recompile::Uncompiled;
use crate::services::Services;
use crate::tenant::Tenant;

/// What every host of a tenant is started with.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// The program; run as `exe host --tenant … --shard … --sandbox …`.
    pub exe: PathBuf,
    /// How it is confined.
    pub confinement: Arc<Confinement>,
    /// The hosts' directories are made in here.
    pub run_dir: PathBuf,
    /// The whole environment of the process.
    pub env: Vec<(OsString, OsString)>,
    /// The folders that it names to the process.
    pub folders: Arc<[OwnedFd]>,
    /// Whose host.
    pub tenant: Arc<Tenant>,
    /// How many hosts the tenant has.
    pub shards: Arc<AtomicU32>,
    /// What hosts may ask for.
    pub services: Arc<Services>,
    /// Where their components' lines go.
    pub logs: Arc<Logs>,
    /// Where its spans go; it makes none where absent.
    pub exporter: Option<Arc<Exporter>>,
    /// Where its end is told.
    pub events: mpsc::UnboundedSender<HostEvent>,
    /// What the ingress sees of it.
    pub(crate) front: Arc<Front>,
}

/// How a host stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostState {
    /// Started, or about to be; why it ended, where it was there before.
    Starting(Option<Reason>),
    /// It answers, and has all it is to run.
    Ready,
    /// It ends again and again; it is tried again, but not promptly.
    Degraded(Reason),
    /// It was told to stop and has ended.
    Stopped,
}

/// Something that happened to a host.
#[derive(Debug)]
pub struct HostEvent {
    /// Whose.
    pub tenant: TenantName,
    /// Which.
    pub shard: u32,
    /// What.
    pub what: HostChange,
}

/// What can happen to a host.
#[derive(Debug)]
pub enum HostChange {
    /// It answers.
    Ready {
        /// Of its revisions it refused these.
        refused: Vec<(AppName, Revision, Problem)>,
        /// Of these its engine has no code yet.
        uncompiled: Vec<Uncompiled>,
    },
    /// Its process ended, and is started again.
    Ended(Reason),
    /// Its process ends again and again.
    Degraded(Reason),
    /// It was stopped, and its place is free.
    Stopped,
    /// Nothing is left of what the hosts of its tenant had together.
    Released,
    /// Its tenant had nothing to run for a while.
    Idle,
}

/// A supervised host. Dropping it ends the process.
#[derive(Debug)]
pub struct Host {
    client: Arc<HostClient>,
    info: Arc<ArcSwapOption<HostInfo>>,
    state: watch::Receiver<HostState>,
    stop: Option<oneshot::Sender<Duration>>,
    task: JoinHandle<()>,
}

/// A host as others speak to it.
#[derive(Debug, Clone)]
pub struct HostRef {
    /// Which shard.
    pub shard: u32,
    /// Its agent API.
    pub client: Arc<HostClient>,
    /// What it said of itself; empty while it is not ready.
    pub info: Arc<ArcSwapOption<HostInfo>>,
    /// How it stands.
    pub state: watch::Receiver<HostState>,
}

impl Host {
    /// Starts a host and goes on starting it until [`Host::stop`].
    pub fn start(plan: HostPlan, shard: u32) -> Self {
        let dir = plan.run_dir.join(format!("{}.{shard}", plan.tenant.name));
        let client = Arc::new(HostClient::new(dir.join(AGENT_SOCKET)));
        let info = Arc::new(ArcSwapOption::empty());
        let (tell, state) = watch::channel(HostState::Starting(None));
        let (stop, stopped) = oneshot::channel();
        let supervisor = Supervisor { plan, shard, dir, client: client.clone(), info: info.clone(), tell };
        Self { client, info, state, stop: Some(stop), task: tokio::spawn(supervisor.run(stopped)) }
    }

    /// For those who speak to it.
    pub fn refer(&self, shard: u32) -> HostRef {
        HostRef { shard, client: self.client.clone(), info: self.info.clone(), state: self.state.clone() }
    }

    /// Calls in flight have until `deadline`, then the process is ended. Returns when it is gone.
    pub async fn stop(mut self, deadline: Duration) {
        if let Some(stop) = self.stop.take()
            && stop.send(deadline).is_err()
        {
            tracing::debug!("a host's supervisor had ended already");
        }
        if let Err(cause) = (&mut self.task).await {
            tracing::error!(%cause, "a host's supervisor failed");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The process is the task's, and is killed with it.
        self.task.abort();
    }
}
