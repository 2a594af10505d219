//! The control API: what the cli and the canvas speak. `openapi/control.json` is generated from these types.
//!
//! | Request | Meaning |
//! |---|---|
//! | `GET /v1/version` | [`Version`] |
//! | `GET/PUT /v1/tenants/{t}` | [`TenantView`] / settings; `If-Match` |
//! | `PUT /v1/blobs/{digest}`, `HEAD` | artifacts, octet-stream |
//! | `GET /v1/tenants/{t}/apps` | [`AppView`]s |
//! | `GET/DELETE /v1/tenants/{t}/apps/{a}` | [`AppView`] |
//! | `POST /v1/tenants/{t}/apps/{a}/plan` ([`DeployRequest`]) | [`Plan`], changes nothing |
//! | `POST /v1/tenants/{t}/apps/{a}/revisions` ([`DeployRequest`]) | [`Accepted`]; `If-Match: <revision>` or `Idempotency-Key` |
//! | `GET /v1/tenants/{t}/apps/{a}/revisions` | [`RevisionView`]s |
//! | `POST …/rollback` ([`RollbackRequest`]), `POST …/links` ([`LinkRequest`]) | [`Accepted`] |
//! | `GET …/logs?follow&last&component` | NDJSON of [`crate::agent::LogLine`] |
//! | `POST …/call` ([`CallRequest`]) | [`CallResponse`] |
//! | `GET /v1/events?tenant&app` | server-sent events, each a CloudEvent ([`Event`]) |

use std::collections::BTreeMap;

use model::app::{LockedApp, ProviderKind, Revision};
use model::observed::AppObserved;
use model::tenant::TenantSettings;
use model::{AppName, ComponentName, ContractId, Label, NodeName, ProviderName, TenantName};
use serde::{Deserialize, Serialize};

/// Which product answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Version {
    /// The product's version.
    pub version: String,
    /// API versions it speaks.
    pub api: Vec<String>,
    /// Its process.
    pub pid: u32,
    /// When it started, milliseconds since 1970.
    pub since_ms: u64,
    /// The addresses the ingress listens on.
    pub ingress: Vec<String>,
}

/// A tenant and the store revision of its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TenantView {
    /// The tenant.
    pub name: TenantName,
    /// Its settings.
    pub settings: TenantSettings,
    /// For `If-Match`.
    pub etag: u64,
}

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
    /// Which; the one before the current where absent.
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

/// A provider an app of the tenant can link to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProviderView {
    /// Its name.
    pub name: ProviderName,
    /// Its implementation.
    pub kind: ProviderKind,
    /// The contract it answers.
    pub contract: String,
    /// `built-in`, `operator` or `app <name>`.
    pub from: String,
    /// Who links to it, as `app/component contract label`.
    pub links: Vec<String>,
}

/// A CloudEvent (1.0, structured JSON). `type` is one of `dev.sidereal.app.{deployed,phase,deleted}`,
/// `dev.sidereal.host.{started,lost}`, `dev.sidereal.tenant.changed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// `1.0`.
    pub specversion: String,
    /// Unique; grows with time.
    pub id: String,
    /// `/nodes/<name>` or `/control`.
    pub source: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// `tenant/app`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// RFC 3339.
    pub time: String,
    /// Depends on `type`; for `app.phase` an [`AppObserved`].
    pub data: serde_json::Value,
}
