//! The node as others hold it: started with its parts, asked for logs and calls, ended in time.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::agent::{HostStatus, LogLine};
use api::flows::{FlowQuery, FlowRecord};
use api::metrics::{Kept, TenantMetrics};
use api::node::{CopyOutcome, CopyStep, LogQuery, NodeApi};
use api::run::{RunFrame, RunRequest};
use api::{Code, Problem};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use model::schedule::Ended;
use model::{AppName, ComponentName, Digest, NodeName, ScheduleName, TenantName};
use store::Store;
use store::blobs::Blobs;
use store::data::DataEngine;
use store::folder::Folder;
use store::keys::NodeRecord;
use store::secrets::Secrets;
use store::sql::Databases;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::NodeError;
use crate::admin::{Admin, AdminConfig, Source};
use crate::agent::{self, HostIndex, Setup};
use crate::artifacts::{Artifacts, make_dir};
use crate::confine::Confinement;
use crate::copying::Copying;
use crate::dialer::{Dialer, Resolve, SystemResolver};
use crate::external::{ExternalConfig, Externals, Pace, Programs};
use crate::ingress::{Ingress, IngressConfig, IngressError, Refused, Room, Routes, forward};
use crate::logs::Logs;
use crate::messaging::Messaging;
use crate::metrics::Metrics;
use crate::otlp::{Exporter, OtlpConfig};
use crate::publisher::{Said, publish};
use crate::schedules::{self, Clock, Schedules, SystemClock};
use crate::services::{Lent, Services};
use crate::serving::ServingIndex;
use crate::supervisor::{Host, HostRef, HostState};

/// Variables of the node's environment that its hosts get too; they get no other, but for settings of their own.
const PASSED_ON: [&str; 1] = ["SIDEREAL_LOG"];
/// How long the collector may take for the last spans.
const FLUSH: Duration = Duration::from_secs(2);
/// How long a host may take to say how it is.
const STATUS: Duration = Duration::from_secs(2);
/// The longest a call from inside may take, and its largest answer, bytes.
const CALL: Duration = Duration::from_secs(15 * 60);
const MAX_ANSWER: usize = api::control::MAX_CALL_BODY;
/// Bytes of answers to calls from inside that are held in memory, all calls together.
const ANSWERS: usize = 8 * MAX_ANSWER;

/// Everything that is kept on this machine, open.
#[derive(Clone)]
pub struct Storage {
    /// Where the control plane is met.
    pub store: Arc<dyn Store>,
    /// The artifacts.
    pub blobs: Blobs,
    /// The tenants' embedded data.
    pub data: DataEngine,
    /// The tenants' secrets.
    pub secrets: Arc<Secrets>,
}

/// What a node is started with.
pub struct NodeConfig {
    /// Its name in the store.
    pub name: NodeName,
    /// Compiled code and keys are kept in here.
    pub data_dir: PathBuf,
    /// Compiled code and the key of its MACs are kept in here in place of `data_dir`; several nodes may share it.
    pub code_dir: Option<PathBuf>,
    /// Hosts' sockets are made in here; about 40 bytes of path leave room for the longest names.
    pub run_dir: PathBuf,
    /// The program that is run as `host` and `compile`.
    pub exe: PathBuf,
    /// How what it starts is confined.
    pub confinement: Arc<Confinement>,
    /// What is kept.
    pub storage: Storage,
    /// Bytes of compiled code that each host keeps in memory; `None`: the host's own default.
    pub code_budget: Option<u64>,
    /// Folders that the components of its hosts may use; those of a task.
    pub host_folders: Vec<api::run::Folder>,
    /// How requests from outside are taken.
    pub ingress: IngressConfig,
    /// Where the ingress port is taken, listen on a free one.
    pub ingress_fallback: bool,
    /// Nothing comes from outside: there is no ingress.
    pub closed: bool,
    /// Where monitoring listens; `None`: nowhere.
    pub admin: Option<AdminConfig>,
    /// Where spans and lines are exported to; `None`: nowhere.
    pub otlp: Option<OtlpConfig>,
    /// How names are resolved; `None` for the system's way.
    pub resolver: Option<Arc<dyn Resolve>>,
    /// Programs that external providers may run.
    pub programs: Programs,
    /// How long external providers may take.
    pub pace: Pace,
    /// What time it is for schedules.
    pub clock: Arc<dyn Clock>,
}

