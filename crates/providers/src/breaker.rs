//! Keeps a server that is down from costing anything per call: after a failure no call goes out before a jittered pause
//! has passed, and then one call alone finds out whether the server is back.
//!
//! Every link finds out for itself. The calls of one component may fail for what they ask, a value that takes too long or a
//! key that is slow, and those of its neighbours are answered: nobody is held back for what another met.
//!
//! A call that is given up before its time is over, as by a component that met its own deadline, says something too where
//! nobody was answered for a while: otherwise a server that hangs would never be found out.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::per_link::{LinkId, PerLink};

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

/// Without an answer to anybody for so long, a call that is given up or late is one that the server did not answer.
const SILENCE: Duration = Duration::from_secs(1);

/// What each link of a provider knows about its server. `E` is why it does not answer, repeated to every call that is held
/// back.
#[derive(Debug)]
pub struct Breaker<E> {
    rules: Arc<Rules<E>>,
    /// What one link finds out holds for all.
    common: bool,
    states: PerLink<Mutex<State<E>>>,
}

/// What does not change, for each call to keep while it is under way.
#[derive(Debug)]
struct Rules<E> {
    pauses: Pauses,
    /// What a call that was given up says of a silent server.
    silent: Option<E>,
    jitter: RandomState,
}

#[derive(Debug)]
struct State<E> {
    failures: u32,
    open: Option<Open<E>>,
    /// When the first call went out since somebody was answered.
    unanswered: Option<Instant>,
}

impl<E> Default for State<E> {
    fn default() -> Self {
        Self { failures: 0, open: None, unanswered: None }
    }
}

fn lock<E>(state: &Mutex<State<E>>) -> MutexGuard<'_, State<E>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E> State<E> {
    fn is_silent(&self, now: Instant) -> bool {
        self.unanswered.is_some_and(|since| now.saturating_duration_since(since) >= SILENCE)
    }
}

/// Calls are held back.
#[derive(Debug)]
struct Open<E> {
    until: Instant,
    why: E,
    /// One call is finding out.
    probing: bool,
}

/// Leave to make one call. Dropped without a verdict, as by a caller that gave up, it says nothing about the server, unless
/// that is silent.
#[derive(Debug)]
#[must_use]
pub struct Pass<E: Clone> {
    rules: Arc<Rules<E>>,
    /// What its link knows.
    state: Arc<Mutex<State<E>>>,
    probe: bool,
    settled: bool,
}

impl<E: Clone + Send + 'static> Breaker<E> {
    /// A server that is believed to be there.
    pub fn new(pauses: Pauses) -> Self {
        let rules = Rules { pauses, silent: None, jitter: RandomState::new() };
        Self { rules: Arc::new(rules), common: false, states: PerLink::default() }
    }

    /// The same, for what all links of a provider do as one, as to log in: what fails for one is tried by no other.
    #[must_use]
    pub fn in_common(self) -> Self {
        Self { common: true, ..self }
    }

    /// The same, and calls that are given up while the server is silent count as failures, for this reason.
    #[must_use]
    pub fn or_silent(self, why: E) -> Self {
        let rules = Rules { pauses: self.rules.pauses, silent: Some(why), jitter: RandomState::new() };
        Self { rules: Arc::new(rules), ..self }
    }

    /// Leave to make a call now, in the name of the link that calls here.
    ///
    /// # Errors
    /// The failure that holds calls back.
    pub fn enter(&self) -> Result<Pass<E>, E> {
        self.enter_at(Instant::now())
    }

    /// Forgets what went wrong: something has changed, and the next call of each link may find out.
    pub fn reset(&self) {
        self.states.each(|state| *lock(state) = State::default());
    }

    fn enter_at(&self, now: Instant) -> Result<Pass<E>, E> {
        let link = LinkId::calling().filter(|_| !self.common);
        let state = self.states.of(link.as_ref());
        let mut known = lock(&state);
        let probe = match &mut known.open {
            None => false,
            Some(open) if open.probing || now < open.until => return Err(open.why.clone()),
            Some(open) => {
                open.probing = true;
                true
            }
        };
        known.unanswered.get_or_insert(now);
        drop(known);
        Ok(Pass { rules: self.rules.clone(), state, probe, settled: false })
    }
}

impl<E: Clone> Pass<E> {
    /// Looks at what the link knows, or changes it.
    fn state<T>(&self, with: impl FnOnce(&mut State<E>) -> T) -> T {
        with(&mut lock(&self.state))
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.state(|state| state.is_silent(now))
    }

    /// Whether the call may still go out: one that had to wait after it was let in may have been overtaken.
    ///
    /// # Errors
    /// The failure of another call of the link that holds calls back by now.
    pub fn still(&self) -> Result<(), E> {
        let why = self.state(|state| state.open.as_ref().filter(|_| !self.probe).map(|open| open.why.clone()));
        why.map_or(Ok(()), Err)
    }

    /// The server answered, whatever it said.
    pub fn answered(mut self) {
        self.settled = true;
        self.state(|state| *state = State::default());
    }

    /// The call had no answer in its time. Where others had one meanwhile the server is there, and nothing is held back.
    /// Whether it counts.
    pub fn late(self, why: E) -> bool {
        let now = Instant::now();
        let counts = self.is_silent(now);
        if counts {
            self.failed_at(why, now);
        }
        counts
    }

