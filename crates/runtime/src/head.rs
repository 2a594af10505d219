//! How much of a head a response may have: one that the ingress could not pass on is the component's fault, and is said of it,
//! where else the caller would be told that the host had failed.

use http::{HeaderMap, Response};
use model::unit::ByteSize;

use crate::config::{RESPONSE_FIELDS, RESPONSE_HEAD};
use crate::fault::Fault;

/// The response, where its head is within the limits.
pub(crate) fn within<B>(response: Response<B>) -> Result<Response<B>, Fault> {
    let size = size(response.headers());
    if response.headers().len() <= RESPONSE_FIELDS && size <= RESPONSE_HEAD {
        return Ok(response);
    }
    let fields = response.headers().len();
    Err(Fault::ResponseHead { fields, size, most: RESPONSE_FIELDS, limit: RESPONSE_HEAD })
}

/// As it is sent: each field with a colon, a space and the end of the line.
fn size(headers: &HeaderMap) -> ByteSize {
    ByteSize(headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::fault::FaultKind;

    #[test]
    fn a_response_has_so_many_header_fields_and_no_larger_ones() {
        let response = |many: usize, bytes: usize| {
            let value = HeaderValue::from_str(&"x".repeat(bytes)).unwrap();
            let mut response = Response::new(());
            let fields = (0..many).map(|n| (HeaderName::try_from(format!("x-{n:02}")).unwrap(), value.clone()));
            response.headers_mut().extend(fields);
            within(response)
        };
        assert!(response(96, 10).is_ok());
        assert!(response(1, (60 << 10) - 8).is_ok());
        for (many, bytes) in [(97, 10), (1, (60 << 10) - 7), (96, 640)] {
            let fault = response(many, bytes).unwrap_err();
            assert_eq!((fault.kind(), fault.name()), (FaultKind::Limit, "response-head"));
            assert!(fault.to_string().contains("at most 96 of 60KiB"), "{fault}");
        }
    }
}