impl NodeConfig {
    /// A node with the defaults of everything that has one.
    pub fn new(
        name: NodeName,
        data_dir: &Path,
        exe: PathBuf,
        confinement: Arc<Confinement>,
        storage: Storage,
        ingress_listen: SocketAddr,
    ) -> Self {
        Self {
            confinement,
            name,
            data_dir: data_dir.to_owned(),
            code_dir: None,
            run_dir: data_dir.join("run"),
            exe,
            storage,
            code_budget: None,
            host_folders: Vec::new(),
            ingress: IngressConfig::new(ingress_listen),
            ingress_fallback: true,
            closed: false,
            admin: None,
            otlp: None,
            resolver: None,
            programs: Programs::new(),
            pace: Pace::default(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    address: SocketAddr,
    admin: Option<Admin>,
    logs: Arc<Logs>,
    index: Arc<ServingIndex>,
    hosts: Arc<HostIndex>,
    lent: Arc<Lent>,
    services: Arc<Services>,
    artifacts: Arc<Artifacts>,
    externals: Arc<Externals>,
    metrics: Arc<Metrics>,
    schedules: Arc<Schedules>,
    confinement: Arc<Confinement>,
    settled: watch::Receiver<bool>,
    /// One permit for each byte of [`ANSWERS`].
    answers: Arc<Semaphore>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    ingress: Ingress,
    stop: oneshot::Sender<()>,
    agent: JoinHandle<Vec<Host>>,
    publisher: JoinHandle<()>,
    exporter: Option<Arc<Exporter>>,
}

impl Node {
    /// Starts the ingress, reads what is assigned and starts hosts for it. Returns at once; see [`Node::settled`].
    ///
    /// # Errors
    /// When a directory, the key or the listener cannot be had.
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, NodeError> {
        let Storage { store, blobs, data, secrets } = config.storage;
        make_dir(&config.run_dir).map_err(|cause| NodeError::Files {
            action: "create",
            path: config.run_dir.clone(),
            cause,
        })?;
        sweep(&config.run_dir);
        let code_dir = config.code_dir.as_ref().unwrap_or(&config.data_dir);
        let (cache, keys) = (code_dir.join("cache"), code_dir.join("keys"));
        let artifacts = Arc::new(Artifacts::open(cache, keys, config.exe.clone(), config.confinement.clone(), blobs)?);
        let routes = Arc::new(Routes::default());
        let exporter = config.otlp.map(|otlp| Exporter::start(otlp, &config.name));
        let mut config_ingress = config.ingress;
        config_ingress.exporter.clone_from(&exporter);
        let ingress = match config.closed {
            true => Ingress::closed(),
            false => listen(&config_ingress, config.ingress_fallback, &routes)?,
        };
        let address = ingress.addr();
        let resolver = config.resolver.unwrap_or_else(|| Arc::new(SystemResolver));
        let dialer = Dialer::new(resolver);
        let objects = config.data_dir.join("objects");
        let folder = Folder::open(&objects).map_err(|cause| NodeError::Objects { path: objects, cause })?;
        let messaging = Messaging::new(data.clone());
        let lent = Arc::new(Lent::default());
        let logs = Arc::new(Logs::exported(exporter.clone()));
        let (events, external_events) = mpsc::unbounded_channel();
        let externals = Externals::new(ExternalConfig {
            exe: config.exe.clone(),
            confinement: config.confinement.clone(),
            hide: vec![config.data_dir.clone(), config.run_dir.clone()],
            programs: config.programs,
            run_dir: config.run_dir.clone(),
            data_dir: config.data_dir.join("externals"),
            secrets: secrets.clone(),
            logs: logs.clone(),
            events,
            pace: config.pace,
        });
        let services = Arc::new(Services {
            data,
            folder,
            sql: Databases::new(config.data_dir.join("sql")),
            artifacts: artifacts.clone(),
            dialer,
            secrets,
            messaging,
            lent: lent.clone(),
            externals: externals.clone(),
        });
        let index = Arc::new(ServingIndex::default());
        let hosts = Arc::new(HostIndex::default());
        let metrics = Arc::new(Metrics::default());
        let (said_in, said) = mpsc::unbounded_channel::<Said>();
        let publisher = tokio::spawn(publish(store.clone(), said));
        let (settled_in, settled) = watch::channel(false);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let admin = match &config.admin {
            None => None,
            Some(admin) => {
                let source = Source {
                    hosts: hosts.clone(),
                    metrics: metrics.clone(),
                    logs: logs.clone(),
                    index: index.clone(),
                    ingress: ingress.meters().to_vec(),
                    exporter: exporter.clone(),
                    files: admin.files.clone(),
                    since: since.as_secs_f64(),
                };
                let failed = |cause| NodeError::Admin { address: admin.listen, cause };
                Some(Admin::start(admin, source).await.map_err(failed)?)
            }
        };
        let record = NodeRecord {
            ingress: if config.closed { Vec::new() } else { vec![address.to_string()] },
            pid: std::process::id(),
            since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            interfaces: Vec::new(),
            programs: externals.programs(),
            layers: config.confinement.layers(),
            waived: config.confinement.waived(),
        };
        let source = schedules::Hosts { index: index.clone(), hosts: hosts.clone() };
        let schedules = Schedules::start(schedules::Setup {
            node: config.name.clone(),
            store: store.clone(),
            source: Arc::new(source),
            clock: config.clock,
        });
        let setup = Setup {
            name: config.name,
            exe: config.exe,
            confinement: config.confinement.clone(),
            run_dir: config.run_dir,
            env: environment(config.code_budget, &config.host_folders),
            store,
            artifacts: artifacts.clone(),
            services: services.clone(),
            logs: logs.clone(),
            metrics: metrics.clone(),
            exporter: exporter.clone(),
            routes,
            index: index.clone(),
            hosts: hosts.clone(),
            schedules: schedules.clone(),
            said: said_in,
            record,
            settled: settled_in,
        };
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(agent::run(setup, external_events, stopped));
        let running = Mutex::new(Some(Running { ingress, stop, agent, publisher, exporter }));
        let node = Self {
            address,
            admin,
            logs,
            index,
            hosts,
            lent,
            services,
            artifacts,
            externals,
            metrics,
            schedules,
            confinement: config.confinement,
            settled,
            answers: Arc::new(Semaphore::new(ANSWERS)),
            running,
        };
        Ok(Arc::new(node))
    }

    /// Where the ingress listens.
    pub fn ingress(&self) -> SocketAddr {
        self.address
    }

    /// Runs a program once, on a host of its app: what it writes, and last how it ended. Dropping the stream ends the run; one
    /// that stops without an end is a run whose end nobody saw.
    ///
    /// # Errors
    /// [`Code::Unreachable`] where no host is ready, otherwise what the host says.
    pub async fn run(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &RunRequest,
    ) -> Result<BoxStream<'static, Result<RunFrame, Problem>>, Problem> {
        schedules::Hosts { index: self.index.clone(), hosts: self.hosts.clone() }.run(tenant, app, request).await
    }

    /// Where monitoring listens.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::addr)
    }

    /// Waits until everything that was assigned at the start serves or has failed; false where `within` is over first.
    pub async fn settled(&self, within: Duration) -> bool {
        let mut settled = self.settled.clone();
        let seen = tokio::time::timeout(within, settled.wait_for(|settled| *settled)).await;
        matches!(seen, Ok(Ok(_)))
    }

    /// Stops accepting, lets calls in flight finish, ends the hosts. What is not done by `deadline` is ended, however
    /// busy it is. A second call has nothing to do.
    pub async fn shutdown(&self, deadline: Duration) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { ingress, stop, agent, publisher, exporter }) = running else { return };
        let begun = Instant::now();
        self.schedules.cease();
        // From here on no host is started again and no route moves.
        if stop.send(()).is_err() {
            tracing::debug!("the agent had ended already");
        }
        let hosts = agent.await.unwrap_or_else(|cause| {
            tracing::error!(%cause, "the agent failed");
            Vec::new()
        });
        // Requests first: while they finish, hosts and their services go on. What they leave of the time is the hosts'.
        ingress.drain(deadline.mul_f64(0.6)).await;
        let left = deadline.saturating_sub(begun.elapsed());
        futures::future::join_all(hosts.into_iter().map(|host| host.stop(left))).await;
        // Nobody calls them any more.
        self.externals.shutdown().await;
        self.confinement.close().await;
        self.schedules.ended(FLUSH).await;
        if let Some(exporter) = exporter {
            exporter.shutdown(FLUSH).await;
        }
        // The agent held the last sender: the publisher withdraws its reports and ends.
        if tokio::time::timeout(Duration::from_secs(2), publisher).await.is_err() {
            tracing::warn!("the store does not take the node's leave");
        }
    }
}

