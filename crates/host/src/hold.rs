//! Holding an app: new calls wait while those in flight end, and then go on, on the same revision or on the one that
//! took its place. This is how data are moved without losing a write or a call.
//!
//! Whoever holds an app says with which revision it begins. A revision that comes while the app is held is held from its
//! first moment: it answers nothing before whoever moves the data has seen it serve.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::copy::PATIENCE;
use model::{AppName, Revision};
use tokio::sync::watch;

/// What all calls that wait at once in this host may take of its memory, about, bytes; more are refused. 32,768 small ones
/// fit: what comes in the longest hold at more than 1,000 a second.
const MAX_WAITING: usize = 128 << 20;
/// What a call that waits counts for beside what it brings, bytes.
const CALL: usize = 4 << 10;

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

/// The apps that are held, and what is left of earlier holds.
#[derive(Debug)]
pub(crate) struct Holds {
    patience: std::time::Duration,
    apps: Mutex<BTreeMap<AppName, OfApp>>,
    /// Bytes.
    waiting: AtomicUsize,
}

/// Gives back what a waiting call takes.
struct Waiting<'a>(&'a AtomicUsize, usize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Relaxed);
    }
}

/// The call waited in vain, or too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InVain;

impl Default for Holds {
    fn default() -> Self {
        Self { patience: PATIENCE, apps: Mutex::default(), waiting: AtomicUsize::new(0) }
    }
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AppName, OfApp>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut apps = self.lock();
        let Some(held) = apps.get_mut(app) else { return Vec::new() };
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

    /// Waits until a call of the revision may go on; the revision it goes on with. `brings` is what is in memory of the
    /// call's head and body, bytes.
    pub(crate) async fn wait(&self, app: &AppName, revision: Revision, brings: usize) -> Result<Revision, InVain> {
        let stage = self.lock().get(app).and_then(|held| held.stages.get(&revision)).map(watch::Sender::subscribe);
        let Some(mut stage) = stage else { return Ok(revision) };
        let takes = brings.min(MAX_WAITING) + CALL;
        let _waiting = Waiting(&self.waiting, takes);
        if self.waiting.fetch_add(takes, Relaxed) + takes > MAX_WAITING {
            return Err(InVain);
        }
        let released = tokio::time::timeout(self.patience, stage.wait_for(|stage| *stage != Stage::Waiting)).await;
        match released {
            Ok(Ok(stage)) => match *stage {
                Stage::GoOn(to) => Ok(to.unwrap_or(revision)),
                Stage::Waiting => Err(InVain),
            },
            _ => Err(InVain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::time::Duration;

    #[tokio::test]
    async fn calls_wait_and_go_on_where_they_are_sent() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        assert_eq!(holds.wait(&app, Revision(1), 0).await, Ok(Revision(1)), "nothing is held");
        assert!(!holds.comes(&app, Revision(1)));
        holds.hold(&app, Revision(1));
        let mut one = Box::pin(holds.wait(&app, Revision(1), 0));
        let mut two = Box::pin(holds.wait(&app, Revision(1), 0));
        assert!((&mut one).now_or_never().is_none() && (&mut two).now_or_never().is_none());
        assert!(holds.comes(&app, Revision(2)), "one that comes is held from the beginning");
        let mut three = Box::pin(holds.wait(&app, Revision(2), 0));
        assert!((&mut three).now_or_never().is_none());
        assert_eq!(holds.release(&app, Some(Revision(2))), [Revision(2)]);
        assert_eq!((one.await, two.await, three.await), (Ok(Revision(2)), Ok(Revision(2)), Ok(Revision(2))));
        assert_eq!(holds.wait(&app, Revision(1), 0).await, Ok(Revision(2)), "one that comes late");
        assert!(!holds.comes(&app, Revision(3)), "the hold is over");
        holds.forget(&app, Revision(1));
        assert_eq!(holds.wait(&app, Revision(1), 0).await, Ok(Revision(1)));
        assert_eq!(holds.waiting.load(Relaxed), 0);
        holds.hold(&app, Revision(2));
        let back = Box::pin(holds.wait(&app, Revision(2), 0));
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
        let (old, failed) = (holds.wait(&app, Revision(1), 0), holds.wait(&app, Revision(2), 0));
        let (old, failed, free) = futures::join!(old, failed, async { holds.release(&app, Some(Revision(3))) });
        assert_eq!((old, failed, free), (Ok(Revision(3)), Ok(Revision(3)), vec![Revision(3)]));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let holds = Holds { patience: Duration::from_millis(1), ..Holds::default() };
        let app: AppName = "counter".parse().unwrap();
        holds.hold(&app, Revision(1));
        assert_eq!(holds.wait(&app, Revision(1), 0).await, Err(InVain));
    }

    #[tokio::test]
    async fn calls_of_twenty_seconds_wait_and_what_waits_is_bounded_in_bytes() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        holds.hold(&app, Revision(1));
        // 1,000 a second, for as long as a switch may last.
        let mut small = Vec::new();
        for n in 0..22_000 {
            let mut call = Box::pin(holds.wait(&app, Revision(1), 512));
            assert_eq!((&mut call).now_or_never(), None, "call {n}");
            small.push(call);
        }
        small.clear();
        assert_eq!(holds.waiting.load(Relaxed), 0);
        let large = 256 << 10;
        let mut waiting = Vec::new();
        let refused = loop {
            let mut call = Box::pin(holds.wait(&app, Revision(1), large));
            match (&mut call).now_or_never() {
                None => waiting.push(call),
                Some(refused) => break refused,
            }
        };
        assert_eq!(refused, Err(InVain));
        assert_eq!(waiting.len(), MAX_WAITING / (large + CALL));
        let (calls, _) = futures::join!(futures::future::join_all(waiting), async { holds.release(&app, None) });
        assert!(calls.iter().all(|call| *call == Ok(Revision(1))), "one that is refused takes nobody's place");
        assert_eq!(holds.waiting.load(Relaxed), 0);
    }
}
