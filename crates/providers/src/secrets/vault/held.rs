//! What is kept of a secret in Vault, and for how long it is good.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Fields;
use crate::secrets::SecretError;
use crate::vault::Hidden;

/// A secret that somebody asked for.
#[derive(Default)]
pub(super) struct Slot {
    /// Held by the one who asks Vault.
    pub(super) asking: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    Held(Held),
    /// What it was refused with, repeated until then.
    Failed(SecretError, Instant),
}

/// A value, and until when it may be used.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) fields: Arc<Fields>,
    /// Of this value and no other.
    pub(super) number: u64,
    /// Of a dynamic engine.
    pub(super) lease: Option<Lease>,
    /// Until when it is used though Vault cannot be asked.
    end: Instant,
    /// When Vault is to be asked again.
    due: Instant,
}

/// The lease of a credential that was made for us.
#[derive(Clone)]
pub(super) struct Lease {
    pub(super) id: Hidden,
    pub(super) began: Instant,
    pub(super) length: Duration,
    /// Its length when it was given: a renewal that gives much less says that its end is near.
    pub(super) full: Duration,
    pub(super) renewable: bool,
    /// Which login of ours it belongs to, with whose token it ends.
    pub(super) login: u64,
    /// Of its own, and another one after each renewal.
    pub(super) random: u64,
}

impl Lease {
    /// At two thirds of its life, or up to a tenth earlier, so that not all who began together come back together.
    fn renew_at(&self) -> Instant {
        let two_thirds = self.length * 2 / 3;
        self.began + two_thirds - earlier(two_thirds, self.random)
    }

    /// It is time to make it longer.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.renew_at()
    }
}

/// Up to a tenth of it.
fn earlier(of: Duration, random: u64) -> Duration {
    Duration::from_nanos(random % ((of / 10).as_nanos() as u64 + 1))
}

impl Held {
    /// A value just read. `times` are how often to ask again and how long to go on without an answer.
    pub(super) fn new(
        fields: Arc<Fields>,
        number: u64,
        lease: Option<Lease>,
        now: Instant,
        times: (Duration, Duration),
        random: u64,
    ) -> Self {
        let (refresh, without) = times;
        let end = lease.as_ref().map_or(now + refresh + without, |lease| lease.began + lease.length);
        let again = now + refresh - earlier(refresh, random);
        let due = lease.as_ref().map_or(again, |lease| again.min(lease.renew_at()));
        Self { fields, number, lease, end, due }
    }

    /// The same, asked for again in a while.
    pub(super) fn again_later(mut self, refresh: Duration) -> Self {
        let now = Instant::now();
        self.due = now + refresh;
        let Some(lease) = &self.lease else { return self };
        let renew_at = lease.renew_at();
        // Past it, a few more tries before the end.
        let soon = if renew_at > now { renew_at } else { now + (lease.length / 10).max(Duration::from_millis(200)) };
        self.due = self.due.min(soon);
        self
    }

    /// The same under a lease that was made longer.
    pub(super) fn renewed(mut self, lease: Lease, refresh: Duration) -> Self {
        self.end = lease.began + lease.length;
        self.lease = Some(lease);
        self.again_later(refresh)
    }

    /// Whether it may still be used.
    pub(super) fn is_good(&self) -> bool {
        Instant::now() < self.end
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is answered without asking Vault.
    pub(super) fn known(&self) -> Option<Result<Held, SecretError>> {
        match &*self.lock() {
            State::Held(held) if held.is_good() => Some(Ok(held.clone())),
            State::Failed(cause, until) if Instant::now() < *until => Some(Err(cause.clone())),
            _ => None,
        }
    }

    /// The value, whether it is still good or not.
    pub(super) fn held(&self) -> Option<Held> {
        match &*self.lock() {
            State::Held(held) => Some(held.clone()),
            State::Unknown | State::Failed(..) => None,
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.held().map(|held| held.due)
    }

    pub(super) fn keep(&self, held: Held) {
        *self.lock() = State::Held(held);
    }

    pub(super) fn fail(&self, cause: SecretError, until: Instant) {
        *self.lock() = State::Failed(cause, until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lease: Option<u64>) -> Held {
        let now = Instant::now();
        let lease = lease.map(|seconds| Lease {
            id: Hidden::new("id".to_owned()),
            began: now,
            length: Duration::from_secs(seconds),
            full: Duration::from_secs(seconds),
            renewable: true,
            login: 1,
            random: 0,
        });
        let times = (Duration::from_secs(10), Duration::from_secs(60));
        Held::new(Arc::default(), 1, lease, now, times, u64::MAX)
    }

    #[test]
    fn a_value_is_asked_for_again_at_its_time_and_a_lease_before_two_thirds_of_its_life() {
        let in_seconds = |held: &Held| held.due.saturating_duration_since(Instant::now()).as_secs_f64().ceil() as u64;
        assert!((9..=10).contains(&in_seconds(&held(None))));
        assert!((5..=6).contains(&in_seconds(&held(Some(9)))));
        assert!((9..=10).contains(&in_seconds(&held(Some(3600)))), "whether our token is another one is seen in time");
        let lease = held(Some(9)).lease.unwrap();
        assert!(
            !lease.is_due(lease.began + Duration::from_secs(5)) && lease.is_due(lease.began + Duration::from_secs(6))
        );
    }

    #[test]
    fn leases_that_began_together_are_not_renewed_together() {
        let began = Instant::now();
        let of = |random: u64| {
            let lease = Lease { random, began, length: Duration::from_secs(900), ..held(Some(900)).lease.unwrap() };
            let times = (Duration::from_secs(10), Duration::from_secs(60));
            let held = Held::new(Arc::default(), 1, Some(lease), began, times, random);
            // Looked at every few seconds, until it is renewed; the last look is at the moment itself.
            let held = held.again_later(Duration::from_secs(3600));
            let lease = held.lease.unwrap();
            assert!(
                !lease.is_due(held.due - Duration::from_millis(1)) && lease.is_due(held.due),
                "not before, not after"
            );
            (held.due - began).as_secs_f64()
        };
        let at: Vec<f64> = (1..50_u64).map(|n| of(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        assert!(at.iter().all(|at| (540.0..=600.0).contains(at)), "{at:?}");
        let spread = at.iter().copied().fold(0.0, f64::max) - at.iter().copied().fold(1000.0, f64::min);
        assert!(spread > 40.0, "{at:?}");
    }

    #[test]
    fn a_failure_is_repeated_for_a_while_and_then_asked_about() {
        let slot = Slot::default();
        assert!(slot.known().is_none());
        slot.fail(SecretError::Missing("a".to_owned()), Instant::now() + Duration::from_secs(60));
        assert!(matches!(slot.known(), Some(Err(SecretError::Missing(_)))));
        slot.fail(SecretError::Missing("a".to_owned()), Instant::now());
        assert!(slot.known().is_none());
    }
}
