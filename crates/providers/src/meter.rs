//! What one link carries: calls, errors by kind, and how long calls took. Written on every call without a lock, read
//! by whoever asks for status. A call of a trace that is recorded is a span, too.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use model::trace::SpanKind;
use model::{ContractId, Label, ProviderName};
use runtime::trace::{CallTrace, OpenSpan};

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
    /// Given up before its answer: the call of the component ended first. No provider answers with this.
    Cancelled,
}

impl ErrorKind {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 5] = [Self::Refused, Self::Denied, Self::Unavailable, Self::TimedOut, Self::Cancelled];

    /// The name in metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed-out",
            Self::Cancelled => "cancelled",
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
    /// For spans; a meter without it makes none.
    link: Option<LinkName>,
    in_flight: AtomicU32,
    calls: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    took: [AtomicU64; BUCKETS],
    took_us: AtomicU64,
}

/// How a link is named in spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkName {
    /// The contract.
    pub contract: ContractId,
    /// Which label of the contract.
    pub label: Label,
    /// What answers.
    pub provider: ProviderName,
    /// Its type, for example `keyvalue-redis`.
    pub kind: &'static str,
}

impl LinkName {
    fn span(&self, operation: &'static str) -> Option<OpenSpan> {
        let mut span = CallTrace::current()?.child(format!("{} {operation}", self.contract), SpanKind::Client)?;
        span.attribute("sidereal.contract", self.contract.to_string());
        span.attribute("sidereal.operation", operation);
        span.attribute("sidereal.label", self.label.as_str());
        span.attribute("sidereal.provider", self.provider.as_str());
        span.attribute("sidereal.provider.type", self.kind);
        Some(span)
    }
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Calls that wait for their answer now.
    pub in_flight: u32,
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
    /// A meter of a link with a name.
    pub fn of(link: LinkName) -> Self {
        Self { link: Some(link), ..Self::default() }
    }

    /// Counts one call, also one that is dropped before its end: that one is [`ErrorKind::Cancelled`].
    ///
    /// # Errors
    /// What the call answers.
    pub async fn observe<T, E: Kind>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.call("call", call).await
    }

    /// As [`LinkMeter::observe`], with the name of the contract's function for the span.
    ///
    /// # Errors
    /// What the call answers.
    pub async fn call<T, E: Kind>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut waiting = Waiting::new(self);
        let mut span = self.link.as_ref().and_then(|link| link.span(operation));
        let result = call.await;
        waiting.outcome = result.as_ref().err().map(Kind::kind);
        if let Some(span) = &mut span {
            if let Some(kind) = waiting.outcome {
                span.attribute("error.type", kind.as_str());
            }
            // Errors of providers may quote keys and values: the kind is enough here.
            span.end(waiting.outcome.map(|kind| kind.as_str().to_owned()));
        }
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
            in_flight: self.in_flight.load(Relaxed),
            calls: self.calls.load(Relaxed),
            errors: self.errors.each_ref().map(|n| n.load(Relaxed)),
            took: self.took.each_ref().map(|n| n.load(Relaxed)),
            took_us: self.took_us.load(Relaxed),
        }
    }
}

/// A call that waits for its answer. Counted when it goes away, however that comes about.
struct Waiting<'a> {
    meter: &'a LinkMeter,
    began: Instant,
    outcome: Option<ErrorKind>,
}

impl<'a> Waiting<'a> {
    fn new(meter: &'a LinkMeter) -> Self {
        meter.in_flight.fetch_add(1, Relaxed);
        Self { meter, began: Instant::now(), outcome: Some(ErrorKind::Cancelled) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.meter.in_flight.fetch_sub(1, Relaxed);
        self.meter.ended(self.began, self.outcome);
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
        assert_eq!((counts.calls, counts.errors), (6, [1; 5]));
        assert_eq!(counts.took.iter().sum::<u64>(), 6);
    }

    #[tokio::test]
    async fn a_call_is_in_flight_until_it_ends_or_is_given_up() {
        let meter = LinkMeter::default();
        {
            let mut call = std::pin::pin!(meter.observe(std::future::pending::<Result<(), No>>()));
            assert!(futures::poll!(call.as_mut()).is_pending());
            assert_eq!((meter.counts().in_flight, meter.counts().calls), (1, 0));
        }
        let counts = meter.counts();
        assert_eq!((counts.in_flight, counts.calls, counts.errors), (0, 1, [0, 0, 0, 0, 1]));
    }
}
