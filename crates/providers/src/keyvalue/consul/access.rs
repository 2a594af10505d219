//! The ACL token as it is now: revealed when it is first needed, again when some secret was set anew, and again when
//! Consul does not know it.

use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;

use super::super::BackendError;
use crate::http_json::secret_header;
use crate::secrets::{Credentials, SecretError};

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// The headers of a request, and which versions of the secrets they are made of.
type Headers = (HeaderMap, Vec<u64>);

/// The token that a request shows.
pub(super) fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(TOKEN).cloned()
}

pub(super) struct Access {
    credentials: Credentials,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    headers: Option<Headers>,
    changes: Option<watch::Receiver<u64>>,
}

impl Access {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, state: Mutex::default() }
    }

    pub(super) async fn headers(&self) -> Result<Headers, BackendError> {
        if self.credentials.is_empty() {
            return Ok((HeaderMap::new(), Vec::new()));
        }
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let unlocked = self.credentials.all().await.map_err(translate)?;
        let mut headers = HeaderMap::new();
        if let Some(token) = unlocked.text("token").map_err(translate)? {
            let bad = || BackendError::Denied("the secret `token` holds what no HTTP header can".to_owned());
            // A file that a secret was set from often ends in a line break, which is no part of it.
            headers.insert(TOKEN, secret_header(token.trim_end_matches(['\r', '\n'])).ok_or_else(bad)?);
        }
        let fresh = (headers, unlocked.versions());
        self.state.lock().unwrap_or_else(PoisonError::into_inner).headers = Some(fresh.clone());
        Ok(fresh)
    }

    fn known(&self) -> Option<Headers> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = state.changes.get_or_insert_with(|| self.credentials.changes());
        if changes.has_changed().unwrap_or(false) {
            changes.mark_unchanged();
            state.headers = None;
        }
        state.headers.clone()
    }

    pub(super) fn forget(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).headers = None;
    }
}

fn translate(cause: SecretError) -> BackendError {
    cause.into()
}
