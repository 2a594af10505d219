//! Keeps a server that is down from costing anything per call: after a failure no call goes out before a jittered pause
//! has passed, and then one call alone finds out whether the server is back.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When calls stop going out, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// Failures in a row after which calls stop.
    pub after: u32,
    /// The first pause, doubled with every further failure.
    pub least: Duration,
    /// The longest pause.
    pub most: Duration,
}

/// What a link knows about its server. `E` is why it does not answer, repeated to every call that is held back.
#[derive(Debug)]
pub struct Breaker<E> {
    pauses: Pauses,
    jitter: RandomState,
    state: Mutex<State<E>>,
}

#[derive(Debug)]
struct State<E> {
    failures: u32,
    open: Option<Open<E>>,
}

/// Calls are held back.
#[derive(Debug)]
struct Open<E> {
    until: Instant,
    why: E,
    /// One call is finding out.
    probing: bool,
}

/// Leave to make one call. Dropped without a verdict, as by a caller that gave up, it says nothing about the server.
#[derive(Debug)]
#[must_use]
pub struct Pass<'a, E> {
    breaker: &'a Breaker<E>,
    probe: bool,
}

impl<E: Clone> Breaker<E> {
    /// A server that is believed to be there.
    pub fn new(pauses: Pauses) -> Self {
        Self { pauses, jitter: RandomState::new(), state: Mutex::new(State { failures: 0, open: None }) }
    }

    /// Leave to make a call now.
    ///
    /// # Errors
    /// The failure that holds calls back.
    pub fn enter(&self) -> Result<Pass<'_, E>, E> {
        self.enter_at(Instant::now())
    }

    /// Forgets what went wrong: something has changed, and the next call may find out.
    pub fn reset(&self) {
        *self.lock() = State { failures: 0, open: None };
    }

    fn enter_at(&self, now: Instant) -> Result<Pass<'_, E>, E> {
        let mut state = self.lock();
        let probe = match &mut state.open {
            None => false,
            Some(open) if open.probing || now < open.until => return Err(open.why.clone()),
            Some(open) => {
                open.probing = true;
                true
            }
        };
        Ok(Pass { breaker: self, probe })
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Clone> Pass<'_, E> {
    /// Whether the call may still go out: one that had to wait after it was let in may have been overtaken.
    ///
    /// # Errors
    /// The failure of another call that holds calls back by now.
    pub fn still(&self) -> Result<(), E> {
        let why = self.breaker.lock().open.as_ref().filter(|_| !self.probe).map(|open| open.why.clone());
        why.map_or(Ok(()), Err)
    }

    /// The server answered, whatever it said.
    pub fn answered(self) {
        *self.breaker.lock() = State { failures: 0, open: None };
    }

    /// The server did not answer.
    pub fn failed(self, why: E) {
        self.failed_at(why, Instant::now());
    }

    fn failed_at(self, why: E, now: Instant) {
        let Pauses { after, least, most } = self.breaker.pauses;
        let mut state = self.breaker.lock();
        state.failures = state.failures.saturating_add(1);
        // Calls that were under way when the first of them failed prolong nothing.
        if state.failures >= after && (self.probe || state.open.is_none()) {
            let random = self.breaker.jitter.hash_one(state.failures);
            let until = now + pause(state.failures - after, least, most, random);
            state.open = Some(Open { until, why, probing: false });
        }
    }
}

impl<E> Drop for Pass<'_, E> {
    fn drop(&mut self) {
        if self.probe {
            let mut state = self.breaker.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(open) = &mut state.open {
                open.probing = false;
            }
        }
    }
}

/// Between half and all of `least` doubled `doublings` times, at most `most`.
pub fn pause(doublings: u32, least: Duration, most: Duration, random: u64) -> Duration {
    let half = least.saturating_mul(1 << doublings.min(16)).min(most) / 2;
    half + Duration::from_nanos(random % (half.as_nanos() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses = Pauses { after: 2, least: Duration::from_millis(50), most: Duration::from_secs(2) };

    #[test]
    fn one_call_alone_finds_out_after_the_pause() {
        let breaker = Breaker::new(PAUSES);
        let start = Instant::now();
        breaker.enter_at(start).unwrap().failed_at("first", start);
        breaker.enter_at(start).unwrap().failed_at("second", start);
        assert_eq!(breaker.enter_at(start).unwrap_err(), "second");
        let later = start + PAUSES.least;
        let probe = breaker.enter_at(later).unwrap();
        assert_eq!(breaker.enter_at(later).unwrap_err(), "second", "one is enough to find out");
        drop(probe);
        let probe = breaker.enter_at(later).unwrap();
        probe.failed_at("third", later);
        assert_eq!(breaker.enter_at(later).unwrap_err(), "third");
        breaker.enter_at(later + PAUSES.most).unwrap().answered();
        breaker.enter_at(later).unwrap().failed_at("once", later);
        assert!(breaker.enter_at(later).is_ok(), "an answer clears what was counted");
        let waits = breaker.enter_at(later).unwrap();
        assert_eq!(waits.still(), Ok(()));
        breaker.enter_at(later).unwrap().failed_at("twice", later);
        assert_eq!(waits.still(), Err("twice"), "it was overtaken");
        breaker.reset();
        assert!(waits.still().is_ok() && breaker.enter_at(later).is_ok());
    }

    #[test]
    fn calls_that_fail_together_make_one_pause() {
        let breaker = Breaker::new(Pauses { after: 1, ..PAUSES });
        let start = Instant::now();
        let calls: Vec<_> = (0..100).map(|_| breaker.enter_at(start).unwrap()).collect();
        for call in calls {
            call.failed_at("down", start);
        }
        assert!(breaker.enter_at(start + PAUSES.least).is_ok());
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let Pauses { least, most, .. } = PAUSES;
        for random in [0, 1, u64::MAX] {
            let pause = |doublings| pause(doublings, least, most, random);
            assert!(pause(0) >= least / 2 && pause(0) <= least);
            assert!(pause(4) >= least * 8);
            for doublings in [20, u32::MAX] {
                assert!(pause(doublings) <= most && pause(doublings) >= most / 2);
            }
        }
    }
}
