//! Flow records: what was decided about each outgoing connection, as one structure on its way from the broker to whoever
//! asks.

use std::fmt;
use std::net::SocketAddr;

use model::egress::Transport;
use model::{AppName, TenantName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::node::Since;

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed and made.
    Connected,
    /// Refused by `allow-hosts` or by the tenant's policy.
    Denied,
    /// Refused because the tenant opens too many.
    Limited,
    /// Allowed, but the name did not resolve or nobody answered.
    Failed,
    /// Made earlier, and ended now: what allowed it does not any more.
    Revoked,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 5] = [Self::Connected, Self::Denied, Self::Limited, Self::Failed, Self::Revoked];

    /// The word in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Denied => "denied",
            Self::Limited => "limited",
            Self::Failed => "failed",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a component or a provider connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CallerKind {
    /// A component.
    Component,
    /// A provider.
    Provider,
}

impl fmt::Display for CallerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Component => "component",
            Self::Provider => "provider",
        })
    }
}

/// One decision about one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowRecord {
    /// When, milliseconds since 1970.
    pub time_ms: u64,
    /// Whose.
    #[schema(value_type = String)]
    pub tenant: TenantName,
    /// The app.
    #[schema(value_type = String)]
    pub app: AppName,
    /// What of the app connects.
    pub kind: CallerKind,
    /// Its name.
    pub caller: String,
    /// `tcp` or `udp`.
    #[schema(value_type = String)]
    pub transport: Transport,
    /// The host that was asked for, as it was written; at most 260 characters.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The address that was connected or refused, where it came to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// What was decided.
    pub verdict: Verdict,
    /// Why, where it was not allowed or not made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What of the tenant's policy allowed it: `public`, `range 10.1.0.0/16`, `operator's provider`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Records before this one that were dropped unread; of a follower that is too slow.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Which records.
#[derive(Debug, Clone, Default)]
pub struct FlowQuery {
    /// Only of this app.
    pub app: Option<AppName>,
    /// Only with this verdict.
    pub verdict: Option<Verdict>,
    /// Only past ones that are not older.
    pub since: Option<Since>,
    /// At most so many past ones.
    pub last: usize,
    /// Go on with new ones.
    pub follow: bool,
}

impl FlowQuery {
    /// Whether a record is one of these, apart from its age.
    pub fn fits(&self, record: &FlowRecord) -> bool {
        self.app.as_ref().is_none_or(|app| *app == record.app)
            && self.verdict.is_none_or(|verdict| verdict == record.verdict)
    }
}
