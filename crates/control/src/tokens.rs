//! API tokens: made, listed, revoked, and recognised. Of a token's secret only a hash is stored; the secret is in one
//! answer, once. Which token a request has is looked up in the store each time, so that a revoked one ends at once,
//! whichever control plane revoked it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::control::{TokenMade, TokenRequest, TokenView};
use api::problem::Code;
use futures::StreamExt as _;
use model::TenantName;
use model::access::{Role, Token, TokenId};
use sha2::{Digest as _, Sha256};
use store::keys::{self, TokenRecord, TokenUse};
use store::{Expect, Store, StoreError};
use subtle::ConstantTimeEq as _;

use crate::audit::OPERATOR;
use crate::clock;
use crate::http::{Answer, Refusal};
use crate::writer::{decode, encode};

/// The last use of a token is written down this often at most, milliseconds: reading must not cost a write each time.
const USE_EVERY: u64 = 60_000;
/// Tokens of one tenant that are neither revoked nor expired.
const MAX_TOKENS: usize = 1000;
/// Tokens of one tenant that ended and are still listed, the last ones: how many were ever made must not make the next one
/// take longer.
const MAX_ENDED: usize = 500;
/// The longest life of a token that has one, seconds: ten years.
const MAX_LIFE: u64 = 10 * 365 * 24 * 3600;
/// How long a stream may go on past the end of its token where the wall clock is put forward.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Whoever has the token in the data folder.
    Operator,
    /// A token of a tenant.
    Member {
        /// Whose.
        tenant: TenantName,
        /// Which.
        id: TokenId,
        /// What it may do.
        role: Role,
    },
}

impl Caller {
    /// Whether a tenant is there for it.
    pub(crate) fn sees(&self, name: &TenantName) -> bool {
        match self {
            Self::Operator => true,
            Self::Member { tenant, .. } => tenant == name,
        }
    }

    /// As the audit log and records name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Operator => OPERATOR.to_owned(),
            Self::Member { id, .. } => format!("token {id}"),
        }
    }
}

/// All tokens.
pub(crate) struct Tokens {
    store: Arc<dyn Store>,
    /// Hashed, so that comparing takes the same time for every length.
    operator: [u8; 32],
    /// When each was used last, and when that was written down, milliseconds since 1970.
    used: Arc<Mutex<Used>>,
}

type Used = HashMap<TenantName, HashMap<TokenId, (u64, u64)>>;

fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

impl Tokens {
    pub(crate) fn new(store: Arc<dyn Store>, operator: &str) -> Self {
        Self { store, operator: hash(operator.as_bytes()), used: Arc::default() }
    }

    /// Whom what was sent as a bearer token belongs to.
    ///
    /// # Errors
    /// `unauthorized`; `store-unavailable`. That a token ended is said only to whoever has its secret.
    pub(crate) async fn caller(&self, sent: Option<&[u8]>) -> Answer<Caller> {
        let wrong = || {
            Refusal::new(Code::Unauthorized, "the bearer token is missing or wrong").help(
                "send `Authorization: Bearer <token>`; the operator's is in the file `token` of the data folder, a \
                 tenant's is made with `sidereal tenant token create`",
            )
        };
        let sent = sent.ok_or_else(wrong)?;
        if bool::from(hash(sent).ct_eq(&self.operator)) {
            return Ok(Caller::Operator);
        }
        let token = std::str::from_utf8(sent).ok().and_then(Token::parse).ok_or_else(wrong)?;
        let entry = self.store.get(&keys::token(&token.tenant, &token.id)).await?;
        let record = entry.map(|entry| decode::<TokenRecord>(&entry)).transpose()?;
        // A token that is not there costs the same comparison.
        let expected = record.as_ref().map_or([0; 32], |record| record.hash);
        let same = bool::from(hash(token.secret().as_bytes()).ct_eq(&expected));
        let record = record.filter(|_| same).ok_or_else(wrong)?;
        let now = clock::millis();
        live(&token.id, Some(&record), now)?;
        self.note_use(&token, now);
        Ok(Caller::Member { tenant: token.tenant, id: token.id, role: record.role })
    }

    /// [`still`].
    pub(crate) async fn still(&self, caller: &Caller) -> Answer<()> {
        still(&*self.store, caller).await
    }

