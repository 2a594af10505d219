//! What one link carries: calls, errors by kind, and how long calls took. Written on every call without a lock, read
//! by whoever asks for status. A call of a trace that is recorded is a span, too.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use model::trace::SpanKind;
use model::{ContractId, Label, ProviderName};
use runtime::trace::{CallTrace, OpenSpan, within};

use crate::per_link::LinkId;

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

/// Says which kind an error is; every contract's error does, and its text is the reason that people are shown.
pub trait Kind: Display {
    /// The kind.
    fn kind(&self) -> ErrorKind;
}

/// Buckets of the histogram: bucket `n` counts calls that took less than 2^n microseconds, the last one all others.
pub const BUCKETS: usize = 25;

/// The longest reason that is kept, characters.
const MAX_REASON: usize = 300;

/// Why a link does not work, as its last call found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// [`ErrorKind::Denied`], [`ErrorKind::Unavailable`] or [`ErrorKind::TimedOut`].
    pub kind: ErrorKind,
    /// In words, without control characters.
    pub reason: String,
    /// When the first call failed that no call has succeeded since.
    pub since: SystemTime,
}

impl Trouble {
    /// The trouble that an error tells of, and since when, where `before` was one already.
    fn of(cause: &impl Kind, before: Option<&Self>) -> Option<Self> {
        let kind = cause.kind();
        if matches!(kind, ErrorKind::Refused | ErrorKind::Cancelled) {
            return None;
        }
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let reason = cause.to_string().chars().take(MAX_REASON).map(printable).collect();
        Some(Self { kind, reason, since: before.map_or_else(SystemTime::now, |trouble| trouble.since) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counters of one link of one component.
#[derive(Debug, Default)]
pub struct LinkMeter {
    /// For spans; a meter without it makes none.
    link: Option<LinkName>,
    /// What its provider tells it from others by.
    id: LinkId,
    in_flight: AtomicU32,
    calls: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    took: [AtomicU64; BUCKETS],
    took_us: AtomicU64,
    /// Whether there is a `trouble`: calls that succeed look at nothing else.
    troubled: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    /// What a provider found by itself, whatever calls find.
    standing: Mutex<Option<Trouble>>,
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
    fn span(&self, caller: &CallTrace, operation: &str) -> Option<OpenSpan> {
        let mut span = caller.child(format!("{} {operation}", self.contract), SpanKind::Client)?;
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
        let caller = CallTrace::current();
        let mut span = caller.as_ref().and_then(|caller| self.span(caller, operation));
        let below = caller.filter(|_| span.is_some()).map(|caller| caller.below(span.as_ref()));
        // What answers may be a component, or take the trace along.
        let result = within(below, self.id.clone().calls(call)).await;
        waiting.outcome = result.as_ref().err().map(Kind::kind);
        match &result {
            Ok(_) => self.works(),
            Err(cause) => self.failed(cause),
        }
        if let Some(span) = &mut span {
            end(span, waiting.outcome);
        }
        result
    }

    /// The link, for what its provider does in a task of its own.
    pub fn id(&self) -> LinkId {
        self.id.clone()
    }

    /// The span of a call of `operation` over the link, below that of `caller`; `None` where the trace is not recorded.
    pub fn span(&self, caller: &CallTrace, operation: &str) -> Option<OpenSpan> {
        self.link.as_ref()?.span(caller, operation)
    }

    /// A call begins that [`LinkMeter::ends`] will count: for calls that are no future of the link's own.
    pub fn begins(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Counts the end of a call that began with [`LinkMeter::begins`]; `None` where it was not made after all.
    pub fn ends(&self, outcome: Option<(Instant, Option<ErrorKind>)>) {
        self.in_flight.fetch_sub(1, Relaxed);
        if let Some((began, error)) = outcome {
            self.ended(began, error);
        }
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

    /// What was found of the provider without a call that counts: that it answers, or why it does not.
    pub fn found(&self, found: Result<(), &impl Kind>) {
        match found {
            Ok(()) => self.works(),
            Err(cause) => self.failed(cause),
        }
    }

    /// What the provider found by itself of its server, while calls may be answered without it or nobody calls: a reason
    /// that stays until the provider says that it is over.
    pub fn stands(&self, found: Result<(), &impl Kind>) {
        let mut standing = lock(&self.standing);
        *standing = found.err().and_then(|cause| Trouble::of(cause, standing.as_ref()));
    }

    /// Why the link does not work; `None` where its last call was answered, or there was none, and its provider knows of
    /// nothing either.
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.trouble).clone().or_else(|| lock(&self.standing).clone())
    }

    fn works(&self) {
        if self.troubled.load(Relaxed) {
            *lock(&self.trouble) = None;
            self.troubled.store(false, Relaxed);
        }
    }

    fn failed(&self, cause: &impl Kind) {
        match cause.kind() {
            // The provider is there, and did not like what it was asked.
            ErrorKind::Refused => self.works(),
            ErrorKind::Cancelled => {}
            ErrorKind::Denied | ErrorKind::Unavailable | ErrorKind::TimedOut => {
                let mut trouble = lock(&self.trouble);
                *trouble = Trouble::of(cause, trouble.as_ref());
                self.troubled.store(true, Relaxed);
            }
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

/// Ends the span of a link.
pub fn end(span: &mut OpenSpan, outcome: Option<ErrorKind>) {
    if let Some(kind) = outcome {
        span.attribute("error.type", kind.as_str());
    }
    // Errors of providers may quote keys and values: the kind is enough here.
    span.end(outcome.map(|kind| kind.as_str().to_owned()));
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

    #[derive(Debug)]
    struct No(ErrorKind);
    impl Display for No {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "no:\n{}", self.0.as_str())
        }
    }
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

    #[tokio::test]
    async fn the_reason_is_kept_until_a_call_is_answered() {
        let meter = LinkMeter::default();
        let fails = |kind| meter.observe(async move { Err::<(), _>(No(kind)) });
        assert!(fails(ErrorKind::Refused).await.is_err() && meter.trouble().is_none());
        assert!(fails(ErrorKind::TimedOut).await.is_err());
        let first = meter.trouble().unwrap();
        assert_eq!((first.kind, first.reason.as_str()), (ErrorKind::TimedOut, "no: timed-out"));
        assert!(fails(ErrorKind::Unavailable).await.is_err() && fails(ErrorKind::Cancelled).await.is_err());
        let next = meter.trouble().unwrap();
        assert_eq!((next.kind, next.since), (ErrorKind::Unavailable, first.since), "it has not worked since");
        assert!(meter.observe(async { Ok::<_, No>(()) }).await.is_ok());
        assert_eq!(meter.trouble(), None);
        meter.stands(Err(&No(ErrorKind::Unavailable)));
        assert!(meter.observe(async { Ok::<_, No>(()) }).await.is_ok());
        assert_eq!(
            meter.trouble().map(|trouble| trouble.kind),
            Some(ErrorKind::Unavailable),
            "a call says nothing of it"
        );
        meter.stands(Ok::<(), &No>(()));
        assert_eq!(meter.trouble(), None);
        assert!(fails(ErrorKind::Denied).await.is_err() && meter.trouble().is_some());
        assert!(fails(ErrorKind::Refused).await.is_err() && meter.trouble().is_none(), "it is there");
    }
}
