//! Where everything lives in the store. Keys are built from typed names only, and parsed whole.
//!
//! | Key | Value | Written by |
//! |---|---|---|
//! | `tenants/<t>` | `TenantSettings` | control |
//! | `apps/<t>/<a>` | [`Head`] | control, compare-and-set |
//! | `revisions/<t>/<a>/<n>` | [`RevisionRecord`] | control, once |
//! | `assigned/<node>/<t>/<a>` | [`Assignment`] | control |
//! | `copies/<t>/<a>` | `MoveRecord`, of the last move of an app's data | control |
//! | `purges/<t>/<a>` | there: the data of a deleted app is to go from the nodes | control |
//! | `nodes/<node>` | [`NodeRecord`], leased | node |
//! | `observed/<node>/<t>/<a>` | `AppObserved`, leased | node |
//! | `served/<node>/<t>/<a>` | [`Served`], kept over restarts | node |
//! | `schedules/<t>/<a>/<name>` | [`model::schedule::Record`], compare-and-set, kept over restarts | node |
//! | `secrets/<t>/<name>` | a sealed value, see [`crate::secrets`] | control, compare-and-set |
//! | `gone/<t>` | there: the tenant was deleted, and no other has its name | control |
//! | `left/<t>` | hosts of routes that the tenant gave up, and when each was (the largest number: it serves still), kept as JSON | control |
//! | `tokens/<t>/<id>` | [`TokenRecord`] | control |
//! | `token-uses/<t>/<id>` | [`TokenUse`] | control |
//! | `audit/tail` | [`crate::audit::Tail`]: where the audit log ends | control |
//! | `artifacts/<t>/<digest>` | there: the tenant has sent this artifact | control |
//! | `configs/<t>/<name>` | [`ConfigRecord`] | control, compare-and-set |
//! | `operator/env` | [`ConfigRecord`]: the environment of the operator's choice | control |
//! | `secret-keys/<t>` | the tenant's data key, wrapped | control |

use std::collections::BTreeMap;

use model::access::{Role, TokenId};
use model::app::{LockedApp, Revision};
use model::claims::Claims;
use model::config::Values;
use model::observed::Reason;
pub use model::observed::Served;
use model::plan::{Expiry, Older};
use model::{AppName, ComponentName, ConfigName, Digest, NodeName, ScheduleName, SecretName, TenantName};
use serde::{Deserialize, Serialize};

/// Which revision of an app is wanted. The head is the commit point of a deploy. It outlives the app, so that the next
/// app of that name goes on counting: a revision number never means two things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The wanted revision.
    pub revision: Revision,
    /// The app was deleted; `revision` was its last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The first revision of the app, by which it is told from others that had its name before, or have it after. Absent
    /// of one that was there before this was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Revision>,
    /// The last deploys that came with an idempotency key, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keyed: Vec<Keyed>,
}

/// A deploy that may be asked for again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed {
    /// The caller's key.
    pub key: String,
    /// The revision it made.
    pub revision: Revision,
}

/// An immutable revision. `origin` is the control API's, kept as JSON so that this crate has no API types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// Its number.
    pub revision: Revision,
    /// The one that was wanted before it; absent of the first of an app. Only what is reached so from the head was ever
    /// wanted: a record that a crash left, and one of a deleted app of that name, is named by none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Revision>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Why it was made.
    pub origin: serde_json::Value,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The content.
    pub app: LockedApp,
    /// What was vouched for when the revision was made, checked from the artifacts; components that are missing here
    /// were unsigned. Kept so that trust can be judged again without reading the artifacts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<ComponentName, Claims>,
}

/// What a node is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The wanted revision.
    pub revision: Revision,
    /// Present: the app must not be served (claims expired or revoked); says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Reason>,
    /// Present: it must not be served from then on, whether anybody says so again or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Expiry>,
    /// Present: what holds of the revision that the node serves as long as it does not serve the wanted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<Older>,
}

/// A node that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// `host:port` of each ingress listener.
    pub ingress: Vec<String>,
    /// Its process.
    pub pid: u32,
    /// When it started, milliseconds since 1970.
    pub since_ms: u64,
    /// Interfaces its hosts offer.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// Programs that external providers may run there, by the operator's names.
    #[serde(default)]
    pub programs: Vec<String>,
    /// Layers that isolate tenants there.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Layers that do not, and why.
    #[serde(default)]
    pub waived: BTreeMap<String, String>,
    /// Which control groups it makes, and where; absent where it makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
}

/// A config that apps share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigRecord {
    /// How often it was changed since it was made; starts at 1.
    pub version: u64,
    /// When it was last changed, milliseconds since 1970.
    pub updated_ms: u64,
    /// What it holds.
    pub values: Values,
    /// Written, and not yet brought to every app that names it: finished at the next start of the control plane.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// A token of the API. Its secret is not here, and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it may do.
    pub role: Role,
    /// For people.
    pub label: String,
    /// SHA-256 of its secret.
    pub hash: [u8; 32],
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Who made it: `operator`, or a token.
    pub created_by: String,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When it was revoked. The record stays: an id is never used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
}

/// When a token was used last, to the minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// Milliseconds since 1970.
    pub last_ms: u64,
}

/// All tenants that were deleted.
pub const GONE: &str = "gone/";
/// That a tenant was deleted.
pub fn gone(t: &TenantName) -> String {
    format!("gone/{t}")
}

/// Hosts of routes that tenants gave up.
pub const LEFT: &str = "left/";
/// Those of a tenant. They outlive it.
pub fn left(t: &TenantName) -> String {
    format!("left/{t}")
}

