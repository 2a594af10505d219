//! Apps: what makes a revision of one, what it is then, and what is asked of it.

use std::collections::BTreeMap;

use model::app::{LockedApp, Revision, Route};
use model::observed::{AppObserved, Reason};
use model::schedule::{Ended, Run, Schedule};
use model::{AppName, ComponentName, ConfigName, ContractId, Label, NodeName, ProviderName, ScheduleName, TenantName};
use serde::{Deserialize, Serialize};

/// A revision to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeployRequest {
    /// The app; its artifacts are uploaded already.
    pub app: LockedApp,
    /// For people reading the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Back to an earlier revision: a new revision with its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RollbackRequest {
    /// Which; where absent, the one that serves in the place of the newest, or that served before it.
    #[serde(default)]
    pub to: Option<Revision>,
}

/// Move one link to another provider: a new revision that differs only there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkRequest {
    /// Whose import; may be absent where one component has such a link.
    #[serde(default)]
    pub component: Option<ComponentName>,
    /// Which contract.
    pub contract: ContractId,
    /// Which label; may be absent where the contract has one link.
    #[serde(default)]
    pub label: Option<Label>,
    /// The provider that answers from now on.
    pub provider: ProviderName,
}

/// Copy what the app has at the present provider to another one, then move the link there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// Whose import; may be absent where one component has such a link.
    #[serde(default)]
    pub component: Option<ComponentName>,
    /// Which contract.
    pub contract: ContractId,
    /// Which label; may be absent where the contract has one link.
    #[serde(default)]
    pub label: Option<Label>,
    /// The provider that gets the data and answers from then on.
    pub provider: ProviderName,
    /// What becomes of keys that only it has.
    #[serde(default)]
    pub extra: crate::copy::Extra,
}

/// A revision was recorded; it is not serving yet. Follow the events, or poll the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Accepted {
    /// The new revision, or the current one where nothing differs.
    pub revision: Revision,
    /// Nothing differed; no revision was made.
    pub unchanged: bool,
}

/// Why a revision was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Origin {
    /// `deploy`.
    Deploy,
    /// `link set`.
    Link,
    /// `rollback`.
    Rollback {
        /// The revision whose content it has.
        to: Revision,
    },
    /// The operator changed a provider that the app links to.
    Provider,
    /// `config set`: it differs in what a shared config holds.
    Config {
        /// Which config.
        name: ConfigName,
        /// Which version of it.
        version: u64,
    },
}

/// An immutable revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RevisionView {
    /// Its number.
    pub revision: Revision,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// Why.
    pub origin: Origin,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What it is.
    pub app: LockedApp,
}

/// An app: what is wanted and what is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppView {
    /// The tenant.
    pub tenant: TenantName,
    /// The app.
    pub name: AppName,
    /// The wanted revision.
    pub desired: RevisionView,
    /// What each node reports.
    pub nodes: BTreeMap<NodeName, AppObserved>,
    /// `http://host:port/path` of every route.
    pub urls: Vec<String>,
    /// Why the app as a whole is not as wanted, where that is known here and not on a node: its claims expired or were
    /// revoked, or there is no node to run it. A node's own reason is in `nodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// A route of an app of the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RouteView {
    /// Whose.
    pub app: AppName,
    /// In which revision.
    pub revision: Revision,
    /// What is sent where.
    #[serde(flatten)]
    pub route: Route,
    /// `http://host:port/path` on each ingress listener.
    pub urls: Vec<String>,
}

/// What a deploy would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Plan {
    /// The current revision, if the app exists.
    pub current: Option<Revision>,
    /// One line each: `+ route …`, `~ link …`, `- component …`. Empty: nothing differs.
    pub changes: Vec<String>,
    /// Why it would be refused; empty: it would be accepted.
    pub problems: Vec<String>,
}

/// A request to a component that bypasses the ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CallRequest {
    /// Which component; may be absent where one exports an HTTP handler.
    #[serde(default)]
    pub component: Option<ComponentName>,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Header fields in order.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body, base64.
    #[serde(default)]
    pub body: String,
}

/// What the component answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CallResponse {
    /// The status.
    pub status: u16,
    /// Header fields in order.
    pub headers: Vec<(String, String)>,
    /// The body, base64.
    pub body: String,
}

/// A schedule of the wanted revision, and what became of it so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ScheduleView {
    /// Its name.
    pub name: ScheduleName,
    /// What it says.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Its next due time, milliseconds since 1970.
    pub next_ms: Option<u64>,
    /// The run that is under way.
    #[serde(default)]
    pub running: Option<Run>,
    /// The last run that ended.
    #[serde(default)]
    pub last: Option<Ended>,
    /// Runs that were begun.
    pub runs: u64,
    /// Runs that ended with an error.
    pub failed: u64,
    /// Due times that were passed over.
    pub passed: u64,
}
