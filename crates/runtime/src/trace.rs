//! The trace a call belongs to: carried by the call, found by whatever the guest calls while it runs, and passed on with
//! its outgoing requests. A call without one pays nothing for it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use model::trace::{Attribute, Span, SpanId, SpanKind, SpanOrigin, TraceContext};

/// The header of a [`TraceContext`].
pub const TRACEPARENT: &str = "traceparent";

/// Takes finished spans of one host. Called on the request path: must not block.
pub trait SpanSink: Send + Sync {
    /// A new id, random and not zero.
    fn id(&self) -> SpanId;
    /// A span has ended.
    fn record(&self, origin: &Arc<SpanOrigin>, span: Span);
}

/// The trace of one call: given to [`Workload::handle`](crate::Workload::handle) in the request's extensions, and to other
/// calls by [`within`].
#[derive(Clone)]
pub struct CallTrace {
    context: TraceContext,
    origin: Arc<SpanOrigin>,
    sink: Arc<dyn SpanSink>,
}

thread_local! {
    /// The trace of the call whose guest runs on this thread now.
    static CURRENT: Cell<Option<Arc<CallTrace>>> = const { Cell::new(None) };
}

impl CallTrace {
    /// The trace of a call whose own span, or where it is not sampled whose caller's, is in `context`.
    pub fn new(context: TraceContext, origin: Arc<SpanOrigin>, sink: Arc<dyn SpanSink>) -> Self {
        Self { context, origin, sink }
    }

    /// That of the call whose guest runs on this thread now.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.with(|current| {
            let trace = current.take();
            current.set(trace.clone());
            trace
        })
    }

    /// Where the call is.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// The same call at a span within its own, where there is one.
    #[must_use]
    pub fn below(&self, span: Option<&OpenSpan>) -> Arc<Self> {
        let context = span.map_or(self.context, |open| open.span.context);
        Arc::new(Self { context, ..self.clone() })
    }

    /// A call that this one makes of another component, and its span; `None` where the trace is not recorded.
    pub fn callee(&self, origin: &Arc<SpanOrigin>) -> (Arc<Self>, Option<OpenSpan>) {
        let context = if self.context.sampled { self.context.at(self.sink.id()) } else { self.context };
        let trace = Arc::new(Self { context, origin: origin.clone(), sink: self.sink.clone() });
        let span = trace.own(Some(self.context.span), SpanKind::Server);
        (trace, span)
    }

    /// A span within the call's, begun now; `None` where the trace is not recorded.
    pub fn child(&self, name: impl Into<String>, kind: SpanKind) -> Option<OpenSpan> {
        let context = self.context.at(self.sink.id());
        self.context.sampled.then(|| OpenSpan::new(self, context, Some(self.context.span), name.into(), kind))
    }

    /// The span of the call itself, whose context is [`CallTrace::context`]: named by its component; `None` where the trace
    /// is not recorded. One without `parent` begins the trace.
    pub fn own(&self, parent: Option<SpanId>, kind: SpanKind) -> Option<OpenSpan> {
        let name = || format!("{}/{}", self.origin.app, self.origin.component);
        self.context.sampled.then(|| OpenSpan::new(self, self.context, parent, name(), kind))
    }

    /// Puts an outgoing request of the guest into the trace: what the guest itself passed on says where, where it did.
    pub(crate) fn outgoing<B>(&self, request: &mut http::Request<B>) -> Option<OpenSpan> {
        let passed_on = passed_on(request.headers()).filter(|context| context.trace == self.context.trace);
        let method = request.method().as_str().to_owned();
        let mut span = self.child(method.clone(), SpanKind::Client);
        if let (Some(span), Some(context)) = (&mut span, passed_on) {
            span.span.parent = Some(context.span);
        }
        if let Some(span) = &mut span {
            let uri = request.uri();
            span.attribute("http.request.method", method);
            span.attribute("server.address", uri.host().unwrap_or_default());
            if let Some(port) = uri.port_u16() {
                span.attribute("server.port", port);
            }
            span.attribute("url.scheme", uri.scheme_str().unwrap_or_default());
            span.attribute("url.path", uri.path());
        }
        // A trace of the guest's own, with another id, is left alone where ours is not recorded.
        let context = span.as_ref().map(|span| span.span.context).or(match passed_on {
            None if !request.headers().contains_key(TRACEPARENT) => Some(self.context),
            _ => None,
        });
        if let Some(value) = context.and_then(|context| http::HeaderValue::try_from(context.to_string()).ok()) {
            request.headers_mut().insert(TRACEPARENT, value);
        }
        span
    }
}

/// The one well-formed `traceparent` of a request.
fn passed_on(headers: &HeaderMap) -> Option<TraceContext> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let first = TraceContext::parse(all.next()?.as_bytes()).ok()?;
    all.next().is_none().then_some(first)
}

/// Runs a future with `trace` as the current one, where there is one: calls that it makes of components belong to it.
pub async fn within<F: Future>(trace: Option<Arc<CallTrace>>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _entered = trace.as_ref().map(Entered::new);
        future.as_mut().poll(cx)
    })
    .await
}

