//! Spans of this host's calls, for as long as the node follows `/v1/spans`. While nobody does, a `traceparent` is just a
//! header and a call makes no span.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::agent::{HostSpan, SpanBatch};
use http::{HeaderMap, HeaderValue};
use model::trace::{Attribute, Span, SpanId, SpanKind, SpanOrigin, TraceContext};
use runtime::trace::{CallTrace, OpenSpan, SpanSink, TRACEPARENT};
use tokio::sync::Notify;

/// Spans kept for the follower; one that is slower loses the newest, and is told how many.
const KEPT: usize = 4096;
/// Spans in one batch: a line of some ten KiB.
const BATCH: usize = 64;

/// The spans that wait for their follower.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    followers: AtomicUsize,
    /// The part of the traces that begin here which is recorded, the bits of a float: as the last follower wants it.
    roots: AtomicU64,
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    spans: VecDeque<HostSpan>,
    dropped: u64,
}

/// A call's part in a trace: its span is recorded when this goes away.
pub(crate) struct Traced {
    pub(crate) trace: Arc<CallTrace>,
    span: Option<OpenSpan>,
}

impl Traced {
    /// Says one more thing about the call.
    pub(crate) fn attribute(&mut self, name: &str, value: impl Into<Attribute>) {
        if let Some(span) = &mut self.span {
            span.attribute(name, value);
        }
    }

    /// The call ended so; its span lasts until its answer was read.
    pub(crate) fn end(&mut self, status: Option<u16>, error: Option<String>) {
        if let Some(span) = &mut self.span {
            if let Some(status) = status {
                span.attribute("http.response.status_code", status);
            }
            span.end(error);
        }
    }
}

impl Spans {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a call into the trace its head names, where somebody follows. The component is given its own span as the
    /// parent of what it does.
    pub(crate) fn begin(self: &Arc<Self>, headers: &mut HeaderMap, origin: &Arc<SpanOrigin>) -> Option<Traced> {
        if !self.followed() {
            return None;
        }
        let caller = TraceContext::parse(headers.get(TRACEPARENT)?.as_bytes()).ok()?;
        let traced = self.join(Some(caller), origin, SpanKind::Server)?;
        if let Ok(value) = HeaderValue::try_from(traced.trace.context().to_string()) {
            headers.insert(TRACEPARENT, value);
        }
        Some(traced)
    }

    /// Puts a call into the trace of `caller`, or, where that is not known, into one that begins here.
    pub(crate) fn join(
        self: &Arc<Self>,
        caller: Option<TraceContext>,
        origin: &Arc<SpanOrigin>,
        kind: SpanKind,
    ) -> Option<Traced> {
        if !self.followed() {
            return None;
        }
        let context = match caller {
            Some(caller) if caller.sampled => caller.at(self.id()),
            Some(caller) => caller,
            None => self.root(),
        };
        let trace = Arc::new(CallTrace::new(context, origin.clone(), self.clone()));
        let span = trace.own(caller.map(|caller| caller.span), kind);
        Some(Traced { trace, span })
    }

    fn followed(&self) -> bool {
        self.followers.load(Relaxed) > 0
    }

    fn root(&self) -> TraceContext {
        // One fixed bit: an id of zeros is invalid.
        let trace = (rand::random::<u128>() | 1).to_be_bytes();
        let sampled = TraceContext::is_recorded(&trace, f64::from_bits(self.roots.load(Relaxed)));
        TraceContext { trace, span: self.id(), sampled }
    }

    /// A follower, from now on; of the traces that begin here it wants the part `roots`.
    pub(crate) fn follow(self: &Arc<Self>, roots: f64) -> Follower {
        self.roots.store(roots.to_bits(), Relaxed);
        self.followers.fetch_add(1, Relaxed);
        Follower(self.clone())
    }
}

impl SpanSink for Spans {
    fn id(&self) -> SpanId {
        // One fixed bit: an id of zeros is invalid.
        (rand::random::<u64>() | 1).to_be_bytes()
    }

    fn record(&self, origin: &Arc<SpanOrigin>, span: Span) {
        let mut waiting = self.lock();
        if waiting.spans.len() >= KEPT {
            waiting.dropped += 1;
            return;
        }
        waiting.spans.push_back(HostSpan { origin: (**origin).clone(), span });
        drop(waiting);
        self.more.notify_one();
    }
}

/// Takes the spans.
pub(crate) struct Follower(Arc<Spans>);

impl Follower {
    /// The next spans; waits for one.
    pub(crate) async fn next(&mut self) -> SpanBatch {
        loop {
            {
                let mut waiting = self.0.lock();
                if !waiting.spans.is_empty() {
                    let count = waiting.spans.len().min(BATCH);
                    let spans = waiting.spans.drain(..count).collect();
                    return SpanBatch { spans, dropped: std::mem::take(&mut waiting.dropped) };
                }
            }
            self.0.more.notified().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.0.followers.fetch_sub(1, Relaxed) == 1 {
            self.0.lock().spans.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn origin() -> Arc<SpanOrigin> {
        Arc::new(SpanOrigin {
            app: "a".parse().unwrap(),
            revision: model::Revision(3),
            component: "c".parse().unwrap(),
        })
    }

    fn headers() -> HeaderMap {
        [(http::HeaderName::from_static(TRACEPARENT), HeaderValue::from_static(GIVEN))].into_iter().collect()
    }

    #[tokio::test]
    async fn calls_are_recorded_while_somebody_follows() {
        let spans = Arc::new(Spans::default());
        assert!(spans.begin(&mut headers(), &origin()).is_none());
        let mut follower = spans.follow(1.0);
        let mut given = headers();
        let mut traced = spans.begin(&mut given, &origin()).unwrap();
        traced.end(Some(200), None);
        let context = traced.trace.context();
        drop(traced);
        assert_eq!(given[TRACEPARENT].to_str().unwrap(), context.to_string());
        let batch = follower.next().await;
        let span = &batch.spans[0].span;
        assert_eq!((span.context, span.parent.map(u64::from_be_bytes)), (context, Some(0x00f0_67aa_0ba9_02b7)));
        assert_eq!((span.name.as_str(), span.error.as_deref()), ("a/c", None));
        drop(follower);
        assert!(spans.begin(&mut headers(), &origin()).is_none());
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_lost() {
        let spans = Arc::new(Spans::default());
        let mut follower = spans.follow(1.0);
        for _ in 0..KEPT + 5 {
            drop(spans.begin(&mut headers(), &origin()));
        }
        let batch = follower.next().await;
        assert_eq!((batch.spans.len(), batch.dropped), (BATCH, 5));
        assert_eq!(follower.next().await.dropped, 0);
    }
}
