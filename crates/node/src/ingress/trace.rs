//! The `traceparent` of a request: carried on if it is well formed (W3C Trace Context), made otherwise. Where spans are
//! exported and the trace is recorded, the request is a span, and what the host gets names it as the parent.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use model::TenantName;
use model::trace::{Attribute, Span, SpanKind, TraceContext};
use rand::RngCore;

use super::table::RouteEntry;
use crate::otlp::Exporter;

/// Bytes of what a client says that are told of each: it waits in a queue of spans.
const TOLD: usize = 1024;

/// A request that is recorded; its span ends with it.
pub(super) struct Traced {
    exporter: Arc<Exporter>,
    /// Whose app it is for.
    tenant: Option<TenantName>,
    span: Span,
    began: Instant,
    header: String,
    status: Option<StatusCode>,
}

impl Traced {
    /// Where `incoming`, a valid `traceparent`, or the sampler says that the trace is recorded.
    pub(super) fn begin(exporter: Option<&Arc<Exporter>>, incoming: Option<&[u8]>) -> Option<Self> {
        let exporter = exporter.filter(|exporter| exporter.traces())?;
        let caller = incoming.and_then(|value| TraceContext::parse(value).ok());
        // One fixed bit: ids of zeros are invalid.
        let span = (rand::random::<u64>() | 1).to_be_bytes();
        let context = caller.map_or_else(
            || {
                let trace = (rand::random::<u128>() | 1).to_be_bytes();
                TraceContext { trace, span, sampled: TraceContext::is_recorded(&trace, exporter.part()) }
            },
            |caller| caller.at(span),
        );
        if !context.sampled {
            return None;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let span = Span {
            context,
            parent: caller.map(|caller| caller.span),
            name: String::new(),
            kind: SpanKind::Server,
            start_ns,
            end_ns: start_ns,
            attributes: Vec::new(),
            error: None,
        };
        let (header, began) = (context.to_string(), Instant::now());
        Some(Self { exporter: exporter.clone(), tenant: None, span, began, header, status: None })
    }

    /// What the host is given.
    pub(super) fn header(&self) -> &[u8] {
        self.header.as_bytes()
    }

    /// Says what is asked, of whom. Asked again of another revision, the last one counts.
    pub(super) fn asks(&mut self, method: &[u8], path: &[u8], host: &[u8], entry: &RouteEntry) {
        let text = |bytes: &[u8]| Attribute::Text(told(bytes));
        let method = told(method);
        self.tenant = Some(entry.tenant.clone());
        self.span.name = format!("{method} {}", entry.route.path);
        self.span.attributes = [
            ("http.request.method", Attribute::from(&*method)),
            ("http.route", entry.route.path.as_str().into()),
            ("url.path", text(path)),
            ("server.address", text(host)),
            ("sidereal.tenant", entry.tenant.as_str().into()),
            ("sidereal.app", entry.app.as_str().into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    }

    /// The whole of this answer was sent.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut span = self.span.clone();
        span.end_ns = span.start_ns.saturating_add(took);
        span.error = match self.status {
            None => Some("ended before its answer was sent".to_owned()),
            Some(status) => {
                span.attributes.push(("http.response.status_code".to_owned(), status.as_u16().into()));
                status.is_server_error().then(|| status.to_string())
            }
        };
        match &self.tenant {
            Some(tenant) => self.exporter.ingress(tenant, span),
            None => self.exporter.lost(1),
        }
    }
}

/// As much of it as is told.
fn told(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..TOLD).unwrap_or(bytes)).into_owned()
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not zero. Other versions are not carried on: nobody here reads them.
pub(super) fn is_valid(value: &[u8]) -> bool {
    let mut parts = value.split(|&byte| byte == b'-');
    let (Some(b"00"), Some(trace), Some(parent), Some(flags), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let hex = |part: &[u8], len: usize| {
        part.len() == len && part.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
    };
    let not_zero = |part: &[u8]| part.iter().any(|&byte| byte != b'0');
    hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && not_zero(trace) && not_zero(parent)
}

/// Appends a new value: random ids, not sampled.
pub(super) fn generate(out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut random = [0u8; 24];
    rand::rng().fill_bytes(&mut random);
    // Zero ids are invalid; one fixed bit costs nothing.
    for byte in random.iter_mut().step_by(16) {
        *byte |= 1;
    }
    out.extend_from_slice(b"00-");
    for (at, byte) in random.iter().enumerate() {
        if at == 16 {
            out.push(b'-');
        }
        for digit in [byte >> 4, byte & 15] {
            out.push(HEX.get(usize::from(digit)).copied().unwrap_or(b'0'));
        }
    }
    out.extend_from_slice(b"-00");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_valid() {
        for _ in 0..100 {
            let mut out = Vec::new();
            generate(&mut out);
            assert!(is_valid(&out), "{}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn what_a_client_says_is_told_only_so_far() {
        assert_eq!(told(b"/path"), "/path");
        assert_eq!(told(&[b'x'; 60_000]).len(), TOLD);
    }

    #[test]
    fn malformed_ones_are_not_carried_on() {
        assert!(is_valid(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b70-01",
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
    }
}
