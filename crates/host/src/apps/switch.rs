//! Holding an app of this host: its calls wait while its data are moved, and go on with the revision that is named then.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use model::{AppName, Revision};

use super::{Apps, NoPlace, Place, Told, lock};
use crate::entry::Entry;
use crate::hold::{InVain, TURN};

impl From<InVain> for NoPlace {
    fn from(why: InVain) -> Self {
        match why {
            InVain::Late => Self::Busy,
            InVain::Closed => Self::Closed,
        }
    }
}

impl Apps {
    /// A place for a call of a revision that is held, or was: once it is released, on the revision that is named then, and
    /// in the order in which the calls came. A call that had to wait is not refused for those that waited with it. `brings`
    /// is what is in memory of its head and body, bytes.
    pub(crate) async fn enter_later(self: &Arc<Self>, route: &str, brings: usize) -> Result<Place, NoPlace> {
        let mut parts = route.splitn(3, '/');
        let (Some(app), Some(revision), Some(component)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoPlace::Unknown);
        };
        let app: AppName = app.parse().map_err(|_| NoPlace::Unknown)?;
        let mut revision = Revision(revision.parse().map_err(|_| NoPlace::Unknown)?);
        let _told = Told::new(&self.drains);
        let _waiting = self.holds.queue(&app, brings)?;
        loop {
            revision = self.holds.wait(&app, revision).await?;
            let route = format!("{app}/{revision}/{component}");
            match tokio::time::timeout(TURN, self.in_turn(&route)).await.unwrap_or(Err(NoPlace::Busy)) {
                // Held once more, or replaced.
                Err(NoPlace::Held) => tokio::task::yield_now().await,
                other => return other,
            }
        }
    }

    /// Waits until calls of the app go on, where they are held.
    pub(crate) async fn released(&self, route: &str) {
        if !self.routed(route).is_ok_and(|entry| entry.is_held()) {
            return;
        }
        let mut parts = route.splitn(3, '/');
        if let (Some(Ok(app)), Some(Ok(revision))) = (parts.next().map(str::parse), parts.next().map(str::parse)) {
            // Also where it waited in vain: whoever asks finds out for each message.
            let _ = self.holds.wait(&app, Revision(revision)).await;
        }
    }

    /// Waits for its turn, and then for a place.
    async fn in_turn(self: &Arc<Self>, route: &str) -> Result<Place, NoPlace> {
        let entry = self.routed(route)?;
        let _turn = entry.turn().acquire().await.map_err(|_| NoPlace::Closed)?;
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.closed.load(Relaxed) {
                return Err(NoPlace::Closed);
            }
            // Gone, or replaced by the same revision, meanwhile.
            if entry.is_held() || !Arc::ptr_eq(&self.routed(route)?, &entry) {
                return Err(NoPlace::Held);
            }
            if entry.enter_if_free(self.clock.fetch_add(1, Relaxed)) {
                return Ok(self.entered(entry.clone()));
            }
            left.await;
        }
    }

    /// Lets new calls of a revision, of earlier ones that are still here, and of those still to come, wait; gives those in
    /// flight until `deadline` to end, of whichever revision: earlier ones write where the held one does, and late calls
    /// reach them while they drain. Where they do not end,
    /// nothing is held; how many there are. The revision need not be here: it may be about to come.
    pub(crate) async fn hold(&self, app: &AppName, revision: Revision, deadline: Duration) -> u64 {
        let _told = Told::new(&self.drains);
        self.holds.hold(app, revision);
        let earlier: Vec<_> = {
            let revisions = lock(&self.revisions);
            let of_app = revisions.range((app.clone(), Revision(0))..=(app.clone(), revision));
            of_app.map(|((_, revision), running)| (*revision, running.clone())).collect()
        };
        for (revision, running) in earlier {
            self.holds.hold(app, revision);
            running.entries.iter().for_each(|entry| entry.set_held(true));
        }
        let calls = || self.entries_of(app).iter().map(|entry| u64::from(entry.in_flight())).sum::<u64>();
        if tokio::time::timeout(deadline, self.none_left(&calls)).await.is_ok() {
            return 0;
        }
        let left = calls();
        self.release(app, None);
        left
    }

    /// Lets the calls of a held app go on, on `to` or where they are. A revision that was left behind stays held: calls
    /// that were sent to it before go to the new one at once.
    pub(crate) fn release(&self, app: &AppName, to: Option<Revision>) {
        for revision in self.holds.release(app, to) {
            if let Some(running) = self.running(app, revision) {
                running.entries.iter().for_each(|entry| entry.set_held(false));
            }
        }
        // A revision that is not here leaves nothing behind.
        let here: Vec<Revision> = lock(&self.revisions).keys().filter(|(of, _)| of == app).map(|(_, r)| *r).collect();
        self.holds.prune(app, &here);
    }

    fn entries_of(&self, app: &AppName) -> Vec<Arc<Entry>> {
        let revisions = lock(&self.revisions);
        let of_app = revisions.range((app.clone(), Revision(0))..).take_while(|((known, _), _)| known == app);
        of_app.flat_map(|(_, running)| running.entries.iter().cloned()).collect()
    }
}
