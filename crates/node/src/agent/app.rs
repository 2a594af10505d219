//! One app in the agent's books.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use model::observed::{AppObserved, Phase, Reason};
use model::{Digest, ProviderName, Revision};
use tokio_util::sync::CancellationToken;

use crate::bring::TRIES;
use crate::converge::{Actual, Hosts, Wanted, observe};
use crate::serving::Serving;
use crate::tenant::Prepared;

/// The longest pause before a revision that fails for want of something else is tried again, seconds.
const LONGEST: u64 = 60;

/// One app.
#[derive(Debug)]
pub(super) struct App {
    /// What the control plane wants; empty when the app is to go.
    pub(super) wanted: Option<Wanted>,
    /// Where it stands.
    pub(super) actual: Actual,
    /// What the routes point to, also while it is suspended.
    pub(super) serving: Option<Arc<Serving>>,
    /// Ends the job that brings a revision up.
    pub(super) job: Option<CancellationToken>,
    /// Where that job stands.
    pub(super) phase: Phase,
    /// Why the last attempt failed, and how often it did.
    pub(super) failure: Option<Reason>,
    pub(super) tries: u32,
    /// How often this revision failed for what may be its own fault.
    pub(super) odd: Option<(Revision, u32)>,
    /// Revisions that are leaving the hosts.
    pub(super) leaving: HashMap<Revision, Leaving>,
    /// External providers of it that do not answer for longer.
    pub(super) ailing: BTreeMap<(ProviderName, Digest), Reason>,
    /// What serves and has no code yet for the engine of a host, once for each such host: calls wait for it there.
    pub(super) compiling: Vec<Revision>,
    /// How often it was resumed of late, and its hosts do not all have it back yet.
    pub(super) resuming: u32,
    /// The last thing that its hosts are told because it is suspended or resumed: each waits for the one before.
    pub(super) turn: Option<tokio::task::JoinHandle<()>>,
    /// What was told last.
    pub(super) told: Option<AppObserved>,
}

/// A revision whose last calls end.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) prepared: Arc<Prepared>,
    /// Ends the patience with them.
    pub(super) patience: CancellationToken,
}

impl Default for App {
    fn default() -> Self {
        Self {
            wanted: None,
            actual: Actual::default(),
            serving: None,
            job: None,
            phase: Phase::Fetching,
            failure: None,
            tries: 0,
            odd: None,
            leaving: HashMap::new(),
            ailing: BTreeMap::new(),
            compiling: Vec::new(),
            resuming: 0,
            turn: None,
            told: None,
        }
    }
}

impl App {
    /// What is to be told at `now`, if that is something new. `wanted` is what is wanted of it, all things considered.
    pub(super) fn news(&mut self, wanted: &Wanted, hosts: &Hosts, now: u64) -> Option<AppObserved> {
        let ailing = self.ailing.values().next().filter(|_| *hosts == Hosts::Up);
        let hosts = ailing.map_or_else(|| hosts.clone(), |reason| Hosts::Degraded(reason.clone()));
        let mut seen = observe(wanted, &self.actual, self.phase, self.failure.as_ref(), &hosts, now);
        if seen.phase == Phase::Serving && self.is_compiling() {
            seen.phase = Phase::Compiling;
        }
        if self.told.as_ref() == Some(&seen) {
            return None;
        }
        self.told = Some(seen.clone());
        Some(seen)
    }

    /// Calls to what serves wait for its code.
    pub(super) fn is_compiling(&self) -> bool {
        let serving = self.actual.serving.filter(|_| self.actual.suspended.is_none());
        serving.is_some_and(|serving| self.compiling.contains(&serving))
    }

    /// Nothing of it is left.
    pub(super) fn is_gone(&self) -> bool {
        self.wanted.is_none() && self.actual == Actual::default() && self.leaving.is_empty()
    }

    /// Counts a failure of a revision that may be its own; whether it is tried again.
    pub(super) fn may_try(&mut self, revision: Revision) -> bool {
        let before = self.odd.filter(|(of, _)| *of == revision).map_or(0, |(_, tries)| tries);
        self.odd = Some((revision, before + 1));
        before + 1 < TRIES
    }

    /// Counts a failure that may pass; the number of seconds to wait before the next try. There is always one: what the
    /// revision waits for may be away for longer than anybody looks.
    pub(super) fn try_again(&mut self) -> u64 {
        self.tries = self.tries.saturating_add(1);
        (1 << self.tries.min(6)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_for_as_long_as_it_is_wanted() {
        let mut app = App::default();
        let pauses: Vec<u64> = (0..1000).map(|_| app.try_again()).collect();
        assert_eq!(pauses[..7], [2, 4, 8, 16, 32, 60, 60]);
        assert!(pauses[7..].iter().all(|pause| *pause == LONGEST));
        app.tries = u32::MAX;
        assert_eq!(app.try_again(), LONGEST);
    }

    /// A component whose compilation takes all memory of the machine does not do so for ever.
    #[test]
    fn what_may_be_the_revisions_own_is_tried_a_few_times() {
        let mut app = App::default();
        let tried = |app: &mut App, revision| (0..7).map(|_| app.may_try(Revision(revision))).collect::<Vec<_>>();
        assert_eq!(tried(&mut app, 1), [true, true, true, true, false, false, false]);
        assert_eq!(tried(&mut app, 2)[..5], [true, true, true, true, false], "the next one is another one");
    }
}
