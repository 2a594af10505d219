//! Tenants, their tokens, and what the audit log says of them.

use model::TenantName;
use model::access::{Role, TokenId};
use model::tenant::TenantSettings;
use serde::{Deserialize, Serialize};

/// A tenant and the store revision of its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TenantView {
    /// The tenant.
    pub name: TenantName,
    /// Its settings.
    pub settings: TenantSettings,
    /// For `If-Match`.
    pub etag: u64,
    /// Not everything of it that runs follows these settings yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// Whom the token of the request belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WhoAmI {
    /// The tenant; absent: the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    /// Which token of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
    /// What it may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditView {
    /// Its number; only the operator sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// `operator`, `token <id>`, or `nobody`.
    pub who: String,
    /// The tenant it is about, or whose token it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    /// The address the request came from.
    pub from: String,
    /// Method and path.
    pub what: String,
    /// `begun`, then `done` or `refused`; `broken` and `found` of the log itself.
    pub outcome: String,
    /// The status it was answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The number of the line that says it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<u64>,
    /// Refused attempts before it, of the same tenant's tokens or without one, that came too fast to be written down one
    /// by one.
    #[serde(default)]
    pub left_out: u64,
}

/// Whether the audit log is as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditReport {
    /// Lines that were read.
    pub lines: u64,
    /// Files they are in.
    pub files: u64,
    /// What is not as it was written, one sentence each. Empty: all of it is.
    pub problems: Vec<String>,
    /// Lines that were in the files at a start and that the store did not know of: a crash leaves the last few so, and so
    /// does whoever adds some while nothing runs.
    #[serde(default)]
    pub found: Vec<String>,
}

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenRequest {
    /// What it may do.
    pub role: Role,
    /// For people: who or what has it. At most 80 bytes.
    #[serde(default)]
    pub label: String,
    /// Seconds until it ends; for ever where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenView {
    /// Its public part: also what the audit log names.
    pub id: TokenId,
    /// What it may do.
    pub role: Role,
    /// For people.
    pub label: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Who made it: `operator`, or `token <id>`.
    pub created_by: String,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
    /// When it was used last, to the minute after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_ms: Option<u64>,
}

/// A new token. The only answer that ever holds its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenMade {
    /// What is sent as `Authorization: Bearer`.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub view: TokenView,
}

impl std::fmt::Debug for TokenMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenMade").field("view", &self.view).finish_non_exhaustive()
    }
}
