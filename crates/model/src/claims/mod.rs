//! Who vouches for a component, and for which of its imports? Claims in the form of wascap, without its holes.
//!
//! A token in the custom section `wasmcloud_jwt` carries them; [`verify`] accepts it only when
//! - there is exactly one token section, at the top level, of at most [`MAX_TOKEN`] bytes;
//! - its algorithm is `EdDSA` (`Ed25519` is wascap's name for the same); the key is never taken from the token;
//! - its issuer is one of the tenant's trust anchors, and the signature is that anchor's;
//! - its hash is that of the component, whatever `wascap_revision` says;
//! - neither issuer, module, token id nor artifact is revoked;
//! - now lies between `nbf` and `exp`, give or take [`LEEWAY`] seconds;
//! - every import beyond the baseline ([`is_baseline`]) is granted by `wascap.caps`. A token without that list, as wascap
//!   after 0.13 writes it, grants the baseline only.
//!
//! [`recheck`] repeats what time and revocation change, while the component runs.

mod grants;
pub mod keys;
mod section;
#[cfg(test)]
mod tests;
mod token;

use serde::{Deserialize, Serialize};

pub use grants::{is_baseline, needed, ungranted, ungranted_sockets};
pub use keys::{KeyError, KeyKind, KeyPair, PublicKey};
pub use section::MAX_TOKEN;

use crate::component::{InspectError, inspect};
use crate::digest::Digest;
use crate::interface::InterfaceId;
use crate::tenant::TenantSettings;

/// How far clocks may be apart, seconds: allowed at both ends of a token's life.
pub const LEEWAY: u64 = 60;
/// Written as `wascap_revision`: the revision from which wascap checks hashes.
const REVISION: u32 = 3;

/// The claims of a component, named and shaped as wascap writes them. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// When it stops being valid; never where absent.
    #[serde(rename = "exp", default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// The token's own id.
    #[serde(rename = "jti")]
    pub id: String,
    /// When it was signed.
    #[serde(rename = "iat")]
    pub issued_at: u64,
    /// The account that signed, `A…`.
    #[serde(rename = "iss")]
    pub issuer: String,
    /// The component, `M…`, whatever its bytes.
    #[serde(rename = "sub")]
    pub subject: String,
    /// When it starts being valid; at once where absent.
    #[serde(rename = "nbf", default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// What is said of the component.
    #[serde(rename = "wascap")]
    pub component: ComponentClaims,
    /// The revision of the format; not trusted for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wascap_revision: Option<u32>,
}

/// What a token says of a component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentClaims {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// SHA-256 of the component without its token, upper-case hex.
    pub hash: String,
    /// Labels for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Interfaces granted: contracts (`wasi:keyvalue`) or interfaces (`wasi:keyvalue/store@0.2.0-draft`).
    #[serde(rename = "caps", default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Vec<String>>,
    /// A growing number.
    #[serde(rename = "rev", default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i32>,
    /// A version for people.
    #[serde(rename = "ver", default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// A short name for calls; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_alias: Option<String>,
    /// Whether it is a provider; not used.
    #[serde(rename = "prov", default)]
    pub provider: bool,
}

impl Claims {
    /// Claims as [`sign`] completes them: issuer and hash are filled in there.
    ///
    /// `subject` is the module's public key, `id` a unique text, `issued_at` seconds since 1970.
    pub fn new(name: impl Into<String>, subject: &PublicKey, id: impl Into<String>, issued_at: u64) -> Self {
        Self {
            expires: None,
            id: id.into(),
            issued_at,
            issuer: String::new(),
            subject: subject.to_string(),
            not_before: None,
            component: ComponentClaims { name: Some(name.into()), ..ComponentClaims::default() },
            wascap_revision: Some(REVISION),
        }
    }
}

/// Whom a tenant trusts. Nothing here comes from a token.
#[derive(Debug, Clone, Copy)]
pub struct TrustPolicy<'a> {
    /// Accounts (`A…`) whose signatures count.
    pub anchors: &'a [String],
    /// Revoked keys (`A…`, `M…`), token ids and artifact digests (`sha256:…`).
    pub revoked: &'a [String],
    /// Whether components without any token run. One with a bad token never does.
    pub allow_unsigned: bool,
}

impl<'a> From<&'a TenantSettings> for TrustPolicy<'a> {
    fn from(tenant: &'a TenantSettings) -> Self {
        Self { anchors: &tenant.trust_anchors, revoked: &tenant.revoked, allow_unsigned: tenant.allow_unsigned }
    }
}

/// A component that may run.
#[allow(clippy::large_enum_variant, reason = "one per component, nearly always signed")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Signed by an account the tenant trusts.
    Signed(Claims),
    /// Not signed, and the tenant allows that.
    Unsigned,
}