/// All tokens.
pub const TOKENS: &str = "tokens/";
/// A token.
pub fn token(t: &TenantName, id: &TokenId) -> String {
    format!("tokens/{t}/{id}")
}
/// The tokens of a tenant.
pub fn tokens_of(t: &TenantName) -> String {
    format!("tokens/{t}/")
}
/// When a token was used last.
pub fn token_use(t: &TenantName, id: &TokenId) -> String {
    format!("token-uses/{t}/{id}")
}
/// When each token of a tenant was used last.
pub fn token_uses_of(t: &TenantName) -> String {
    format!("token-uses/{t}/")
}

/// Where the audit log ends.
pub fn audit_tail() -> String {
    "audit/tail".to_owned()
}

/// Which tenant has sent which artifact.
pub const ARTIFACTS: &str = "artifacts/";
/// That a tenant has sent an artifact: for everybody else it is not there.
pub fn artifact(t: &TenantName, digest: &Digest) -> String {
    format!("artifacts/{t}/{digest}")
}
/// The artifacts a tenant has sent.
pub fn artifacts_of(t: &TenantName) -> String {
    format!("artifacts/{t}/")
}

/// All tenants.
pub const TENANTS: &str = "tenants/";
/// All heads.
pub const APPS: &str = "apps/";
/// All revisions.
pub const REVISIONS: &str = "revisions/";
/// All moves of data.
pub const COPIES: &str = "copies/";
/// All deleted apps whose data are to go.
pub const PURGES: &str = "purges/";
/// All nodes.
pub const NODES: &str = "nodes/";
/// All reports.
pub const OBSERVED: &str = "observed/";
/// All assignments.
pub const ASSIGNED: &str = "assigned/";

/// Settings of a tenant.
pub fn tenant(t: &TenantName) -> String {
    format!("tenants/{t}")
}
/// The head of an app.
pub fn app(t: &TenantName, a: &AppName) -> String {
    format!("apps/{t}/{a}")
}
/// The apps of a tenant.
pub fn apps_of(t: &TenantName) -> String {
    format!("apps/{t}/")
}
/// A revision; numbers sort as text.
pub fn revision(t: &TenantName, a: &AppName, n: Revision) -> String {
    format!("revisions/{t}/{a}/{:020}", n.0)
}
/// The revisions of an app.
pub fn revisions_of(t: &TenantName, a: &AppName) -> String {
    format!("revisions/{t}/{a}/")
}
/// The last move of an app's data.
pub fn copy(t: &TenantName, a: &AppName) -> String {
    format!("copies/{t}/{a}")
}
/// The last move of each app of a tenant.
pub fn copies_of(t: &TenantName) -> String {
    format!("copies/{t}/")
}
/// That the data of a deleted app are to go. No app of that name is deployed while it is there.
pub fn purge(t: &TenantName, a: &AppName) -> String {
    format!("purges/{t}/{a}")
}
/// The deleted apps of a tenant whose data are to go.
pub fn purges_of(t: &TenantName) -> String {
    format!("purges/{t}/")
}
/// A node's record.
pub fn node(n: &NodeName) -> String {
    format!("nodes/{n}")
}
/// What a node runs of an app.
pub fn assigned(n: &NodeName, t: &TenantName, a: &AppName) -> String {
    format!("assigned/{n}/{t}/{a}")
}
/// Everything a node runs.
pub fn assigned_to(n: &NodeName) -> String {
    format!("assigned/{n}/")
}
/// A node's report of an app.
pub fn observed(n: &NodeName, t: &TenantName, a: &AppName) -> String {
    format!("observed/{n}/{t}/{a}")
}

/// What every node last served.
pub const SERVED: &str = "served/";
/// What a node last served of an app.
pub fn served(n: &NodeName, t: &TenantName, a: &AppName) -> String {
    format!("served/{n}/{t}/{a}")
}
/// Everything a node last served.
pub fn served_by(n: &NodeName) -> String {
    format!("served/{n}/")
}

/// All configs.
pub const CONFIGS: &str = "configs/";
/// The environment of the operator's choice.
pub fn env() -> String {
    "operator/env".to_owned()
}
/// A config.
pub fn config(t: &TenantName, c: &ConfigName) -> String {
    format!("configs/{t}/{c}")
}
/// The configs of a tenant.
pub fn configs_of(t: &TenantName) -> String {
    format!("configs/{t}/")
}

/// All pasts of schedules.
pub const SCHEDULES: &str = "schedules/";
/// The past of a schedule.
pub fn schedule(t: &TenantName, a: &AppName, s: &ScheduleName) -> String {
    format!("schedules/{t}/{a}/{s}")
}
/// The pasts of an app's schedules.
pub fn schedules_of(t: &TenantName, a: &AppName) -> String {
    format!("schedules/{t}/{a}/")
}

/// All secrets.
pub const SECRETS: &str = "secrets/";
/// All tenants' data keys.
pub const SECRET_KEYS: &str = "secret-keys/";
/// A secret.
pub fn secret(t: &TenantName, s: &SecretName) -> String {
    format!("secrets/{t}/{s}")
}
/// The secrets of a tenant.
pub fn secrets_of(t: &TenantName) -> String {
    format!("secrets/{t}/")
}
/// A tenant's data key.
pub fn secret_key(t: &TenantName) -> String {
    format!("secret-keys/{t}")
}

/// The names in a key after its kind, for example `["local", "counter"]` of `apps/local/counter`.
pub fn parts(key: &str) -> impl Iterator<Item = &str> {
    key.split('/').skip(1)
}