    /// Ends when the caller's token does: it expires, is revoked, or goes with its tenant. The operator's never does.
    pub(crate) fn ended(&self, caller: &Caller) -> impl Future<Output = ()> + Send + 'static {
        let (store, caller) = (self.store.clone(), caller.clone());
        async move {
            let Caller::Member { tenant, id, .. } = caller else { return std::future::pending().await };
            let key = keys::token(&tenant, &id);
            loop {
                // Where it cannot be known, it counts as ended: a new request says why.
                let Ok(found) = store.list(&key).await else { return };
                let record = found.entries.iter().find(|entry| entry.key == key).map(decode::<TokenRecord>);
                let (Some(Ok(record)), now) = (record, clock::millis()) else { return };
                if live(&id, Some(&record), now).is_err() {
                    return;
                }
                let mut changes = store.watch(&key, found.revision);
                tokio::select! {
                    change = changes.next() => if !matches!(change, Some(Ok(_))) { return },
                    () = tokio::time::sleep(until_look(record.expires_ms, now)) => {}
                }
            }
        }
    }

    fn note_use(&self, token: &Token, now: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let known = used.entry(token.tenant.clone()).or_default().entry(token.id.clone()).or_default();
        known.0 = now;
        if now.saturating_sub(known.1) < USE_EVERY {
            return;
        }
        known.1 = now;
        drop(used);
        let (store, key) = (self.store.clone(), keys::token_use(&token.tenant, &token.id));
        tokio::spawn(async move {
            let Ok(value) = serde_json::to_vec(&TokenUse { last_ms: now }) else { return };
            if let Err(cause) = store.put(&key, value.into(), Expect::Any, None).await {
                tracing::debug!(key, %cause, "when a token was used last is not written down");
            }
        });
    }

    /// A tenant that is gone has no tokens.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }

    /// Makes a token. The answer is the only place its secret is ever in. The caller holds the turn.
    pub(crate) async fn create(&self, tenant: &TenantName, request: TokenRequest, by: &Caller) -> Answer<TokenMade> {
        let TokenRequest { role, label, expires_in } = request;
        if label.len() > 80 || label.chars().any(char::is_control) {
            return Err(Refusal::new(Code::RequestInvalid, "`label` has at most 80 bytes and no control characters"));
        }
        if expires_in.is_some_and(|seconds| seconds == 0 || seconds > MAX_LIFE) {
            return Err(Refusal::new(Code::RequestInvalid, format!("`expires_in` is 1 to {MAX_LIFE} seconds")));
        }
        let now = clock::millis();
        let is_live = |t: &TokenView| t.revoked_ms.is_none() && t.expires_ms.is_none_or(|at| at > now);
        let (live, ended): (Vec<_>, Vec<_>) = self.list(tenant).await?.into_iter().partition(is_live);
        self.prune(tenant, ended).await?;
        if live.len() >= MAX_TOKENS {
            return Err(Refusal::new(Code::QuotaExceeded, format!("a tenant has at most {MAX_TOKENS} tokens"))
                .help("revoke those that nobody uses: `sidereal tenant token list` shows when each was used last"));
        }
        let token = Token::from_entropy(tenant.clone(), rand::random(), rand::random());
        let record = TokenRecord {
            role,
            label,
            hash: hash(token.secret().as_bytes()),
            created_ms: now,
            created_by: by.name(),
            expires_ms: expires_in.map(|seconds| now.saturating_add(seconds.saturating_mul(1000))),
            revoked_ms: None,
        };
        let key = keys::token(tenant, &token.id);
        self.store.put(&key, encode(&record)?, Expect::Absent, None).await?;
        Ok(TokenMade { token: token.reveal(), view: view(token.id, record, None) })
    }

    /// Forgets those that ended first, but for the last ones.
    async fn prune(&self, tenant: &TenantName, mut ended: Vec<TokenView>) -> Answer<()> {
        let when = |t: &TokenView| t.revoked_ms.into_iter().chain(t.expires_ms).min();
        ended.sort_by_key(when);
        ended.truncate(ended.len().saturating_sub(MAX_ENDED));
        for token in ended {
            for key in [keys::token_use(tenant, &token.id), keys::token(tenant, &token.id)] {
                match self.store.delete(&key, Expect::Any).await {
                    Ok(_) | Err(StoreError::Conflict { .. }) => {}
                    Err(cause) => return Err(cause.into()),
                }
            }
            if let Some(used) = self.used.lock().unwrap_or_else(PoisonError::into_inner).get_mut(tenant) {
                used.remove(&token.id);
            }
        }
        Ok(())
    }

    /// The tenant's tokens, oldest first, among them the last ones that were revoked or expired.
    pub(crate) async fn list(&self, tenant: &TenantName) -> Answer<Vec<TokenView>> {
        let mut uses = HashMap::new();
        for entry in self.store.list(&keys::token_uses_of(tenant)).await?.entries {
            if let Some(Ok(id)) = keys::parts(&entry.key).nth(1).map(str::parse::<TokenId>) {
                uses.insert(id, decode::<TokenUse>(&entry)?.last_ms);
            }
        }
        let mut views = Vec::new();
        for entry in self.store.list(&keys::tokens_of(tenant)).await?.entries {
            let Some(Ok(id)) = keys::parts(&entry.key).nth(1).map(str::parse::<TokenId>) else { continue };
            let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let here = used.get(tenant).and_then(|used| used.get(&id)).map(|(last, _)| *last);
            drop(used);
            let last = here.max(uses.get(&id).copied());
            views.push(view(id, decode(&entry)?, last));
        }
        views.sort_by_key(|view: &TokenView| view.created_ms);
        Ok(views)
    }

    /// Ends a token, at once and for ever. Its record stays for a while, for the list. The caller holds the turn.
    pub(crate) async fn revoke(&self, tenant: &TenantName, id: &TokenId) -> Answer<TokenView> {
        let key = keys::token(tenant, id);
        let missing = || {
            Refusal::new(Code::NotFound, format!("tenant `{tenant}` has no token {id}"))
                .help("`sidereal tenant token list` shows those there are")
        };
        let entry = self.store.get(&key).await?.ok_or_else(missing)?;
        let mut record: TokenRecord = decode(&entry)?;
        record.revoked_ms.get_or_insert_with(clock::millis);
        self.store.put(&key, encode(&record)?, Expect::Revision(entry.revision), None).await?;
        Ok(view(id.clone(), record, None))
    }
}