/// What is wrong with a token before anybody asks who signed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Larger than [`MAX_TOKEN`].
    #[error("it has {size} bytes, {MAX_TOKEN} are allowed")]
    TooLong {
        /// Bytes there are.
        size: usize,
    },
    /// More than one token.
    #[error("there is more than one")]
    Several,
    /// In a nested module or component.
    #[error("it lies in a nested module or component")]
    Nested,
    /// Not three base64url parts.
    #[error("it is not three base64url parts, header.claims.signature, of a jwt")]
    Shape,
    /// Not the JSON it should be.
    #[error("its JSON is not that of claims: {reason}")]
    Json {
        /// What the reader met.
        reason: String,
    },
    /// Another algorithm.
    #[error("its algorithm is `{name}`, only EdDSA is accepted")]
    Algorithm {
        /// The algorithm, escaped and cut.
        name: String,
    },
    /// The issuer is not an account key.
    #[error("its issuer is not the public key of an account (A…)")]
    Issuer,
    /// The subject is not a module key.
    #[error("its subject is not the public key of a module (M…)")]
    Subject,
}

/// Why a component may not run. Each has one code of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// Not a component at all: `artifact-invalid`.
    #[error(transparent)]
    Artifact(#[from] InspectError),
    /// No token: `artifact-unsigned`.
    #[error("the component is not signed, and the tenant runs no unsigned components")]
    Unsigned,
    /// Signature or hash is another's: `artifact-tampered`.
    #[error("the component is not what was signed: {0}")]
    Tampered(Mismatch),
    /// Past its end: `artifact-expired`.
    #[error("the signature expired at {}", moment(.at))]
    Expired {
        /// `exp`.
        at: u64,
    },
    /// Before its start: `artifact-not-yet-valid`.
    #[error("the signature is not valid before {}", moment(.at))]
    NotYetValid {
        /// `nbf`.
        at: u64,
    },
    /// Signed by somebody the tenant does not trust: `issuer-untrusted`.
    #[error("it is signed by {issuer}, which is none of the tenant's trust anchors")]
    IssuerUntrusted {
        /// The account the token names.
        issuer: String,
    },
    /// On the revocation list: `artifact-revoked`.
    #[error("{0} is revoked")]
    Revoked(Revoked),
    /// The token cannot be accepted whoever signed it: `token-invalid`.
    #[error("the token cannot be accepted: {0}")]
    TokenInvalid(#[from] TokenFault),
    /// An import the signer did not grant: `interface-not-granted`.
    #[error("the component imports {interface}, which its signer did not grant")]
    InterfaceNotGranted {
        /// The first such import.
        interface: InterfaceId,
    },
}

/// As its messages show it.
fn moment(seconds: &u64) -> String {
    crate::plan::rfc3339(*seconds)
}

impl ClaimsError {
    /// The stable code of the API, as `api::problem::Code` spells it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Artifact(_) => "artifact-invalid",
            Self::Unsigned => "artifact-unsigned",
            Self::Tampered(_) => "artifact-tampered",
            Self::Expired { .. } => "artifact-expired",
            Self::NotYetValid { .. } => "artifact-not-yet-valid",
            Self::IssuerUntrusted { .. } => "issuer-untrusted",
            Self::Revoked(_) => "artifact-revoked",
            Self::TokenInvalid(_) => "token-invalid",
            Self::InterfaceNotGranted { .. } => "interface-not-granted",
        }
    }

    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Artifact(_) => "build the component again and upload that file",
            Self::Unsigned => "sign it: sidereal sign <file>",
            Self::Tampered(_) => "sign the file as it is now: sidereal sign <file>",
            Self::Expired { .. } => "sign it again: sidereal sign <file>",
            Self::NotYetValid { .. } => "wait until then, or check this machine's clock",
            Self::IssuerUntrusted { .. } => {
                "sign it with a key the tenant trusts, or have the operator add this issuer: \
                 sidereal tenant-settings set --trust <key>"
            }
            Self::Revoked(_) => "deploy another build, or have the operator take the entry off the list",
            Self::TokenInvalid(_) => "sign the component again: sidereal sign <file>",
            Self::InterfaceNotGranted { .. } => "sign it again with that interface granted",
        }
    }
}

/// What does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The signature is not the issuer's over this token.
    #[error("the token's signature is not its issuer's")]
    Signature,
    /// The token belongs to other bytes.
    #[error("its bytes have another hash than the token says")]
    Hash,
}

/// What is on the revocation list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Revoked {
    /// The signing account.
    #[error("the account {0}")]
    Issuer(String),
    /// The module.
    #[error("the module {0}")]
    Subject(String),
    /// The token.
    #[error("the token {0}")]
    Token(String),
    /// The artifact.
    #[error("the artifact {0}")]
    Artifact(Digest),
}

/// Decides whether a component may run for a tenant, from its bytes alone. `now` is seconds since 1970.
///
/// # Errors
/// Why it may not.
pub fn verify(bytes: &[u8], policy: &TrustPolicy<'_>, now: u64) -> Result<Verdict, ClaimsError> {
    verify_as(bytes, bytes, policy, now)
}

