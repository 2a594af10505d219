//! Calls by the clock: one task per node owns every schedule of the apps that serve here. What is due is decided by
//! [`model::schedule`]; this looks at the clock, writes the decision down, and only then has the component called.
//!
//! A run is claimed in the store by compare-and-set before it begins: whatever ends in between, and however many nodes
//! serve the app, no due time is run twice. A run whose end nobody saw is counted as failed and not repeated.

mod hosts;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::agent::Called;
use api::{Code, Problem};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use model::schedule::{Ended, Entrance, Schedule, Timetable, entrance};
use model::{AppName, LockedApp, NodeName, Revision, ScheduleName, TenantName};
use store::{Expect, Store, keys};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use hosts::Hosts;

/// The clock is looked at this often at least: it can be set, and the machine can sleep.
const LOOK: Duration = Duration::from_secs(1);

/// Tells the time; a parameter, so that tests can.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
    /// Resolves when that time has come, or earlier.
    fn reach(&self, at_ms: u64) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn reach(&self, at_ms: u64) -> BoxFuture<'static, ()> {
        let left = Duration::from_millis(at_ms.saturating_sub(self.now_ms()));
        Box::pin(tokio::time::sleep(left.min(LOOK)))
    }
}

/// One schedule of a revision, with what it takes to follow it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its name.
    pub name: ScheduleName,
    /// What it says.
    pub schedule: Schedule,
    /// The same, read.
    pub timetable: Timetable,
    /// How the component is called, and the instance it exports for that.
    pub entrance: (Entrance, String),
    /// The longest one run may take.
    pub wall: Duration,
}

/// The schedules of an app. One that cannot be followed is left out; admission refuses such apps.
pub fn planned(app: &LockedApp) -> Vec<Planned> {
    let plan = |(name, schedule): (&ScheduleName, &Schedule)| {
        let component = app.components.get(&schedule.component)?;
        let timetable = Timetable::of(schedule);
        let timetable = timetable
            .inspect_err(|cause| tracing::error!(app = %app.name, schedule = %name, %cause, "left out"))
            .ok()?;
        let entrance = entrance(&component.exports)?;
        let wall = component.limits.wall.duration();
        Some(Planned { name: name.clone(), schedule: schedule.clone(), timetable, entrance, wall })
    };
    app.schedules.iter().filter_map(plan).collect()
}

/// What serves on this node, and how it is called.
pub trait Source: Send + Sync + 'static {
    /// The schedules of the revision that serves; `None` where none does, or it is suspended.
    fn schedules(&self, tenant: &TenantName, app: &AppName) -> Option<(Revision, Arc<[Planned]>)>;
    /// Whether a call could begin now.
    fn ready(&self, tenant: &TenantName, app: &AppName) -> bool;
    /// Calls the component, once. An error with [`Code::NotFound`] says that it certainly was not called.
    fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        planned: &Planned,
        due_ms: u64,
    ) -> BoxFuture<'static, Result<Called, Problem>>;
}

/// What the owner works with.
pub struct Setup {
    /// This node.
    pub node: NodeName,
    /// Where runs are claimed and remembered.
    pub store: Arc<dyn Store>,
    /// What serves here.
    pub source: Arc<dyn Source>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

enum Command {
    Changed(TenantName, AppName),
    Run(Key, oneshot::Sender<Result<Ended, Problem>>),
}

/// Whose schedule.
type Key = (TenantName, AppName, ScheduleName);

/// The owner of all schedules of the node, as others speak to it.
#[derive(Debug)]
pub struct Schedules {
    commands: mpsc::UnboundedSender<Command>,
    stop: CancellationToken,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Changed(tenant, app) => write!(f, "Changed({tenant}/{app})"),
            Self::Run((tenant, app, name), _) => write!(f, "Run({tenant}/{app}/{name})"),
        }
    }
}

impl Schedules {
    /// Starts the owner. Must run inside a tokio runtime.
    pub fn start(setup: Setup) -> Arc<Self> {
        let (commands, received) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let context = Arc::new(step::Context { setup, process: rand::random::<u64>() >> 11 });
        let owner = Owner { context, items: BTreeMap::new(), busy: BTreeSet::new() };
        let task = tokio::spawn(owner.run(received, stop.clone()));
        Arc::new(Self { commands, stop, task: std::sync::Mutex::new(Some(task)) })
    }

    /// Another revision of the app serves, or none.
    pub fn changed(&self, tenant: &TenantName, app: &AppName) {
        if self.commands.send(Command::Changed(tenant.clone(), app.clone())).is_err() {
            tracing::debug!("the schedules' owner has ended");
        }
    }

    /// Runs a schedule now and waits for its end.
    ///
    /// # Errors
    /// [`Code::NotFound`] where no such schedule serves here, [`Code::Conflict`] where it runs already. A run that
    /// fails is no error.
    pub async fn run_now(&self, tenant: TenantName, app: AppName, name: ScheduleName) -> Result<Ended, Problem> {
        let ending = || Problem::new(Code::Unreachable, "the node is ending");
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Run((tenant, app, name), reply)).map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }

    /// Begins no run any more.
    pub fn cease(&self) {
        self.stop.cancel();
    }

    /// Waits for the ends of the runs under way, so that they are remembered; at most so long.
    pub async fn ended(&self, within: Duration) {
        self.cease();
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(mut task) = task else { return };
        if tokio::time::timeout(within, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("runs of schedules are still under way; they count as failed from the next start on");
        }
    }
}

