//! One task per host process: it starts the process, gives it everything it is to run, puts it before the ingress,
//! follows its log, and starts it again when it ends, until it is told to stop.

mod backoff;
mod follow;
mod process;

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::agent::{AGENT_SOCKET, DATA_SOCKET, HANDED, HostInfo};
use api::agent_client::HostClient;
use api::{Code, Problem};
use arc_swap::ArcSwapOption;
use futures::future::join_all;
use futures::stream::StreamExt;
use model::observed::Reason;
use model::{AppName, Revision, TenantName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::confine::{Confinement, Held, Who};
use crate::front::Front;
use crate::logs::Logs;
use crate::otlp::Exporter;
use crate::recompile::{Uncompiled, uncompiled};
use crate::services::{Client, Services};
use crate::taking;
use crate::tenant::{Prepared, Tenant};
pub(crate) use backoff::Backoff;
use follow::{Gone, Lines};
use process::Process;
pub(crate) use process::describe;

/// A host that does not answer for so long after its start is ended.
const READY: Duration = Duration::from_secs(30);
/// One that was up, and whose starts have come to nothing for so long, does not come back by itself.
const DOWN: Duration = READY;
/// What a host said before it ended is read for so long: it is in the buffers of its connections.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Revisions given to a fresh host at once.
const RESTORE_AT_ONCE: usize = 8;
/// What a unix socket's path may have, bytes.
const MAX_SOCKET_PATH: usize = 107;

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

struct Supervisor {
    plan: HostPlan,
    shard: u32,
    dir: PathBuf,
    client: Arc<HostClient>,
    info: Arc<ArcSwapOption<HostInfo>>,
    tell: watch::Sender<HostState>,
}

/// How one life of the process ended.
enum End {
    Stopped,
    Ended(Reason),
}

/// Ends a task with the scope that needs it. Ends itself with the task.
struct Scoped(JoinHandle<()>);

impl Future for Scoped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Supervisor {
    async fn run(self, mut stop: oneshot::Receiver<Duration>) {
        let mut backoff = Backoff::default();
        let mut serving = Vec::new();
        // Since when it is not up any more; nothing before it was.
        let mut down: Option<Instant> = None;
        loop {
            let mut was_ready = false;
            let end = match self.open(&mut serving) {
                Ok(handed) => self.live(handed, &mut stop, &mut was_ready).await,
                Err(cause) => End::Ended(self.reason(&format!("cannot be started in {}: {cause}", self.dir.display()))),
            };
            self.info.store(None);
            self.client.reset();
            self.plan.tenant.connections.host_is_gone(self.shard);
            let End::Ended(reason) = end else { break };
            self.plan.front.down(self.shard);
            Tenant::count(&self.plan.tenant.restarts);
            let now = Instant::now();
            if was_ready {
                down = Some(now);
                self.plan.tenant.ends.send_modify(|ends| {
                    ends.count += 1;
                    ends.last = Some(reason.clone());
                });
            }
            // One that takes long to end has few ends to count.
            let lasts = down.is_some_and(|since| now.saturating_duration_since(since) >= DOWN);
            let pause = backoff.after_end(now);
            tracing::warn!(tenant = %self.plan.tenant.name, shard = self.shard, reason = %reason.message, wait = ?pause.wait, "a host ended");
            if pause.degraded || lasts {
                self.tell.send_replace(HostState::Degraded(reason.clone()));
                self.event(HostChange::Degraded(reason));
            } else {
                self.tell.send_replace(HostState::Starting(Some(reason.clone())));
                self.event(HostChange::Ended(reason));
            }
            tokio::select! {
                () = tokio::time::sleep(pause.wait) => {}
                _ = &mut stop => break,
            }
        }
        self.plan.front.gone(self.shard);
        self.tell.send_replace(HostState::Stopped);
        drop(serving);
        if let Err(cause) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %cause, "a host's directory stays behind");
        }
    }

    /// Makes everything the process is handed, and serves the node's end of it. Which connection it is, is who the host is.
    fn open(&self, serving: &mut Vec<Scoped>) -> std::io::Result<Opened> {
        crate::artifacts::make_dir(&self.dir)?;
        let data = self.dir.join(DATA_SOCKET);
        let line = api::data_line::socket(&data);
        let (ours, node) = UnixStream::pair()?;
        let opened = Opened {
            agent: listen(&self.dir.join(AGENT_SOCKET))?,
            data: listen(&data)?,
            line: listen(&line)?,
            node,
            code: self.plan.services.artifacts.folder()?,
        };
        ours.set_nonblocking(true)?;
        let ours = tokio::net::UnixStream::from_std(ours)?;
        let client = Client { tenant: self.plan.tenant.clone(), shard: self.shard, info: self.info.clone() };
        // What an earlier process had asked for ends by itself.
        serving.retain(|earlier| !earlier.0.is_finished());
        serving.push(Scoped(tokio::spawn(crate::services::serve(ours, client, self.plan.services.clone()))));
        Ok(opened)
    }

    /// One life of the process, from its start to its end.
    async fn live(&self, opened: Opened, stop: &mut oneshot::Receiver<Duration>, was_ready: &mut bool) -> End {
        let tenant = &self.plan.tenant.name;
        let who = Who::Tenant(tenant);
        let before = self.plan.confinement.held(who);
        let spec = self.plan.confinement.spec(who);
        let process = spec.and_then(|spec| {
            let handed = opened.fds();
            let (plan, shard) = (&self.plan, self.shard);
            Process::start(&plan.exe, &spec, tenant.as_str(), shard, &plan.env, &handed, &plan.folders)
        });
        let mut process = match process {
            Ok(process) => process,
            Err(cause) => {
                let what = format!("cannot be started from {}: {cause}", self.plan.exe.display());
                return End::Ended(self.reason(&what));
            }
        };
        // Only the process has them now: once it is gone, nobody can connect.
        drop(opened);
        let started = Instant::now();
        let ready = tokio::select! {
            ready = self.bring_up(process.pid()) => ready,
            how = process.ended() => return End::Ended(self.ended(&format!("ended before it was ready: it {how}"), before)),
            _ = &mut *stop => {
                process.kill().await;
                return End::Stopped;
            }
        };
        let (change, lines) = match ready {
            Ok(ready) => ready,
            Err(cause) => {
                process.kill().await;
                return End::Ended(self.reason(&cause.detail));
            }
        };
        tracing::info!(%tenant, shard = self.shard, pid = process.pid(), elapsed = ?started.elapsed(), "a host is ready");
        self.plan.confinement.started(who);
        self.plan.front.up(self.shard, self.dir.join(DATA_SOCKET));
        *was_ready = true;
        self.tell.send_replace(HostState::Ready);
        self.event(change);
        let _taking = Scoped(tokio::spawn(self.taking()));
        let gone = Gone::new();
        let following = self.follow(&gone, lines);
        let end = tokio::select! {
            how = process.ended() => {
                self.plan.front.down(self.shard);
                End::Ended(self.ended(&how, before))
            }
            deadline = &mut *stop => {
                self.plan.front.gone(self.shard);
                self.drain(&mut process, deadline.unwrap_or_default()).await;
                End::Stopped
            }
        };
        gone.cancel();
        if tokio::time::timeout(LAST_WORDS, join_all(following)).await.is_err() {
            tracing::warn!(%tenant, shard = self.shard, "what a host said last is lost: it is too much");
        }
        end
    }

    /// Reads what the host says of its calls until all is read that it said before it was gone.
    fn follow(&self, gone: &Gone, lines: Lines) -> Vec<Scoped> {
        let (client, tenant) = (&self.client, &self.plan.tenant);
        let lines = follow::lines(client.clone(), tenant.clone(), self.plan.logs.clone(), gone.clone(), lines);
        let exporter = self.plan.exporter.as_ref().filter(|exporter| exporter.traces());
        let spans = exporter
            .map(|exporter| follow::spans(client.clone(), tenant.clone(), self.shard, exporter.clone(), gone.clone()));
        std::iter::once(tokio::spawn(lines)).chain(spans.map(tokio::spawn)).map(Scoped).collect()
    }

    async fn drain(&self, process: &mut Process, deadline: Duration) {
        // The host ends its calls a little before we end the host, so that they end with an answer.
        let patience = deadline.mul_f64(0.8);
        let asked = async {
            if let Err(cause) = self.client.drain(patience).await {
                tracing::debug!(%cause, "a host did not answer its drain");
            }
            std::future::pending::<()>().await;
        };
        let done = tokio::select! {
            how = process.ended() => Some(how),
            () = asked => None,
            () = tokio::time::sleep(deadline) => None,
        };
        if done.is_none() {
            let (tenant, shard) = (&self.plan.tenant.name, self.shard);
            tracing::warn!(%tenant, shard, ?deadline, "a host did not drain in time and is killed");
            process.kill().await;
        }
    }

    /// Waits until the host answers, opens its log, and gives it every revision it is to have. What it refuses is told, and keeps
    /// nothing else from being served.
    async fn bring_up(&self, pid: Option<u32>) -> Result<(HostChange, Lines), Problem> {
        let info = tokio::time::timeout(READY, self.first_answer()).await;
        let info = info.map_err(|_| Problem::new(Code::TimedOut, format!("did not answer within {READY:?}")))?;
        // In its own namespace its number is another one.
        let info = Arc::new(HostInfo { pid: pid.unwrap_or(info.pid), ..info });
        if info.tenant != self.plan.tenant.name || info.shard != self.shard {
            let detail = format!("says it is shard {} of tenant {}", info.shard, info.tenant);
            return Err(Problem::new(Code::Internal, detail));
        }
        // Each has the code of the tenant compiled and kept once more.
        if !self.plan.tenant.engines_of(info.fingerprints.values()) {
            return Err(Problem::new(
                Code::Internal,
                "says it has one engine after the other, or one of an unusable name",
            ));
        }
        self.info.store(Some(info.clone()));
        let lines = follow::open_lines(&self.client, &self.plan.tenant, &self.plan.logs);
        let lines = tokio::time::timeout(READY, lines).await;
        let lines =
            lines.map_err(|_| Problem::new(Code::TimedOut, format!("did not open its log within {READY:?}")))?;
        self.hold().await?;
        let revisions = self.plan.tenant.revisions_for(self.shard, self.plan.shards.load(Ordering::Acquire));
        let uncompiled = uncompiled(&self.plan.services.artifacts, &info, revisions.clone());
        let puts =
            futures::stream::iter(revisions).map(|prepared| self.put(prepared)).buffer_unordered(RESTORE_AT_ONCE);
        let refused = puts.filter_map(std::future::ready).collect::<Vec<_>>();
        let (uncompiled, refused) = tokio::join!(uncompiled, refused);
        // Nobody answers: that is not the fault of a revision.
        match refused.iter().find(|(_, _, problem)| problem.code == Code::Unreachable) {
            Some((_, _, problem)) => Err(problem.clone()),
            None => Ok((HostChange::Ready { refused, uncompiled }, lines)),
        }
    }

    /// Calls that wait elsewhere wait here as well. Whoever lets them go on changes the tenant's list first, and then
    /// tells every host, so none is held for ever.
    async fn hold(&self) -> Result<(), Problem> {
        let held = self.plan.tenant.held.lock().await;
        for (app, revision) in &*held {
            self.client.hold(app, *revision, Duration::ZERO).await?;
        }
        Ok(())
    }

    /// Has the host take messages for the revisions that do. It is ready already: one that begins from now on is told
    /// by whoever begins it.
    fn taking(&self) -> impl Future<Output = ()> + use<> {
        let shards = self.plan.shards.load(Ordering::Acquire);
        let revisions = self.plan.tenant.revisions_for(self.shard, shards).into_iter();
        let all: Vec<_> = revisions.filter(|one| one.taking.load(Ordering::SeqCst)).collect();
        let host = HostRef {
            shard: self.shard,
            client: self.client.clone(),
            info: self.info.clone(),
            state: self.tell.subscribe(),
        };
        async move {
            join_all(all.into_iter().map(|one| taking::tell(one, vec![host.clone()]))).await;
        }
    }

    async fn put(&self, prepared: Arc<Prepared>) -> Option<(AppName, Revision, Problem)> {
        let (app, revision) = (&prepared.app, prepared.revision);
        let result = self.client.start_encoded(app, revision, prepared.start_request(false)).await;
        result.err().map(|problem| (app.clone(), revision, problem))
    }

    async fn first_answer(&self) -> HostInfo {
        let mut pause = Duration::from_millis(1);
        loop {
            // The question waits in the socket until the process takes it; where that ended, there is nothing to wait on.
            match self.client.info().await {
                Ok(info) => return info,
                Err(cause) => tracing::trace!(%cause, "a host is not ready yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn reason(&self, what: &str) -> Reason {
        let (tenant, shard) = (&self.plan.tenant.name, self.shard);
        Problem::new(Code::StartFailed, format!("host {shard} of tenant {tenant} {what}")).reason()
    }

    /// Why it ended: the kernel does not tell the process why it was killed, but the group knows.
    fn ended(&self, how: &str, before: Held) -> Reason {
        let now = self.plan.confinement.held(Who::Tenant(&self.plan.tenant.name));
        if now.out_of_memory > before.out_of_memory {
            let text = format!("{how}: its tenant used all the memory of its quota");
            return Reason {
                help: Some("raise `quotas.memory` of the tenant, or lower the limits of its components".to_owned()),
                ..self.reason(&text)
            };
        }
        self.reason(how)
    }

    fn event(&self, what: HostChange) {
        let event = HostEvent { tenant: self.plan.tenant.name.clone(), shard: self.shard, what };
        if self.plan.events.send(event).is_err() {
            tracing::debug!("nobody listens to a host's supervisor any more");
        }
    }
}

/// What a process is handed, in the order of [`HANDED`].
struct Opened {
    agent: UnixListener,
    data: UnixListener,
    line: UnixListener,
    node: UnixStream,
    code: OwnedFd,
}

impl Opened {
    fn fds(&self) -> [BorrowedFd<'_>; HANDED] {
        [self.agent.as_fd(), self.data.as_fd(), self.line.as_fd(), self.node.as_fd(), self.code.as_fd()]
    }
}

/// Listens at `path`, in a directory that is this user's alone; a socket left behind there is replaced.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        let why = format!("{} is longer than {MAX_SOCKET_PATH} bytes; choose a shorter data directory", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
    }
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    UnixListener::bind(path)
}