/// Makes a trace the current one of this thread until it is dropped.
pub(crate) struct Entered(Option<Arc<CallTrace>>);

impl Entered {
    pub(crate) fn new(trace: &Arc<CallTrace>) -> Self {
        Self(CURRENT.with(|current| current.replace(Some(trace.clone()))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        CURRENT.with(|current| current.set(before));
    }
}

/// A span that goes on. It is recorded when it is dropped, as a failure where that came before [`OpenSpan::end`].
pub struct OpenSpan {
    span: Span,
    began: Instant,
    origin: Arc<SpanOrigin>,
    sink: Arc<dyn SpanSink>,
}

impl OpenSpan {
    fn new(trace: &CallTrace, context: TraceContext, parent: Option<SpanId>, name: String, kind: SpanKind) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let error = Some("given up before its end".to_owned());
        let span = Span { context, parent, name, kind, start_ns, end_ns: start_ns, attributes: Vec::new(), error };
        Self { span, began: Instant::now(), origin: trace.origin.clone(), sink: trace.sink.clone() }
    }

    /// Says one more thing about it.
    pub fn attribute(&mut self, name: &str, value: impl Into<Attribute>) {
        self.span.attributes.push((name.to_owned(), value.into()));
    }

    /// An outgoing request has its answer, or none.
    pub(crate) fn answered<B>(&mut self, answer: &Result<http::Response<B>, crate::OutboundError>) {
        match answer {
            Ok(response) => {
                let status = response.status();
                self.attribute("http.response.status_code", status.as_u16());
                let failed = status.is_client_error() || status.is_server_error();
                self.end(failed.then(|| status.to_string()));
            }
            Err(cause) => self.end(Some(cause.to_string())),
        }
    }

    /// It ends well, or with a failure; recorded when it goes away.
    pub fn end(&mut self, error: Option<String>) {
        self.span.error = error;
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.span.end_ns = self.span.start_ns.saturating_add(took);
        let empty = Span { name: String::new(), attributes: Vec::new(), error: None, ..self.span };
        self.sink.record(&self.origin, std::mem::replace(&mut self.span, empty));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<Span>>);
    impl SpanSink for Seen {
        fn id(&self) -> SpanId {
            [7; 8]
        }
        fn record(&self, _: &Arc<SpanOrigin>, span: Span) {
            self.0.lock().unwrap().push(span);
        }
    }

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn trace(context: &str) -> (Arc<Seen>, Arc<CallTrace>) {
        let seen = Arc::new(Seen::default());
        let origin =
            SpanOrigin { app: "a".parse().unwrap(), revision: model::Revision(1), component: "c".parse().unwrap() };
        let trace = CallTrace::new(context.parse().unwrap(), Arc::new(origin), seen.clone());
        (seen, Arc::new(trace))
    }

    fn sent(trace: &CallTrace, guest: Option<&str>) -> (Option<OpenSpan>, Option<String>) {
        let mut request = http::Request::get("http://example.com:81/path?secret").body(()).unwrap();
        if let Some(value) = guest {
            request.headers_mut().insert(TRACEPARENT, value.parse().unwrap());
        }
        let span = trace.outgoing(&mut request);
        (span, request.headers().get(TRACEPARENT).map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn outgoing_requests_are_children_of_the_call_or_of_what_the_guest_says() {
        let (seen, trace) = trace(GIVEN);
        let (span, header) = sent(&trace, None);
        assert_eq!(header.unwrap(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0707070707070707-01");
        span.unwrap().end(None);
        let own = "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01";
        drop(sent(&trace, Some(own)));
        let spans = seen.0.lock().unwrap();
        assert_eq!((spans[0].parent, spans[0].error.as_deref()), (Some(trace.context().span), None));
        assert_eq!((spans[1].parent, spans[1].error.is_some()), (Some([0x11; 8]), true));
        assert!(!format!("{:?}", spans[0]).contains("secret"));
    }

    #[test]
    fn what_is_not_sampled_is_passed_on_and_not_recorded() {
        let unsampled = GIVEN.replace("-01", "-00");
        let (seen, trace) = trace(&unsampled);
        let (span, header) = sent(&trace, None);
        assert!(span.is_none());
        assert_eq!(header.unwrap(), unsampled);
        let foreign = "00-1bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(sent(&trace, Some(foreign)).1.unwrap(), foreign);
        assert!(seen.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_current_trace_is_that_of_the_innermost_call() {
        assert!(CallTrace::current().is_none());
        let ((_, outer), (_, inner)) = (trace(GIVEN), trace(&GIVEN.replace('f', "e")));
        {
            let _outer = Entered::new(&outer);
            {
                let _inner = Entered::new(&inner);
                assert_eq!(CallTrace::current().unwrap().context(), inner.context());
            }
            assert_eq!(CallTrace::current().unwrap().context(), outer.context());
        }
        assert!(CallTrace::current().is_none());
    }
}
