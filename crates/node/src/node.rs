//! The node as others hold it: started with its parts, asked for logs and calls, ended in time.

mod asked;
mod config;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::Problem;
use api::run::{RunFrame, RunRequest};
use api::shares::Shares;
use futures::stream::{BoxStream, StreamExt as _};
use model::observed::Reason;
use model::{AppName, TenantName};
use store::folder::Folder;
use store::keys::NodeRecord;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::NodeError;
use crate::admin::{Admin, Source};
use crate::agent::{self, HostIndex, Setup};
use crate::artifacts::{Artifacts, make_dir};
use crate::confine::Confinement;
use crate::databases::{Databases, Starting};
use crate::dialer::{Dialer, SystemResolver};
use crate::external::{ExternalConfig, Externals};
use crate::ingress::{Ingress, IngressConfig, IngressError, Routes};
use crate::logs::Logs;
use crate::messaging::Messaging;
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::publisher::{Said, publish};
use crate::schedules::{self, Schedules};
use crate::services::{Lent, Services};
use crate::serving::ServingIndex;
use crate::supervisor::Host;
use crate::tenant::Ends;

pub use config::{NodeConfig, Storage};

/// Variables of the node's environment that its hosts get too; they get no other, but for settings of their own.
const PASSED_ON: [&str; 1] = ["SIDEREAL_LOG"];
/// What keeps a host small: with huge pages its allocator has 9 MiB more that nothing is in.
const SMALL: [(&str, &str); 1] = [("MIMALLOC_ALLOW_THP", "0")];
/// How long the collector may take for the last spans.
const FLUSH: Duration = Duration::from_secs(2);
/// Requests that are under way when a node ends have this part of its time.
const REQUESTS: f64 = 0.6;

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
    /// What served before the start is put back.
    begun: watch::Receiver<bool>,
    /// One permit for each byte of [`asked::ANSWERS`].
    answers: Arc<Shares>,
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
        let (exe, confinement) = (config.exe.clone(), config.confinement.clone());
        let artifacts = match &config.code_dir {
            Some(shared) => Artifacts::open_shared(shared, exe, confinement, blobs),
            None => {
                let (cache, keys) = (config.data_dir.join("cache"), config.data_dir.join("keys"));
                Artifacts::open(cache, keys, exe, confinement, blobs)
            }
        };
        let artifacts = Arc::new(artifacts?);
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
        // It keeps the user that its files belong to, which may be root: nor has it what only that one may read.
        let hide = [Path::new("/etc"), Path::new("/opt"), config.data_dir.as_path(), config.run_dir.as_path()];
        let databases = Starting {
            exe: config.exe.clone(),
            confinement: config.confinement.clone(),
            hide: hide.into_iter().map(Path::to_owned).collect(),
        };
        let services = Arc::new(Services {
            data,
            folder,
            sql: Databases::new(config.data_dir.join("sql"), databases),
            artifacts: artifacts.clone(),
            dialer,
            secrets,
            messaging,
            lent: lent.clone(),
            externals: externals.clone(),
            confinement: config.confinement.clone(),
        });
        let index = Arc::new(ServingIndex::default());
        let hosts = Arc::new(HostIndex::default());
        let metrics = Arc::new(Metrics::default());
        let (said_in, said) = mpsc::unbounded_channel::<Said>();
        let publisher = tokio::spawn(publish(store.clone(), said));
        let (settled_in, settled) = watch::channel(false);
        let (begun_in, begun) = watch::channel(false);
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
            interfaces: model::offers::interfaces().collect(),
            programs: externals.programs(),
            layers: config.confinement.layers(),
            waived: config.confinement.waived(),
            groups: config.confinement.groups(),
        };
        let source = schedules::Hosts { index: index.clone(), hosts: hosts.clone() };
        let schedules = Schedules::start(schedules::Setup {
            node: config.name.clone(),
            store: store.clone(),
            source: Arc::new(source),
            clock: config.clock,
        });
        let (named, folders): (Vec<_>, Vec<_>) = config.host_folders.into_iter().unzip();
        let setup = Setup {
            name: config.name,
            exe: config.exe,
            confinement: config.confinement.clone(),
            run_dir: config.run_dir,
            env: environment(config.code_budget, &named, &config.host_variables),
            folders: folders.into(),
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
            begun: begun_in,
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
            begun,
            answers: Shares::new(asked::ANSWERS),
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
    /// [`api::Code::Unreachable`] where no host is ready, otherwise what the host says.
    pub async fn run(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &RunRequest,
    ) -> Result<BoxStream<'static, Result<RunFrame, Problem>>, Problem> {
        schedules::Hosts { index: self.index.clone(), hosts: self.hosts.clone() }.run(tenant, app, request).await
    }

    /// How many hosts of a tenant that were ready have ended by themselves, and why the last of them did, each time that one has;
    /// from now on.
    pub fn ends(&self, tenant: &TenantName) -> BoxStream<'static, (u64, Reason)> {
        let Some((tenant, _)) = self.hosts.hosted(tenant) else { return futures::stream::pending().boxed() };
        let told = tenant.ends.subscribe();
        let known = told.borrow().count;
        let ends = futures::stream::unfold((known, told), |(known, mut told)| async move {
            told.changed().await.ok()?;
            let Ends { count, last } = told.borrow_and_update().clone();
            Some(((count - known, last?), (count, told)))
        });
        ends.chain(futures::stream::pending()).boxed()
    }

    /// Keeps that the code which hosts were handed is used now, [`Artifacts::still_used`]. Blocks on the disk.
    pub fn still_uses_code(&self) {
        self.artifacts.still_used();
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
        // What requests leave of the time is the hosts', of which there may be many.
        self.end(deadline.mul_f64(REQUESTS), deadline).await;
    }

    /// As [`Node::shutdown`], with so much of the time for requests that came from outside: how many of those were cut.
    pub async fn end(&self, requests: Duration, deadline: Duration) -> u64 {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { ingress, stop, agent, publisher, exporter }) = running else { return 0 };
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
        // Requests first: while they finish, hosts and their services go on.
        let cut = ingress.drain(requests).await;
        let left = deadline.saturating_sub(begun.elapsed());
        futures::future::join_all(hosts.into_iter().map(|host| host.stop(left))).await;
        // Nobody calls them any more.
        self.externals.shutdown().await;
        self.services.sql.shutdown().await;
        self.confinement.close().await;
        self.schedules.ended(FLUSH).await;
        if let Some(exporter) = exporter {
            exporter.shutdown(FLUSH).await;
        }
        // The agent held the last sender: the publisher withdraws its reports and ends.
        if tokio::time::timeout(Duration::from_secs(2), publisher).await.is_err() {
            tracing::warn!("the store does not take the node's leave");
        }
        cut
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

fn environment(
    code_budget: Option<u64>,
    folders: &[api::run::Folder],
    variables: &[String],
) -> Vec<(OsString, OsString)> {
    let passed = PASSED_ON.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    let budget = code_budget.map(|bytes| (api::agent::CODE_BUDGET_ENV.into(), bytes.to_string().into()));
    let folders = serde_json::to_string(folders).ok().filter(|_| !folders.is_empty());
    let folders = folders.map(|folders| (api::run::FOLDERS_ENV.into(), folders.into()));
    let variables = serde_json::to_string(variables).ok().filter(|_| !variables.is_empty());
    let variables = variables.map(|variables| (api::run::VARIABLES_ENV.into(), variables.into()));
    let allocator = SMALL.map(|(name, value)| (name.into(), value.into()));
    passed.chain(budget).chain(folders).chain(variables).chain(allocator).collect()
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
