//! Every way the bytes of a client can be refused before anybody is asked. One closed list; the connection ends after
//! each of them, because what follows cannot be trusted to be a request.

use http::StatusCode;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("the request line is not METHOD SP TARGET SP HTTP/1.1")]
    RequestLine,
    #[error("this HTTP version is not spoken here")]
    Version,
    #[error("a line does not end in CR LF")]
    LineEnd,
    #[error("a header line is folded, has no colon, or its name has an invalid character")]
    FieldName,
    #[error("a header value has a control character")]
    FieldValue,
    #[error("the request target is malformed or ambiguous")]
    Target,
    #[error("the request target is longer than 16 KiB")]
    TargetTooLong,
    #[error("the header section is larger than 64 KiB or has more than 100 fields")]
    HeadTooLarge,
    #[error("the request needs exactly one valid Host")]
    Host,
    #[error("the target names another host than Host")]
    HostMismatch,
    #[error("the request body's length is ambiguous or malformed")]
    Framing,
    #[error("only chunked transfer coding is understood")]
    TransferEncoding,
    #[error("the Connection header names a field that must reach the application")]
    Connection,
    #[error("only Expect: 100-continue is understood")]
    Expect,
    #[error("Upgrade and CONNECT are not offered")]
    Upgrade,
}

impl BadRequest {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Expect => StatusCode::EXPECTATION_FAILED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
