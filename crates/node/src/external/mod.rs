//! External providers: one process per app and provider, run from a program that the operator names. The node starts
//! it, keeps it up and connects hosts to it; whoever holds a [`Lease`] keeps it running.

mod health;
mod places;
mod process;
mod reach;
mod supervise;
mod tenancy;
mod words;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use api::services::{External, FileFault};
use api::{Code, Problem};
use model::observed::Reason;
use model::rules::external;
use model::unit::ByteSize;
use model::{AppName, Digest, ProviderName, ProviderSpec, Revision, TenantName};
use store::secrets::Secrets;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::confine::Confinement;
use crate::logs::Logs;
use supervise::Supervisor;
use tenancy::Tenancy;

/// Programs that external providers may run, by the operator's names for them.
pub type Programs = std::collections::BTreeMap<ProviderName, Program>;

/// A program, and what the operator lets it have beside its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// It has the machine's network, where nobody decides on its connections; none otherwise.
    pub network: bool,
    /// Files and folders it may read, beside what every system has.
    pub read: Vec<PathBuf>,
}

impl Program {
    /// With nothing beside its own.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), network: false, read: Vec::new() }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// From its start until it answers.
    pub ready: Duration,
    /// Between two questions whether it still answers.
    pub every: Duration,
    /// One such answer.
    pub answer: Duration,
    /// A process that ended too often counts as well again after so long without an end.
    pub calm: Duration,
    /// From the signal to end until it is killed.
    pub end: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { ready: seconds(10), every: seconds(1), answer: seconds(3), calm: seconds(5), end: seconds(5) }
    }
}

/// What external providers are run with.
pub struct ExternalConfig {
    /// This program, run as `exe external --program PATH --dir DIR --sandbox SPEC`: it is confined and runs the program.
    pub exe: PathBuf,
    /// How that is confined.
    pub confinement: Arc<Confinement>,
    /// Folders that no program sees: the platform's own.
    pub hide: Vec<PathBuf>,
    /// What may be run.
    pub programs: Programs,
    /// Sockets are made in here; only the node's user can open it.
    pub run_dir: PathBuf,
    /// Each process has a directory of its own in here, its working directory.
    pub data_dir: PathBuf,
    /// Where the secrets are that programs are handed.
    pub secrets: Arc<Secrets>,
    /// Where their lines go.
    pub logs: Arc<Logs>,
    /// Where it is told how they are.
    pub events: mpsc::UnboundedSender<ExternalEvent>,
    /// How long things may take.
    pub pace: Pace,
}

/// How a process is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalEvent {
    /// Whose.
    pub tenant: TenantName,
    /// Of which app.
    pub app: AppName,
    /// Which provider, and how it is configured.
    pub provider: (ProviderName, Digest),
    /// Why it does not answer, where that is for longer; absent where it is well, or wanted no more.
    pub ailing: Option<Reason>,
}

type Key = (TenantName, AppName, ProviderName, Digest);

/// Every external process of this node.
#[derive(Debug)]
pub struct Externals {
    shared: Arc<Shared>,
    known: Mutex<HashMap<Key, Slot>>,
    /// Held for apps whose data are being moved to a provider that no revision names yet.
    lent: Mutex<HashMap<(TenantName, AppName), Vec<Lease>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Shared {
    config: ExternalConfig,
    /// What each tenant's programs may have.
    tenants: Mutex<HashMap<TenantName, Arc<Tenancy>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Externals").field("programs", &self.config.programs).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Slot {
    held: Weak<Held>,
    /// Whoever runs the process has it: the next one waits until the last one is gone.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Held {
    state: watch::Receiver<State>,
    socket: PathBuf,
    /// The user whose it has to be.
    owner: Arc<AtomicU32>,
    stop: CancellationToken,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How a process stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Started, or about to be; why it ended, where it did.
    Starting(Option<Reason>),
    /// It answers.
    Ready,
    /// It ends or hangs again and again.
    Degraded(Reason),
}

/// Keeps the process of one provider running. The last one that is dropped ends it.
#[derive(Debug, Clone)]
pub struct Lease(#[allow(dead_code, reason = "held for as long as the process is wanted")] Arc<Held>);

impl Externals {
    /// Nothing runs yet.
    pub fn new(config: ExternalConfig) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared { config, tenants: Mutex::default() }),
            known: Mutex::default(),
            lent: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// The names of the programs there are.
    pub fn programs(&self) -> Vec<String> {
        self.shared.config.programs.keys().map(ToString::to_string).collect()
    }

    /// Has the process of a provider run, for as long as the lease is held. A program that is not there is not an
    /// error here: the provider ails, and says why to whoever asks.
    pub fn lease(
        &self,
        tenant: &TenantName,
        app: &AppName,
        revision: Revision,
        provider: &ProviderName,
        spec: &ProviderSpec,
    ) -> Lease {
        let key = (tenant.clone(), app.clone(), provider.clone(), spec.fingerprint());
        let mut known = lock(&self.known);
        // A supervisor has its turn from when it is made until it has ended.
        known.retain(|_, slot| slot.held.strong_count() > 0 || Arc::strong_count(&slot.turn) > 1);
        if let Some(held) = known.get(&key).and_then(|slot| slot.held.upgrade()) {
            return Lease(held);
        }
        let turn = known.get(&key).map(|slot| slot.turn.clone()).unwrap_or_default();
        let (tell, state) = watch::channel(State::Starting(None));
        let stop = self.stop.child_token();
        let owner = Arc::new(AtomicU32::new(rustix::process::geteuid().as_raw()));
        let dir = self.shared.config.run_dir.join(socket_dir(&key));
        let socket = dir.join(SOCKET);
        let supervisor = Supervisor {
            shared: self.shared.clone(),
            tenant: tenant.clone(),
            app: app.clone(),
            revision,
            provider: provider.clone(),
            spec: spec.clone(),
            fingerprint: key.3,
            dir,
            owner: owner.clone(),
            tell,
            stop: stop.clone(),
        };
        self.tasks.spawn(supervisor.run(turn.clone()));
        let held = Arc::new(Held { state, socket, owner, stop });
        known.insert(key, Slot { held: Arc::downgrade(&held), turn });
        Lease(held)
    }

    /// What all programs of a tenant together may keep from now on.
    pub fn limit(&self, tenant: &TenantName, most: Option<ByteSize>) {
        self.shared.tenancy(tenant).limit(most);
    }

    /// A tenant that is gone has no programs.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        lock(&self.shared.tenants).remove(tenant);
    }