/// Listens where asked, or on a free port of the same address.
fn listen(config: &IngressConfig, fallback: bool, routes: &Arc<Routes>) -> Result<Ingress, NodeError> {
    match Ingress::start(config.clone(), routes.clone()) {
        Err(error) if fallback && error.is_taken() => {
            let mut free = config.clone();
            free.listen.set_port(0);
            Ok(Ingress::start(free, routes.clone())?)
        }
        other => Ok(other?),
    }
}

impl From<IngressError> for NodeError {
    fn from(error: IngressError) -> Self {
        NodeError::Ingress(error)
    }
}

/// Whether every host that is ready says that it has no revision of the app.
async fn all_left(hosts: &[HostRef], app: &AppName) -> bool {
    let ready = hosts.iter().filter(|host| *host.state.borrow() == HostState::Ready);
    let asked = ready.map(|host| tokio::time::timeout(STATUS, host.client.status()));
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().all(|answer| matches!(answer, Ok(Ok(status)) if status.apps.iter().all(|a| a.app != *app)))
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

fn environment(code_budget: Option<u64>, folders: &[api::run::Folder]) -> Vec<(OsString, OsString)> {
    let passed = PASSED_ON.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    let budget = code_budget.map(|bytes| (api::agent::CODE_BUDGET_ENV.into(), bytes.to_string().into()));
    let folders = serde_json::to_string(folders).ok().filter(|_| !folders.is_empty());
    let folders = folders.map(|folders| (api::run::FOLDERS_ENV.into(), folders.into()));
    passed.chain(budget).chain(folders).collect()
}

/// Removes what hosts of an earlier node left. A host that is still ending has its sockets open and needs no names.
fn sweep(run_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(run_dir) else { return };
    for entry in entries.flatten() {
        let is_host = entry.file_name().to_str().is_some_and(|name| name.contains('.'));
        if is_host
            && entry.path().is_dir()
            && let Err(cause) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %cause, "a directory of an earlier host stays behind");
        }
    }
}

