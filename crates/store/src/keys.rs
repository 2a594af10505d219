//! Where everything lives in the store. Keys are built from typed names only, and parsed whole.
//!
//! | Key | Value | Written by |
//! |---|---|---|
//! | `tenants/<t>` | `TenantSettings` | control |
//! | `apps/<t>/<a>` | [`Head`] | control, compare-and-set |
//! | `revisions/<t>/<a>/<n>` | [`RevisionRecord`] | control, once |
//! | `assigned/<node>/<t>/<a>` | [`Assignment`] | control |
//! | `nodes/<node>` | [`NodeRecord`], leased | node |
//! | `observed/<node>/<t>/<a>` | `AppObserved`, leased | node |

use model::app::{LockedApp, Revision};
use model::observed::Reason;
use model::{AppName, NodeName, TenantName};
use serde::{Deserialize, Serialize};

/// Which revision of an app is wanted. The head is the commit point of a deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The wanted revision.
    pub revision: Revision,
}

/// An immutable revision. `origin` is the control API's, kept as JSON so that this crate has no API types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// Its number.
    pub revision: Revision,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Why it was made.
    pub origin: serde_json::Value,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The content.
    pub app: LockedApp,
}

/// What a node is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The wanted revision.
    pub revision: Revision,
    /// Present: the app must not be served (claims expired or revoked); says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Reason>,
}

/// A node that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// All tenants.
pub const TENANTS: &str = "tenants/";
/// All heads.
pub const APPS: &str = "apps/";
/// All revisions.
pub const REVISIONS: &str = "revisions/";
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

/// The names in a key after its kind, for example `["local", "counter"]` of `apps/local/counter`.
pub fn parts(key: &str) -> impl Iterator<Item = &str> {
    key.split('/').skip(1)
}
