//! What a caller is told when the host, not the component, makes the answer: a status, a stable code in
//! `sidereal-fault`, one sentence. What a component said while failing stays in its log.

use api::Code;
use api::agent::FAULT_HEADER;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use runtime::{Fault, FaultKind};

/// [`FAULT_HEADER`], parsed.
pub(crate) const FAULT: HeaderName = HeaderName::from_static(FAULT_HEADER);

/// The code and the sentence of a fault.
pub(crate) fn describe(fault: &Fault) -> (Code, String) {
    // Of a component that was called, what it failed of says more than that it did.
    match (fault.kind(), fault.root()) {
        (_, Fault::WallTime { .. }) => (Code::TimedOut, fault.to_string()),
        (_, Fault::RequestTooLarge { .. }) => (Code::TooLarge, fault.to_string()),
        (FaultKind::Limit, _) => (Code::LimitReached, fault.to_string()),
        (FaultKind::Request, _) => (Code::RequestInvalid, fault.to_string()),
        (FaultKind::Busy, _) => (Code::Busy, "this host has no room for the call now; try again".to_owned()),
        (FaultKind::Component, _) => {
            (Code::ComponentTrapped, "the component failed before it answered; its log says why".to_owned())
        }
        (FaultKind::Cancelled, _) => (Code::TimedOut, "the call was ended before the component answered".to_owned()),
    }
}

/// Whether a fault is the component's doing, and so counts as its failure and stands in its log.
pub(crate) fn blames_component(fault: &Fault) -> bool {
    matches!(fault.kind(), FaultKind::Limit | FaultKind::Component)
}

/// The answer of the host itself.
pub(crate) fn answer(code: Code, sentence: &str) -> Response<Full<Bytes>> {
    let status = match code {
        // The route is the ingress's, the missing revision ours: the caller asked for nothing that is not there.
        Code::NotFound | Code::StartFailed => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let mut response = Response::new(Full::new(Bytes::from(format!("{sentence}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(FAULT, HeaderValue::from_static(code.as_str()));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if code == Code::Busy {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::unit::Millis;

    #[test]
    fn limits_are_named_and_what_a_guest_says_is_not_repeated() {
        let (code, text) = describe(&Fault::CpuTime { limit: Millis(200) });
        assert_eq!(code, Code::LimitReached);
        assert!(text.contains("200ms"));
        let (code, text) = describe(&Fault::Trap { message: "secret".into() });
        assert_eq!(code, Code::ComponentTrapped);
        assert!(!text.contains("secret"));
        let callee = |fault| Fault::Callee { name: "b".into(), interface: "a:b/c".into(), fault: Box::new(fault) };
        let (code, text) = describe(&callee(Fault::CpuTime { limit: Millis(200) }));
        assert_eq!(code, Code::LimitReached);
        assert!(text.contains("component `b`") && text.contains("200ms"));
        assert_eq!(describe(&callee(callee(Fault::WallTime { limit: Millis(1) }))).0, Code::TimedOut);
        assert_eq!(describe(&callee(Fault::Busy)).0, Code::Busy);
        let (code, text) = describe(&callee(Fault::Trap { message: "secret".into() }));
        assert_eq!(code, Code::ComponentTrapped);
        assert!(!text.contains("secret"));
        let response = answer(Code::Busy, "busy");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[FAULT], "busy");
        assert_eq!(answer(describe(&Fault::WallTime { limit: Millis(1) }).0, "").status(), 504);
    }
}