/// As [`verify`], of a core module that runs as the component `runs`: signed are the bytes of the module, granted must be what
/// the component imports.
///
/// # Errors
/// Why it may not run.
pub fn verify_as(bytes: &[u8], runs: &[u8], policy: &TrustPolicy<'_>, now: u64) -> Result<Verdict, ClaimsError> {
    let parts = section::take_apart(bytes)?;
    let digest = Digest::of(bytes);
    let Some(text) = parts.token else {
        recheck(&Verdict::Unsigned, &digest, policy, now)?;
        inspect(runs)?;
        return Ok(Verdict::Unsigned);
    };
    let token = token::decode(text)?;
    let issuer = key(&token.claims.issuer, KeyKind::Account).ok_or(TokenFault::Issuer)?;
    key(&token.claims.subject, KeyKind::Module).ok_or(TokenFault::Subject)?;
    trusted(&token.claims, policy)?;
    if !token.signed_by(&issuer) {
        return Err(ClaimsError::Tampered(Mismatch::Signature));
    }
    if token.claims.component.hash != parts.hash {
        return Err(ClaimsError::Tampered(Mismatch::Hash));
    }
    let verdict = Verdict::Signed(token.claims);
    recheck(&verdict, &digest, policy, now)?;
    let imports = inspect(runs)?.imports;
    if let Verdict::Signed(claims) = &verdict
        && let Some(import) = grants::missing(claims.component.granted.as_deref().unwrap_or_default(), &imports)
    {
        return Err(ClaimsError::InterfaceNotGranted { interface: import.clone() });
    }
    Ok(verdict)
}

/// Decides whether a component that was verified may go on running: trust, revocation and time may have changed.
///
/// # Errors
/// Why it may not.
pub fn recheck(verdict: &Verdict, digest: &Digest, policy: &TrustPolicy<'_>, now: u64) -> Result<(), ClaimsError> {
    let revoked = |text: &str| policy.revoked.iter().any(|entry| entry == text);
    if revoked(&digest.to_string()) {
        return Err(ClaimsError::Revoked(Revoked::Artifact(*digest)));
    }
    let claims = match verdict {
        Verdict::Unsigned if policy.allow_unsigned => return Ok(()),
        Verdict::Unsigned => return Err(ClaimsError::Unsigned),
        Verdict::Signed(claims) => claims,
    };
    trusted(claims, policy)?;
    for (text, what) in [
        (&claims.issuer, Revoked::Issuer as fn(String) -> Revoked),
        (&claims.subject, Revoked::Subject),
        (&claims.id, Revoked::Token),
    ] {
        if revoked(text) {
            return Err(ClaimsError::Revoked(what(text.clone())));
        }
    }
    if let Some(at) = claims.not_before.filter(|at| now.saturating_add(LEEWAY) < *at) {
        return Err(ClaimsError::NotYetValid { at });
    }
    if let Some(at) = claims.expires.filter(|at| now >= at.saturating_add(LEEWAY)) {
        return Err(ClaimsError::Expired { at });
    }
    Ok(())
}

fn trusted(claims: &Claims, policy: &TrustPolicy<'_>) -> Result<(), ClaimsError> {
    if policy.anchors.contains(&claims.issuer) {
        return Ok(());
    }
    Err(ClaimsError::IssuerUntrusted { issuer: claims.issuer.clone() })
}

fn key(text: &str, kind: KeyKind) -> Option<PublicKey> {
    PublicKey::parse(text).ok().filter(|key| key.kind() == kind)
}

/// What a component's token says, **unverified**: for people only.
///
/// # Errors
/// When the bytes are no component, or the token cannot be read.
pub fn peek(bytes: &[u8]) -> Result<Option<Claims>, ClaimsError> {
    Ok(section::token(bytes)?.map(token::decode).transpose()?.map(|token| token.claims))
}

/// Why a component could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It is no component.
    #[error(transparent)]
    Artifact(#[from] InspectError),
    /// Only accounts sign components.
    #[error("components are signed with the key of an account (SA…), this is the key {0}")]
    NotAnAccount(String),
    /// The claims are too long for a token.
    #[error("the claims make a token of {0} bytes, {MAX_TOKEN} are allowed")]
    TooLong(usize),
    /// The claims cannot be written as JSON.
    #[error("the claims cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

/// Signs a component: takes out any token there is and appends a new one. Fills in issuer and hash, and where
/// `granted` is absent grants what the component imports now. A core module imports nothing that would have to be granted.
///
/// # Errors
/// When the bytes are no component or the key is no account's.
pub fn sign(bytes: &[u8], mut claims: Claims, key: &KeyPair) -> Result<Vec<u8>, SignError> {
    if key.kind() != KeyKind::Account {
        return Err(SignError::NotAnAccount(key.public_key()));
    }
    let imports = match inspect(bytes) {
        Err(InspectError::CoreModule) => Vec::new(),
        read => read?.imports,
    };
    let mut component = section::strip(bytes)?;
    claims.issuer = key.public_key();
    claims.component.hash = section::hash(&component);
    claims.component.granted.get_or_insert_with(|| grants::needed(&imports, false));
    let token = token::encode(&claims, key)?;
    if token.len() > MAX_TOKEN {
        return Err(SignError::TooLong(token.len()));
    }
    section::embed(&mut component, &token);
    Ok(component)
}
