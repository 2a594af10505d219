//! The answers the ingress gives itself: short text, a stable code in `sidereal-fault`, and for people on this machine
//! what to do next.

use std::borrow::Cow;
use std::io::Write as _;

use api::Code;
use api::agent::FAULT_HEADER;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};

use super::bad::BadRequest;
use super::gate::Refused;
use super::response::write_status;
use super::shard::Target;

/// An answer that no component made.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    code: Code,
    text: Cow<'static, str>,
    allow: Option<Box<str>>,
    /// Seconds after which it is worth to try again.
    retry: Option<u64>,
    /// Nothing that follows on the connection can be trusted to be a request.
    pub(super) close: bool,
}

impl Answer {
    fn new(status: StatusCode, code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        let retry = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { status, code, text: text.into(), allow: None, retry, close: false }
    }

    /// The same answer, after which the connection ends if `close`.
    pub(super) fn closing(self, close: bool) -> Self {
        Self { close, ..self }
    }

    /// The request is malformed.
    pub(super) fn bad(bad: BadRequest) -> Self {
        Self { close: true, ..Self::new(bad.status(), Code::RequestInvalid, format!("bad request: {bad}\n")) }
    }

    /// No route. `help` is for clients on this machine; others learn nothing.
    pub(super) fn not_found(help: Option<(&[u8], &[u8])>) -> Self {
        let text = match help {
            None => Cow::Borrowed("not found\n"),
            Some((host, path)) => Cow::Owned(format!(
                "not found: no route matches http://{}{}\nnext: `sidereal route list` shows what is routed where\n",
                String::from_utf8_lossy(host),
                String::from_utf8_lossy(path)
            )),
        };
        Self::new(StatusCode::NOT_FOUND, Code::NotFound, text)
    }

    /// The route exists for other methods.
    pub(super) fn method_not_allowed(allow: &str) -> Self {
        let text = format!("method not allowed: this route answers {allow}\n");
        let answer = Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::RequestInvalid, text);
        Self { allow: Some(allow.into()), ..answer }
    }

    /// The request body is larger than the component takes.
    pub(super) fn too_large(limit: u64) -> Self {
        let text = format!("request body too large: this component takes at most {limit} bytes\n");
        Self { close: true, ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge, text) }
    }

    /// The client was silent for too long inside a request.
    pub(super) fn client_timeout() -> Self {
        let text = "request timeout: the rest of the request did not arrive in time\n";
        Self { close: true, ..Self::new(StatusCode::REQUEST_TIMEOUT, Code::TimedOut, text) }
    }

    /// The heads that came in part take all the room they may.
    pub(super) fn heads_full() -> Self {
        let text = "service unavailable: too many large request heads are on their way; try again\n";
        Self { close: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Busy, text) }
    }

    /// No shard of `target` takes the request: the app is suspended, or its hosts are gone.
    pub(super) fn no_shard(target: &Target) -> Self {
        if !target.shards.is_suspended() {
            return Self::unreachable();
        }
        let text = "service unavailable: this app is suspended\n";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Suspended, text)
    }

    /// The tenant has as many requests as it may have.
    pub(super) fn over_quota(refused: Refused) -> Self {
        match refused {
            Refused::Concurrent => {
                let text = "service unavailable: as many requests are under way as this account may have at once\n";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Busy, text)
            }
            Refused::Rate(wait) => {
                let text = "too many requests: more a second than this account may have\n";
                let answer = Self::new(StatusCode::TOO_MANY_REQUESTS, Code::RateLimited, text);
                Self { retry: Some(wait.as_secs().saturating_add(1)), ..answer }
            }
        }
    }

    /// No shard can be reached.
    fn unreachable() -> Self {
        let text = "service unavailable: no host of this app can be reached; try again\n";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unreachable, text)
    }

    /// The host went away with the request, or answered with something that is no response.
    pub(super) fn host_gone() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, Code::Unreachable, "bad gateway: the host ended before it answered\n")
    }

    /// The answer is larger than what is read whole.
    pub(super) fn answer_too_large(limit: usize) -> Self {
        let text = format!("bad gateway: the component answered more than {limit} bytes\n");
        Self::new(StatusCode::BAD_GATEWAY, Code::TooLarge, text)
    }

    /// Answers of other calls take all the memory there is for them.
    pub(super) fn no_room() -> Self {
        let text = "service unavailable: too many answers are being read at once; try again\n";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Busy, text)
    }

    /// The request outlived every limit a component can have.
    pub(super) fn timed_out() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Code::TimedOut, "gateway timeout: the host did not answer in time\n")
    }

    /// Writes it for a client of HTTP/1.
    pub(super) fn write(&self, out: &mut Vec<u8>, to_head: bool, close: bool) {
        write_status(out, self.status);
        // Writing to a Vec does not fail.
        let _ = write!(
            out,
            "content-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff\r\n{FAULT_HEADER}: {}\r\ncontent-length: {}\r\n",
            self.code.as_str(),
            self.text.len()
        );
        if let Some(allow) = &self.allow {
            let _ = write!(out, "allow: {allow}\r\n");
        }
        if let Some(seconds) = self.retry {
            let _ = write!(out, "retry-after: {seconds}\r\n");
        }
        out.extend_from_slice(if close { b"connection: close\r\n\r\n" } else { b"\r\n" });
        if !to_head {
            out.extend_from_slice(self.text.as_bytes());
        }
    }

    /// The same for HTTP/2 and for calls from inside.
    pub(super) fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(match self.text {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        });
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(FAULT_HEADER, HeaderValue::from_static(self.code.as_str()));
        if let Some(allow) = self.allow.as_deref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            headers.insert(ALLOW, allow);
        }
        if let Some(seconds) = self.retry {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
