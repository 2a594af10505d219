//! API tokens: made, listed, revoked, and recognised. Of a token's secret only a hash is stored; the secret is in one
//! answer, once. Which token a request has is looked up in the store each time, so that a revoked one ends at once,
//! whichever control plane revoked it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::control::{TokenMade, TokenRequest, TokenView};
use api::problem::Code;
use model::TenantName;
use model::access::{Role, Token, TokenId};
use sha2::{Digest as _, Sha256};
use store::keys::{self, TokenRecord, TokenUse};
use store::{Expect, Store};
use subtle::ConstantTimeEq as _;

use crate::clock;
use crate::http::{Answer, Refusal};
use crate::writer::{decode, encode};

/// The last use of a token is written down this often at most, milliseconds: reading must not cost a write each time.
const USE_EVERY: u64 = 60_000;
/// Tokens of one tenant that are neither revoked nor expired.
const MAX_TOKENS: usize = 1000;
/// The longest life of a token that has one, seconds: ten years.
const MAX_LIFE: u64 = 10 * 365 * 24 * 3600;

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
            Self::Operator => "operator".to_owned(),
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
    used: Arc<Mutex<HashMap<TokenId, (u64, u64)>>>,
}

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
        let ended = |how: &str| {
            let owner = "an owner of the tenant makes a new one with `sidereal tenant token create`";
            Refusal::new(Code::Unauthorized, format!("the token {} {how}", token.id)).help(owner)
        };
        if record.revoked_ms.is_some() {
            return Err(ended("was revoked"));
        }
        if record.expires_ms.is_some_and(|at| at <= now) {
            return Err(ended("has expired"));
        }
        self.note_use(&token, now);
        Ok(Caller::Member { tenant: token.tenant, id: token.id, role: record.role })
    }

    fn note_use(&self, token: &Token, now: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let known = used.entry(token.id.clone()).or_default();
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
        let live = self.list(tenant).await?.into_iter().filter(|t| t.revoked_ms.is_none());
        if live.filter(|t| t.expires_ms.is_none_or(|at| at > now)).count() >= MAX_TOKENS {
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

    /// The tenant's tokens, oldest first, revoked ones among them.
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
            let here = self.used.lock().unwrap_or_else(PoisonError::into_inner).get(&id).map(|(last, _)| *last);
            let last = here.max(uses.get(&id).copied());
            views.push(view(id, decode(&entry)?, last));
        }
        views.sort_by_key(|view: &TokenView| view.created_ms);
        Ok(views)
    }

    /// Ends a token, at once and for ever. Its record stays, so that its id is never anybody else's. The caller holds the
    /// turn.
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

fn view(id: TokenId, record: TokenRecord, last_used_ms: Option<u64>) -> TokenView {
    let TokenRecord { role, label, created_ms, created_by, expires_ms, revoked_ms, hash: _ } = record;
    TokenView { id, role, label, created_ms, created_by, expires_ms, revoked_ms, last_used_ms }
}
