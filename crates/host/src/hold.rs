//! Holding an app: new calls wait while those in flight end, and then go on, on the same revision or on the one that
//! took its place. This is how data are moved without losing a write or a call.
//!
//! Whoever holds an app says with which revision it begins. A revision that comes while the app is held is held from its
//! first moment: it answers nothing before whoever moves the data has seen it serve.
//!
//! Calls that were held come back all at once, and there may be more of them than places. So the app has a [`Line`]: for a
//! while after its release calls that find no place queue instead of being refused, and new ones queue behind those that
//! waited.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use api::copy::PATIENCE;
use model::{AppName, Revision};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What all calls that wait at once in this host may take of its memory, about, bytes; more are refused. 32,768 small ones
/// fit: what comes in the longest hold at more than 1,000 a second.
const MAX_WAITING: usize = 128 << 20;
/// What a call that waits counts for beside what it brings, bytes.
const CALL: usize = 4 << 10;
/// How long a call may wait for its turn once its app is released, and for how long after it others queue as well.
pub(crate) const TURN: Duration = Duration::from_secs(10);

/// Where a call that waited goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// On this revision, or its own.
    GoOn(Option<Revision>),
}

/// The revisions of one app that are held, and those that were left behind.
#[derive(Debug, Default)]
struct OfApp {
    /// Whether revisions that come are held, too.
    newcomers: bool,
    stages: BTreeMap<Revision, watch::Sender<Stage>>,
}

impl OfApp {
    fn hold(&mut self, revision: Revision) {
        let stage = self.stages.entry(revision).or_insert_with(|| watch::Sender::new(Stage::Waiting));
        stage.send_replace(Stage::Waiting);
    }
}

/// The calls of one app that wait: for its release, or for a place after it.
#[derive(Debug, Default)]
pub(crate) struct Line {
    waiting: AtomicUsize,
    /// The app was released: for a look that costs nothing where it never was.
    released: AtomicBool,
    until: Mutex<Option<Instant>>,
}

impl Line {
    /// Whether a call that finds no place queues.
    pub(crate) fn is_open(&self) -> bool {
        if !self.released.load(Relaxed) {
            return false;
        }
        let open =
            self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until);
        self.released.store(open, Relaxed);
        open
    }

    /// Whether somebody waits.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    fn open(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + TURN);
        self.released.store(true, Relaxed);
    }
}

/// The apps that are held, and what is left of earlier holds.
#[derive(Debug)]
pub(crate) struct Holds {
    patience: Duration,
    apps: Mutex<BTreeMap<AppName, OfApp>>,
    lines: Mutex<BTreeMap<AppName, Weak<Line>>>,
    /// Bytes.
    waiting: AtomicUsize,
    /// Nobody waits here any more: the host ends.
    closed: CancellationToken,
}

/// What a waiting call takes, until it is dropped.
pub(crate) struct Waiting<'a> {
    holds: &'a Holds,
    line: Arc<Line>,
    takes: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.line.waiting.fetch_sub(1, Relaxed);
        self.holds.waiting.fetch_sub(self.takes, Relaxed);
    }
}

/// Why a call does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InVain {
    /// It waited long enough, or too many wait.
    Late,
    /// The host ends.
    Closed,
}