impl NodeApi for Node {
    fn purge(&self, tenant: &TenantName, app: &AppName) -> BoxFuture<'static, Result<(), Problem>> {
        let known = self.hosts.all().iter().any(|(known, _)| known.name == *tenant && known.knows(app));
        let (hosts, services) = (self.hosts.of(tenant), self.services.clone());
        let (tenant, app) = (tenant.clone(), app.clone());
        Box::pin(async move {
            // A call that is still running would write its data anew behind the removal.
            if known || !all_left(&hosts, &app).await {
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
        let answers = self.answers.clone();
        Box::pin(async move {
            let target = target?;
            // As any request of the tenant; it counts until its answer was read.
            let _entered = target.gate.enter().map_err(over_quota)?;
            let room = Room { most: MAX_ANSWER, all: answers };
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
        let (metrics, hosts, tenant) = (self.metrics.clone(), self.hosts.of(tenant), tenant.clone());
        let (hosted, services) = (self.hosts.hosted(&tenant), self.services.clone());
        Box::pin(async move {
            let counted = metrics.read(&tenant, &hosts).await;
            let Some((tenant, _)) = hosted else { return counted };
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
        let hosts = self.hosts.of(tenant);
        Box::pin(async move {
            let ready = hosts.iter().filter(|host| *host.state.borrow() == HostState::Ready);
            let asked = ready.map(|host| tokio::time::timeout(STATUS, host.client.status()));
            let answers = futures::future::join_all(asked).await;
            answers.into_iter().filter_map(|answer| answer.ok()?.ok()).collect()
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
        let hosted = self.hosts.hosted(tenant);
        let (app, id, lent) = (app.clone(), id.to_owned(), self.lent.clone());
        let externals = Some(self.externals.clone());
        Box::pin(async move {
            let missing = || Problem::new(Code::Unreachable, "nothing of the tenant runs on this node");
            let (tenant, hosts) = hosted.ok_or_else(missing)?;
            Copying { hosts, tenant, app, id, lent, externals }.step(step).await
        })
    }
}
