//! One app in the agent's books.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use model::observed::{AppObserved, Phase, Reason};
use model::{Digest, ProviderName, Revision};
use tokio_util::sync::CancellationToken;

use crate::converge::{Actual, Hosts, Wanted, observe};
use crate::serving::Serving;

/// Tries after which a revision that fails for want of something else is left alone until somebody acts.
const MAX_TRIES: u32 = 8;

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
    /// Revisions that are leaving the hosts: ends their patience.
    pub(super) leaving: HashMap<Revision, CancellationToken>,
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
    /// What is to be told now, if that is something new.
    pub(super) fn news(&mut self, hosts: &Hosts) -> Option<AppObserved> {
        let ailing = self.ailing.values().next().filter(|_| *hosts == Hosts::Up);
        let hosts = ailing.map_or_else(|| hosts.clone(), |reason| Hosts::Degraded(reason.clone()));
        let mut seen = observe(self.wanted.as_ref()?, &self.actual, self.phase, self.failure.as_ref(), &hosts);
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

    /// Counts a failure that may pass; the number of seconds to wait before the next try, if there is to be one.
    pub(super) fn try_again(&mut self) -> Option<u64> {
        self.tries += 1;
        (self.tries <= MAX_TRIES).then(|| (1 << self.tries.min(6)).min(60))
    }
}
