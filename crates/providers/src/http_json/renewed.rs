//! A client with a pool of connections that is left behind, pool and all, when a request on it had no answer: behind a
//! partition every idle connection is dead and none of them knows it, and each would cost one request its whole time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The client of now, and how another one is made.
pub(crate) struct Renewed<C> {
    make: Box<dyn Fn() -> C + Send + Sync>,
    now: Mutex<(C, u64)>,
}

impl<C: Clone> Renewed<C> {
    /// The first one is made at once; it connects nothing.
    pub(crate) fn new(make: impl Fn() -> C + Send + Sync + 'static) -> Self {
        let first = make();
        Self { make: Box::new(make), now: Mutex::new((first, 0)) }
    }

    fn lock(&self) -> MutexGuard<'_, (C, u64)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client, and which one it is.
    pub(crate) fn now(&self) -> (C, u64) {
        self.lock().clone()
    }

    /// A request on client `of` had no answer. Those under way on it go on; new ones connect anew.
    pub(crate) fn renew(&self, of: u64) {
        let mut now = self.lock();
        if now.1 == of {
            *now = ((self.make)(), of + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    #[test]
    fn many_late_answers_of_one_client_make_one_new_one() {
        let made = Arc::new(AtomicU32::new(0));
        let counter = made.clone();
        let client = Renewed::new(move || counter.fetch_add(1, SeqCst));
        let (first, of) = client.now();
        for _ in 0..10 {
            client.renew(of);
        }
        assert_eq!((first, client.now()), (0, (1, 1)));
        assert_eq!(made.load(SeqCst), 2);
    }
}
