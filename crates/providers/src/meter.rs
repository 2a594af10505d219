//! What one link carries: calls, errors by kind, and how long calls took. Written on every call without a lock, read
//! by whoever asks for status.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// The kinds of error that a call over any link can end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// The provider refuses what was asked: wrong value, too large, not there.
    Refused,
    /// Credentials or policy.
    Denied,
    /// The provider cannot be reached or cannot do it now.
    Unavailable,
    /// No answer in time.
    TimedOut,
}

impl ErrorKind {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 4] = [Self::Refused, Self::Denied, Self::Unavailable, Self::TimedOut];

    /// The name in metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed-out",
        }
    }
}

/// Says which kind an error is; every contract's error does.
pub trait Kind {
    /// The kind.
    fn kind(&self) -> ErrorKind;
}

/// Buckets of the histogram: bucket `n` counts calls that took less than 2^n microseconds, the last one all others.
pub const BUCKETS: usize = 25;

/// Counters of one link of one component.
#[derive(Debug, Default)]
pub struct LinkMeter {
    calls: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    took: [AtomicU64; BUCKETS],
    took_us: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Calls ended.
    pub calls: u64,
    /// Of those, how many failed, in the order of [`ErrorKind::ALL`].
    pub errors: [u64; ErrorKind::ALL.len()],
    /// How many took how long: see [`BUCKETS`].
    pub took: [u64; BUCKETS],
    /// All durations together, microseconds.
    pub took_us: u64,
}

impl LinkMeter {
    /// Counts one call. A call that is dropped before its end is not counted.
    ///
    /// # Errors
    /// What the call answers.
    pub async fn observe<T, E: Kind>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let began = Instant::now();
        let result = call.await;
        self.ended(began, result.as_ref().err().map(Kind::kind));
        result
    }

    /// Counts one call that ended now.
    pub fn ended(&self, began: Instant, error: Option<ErrorKind>) {
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Relaxed);
        self.took_us.fetch_add(us, Relaxed);
        if let Some(bucket) = self.took.get(bucket(us)) {
            bucket.fetch_add(1, Relaxed);
        }
        if let Some(errors) = error.and_then(|kind| self.errors.get(kind as usize)) {
            errors.fetch_add(1, Relaxed);
        }
    }

    /// Everything at once.
    pub fn counts(&self) -> LinkCounts {
        LinkCounts {
            calls: self.calls.load(Relaxed),
            errors: self.errors.each_ref().map(|n| n.load(Relaxed)),
            took: self.took.each_ref().map(|n| n.load(Relaxed)),
            took_us: self.took_us.load(Relaxed),
        }
    }
}

fn bucket(us: u64) -> usize {
    ((u64::BITS - us.leading_zeros()) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct No(ErrorKind);
    impl Kind for No {
        fn kind(&self) -> ErrorKind {
            self.0
        }
    }

    #[test]
    fn buckets_are_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024].map(bucket), [0, 1, 2, 2, 3, 10, 11]);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[tokio::test]
    async fn calls_are_counted_with_their_errors() {
        let meter = LinkMeter::default();
        assert!(meter.observe(async { Ok::<_, No>(()) }).await.is_ok());
        for kind in ErrorKind::ALL {
            assert!(meter.observe(async { Err::<(), _>(No(kind)) }).await.is_err());
        }
        let counts = meter.counts();
        assert_eq!((counts.calls, counts.errors), (5, [1, 1, 1, 1]));
        assert_eq!(counts.took.iter().sum::<u64>(), 5);
    }
}