    /// Has the processes of providers run that a move of an app's data needs and no revision names yet, until
    /// [`Externals::take_back`].
    pub fn lend<'a>(
        &self,
        tenant: &TenantName,
        app: &AppName,
        wanted: impl Iterator<Item = (&'a ProviderName, &'a ProviderSpec)>,
    ) {
        let leases = wanted.map(|(provider, spec)| self.lease(tenant, app, Revision(0), provider, spec)).collect();
        lock(&self.lent).insert((tenant.clone(), app.clone()), leases);
    }

    /// The data are moved, or will not be.
    pub fn take_back(&self, tenant: &TenantName, app: &AppName) {
        lock(&self.lent).remove(&(tenant.clone(), app.clone()));
    }

    /// Ends the processes of an app that no host has any more, whoever still holds them, and removes what they kept.
    ///
    /// # Errors
    /// What of it stays; the next try goes on from there.
    pub async fn purge(&self, tenant: &TenantName, app: &AppName) -> std::io::Result<()> {
        self.take_back(tenant, app);
        let turns: Vec<_> = {
            let known = lock(&self.known);
            let of_app = known.iter().filter(|((of, whose, ..), _)| (of, whose) == (tenant, app));
            let end = |slot: &Slot| {
                if let Some(held) = slot.held.upgrade() {
                    held.stop.cancel();
                }
                slot.turn.clone()
            };
            of_app.map(|(_, slot)| end(slot)).collect()
        };
        for turn in turns {
            // Whoever runs a process has its turn until it has ended.
            drop(turn.lock().await);
        }
        let of_tenant = self.shared.config.data_dir.join(tenant.as_str());
        let remove = move |app: String| {
            match std::fs::remove_dir_all(of_tenant.join(app)) {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            // It stays while another app has something in it.
            if let Err(cause) = std::fs::remove_dir(&of_tenant) {
                tracing::trace!(%cause, "the directory of a tenant's external providers stays");
            }
            Ok(())
        };
        let app = app.to_string();
        tokio::task::spawn_blocking(move || remove(app)).await.map_err(std::io::Error::other)?
    }

    /// A connection to the process, for a host of `tenant`. Answers at once.
    ///
    /// # Errors
    /// [`FileFault::NotReady`] with the reason.
    pub async fn connect(&self, tenant: &TenantName, wanted: &External) -> Result<UnixStream, FileFault> {
        let key = (tenant.clone(), wanted.app.clone(), wanted.provider.clone(), wanted.spec);
        let held = lock(&self.known).get(&key).and_then(|slot| slot.held.upgrade());
        let not_ready = |why: String, soon| Err(FileFault::NotReady { why, soon });
        let Some(held) = held else {
            return not_ready(format!("nothing that runs here names provider `{}`", wanted.provider), false);
        };
        let state = held.state.borrow().clone();
        match state {
            State::Ready => match reach::connect(&held.socket, held.owner.load(Ordering::Relaxed)).await {
                Ok(stream) => Ok(stream),
                // Gone and not noticed yet, or it has more callers than it takes at once.
                Err(cause) => not_ready(format!("provider `{}` takes no call now: {cause}", wanted.provider), true),
            },
            State::Starting(None) => not_ready(format!("provider `{}` is being started", wanted.provider), true),
            State::Starting(Some(reason)) => not_ready(format!("{}; it is started again", reason.message), true),
            State::Degraded(reason) => not_ready(reason.message, false),
        }
    }

    /// Ends every process; each has the time of [`Pace::end`].
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// File name of the socket in its directory.
const SOCKET: &str = "s";

/// Short, whatever the names are: the path of a socket has 107 bytes at most.
fn socket_dir(key: &Key) -> String {
    let (tenant, app, provider, spec) = key;
    let digest = Digest::of(format!("{tenant}/{app}/{provider}/{spec}").as_bytes()).to_string();
    let hex = digest.rsplit(':').next().unwrap_or_default();
    // The point marks what a node that starts may sweep away.
    format!("x.{}", hex.get(..16).unwrap_or(hex))
}

impl Shared {
    fn tenancy(&self, tenant: &TenantName) -> Arc<Tenancy> {
        lock(&self.tenants).entry(tenant.clone()).or_default().clone()
    }

    /// The operator's program of this name.
    fn program(&self, provider: &ProviderName, spec: &ProviderSpec) -> Result<&Program, Reason> {
        let name = external::program(spec).unwrap_or_default();
        let programs = &self.config.programs;
        let found = programs.iter().find(|(known, _)| known.as_str() == name);
        found.map(|(_, program)| program).ok_or_else(|| {
            let known: Vec<&str> = programs.keys().map(ProviderName::as_str).collect();
            let violation = external::unknown_program(provider, name, &known);
            let problem = Problem::new(Code::ProviderUnavailable, violation.message);
            match violation.help {
                Some(help) => problem.help(help).reason(),
                None => problem.reason(),
            }
        })
    }
}