struct Item {
    revision: Revision,
    planned: Planned,
    wake_ms: u64,
    /// It became what it is while an earlier one was looked at.
    stale: bool,
}

struct Owner {
    context: Arc<step::Context>,
    items: BTreeMap<Key, Item>,
    /// Schedules that are being looked at or run: one at a time.
    busy: BTreeSet<Key>,
}

impl Owner {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>, stop: CancellationToken) {
        let mut steps: FuturesUnordered<BoxFuture<'static, (Key, u64)>> = FuturesUnordered::new();
        let clock = self.context.setup.clock.clone();
        while !stop.is_cancelled() {
            let now = clock.now_ms();
            for (key, item) in &mut self.items {
                if item.wake_ms <= now && !self.busy.contains(key) {
                    self.busy.insert(key.clone());
                    item.stale = false;
                    steps.push(Box::pin(step::due(
                        self.context.clone(),
                        key.clone(),
                        item.revision,
                        item.planned.clone(),
                        stop.clone(),
                    )));
                }
            }
            let idle = self.items.iter().filter(|(key, _)| !self.busy.contains(key));
            let next = idle.map(|(_, item)| item.wake_ms).min();
            let reached = async {
                match next {
                    Some(next) => clock.reach(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((key, wake_ms)) = steps.next(), if !steps.is_empty() => {
                    self.busy.remove(&key);
                    if let Some(item) = self.items.get_mut(&key) {
                        item.wake_ms = if std::mem::take(&mut item.stale) { 0 } else { wake_ms };
                    }
                }
                command = commands.recv() => match command {
                    None => break,
                    Some(Command::Changed(tenant, app)) => self.changed(&tenant, &app),
                    Some(Command::Run(key, reply)) => {
                        if let Some(step) = self.manual(key, reply) {
                            steps.push(step);
                        }
                    }
                },
                () = reached => {}
            }
        }
        // What runs is written down when it has ended.
        while steps.next().await.is_some() {}
    }

    fn changed(&mut self, tenant: &TenantName, app: &AppName) {
        let ours = |key: &Key| key.0 == *tenant && key.1 == *app;
        let Some((revision, planned)) = self.context.setup.source.schedules(tenant, app) else {
            self.items.retain(|key, _| !ours(key));
            return;
        };
        if planned.is_empty() && !self.items.keys().any(ours) {
            // Most apps have none, and there may be thousands of them.
            return;
        }
        self.items.retain(|key, _| !ours(key) || planned.iter().any(|one| one.name == key.2));
        for one in planned.iter() {
            let key = (tenant.clone(), app.clone(), one.name.clone());
            self.items.insert(key, Item { revision, planned: one.clone(), wake_ms: 0, stale: true });
        }
        let kept: BTreeSet<String> = planned.iter().map(|one| keys::schedule(tenant, app, &one.name)).collect();
        tokio::spawn(forget(self.context.setup.store.clone(), keys::schedules_of(tenant, app), kept));
    }

    fn manual(
        &mut self,
        key: Key,
        reply: oneshot::Sender<Result<Ended, Problem>>,
    ) -> Option<BoxFuture<'static, (Key, u64)>> {
        let (tenant, app, name) = &key;
        let problem = match self.items.get(&key) {
            None => {
                let text = format!("{tenant}/{app} has no schedule `{name}` that serves on this node");
                Problem::new(Code::NotFound, text).help("`sidereal schedule list APP` shows those there are")
            }
            Some(_) if self.busy.contains(&key) => busy(name),
            Some(item) => {
                self.busy.insert(key.clone());
                let (context, revision, planned) = (self.context.clone(), item.revision, item.planned.clone());
                return Some(Box::pin(async move {
                    let ended = step::now(context, &key, revision, planned).await;
                    // Who asked may have gone; the run is remembered all the same.
                    drop(reply.send(ended));
                    (key, 0)
                }));
            }
        };
        drop(reply.send(Err(problem)));
        None
    }
}

fn busy(name: &ScheduleName) -> Problem {
    Problem::new(Code::Conflict, format!("schedule `{name}` runs already")).help("try again when that run has ended")
}

/// Removes what is remembered of schedules that the app has no more: one that comes back later has missed nothing.
async fn forget(store: Arc<dyn Store>, prefix: String, kept: BTreeSet<String>) {
    let listed = match store.list(&prefix).await {
        Ok(listed) => listed,
        Err(cause) => {
            tracing::warn!(prefix, %cause, "what is remembered of schedules cannot be read");
            return;
        }
    };
    for entry in listed.entries.into_iter().filter(|entry| !kept.contains(&entry.key)) {
        if let Err(cause) = store.delete(&entry.key, Expect::Revision(entry.revision)).await {
            tracing::warn!(key = entry.key, %cause, "what is remembered of a schedule cannot be removed");
        }
    }
}