/// Refuses a caller whose token ended since it was let in: what it sent may have taken a while to arrive.
pub(crate) async fn still(store: &dyn Store, caller: &Caller) -> Answer<()> {
    let Caller::Member { tenant, id, .. } = caller else { return Ok(()) };
    let entry = store.get(&keys::token(tenant, id)).await?;
    let record = entry.map(|entry| decode::<TokenRecord>(&entry)).transpose()?;
    live(id, record.as_ref(), clock::millis())
}

/// For how long nothing needs to be looked at: until the token expires, but the wall clock may jump meanwhile.
fn until_look(expires_ms: Option<u64>, now: u64) -> Duration {
    expires_ms.map_or(Duration::MAX, |at| Duration::from_millis(at.saturating_sub(now)).min(CLOCK_CHECK))
}

/// Whether the token of a record still opens anything.
fn live(id: &TokenId, record: Option<&TokenRecord>, now: u64) -> Answer<()> {
    let how = match record {
        None => "is gone",
        Some(record) if record.revoked_ms.is_some() => "was revoked",
        Some(record) if record.expires_ms.is_some_and(|at| at <= now) => "has expired",
        Some(_) => return Ok(()),
    };
    let owner = "an owner of the tenant makes a new one with `sidereal tenant token create`";
    Err(Refusal::new(Code::Unauthorized, format!("the token {id} {how}")).help(owner))
}

fn view(id: TokenId, record: TokenRecord, last_used_ms: Option<u64>) -> TokenView {
    let TokenRecord { role, label, created_ms, created_by, expires_ms, revoked_ms, hash: _ } = record;
    TokenView { id, role, label, created_ms, created_by, expires_ms, revoked_ms, last_used_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_looks_at_the_clock_however_far_the_end_of_its_token_is() {
        assert_eq!(until_look(Some(1500), 1000), Duration::from_millis(500));
        assert_eq!(until_look(Some(1000), 1500), Duration::ZERO);
        assert_eq!(until_look(Some(86_400_000), 0), CLOCK_CHECK);
        assert_eq!(until_look(None, 0), Duration::MAX);
    }
}