    /// The call found out nothing of what this breaker is about: something else was in its way.
    pub fn untried(mut self) {
        self.settled = true;
        let probe = self.probe;
        self.state(|state| {
            if probe {
                state.open.iter_mut().for_each(|open| open.probing = false);
            }
            // The silence has another reason.
            state.unanswered = None;
        });
    }

    /// The caller gives up. Whether that counts.
    pub fn given_up(self) -> bool {
        self.given_up_at(Instant::now())
    }

    fn given_up_at(self, now: Instant) -> bool {
        let why = self.rules.silent.clone().filter(|_| self.is_silent(now));
        let counts = why.is_some();
        if let Some(why) = why {
            self.failed_at(why, now);
        }
        counts
    }

    /// The server did not answer.
    pub fn failed(self, why: E) {
        self.failed_at(why, Instant::now());
    }

    fn failed_at(mut self, why: E, now: Instant) {
        self.settled = true;
        let Pauses { after, least, most } = self.rules.pauses;
        self.state(|state| {
            state.failures = state.failures.saturating_add(1);
            // Calls that were under way when the first of them failed prolong nothing.
            if state.failures >= after && (self.probe || state.open.is_none()) {
                let random = self.rules.jitter.hash_one(state.failures);
                let until = now + pause(state.failures - after, least, most, random);
                state.open = Some(Open { until, why, probing: false });
                // What finds out begins anew.
                state.unanswered = None;
            }
        });
    }
}

impl<E: Clone> Drop for Pass<E> {
    fn drop(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        if self.probe {
            self.state(|state| state.open.iter_mut().for_each(|open| open.probing = false));
        }
        // As if it were given up now; settled above, so that it ends there.
        let (rules, state) = (self.rules.clone(), self.state.clone());
        Pass { rules, state, probe: self.probe, settled: true }.given_up();
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
    fn who_gives_up_says_something_where_nobody_is_answered() {
        let breaker = Breaker::new(Pauses { after: 1, ..PAUSES }).or_silent("silent");
        let start = Instant::now();
        let soon = start + SILENCE / 2;
        assert!(!breaker.enter_at(start).unwrap().given_up_at(soon), "too early to say");
        let long = breaker.enter_at(soon).unwrap();
        assert!(breaker.enter_at(soon).unwrap().given_up_at(start + SILENCE), "nobody was answered since the first");
        assert_eq!(breaker.enter_at(start + SILENCE).unwrap_err(), "silent");
        let later = start + SILENCE + PAUSES.least;
        breaker.enter_at(later).unwrap().answered();
        breaker.enter_at(later).unwrap().answered();
        assert!(!long.given_up_at(later + SILENCE), "others were answered");
        assert!(breaker.enter_at(later).is_ok());
        // One that is dropped frees the place of the one that finds out, and one that finds out nothing is a failure in
        // the end.
        breaker.enter_at(later).unwrap().failed_at("down", later);
        let again = later + PAUSES.least;
        drop(breaker.enter_at(again).unwrap());
        assert!(breaker.enter_at(again).unwrap().given_up_at(again + SILENCE));
        assert_eq!(breaker.enter_at(again + SILENCE).unwrap_err(), "silent");
        let without = Breaker::new(PAUSES);
        assert!(!without.enter_at(start).unwrap().given_up_at(start + 2 * SILENCE));
        without.enter_at(start).unwrap().failed_at("x", start);
    }

    #[test]
    fn a_call_that_was_not_tried_says_nothing_and_leaves_its_place() {
        let breaker = Breaker::new(Pauses { after: 1, ..PAUSES }).or_silent("silent");
        let start = Instant::now();
        breaker.enter_at(start).unwrap().untried();
        let soon = start + SILENCE;
        assert!(!breaker.enter_at(soon).unwrap().given_up_at(soon), "nobody has waited for an answer since");
        breaker.enter_at(soon).unwrap().failed_at("down", soon);
        let later = soon + PAUSES.least;
        breaker.enter_at(later).unwrap().untried();
        let probe = breaker.enter_at(later).unwrap();
        assert_eq!(breaker.enter_at(later).unwrap_err(), "down", "it is still held back");
        probe.answered();
        assert!(breaker.enter_at(later).is_ok());
    }

    #[tokio::test]
    async fn a_link_is_held_back_for_what_it_met_itself() {
        let (one, two) = (LinkId::default(), LinkId::default());
        let breaker = Breaker::new(Pauses { after: 1, ..PAUSES }).or_silent("silent");
        let start = Instant::now();
        let late = start + SILENCE;
        let enter = |link: &LinkId| link.clone().calls(async { breaker.enter_at(late) });
        // Its calls go unanswered, and are ended by another task.
        let pass = one.clone().calls(async { breaker.enter_at(start) }).await.unwrap();
        assert!(pass.given_up_at(late));
        assert_eq!(enter(&one).await.unwrap_err(), "silent");
        enter(&two).await.unwrap().answered();
        breaker.enter_at(late).unwrap().answered();
        assert_eq!(enter(&one).await.unwrap_err(), "silent", "what others are answered says nothing of it");
        breaker.reset();
        enter(&one).await.unwrap().answered();
        let common = Breaker::new(Pauses { after: 1, ..PAUSES }).in_common();
        one.calls(async { common.enter_at(start).unwrap().failed_at("refused", start) }).await;
        assert_eq!(two.calls(async { common.enter_at(start).map(drop) }).await, Err("refused"));
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
