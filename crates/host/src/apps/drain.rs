//! The drain of a revision: begun once, and finished also where whoever asked for it has hung up. A drain left half done
//! would keep the revision, its calls and its name for as long as the host lives.

use std::sync::{Arc, Mutex};

use api::agent::Drained;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use model::{AppName, Revision};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Apps, Running, lock};

/// The drain of one revision, once it is asked for.
#[derive(Default)]
pub(super) struct Drain(Mutex<Option<UnderWay>>);

struct UnderWay {
    until: watch::Sender<Instant>,
    done: Shared<BoxFuture<'static, Drained>>,
}

/// When the calls of a drain are ended: the earliest of what those who asked for it said.
pub(super) struct Until(watch::Receiver<Instant>);

impl Until {
    pub(super) async fn passed(&mut self) {
        loop {
            let until = *self.0.borrow_and_update();
            tokio::select! {
                () = sleep_until(until) => return,
                changed = self.0.changed() => if changed.is_err() {
                    // Nobody can bring it forward any more.
                    return sleep_until(until).await;
                },
            }
        }
    }
}

impl From<Instant> for Until {
    fn from(until: Instant) -> Self {
        Self(watch::channel(until).1)
    }
}

impl Drain {
    /// The drain of `running`: the one under way where there is one, which ends no later than `until` now, and else one that
    /// begins.
    pub(super) fn of(
        apps: &Arc<Apps>,
        app: &AppName,
        revision: Revision,
        running: &Arc<Running>,
        until: Instant,
    ) -> Shared<BoxFuture<'static, Drained>> {
        let mut drain = lock(&running.drain.0);
        if let Some(under_way) = &*drain {
            under_way.until.send_if_modified(|known| {
                let earlier = until < *known;
                if earlier {
                    *known = until;
                }
                earlier
            });
            return under_way.done.clone();
        }
        let (sender, receiver) = watch::channel(until);
        let (apps, app, ending) = (apps.clone(), app.clone(), running.clone());
        let task = tokio::spawn(async move { apps.end_revision(&app, revision, ending, Until(receiver)).await });
        let done = task.map(|ended| Drained { ended: ended.unwrap_or_default() }).boxed().shared();
        *drain = Some(UnderWay { until: sender, done: done.clone() });
        done
    }
}