impl Default for Holds {
    fn default() -> Self {
        Self {
            patience: PATIENCE,
            apps: Mutex::default(),
            lines: Mutex::default(),
            waiting: AtomicUsize::new(0),
            closed: CancellationToken::new(),
        }
    }
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AppName, OfApp>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line of an app: one for all of its revisions.
    pub(crate) fn line(&self, app: &AppName) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(app).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::<Line>::default();
        lines.insert(app.clone(), Arc::downgrade(&line));
        line
    }

    /// Nobody waits from now on: another host answers those that did.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Calls wait from now on, those of the revision and of every one that comes.
    pub(crate) fn hold(&self, app: &AppName, revision: Revision) {
        let mut apps = self.lock();
        let held = apps.entry(app.clone()).or_default();
        held.newcomers = true;
        held.hold(revision);
    }

    /// A revision has come; whether it is held.
    pub(crate) fn comes(&self, app: &AppName, revision: Revision) -> bool {
        let mut apps = self.lock();
        let Some(held) = apps.get_mut(app).filter(|held| held.newcomers) else { return false };
        held.hold(revision);
        true
    }

    /// All calls of the app that wait go on: on `to`, or each on its own revision. Where they are sent to another
    /// revision, so are those that come late. Returns the revisions that are not held any more.
    pub(crate) fn release(&self, app: &AppName, to: Option<Revision>) -> Vec<Revision> {
        let line = self.line(app);
        let mut apps = self.lock();
        let Some(held) = apps.get_mut(app) else { return Vec::new() };
        if held.newcomers {
            line.open();
        }
        held.newcomers = false;
        let mut free = Vec::new();
        held.stages.retain(|revision, stage| {
            if *stage.borrow() != Stage::Waiting {
                return true;
            }
            let to = to.filter(|to| to != revision);
            stage.send_replace(Stage::GoOn(to));
            if to.is_none() {
                free.push(*revision);
            }
            to.is_some()
        });
        if held.stages.is_empty() {
            apps.remove(app);
        }
        free
    }

    /// Forgets revisions that were left behind and are not `here`.
    pub(crate) fn prune(&self, app: &AppName, here: &[Revision]) {
        let mut apps = self.lock();
        let Some(held) = apps.get_mut(app).filter(|held| !held.newcomers) else { return };
        held.stages.retain(|revision, _| here.contains(revision));
        if held.stages.is_empty() {
            apps.remove(app);
        }
    }

    /// The revision is gone. Calls of it that wait go on with the others when the app is released.
    pub(crate) fn forget(&self, app: &AppName, revision: Revision) {
        let mut apps = self.lock();
        if let Some(held) = apps.get_mut(app).filter(|held| !held.newcomers) {
            held.stages.remove(&revision);
            if held.stages.is_empty() {
                apps.remove(app);
            }
        }
    }

    /// Room for a call of the app that has to wait. `brings` is what is in memory of its head and body, bytes.
    pub(crate) fn queue(&self, app: &AppName, brings: usize) -> Result<Waiting<'_>, InVain> {
        let takes = brings.min(MAX_WAITING) + CALL;
        let line = self.line(app);
        line.waiting.fetch_add(1, Relaxed);
        let before = self.waiting.fetch_add(takes, Relaxed);
        let waiting = Waiting { holds: self, line, takes };
        if before + takes > MAX_WAITING { Err(InVain::Late) } else { Ok(waiting) }
    }

    /// Waits until a call of the revision may go on; the revision it goes on with.
    pub(crate) async fn wait(&self, app: &AppName, revision: Revision) -> Result<Revision, InVain> {
        let stage = self.lock().get(app).and_then(|held| held.stages.get(&revision)).map(watch::Sender::subscribe);
        let Some(mut stage) = stage else { return Ok(revision) };
        let released = async {
            let released = stage.wait_for(|stage| *stage != Stage::Waiting);
            match tokio::time::timeout(self.patience, released).await {
                Ok(Ok(stage)) => match *stage {
                    Stage::GoOn(to) => Ok(to.unwrap_or(revision)),
                    Stage::Waiting => Err(InVain::Late),
                },
                _ => Err(InVain::Late),
            }
        };
        tokio::select! {
            biased;
            on = released => on,
            () = self.closed.cancelled() => Err(InVain::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn calls_wait_and_go_on_where_they_are_sent() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        assert_eq!(holds.wait(&app, Revision(1)).await, Ok(Revision(1)), "nothing is held");
        assert!(!holds.comes(&app, Revision(1)));
        holds.hold(&app, Revision(1));
        let mut one = Box::pin(holds.wait(&app, Revision(1)));
        let mut two = Box::pin(holds.wait(&app, Revision(1)));
        assert!((&mut one).now_or_never().is_none() && (&mut two).now_or_never().is_none());
        assert!(holds.comes(&app, Revision(2)), "one that comes is held from the beginning");
        let mut three = Box::pin(holds.wait(&app, Revision(2)));
        assert!((&mut three).now_or_never().is_none());
        assert_eq!(holds.release(&app, Some(Revision(2))), [Revision(2)]);
        assert_eq!((one.await, two.await, three.await), (Ok(Revision(2)), Ok(Revision(2)), Ok(Revision(2))));
        assert_eq!(holds.wait(&app, Revision(1)).await, Ok(Revision(2)), "one that comes late");
        assert!(!holds.comes(&app, Revision(3)), "the hold is over");
        holds.forget(&app, Revision(1));
        assert_eq!(holds.wait(&app, Revision(1)).await, Ok(Revision(1)));
        assert_eq!(holds.waiting.load(Relaxed), 0);
        holds.hold(&app, Revision(2));
        let back = Box::pin(holds.wait(&app, Revision(2)));
        let (back, free) = futures::join!(back, async { holds.release(&app, None) });
        assert_eq!((back, free), (Ok(Revision(2)), vec![Revision(2)]));
        assert!(holds.lock().is_empty());
    }

    #[tokio::test]
    async fn what_did_not_serve_is_left_for_what_was_before() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        holds.hold(&app, Revision(1));
        assert!(holds.comes(&app, Revision(2)) && holds.comes(&app, Revision(3)));
        let (old, failed) = (holds.wait(&app, Revision(1)), holds.wait(&app, Revision(2)));
        let (old, failed, free) = futures::join!(old, failed, async { holds.release(&app, Some(Revision(3))) });
        assert_eq!((old, failed, free), (Ok(Revision(3)), Ok(Revision(3)), vec![Revision(3)]));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let holds = Holds { patience: Duration::from_millis(1), ..Holds::default() };
        let app: AppName = "counter".parse().unwrap();
        holds.hold(&app, Revision(1));
        assert_eq!(holds.wait(&app, Revision(1)).await, Err(InVain::Late));
    }

    #[tokio::test]
    async fn who_waits_in_a_host_that_ends_goes_elsewhere() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        holds.hold(&app, Revision(1));
        let mut call = Box::pin(holds.wait(&app, Revision(1)));
        assert!((&mut call).now_or_never().is_none());
        holds.close();
        assert_eq!(call.await, Err(InVain::Closed));
    }

    #[tokio::test]
    async fn a_line_is_open_for_a_while_after_a_release() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        let line = holds.line(&app);
        assert!(holds.release(&app, None).is_empty() && !line.is_open(), "nothing was held");
        holds.hold(&app, Revision(1));
        let waiting = holds.queue(&app, 0).unwrap();
        assert!(line.has_waiting() && !line.is_open());
        assert_eq!(holds.release(&app, None), [Revision(1)]);
        drop(waiting);
        assert!(line.is_open() && !line.has_waiting());
        *line.until.lock().unwrap() = Some(Instant::now());
        assert!(!line.is_open());
    }

    #[tokio::test]
    async fn calls_of_twenty_seconds_wait_and_what_waits_is_bounded_in_bytes() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        // 1,000 a second, for as long as a switch may last.
        let small: Result<Vec<_>, _> = (0..22_000).map(|_| holds.queue(&app, 512)).collect();
        assert!(small.is_ok() && holds.line(&app).has_waiting());
        drop(small);
        assert_eq!(holds.waiting.load(Relaxed), 0);
        let large = 256 << 10;
        let mut waiting = Vec::new();
        let refused = loop {
            match holds.queue(&app, large) {
                Ok(one) => waiting.push(one),
                Err(refused) => break refused,
            }
        };
        assert_eq!((refused, waiting.len()), (InVain::Late, MAX_WAITING / (large + CALL)));
        assert!(
            holds.queue(&app, large).is_err() && holds.queue(&app, 0).is_ok(),
            "who is refused takes nobody's place"
        );
        drop(waiting);
        assert_eq!(holds.waiting.load(Relaxed), 0);
        assert!(!holds.line(&app).has_waiting());
    }
}
