//! Which statements of components run now, and since when.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Watch(Mutex<Running>);

#[derive(Debug, Default)]
struct Running {
    next: u64,
    began: HashMap<u64, Instant>,
}

/// One that runs, until it is dropped.
pub(super) struct Begun<'a>(&'a Watch, u64);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The statements of a call begin.
    pub(super) fn begin(&self) -> Begun<'_> {
        let mut running = self.lock();
        let number = running.next;
        running.next += 1;
        running.began.insert(number, Instant::now());
        Begun(self, number)
    }

    /// How long those of the call that began first have run.
    pub(super) fn longest(&self) -> Option<Duration> {
        self.lock().began.values().map(Instant::elapsed).max()
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.lock().began.remove(&self.1);
    }
}
