//! Holding a revision: new calls wait while those in flight end, and then go on, on the same revision or on the one
//! that took its place. This is how data are moved without losing a write or a call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{AppName, Revision};
use tokio::sync::watch;

/// The longest a call waits; then it is refused.
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls that wait at once in this host; more are refused.
const MAX_WAITING: usize = 4096;

/// Where a call that waited goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// On this revision, or its own.
    GoOn(Option<Revision>),
}

/// The revisions that are held, and those that were left behind.
#[derive(Debug)]
pub(crate) struct Holds {
    patience: Duration,
    held: Mutex<BTreeMap<(AppName, Revision), watch::Sender<Stage>>>,
    waiting: AtomicUsize,
}

/// Gives a waiting call's place back.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The call waited in vain, or too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InVain;

impl Default for Holds {
    fn default() -> Self {
        Self { patience: PATIENCE, held: Mutex::default(), waiting: AtomicUsize::new(0) }
    }
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(AppName, Revision), watch::Sender<Stage>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls wait from now on.
    pub(crate) fn hold(&self, app: &AppName, revision: Revision) {
        self.lock().entry((app.clone(), revision)).or_insert_with(|| watch::Sender::new(Stage::Waiting));
    }

    /// They go on. Where they are sent to another revision, so are those that come late.
    pub(crate) fn release(&self, app: &AppName, revision: Revision, to: Option<Revision>) {
        let mut held = self.lock();
        let key = (app.clone(), revision);
        if let Some(stage) = held.get(&key) {
            stage.send_replace(Stage::GoOn(to));
            if to.is_none() {
                held.remove(&key);
            }
        }
    }

    /// The revision is gone.
    pub(crate) fn forget(&self, app: &AppName, revision: Revision) {
        self.lock().remove(&(app.clone(), revision));
    }

    /// Waits until a call of the revision may go on; the revision it goes on with.
    pub(crate) async fn wait(&self, app: &AppName, revision: Revision) -> Result<Revision, InVain> {
        let Some(mut stage) = self.lock().get(&(app.clone(), revision)).map(watch::Sender::subscribe) else {
            return Ok(revision);
        };
        let place = self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        if place >= MAX_WAITING {
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

    #[tokio::test]
    async fn calls_wait_and_go_on_where_they_are_sent() {
        let holds = Holds::default();
        let app: AppName = "counter".parse().unwrap();
        assert_eq!(holds.wait(&app, Revision(1)).await, Ok(Revision(1)), "nothing is held");
        holds.hold(&app, Revision(1));
        let mut one = Box::pin(holds.wait(&app, Revision(1)));
        let mut two = Box::pin(holds.wait(&app, Revision(1)));
        assert!((&mut one).now_or_never().is_none() && (&mut two).now_or_never().is_none());
        assert_eq!(holds.wait(&app, Revision(2)).now_or_never(), Some(Ok(Revision(2))), "another revision is not");
        holds.release(&app, Revision(1), Some(Revision(2)));
        assert_eq!((one.await, two.await), (Ok(Revision(2)), Ok(Revision(2))));
        assert_eq!(holds.wait(&app, Revision(1)).await, Ok(Revision(2)), "one that comes late");
        holds.forget(&app, Revision(1));
        assert_eq!(holds.wait(&app, Revision(1)).await, Ok(Revision(1)));
        assert_eq!(holds.waiting.load(Relaxed), 0);
        holds.hold(&app, Revision(2));
        let back = Box::pin(holds.wait(&app, Revision(2)));
        let (back, ()) = futures::join!(back, async { holds.release(&app, Revision(2), None) });
        assert_eq!(back, Ok(Revision(2)));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_and_not_too_many_wait() {
        let holds = Holds { patience: Duration::from_millis(1), ..Holds::default() };
        let app: AppName = "counter".parse().unwrap();
        holds.hold(&app, Revision(1));
        assert_eq!(holds.wait(&app, Revision(1)).await, Err(InVain));
        holds.waiting.store(MAX_WAITING, Relaxed);
        assert_eq!(holds.wait(&app, Revision(1)).now_or_never(), Some(Err(InVain)));
    }
}
