//! How requests are read: strictly. A name that is no name, a query or body field we do not know, a body of another type
//! or above its size is refused, never ignored.

use std::error::Error;

use api::client::Require;
use api::control::IDEMPOTENCY_KEY;
use api::problem::Code;
use axum::RequestExt as _;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use super::body::{Stalled, patient};
use super::refusal::{Answer, Refusal};

/// The names in the path.
pub(crate) struct At<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let found = Path::from_request_parts(parts, state).await;
        found.map(|Path(names)| Self(names)).map_err(|cause| Refusal::new(Code::RequestInvalid, cause.body_text()))
    }
}

/// The query. `T` denies unknown fields.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let found = Query::from_request_parts(parts, state).await;
        found.map(|Query(asked)| Self(asked)).map_err(|cause| Refusal::new(Code::RequestInvalid, cause.body_text()))
    }
}

/// A whole body, at most as large as its route allows.
pub(crate) struct Whole(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Answer<Self> {
        // The layer that bounds the body of each route says where it ends.
        let mut pieces = patient(request.into_limited_body()).into_data_stream();
        // One piece of memory, however small the pieces are that it comes in.
        let mut whole = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|cause| {
                if let Some(stalled) = Stalled::behind(&cause) {
                    Refusal::from(stalled)
                } else if over(&cause) {
                    Refusal::new(Code::TooLarge, "the body is larger than this request may have")
                } else {
                    Refusal::new(Code::RequestInvalid, format!("the body cannot be read: {cause}"))
                }
            })?;
            whole.extend_from_slice(&piece);
        }
        Ok(Self(whole.freeze()))
    }
}

/// Whether a body that its route allows no more of is behind an error.
fn over(error: &(dyn Error + 'static)) -> bool {
    let mut chain = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    chain.any(|error| error.is::<LengthLimitError>())
}

/// A JSON body without fields we do not know, at any depth.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        only_json(request.headers())?;
        let Whole(bytes) = Whole::from_request(request, state).await?;
        strict(&bytes).map(Self)
    }
}

/// Refuses a body that does not say it is JSON: a form or a plain text is what a foreign page can send without asking first.
pub(crate) fn only_json(headers: &HeaderMap) -> Answer<()> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    Err(Refusal::new(Code::RequestInvalid, "the body must be `Content-Type: application/json`")
        .status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

/// Unknown fields that are named: a body may have a million.
const MAX_UNKNOWN: usize = 100;

/// Reads JSON and refuses what it would otherwise ignore.
pub(crate) fn strict<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    let bad =
        |cause: serde_json::Error| Refusal::new(Code::RequestInvalid, format!("the body cannot be read: {cause}"));
    // To serde a list is a struct without names; to us it is not what was asked for.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::new(Code::RequestInvalid, "the body is not a JSON object"));
    }
    let mut unknown = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let note = |path: serde_ignored::Path<'_>| {
        if unknown.len() < MAX_UNKNOWN {
            unknown.push(path.to_string());
        }
    };
    let value = serde_ignored::deserialize(&mut reader, note).map_err(bad)?;
    reader.end().map_err(bad)?;
    if unknown.is_empty() {
        return Ok(value);
    }
    let mut refusal = Refusal::new(
        Code::RequestInvalid,
        format!("the body has fields this API does not know: {}", unknown.join(", ")),
    );
    refusal.problem.findings = unknown.into_iter().map(|field| format!("unknown field `{field}`")).collect();
    Err(refusal)
}

/// `If-Match` and `If-None-Match`.
pub(crate) struct Condition(pub(crate) Require);

impl<S: Send + Sync> FromRequestParts<S> for Condition {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        let found = (one(&parts.headers, &header::IF_MATCH)?, one(&parts.headers, &header::IF_NONE_MATCH)?);
        let require = match found {
            (None, None) => Require::Any,
            (Some("*"), None) => Require::Exists,
            (None, Some("*")) => Require::Absent,
            (Some(text), None) => {
                let number = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
                let bad = |_| Refusal::new(Code::RequestInvalid, "`If-Match` is `*` or one number");
                Require::At(number.parse().map_err(bad)?)
            }
            (None, Some(_)) => return Err(Refusal::new(Code::RequestInvalid, "`If-None-Match` can only be `*`")),
            (Some(_), Some(_)) => {
                return Err(Refusal::new(Code::RequestInvalid, "`If-Match` and `If-None-Match` exclude each other"));
            }
        };
        Ok(Self(require))
    }
}

/// `Idempotency-Key`.
pub(crate) struct Key(pub(crate) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        let key = one(&parts.headers, &HeaderName::from_static(IDEMPOTENCY_KEY))?;
        if key.is_some_and(|k| k.is_empty() || k.len() > 128 || !k.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Refusal::new(Code::RequestInvalid, "`Idempotency-Key` has 1 to 128 visible ASCII characters"));
        }
        Ok(Self(key.map(ToOwned::to_owned)))
    }
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Answer<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    let text = first.map(|v| v.to_str()).transpose();
    match (text, values.next()) {
        (Ok(text), None) => Ok(text.map(str::trim)),
        _ => Err(Refusal::new(Code::RequestInvalid, format!("`{name}` is there twice or is not text"))),
    }
}

/// A JSON answer.
pub(crate) fn json(value: &impl serde::Serialize) -> axum::response::Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(cause) => Refusal::new(Code::Internal, format!("the answer cannot be written: {cause}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use api::control::{DeployRequest, LinkRequest};
    use model::tenant::TenantSettings;

    use super::*;

    #[test]
    fn unknown_fields_are_named_at_any_depth() {
        let findings = |text: &str| match strict::<TenantSettings>(text.as_bytes()) {
            Ok(_) => vec![],
            Err(refusal) => refusal.problem.findings,
        };
        assert_eq!(findings(r#"{"shards": 2}"#), [""; 0]);
        assert_eq!(
            findings(r#"{"shard": 2, "ceilings": {"cpus": 1}}"#),
            ["unknown field `shard`", "unknown field `ceilings.cpus`"]
        );
        for bad in ["", "{", "{}x", "[]", r#"{"shards":1,"shards":2}"#, r#"{"shards":-1}"#] {
            assert!(strict::<TenantSettings>(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(strict::<DeployRequest>(br#"{"app":{"name":"../x","components":{}}}"#).is_err());
        assert!(strict::<LinkRequest>(br#"{"contract":"wasi","provider":"x"}"#).is_err());
    }
}
