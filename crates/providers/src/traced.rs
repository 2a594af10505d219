//! The trace of a call, for the requests that a provider makes for it over HTTP. Servers and proxies that follow
//! `traceparent` join it; to others it is a header like any other.

use http::{HeaderMap, HeaderValue};
use runtime::trace::{CallTrace, TRACEPARENT};

/// Puts a request into the trace of the call it is made for, where that has one.
pub(crate) fn onward(headers: &mut HeaderMap) {
    let Some(trace) = CallTrace::current() else { return };
    if let Ok(value) = HeaderValue::try_from(trace.context().to_string()) {
        headers.insert(TRACEPARENT, value);
    }
}
