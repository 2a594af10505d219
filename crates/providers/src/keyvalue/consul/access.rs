//! The ACL token as it is now: revealed when it is first needed, again when some secret was set anew, and again when
//! Consul does not know it.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::BackendError;
use crate::http_json::secret_header;
use crate::secrets::{Credentials, Made, SecretError};

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// The headers of a request, and which versions of the secrets they are made of.
type Headers = (HeaderMap, Vec<u64>);

/// The token that a request shows.
pub(super) fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(TOKEN).cloned()
}

pub(super) struct Access {
    credentials: Credentials,
    made: Made<Headers>,
}

impl Access {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, made: Made::default() }
    }

    pub(super) async fn headers(&self) -> Result<Headers, BackendError> {
        if self.credentials.is_empty() {
            return Ok((HeaderMap::new(), Vec::new()));
        }
        let round = match self.made.known(|| self.credentials.changes()) {
            Ok(known) => return Ok(known),
            Err(round) => round,
        };
        let unlocked = self.credentials.all().await.map_err(translate)?;
        let mut headers = HeaderMap::new();
        if let Some(token) = unlocked.text("token").map_err(translate)? {
            let bad = || BackendError::Denied("the secret `token` holds what no HTTP header can".to_owned());
            // A file that a secret was set from often ends in a line break, which is no part of it.
            headers.insert(TOKEN, secret_header(token.trim_end_matches(['\r', '\n'])).ok_or_else(bad)?);
        }
        let fresh = (headers, unlocked.versions());
        self.made.keep(round, fresh.clone());
        Ok(fresh)
    }

    pub(super) fn forget(&self) {
        self.made.forget();
    }
}

fn translate(cause: SecretError) -> BackendError {
    cause.into()
}
