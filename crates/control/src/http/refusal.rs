//! Every refusal leaves as `application/problem+json` (RFC 9457), whatever refused: a handler, an extractor, the router.

use api::problem::{Code, Problem};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use store::StoreError;
use store::blobs::BlobError;
use store::secrets::SecretsError;

use super::body::Stalled;

/// A problem on its way out.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) problem: Problem,
    status: StatusCode,
    denied: bool,
}

/// What a refused response says beside its body, for the audit log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Why {
    pub(crate) code: Code,
    /// The caller asked for something it may not have.
    pub(crate) denied: bool,
}

pub(crate) type Answer<T> = Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.problem.help = Some(help.into());
        self
    }

    /// It looks like something else, and is a caller who asked for what it may not have.
    pub(crate) fn denied(mut self) -> Self {
        self.denied = true;
        self
    }

    /// For the audit log.
    pub(crate) fn why(&self) -> Why {
        let code = self.problem.code;
        Why { code, denied: self.denied || matches!(code, Code::Unauthorized | Code::Forbidden) }
    }

    /// The same problem under a more telling status than its code's own.
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let status = StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { problem, status, denied: false }
    }
}

impl From<Stalled> for Refusal {
    fn from(stalled: Stalled) -> Self {
        Self::new(Code::TimedOut, stalled.to_string()).status(StatusCode::REQUEST_TIMEOUT)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Conflict { .. } => Self::new(Code::Conflict, "somebody else changed it at the same moment")
                .help("read it again and decide anew"),
            StoreError::CannotWrite { .. } | StoreError::Damaged { .. } | StoreError::InUse { .. } => {
                Self::new(Code::StoreUnavailable, error.to_string())
                    .help("nothing was changed; `sidereal doctor` says more")
            }
            StoreError::Unreachable(_) => Self::new(Code::StoreUnavailable, error.to_string())
                .help("it was changed, or it was not: look at `sidereal status`, then decide"),
            StoreError::Compacted { .. } | StoreError::LeaseEnded(_) => Self::new(Code::Internal, error.to_string()),
        }
    }
}

impl From<SecretsError> for Refusal {
    fn from(error: SecretsError) -> Self {
        match error {
            SecretsError::Store(error) => error.into(),
            SecretsError::Size(size) if size > 0 => Self::new(Code::TooLarge, error.to_string()),
            SecretsError::Size(_) | SecretsError::TooMany => Self::new(Code::RequestInvalid, error.to_string()),
            SecretsError::Keys { .. } | SecretsError::Sealed(_) => Self::new(Code::StoreUnavailable, error.to_string())
                .help("nothing was changed; restore the file of master keys and the store from the same backup"),
        }
    }
}

impl From<BlobError> for Refusal {
    fn from(error: BlobError) -> Self {
        let code = match &error {
            BlobError::Mismatch { .. } | BlobError::Missing(_) | BlobError::Damaged { .. } => Code::ArtifactMissing,
            BlobError::CannotWrite { .. } | BlobError::CannotRead { .. } => Code::StoreUnavailable,
        };
        Self::new(code, error.to_string())
    }
}

/// The members that RFC 9457 adds around our own.
#[derive(serde::Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    #[serde(flatten)]
    problem: &'a Problem,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.problem.code.as_str();
        if self.problem.code == Code::Internal {
            tracing::error!(detail = %self.problem.detail, "a request met a defect");
        }
        let document = Document {
            r#type: format!("urn:sidereal:problem:{code}"),
            title: code,
            status: self.status.as_u16(),
            problem: &self.problem,
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        response.extensions_mut().insert(self.why());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.problem.code {
            Code::Unauthorized => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Code::Busy | Code::RateLimited => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_that_nothing_was_changed_where_that_is_not_known() {
        let help = |error: StoreError| Refusal::from(error).problem.help.unwrap();
        let full = StoreError::CannotWrite { path: "s".into(), cause: "full".into() };
        assert!(help(full).starts_with("nothing was changed"));
        let unknown = help(StoreError::Unreachable("whether it was kept is unknown".into()));
        assert!(!unknown.contains("nothing") && unknown.contains("sidereal status"), "{unknown}");
    }
}
