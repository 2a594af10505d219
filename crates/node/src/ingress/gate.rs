//! How many requests of a tenant the ingress takes: at once, and per second. Asked once for each request, before it goes
//! anywhere. No lock; a tenant without quotas costs two loads.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use model::tenant::{Quotas, Rate};

/// Stands for "no quota of concurrent requests".
const ANY: u32 = u32::MAX;

/// One tenant's gate; every [`Target`](super::Target) of its apps has it.
#[derive(Debug)]
pub struct Gate {
    at_once: AtomicU32,
    rate: ArcSwapOption<Rate>,
    under_way: AtomicU32,
    paid: AtomicU64,
    /// Requests that were refused.
    refused: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            at_once: AtomicU32::new(ANY),
            rate: ArcSwapOption::empty(),
            under_way: AtomicU32::new(0),
            paid: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too many under way.
    Concurrent,
    /// Too many a second; the first one would be taken after this time.
    Rate(Duration),
}

/// A request under way. It counts until this is dropped.
#[derive(Debug)]
pub struct Entered(Option<Arc<Gate>>);

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Nanoseconds from some moment of this process to `now`.
pub(crate) fn nanos(now: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // A second is added: a rate that was never used is paid for since before the start.
    let since = now.saturating_duration_since(*START.get_or_init(|| now)) + Duration::from_secs(1);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Gate {
    /// What the tenant may have from now on. Requests under way go on.
    pub fn set(&self, quotas: &Quotas) {
        self.at_once.store(quotas.concurrent_requests.unwrap_or(ANY), Ordering::Relaxed);
        let rate = quotas.requests_per_second.map(|per_second| {
            let per_second = u64::from(per_second);
            Arc::new(Rate::new(per_second, (per_second / 4).max(10)))
        });
        if let Some(rate) = &rate {
            let now = nanos(Instant::now());
            let taken_over = |paid| Some(rate.taken_over(paid, now));
            // It always takes over something.
            let _ = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken_over);
        }
        self.rate.store(rate);
    }

    /// Requests that were refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes one request, or says why not.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn enter(self: &Arc<Self>) -> Result<Entered, Refused> {
        self.try_enter().inspect_err(|_| {
            self.refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn try_enter(self: &Arc<Self>) -> Result<Entered, Refused> {
        let at_once = self.at_once.load(Ordering::Relaxed);
        let entered = if at_once == ANY {
            Entered(None)
        } else {
            let before = self.under_way.fetch_add(1, Ordering::Relaxed);
            let entered = Entered(Some(Arc::clone(self)));
            if before >= at_once {
                return Err(Refused::Concurrent);
            }
            entered
        };
        if let Some(rate) = &*self.rate.load() {
            self.pay(rate, nanos(Instant::now())).map_err(|wait| Refused::Rate(Duration::from_nanos(wait)))?;
        }
        Ok(entered)
    }

    fn pay(&self, rate: &Rate, now: u64) -> Result<(), u64> {
        let mut paid = self.paid.load(Ordering::Relaxed);
        loop {
            let next = rate.take(paid, now, 1)?;
            match self.paid.compare_exchange_weak(paid, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(meanwhile) => paid = meanwhile,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_no_more() {
        let gate = Arc::new(Gate::default());
        gate.set(&Quotas { concurrent_requests: Some(2), ..Quotas::default() });
        let first = gate.enter().unwrap();
        let _second = gate.enter().unwrap();
        assert_eq!(gate.enter().unwrap_err(), Refused::Concurrent);
        drop(first);
        assert!(gate.enter().is_ok());
        gate.set(&Quotas::default());
        let free: Vec<_> = (0..100).map(|_| gate.enter().unwrap()).collect();
        gate.set(&Quotas { concurrent_requests: Some(2), ..Quotas::default() });
        drop(free);
        assert!(gate.enter().is_ok(), "requests that were not counted are not counted off");
        assert_eq!(gate.refused(), 1);
    }

    #[test]
    fn a_rate_that_was_raised_holds_at_once() {
        let gate = Arc::new(Gate::default());
        gate.set(&Quotas { requests_per_second: Some(1), ..Quotas::default() });
        while gate.enter().is_ok() {}
        gate.set(&Quotas { requests_per_second: Some(1_000_000), ..Quotas::default() });
        let refused = (0..100).find_map(|_| gate.enter().err());
        let Some(Refused::Rate(wait)) = refused else { return };
        assert!(wait < Duration::from_millis(1), "{wait:?}");
    }

    #[test]
    fn so_many_a_second_from_all_threads_together() {
        let gate = Arc::new(Gate::default());
        gate.set(&Quotas { requests_per_second: Some(1000), ..Quotas::default() });
        let rate = Rate::new(1000, 250);
        let granted: usize = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| gate.pay(&rate, 1_000_000_000).is_ok()).count()))
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).sum()
        });
        assert_eq!(granted, 250);
    }
}
