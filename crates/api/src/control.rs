//! The control API: what the cli and the canvas speak. `openapi/control.json` is generated from these types.
//!
//! | Request | Meaning |
//! |---|---|
//! | `GET /v1/healthz` | 200 without a token; nothing else is |
//! | `GET /v1/version` | [`Version`] |
//! | `GET /v1/openapi.json` | this table, generated |
//! | `GET /v1/nodes` | [`NodeView`]s |
//! | `GET /v1/contracts` | [`ContractView`]s: what components may import here |
//! | `GET /v1/tenants` | [`TenantView`]s |
//! | `GET/PUT/DELETE /v1/tenants/{t}` | [`TenantView`] / settings; `If-Match: <etag>` |
//! | `PUT /v1/tenants/{t}/blobs/{digest}`, `HEAD` | artifacts of the tenant, octet-stream |
//! | `GET /v1/whoami` | [`WhoAmI`] |
//! | `GET /v1/audit?last`, `GET /v1/tenants/{t}/audit?last` | [`AuditView`]s, oldest first |
//! | `GET /v1/audit/verify` | [`AuditReport`] |
//! | `GET/POST /v1/tenants/{t}/tokens` ([`TokenRequest`]), `DELETE …/tokens/{id}` | [`TokenView`]s; [`TokenMade`] |
//! | `GET /v1/tenants/{t}/apps` | [`AppView`]s |
//! | `GET/DELETE /v1/tenants/{t}/apps/{a}` | [`AppView`] |
//! | `POST /v1/tenants/{t}/apps/{a}/plan` ([`DeployRequest`]) | [`Plan`], changes nothing |
//! | `POST /v1/tenants/{t}/apps/{a}/revisions` ([`DeployRequest`]) | [`Accepted`]; `If-Match: <revision>`, `Idempotency-Key` |
//! | `GET /v1/tenants/{t}/apps/{a}/revisions`, `GET …/revisions/{n}` | [`RevisionView`]s, newest first |
//! | `POST …/rollback` ([`RollbackRequest`]), `POST …/links` ([`LinkRequest`]) | [`Accepted`] |
//! | `POST …/copy` ([`MoveRequest`]), `GET …/copy`, `DELETE …/copy` | [`crate::copy::CopyView`] |
//! | `GET …/schedules` | [`ScheduleView`]s |
//! | `POST …/schedules/{s}/run` | [`model::schedule::Ended`]: run it now, and wait for its end |
//! | `GET …/logs?follow&last&component` | NDJSON of [`crate::agent::LogLine`] |
//! | `POST …/call` ([`CallRequest`]) | [`CallResponse`] |
//! | `GET /v1/tenants/{t}/providers` | [`ProviderView`]s |
//! | `GET /v1/tenants/{t}/secrets`, `GET …/secrets/{s}` | [`SecretView`]s: never a value |
//! | `PUT …/secrets/{s}` (octet-stream: the value), `DELETE …?force` | [`SecretView`] / 204; `If-Match: <etag>` |
//! | `GET /v1/tenants/{t}/configs`, `GET …/configs/{c}` | [`ConfigView`]s |
//! | `PUT …/configs/{c}` ([`ConfigRequest`]), `DELETE …` | [`ConfigSet`] / 204; `If-Match: <etag>` |
//! | `POST /v1/secrets/rotate-key` | [`KeyRotated`] |
//! | `GET /v1/tenants/{t}/routes` | [`RouteView`]s |
//! | `GET /v1/tenants/{t}/hosts` | [`crate::agent::HostStatus`], in shard order |
//! | `GET /v1/tenants/{t}/metrics` | [`crate::metrics::TenantMetrics`] |
//! | `GET /v1/events?tenant&app&metrics` | server-sent events, each a CloudEvent ([`Event`]); `Last-Event-ID` resumes |
//!
//! **Writes.** `If-Match: <n>` on an app is the number of the revision that must be current, on a tenant the etag; `*`
//! means it must exist. `If-None-Match: *` means it must not. An etag says nothing but that the object is the same; they have
//! no order. A failed condition is `conflict` (409) and nothing is
//! changed. Without a condition a write applies to whatever is current; writes to all apps are made one after another.
//! `Idempotency-Key` (1 to 128 visible ASCII characters) makes a repeated deploy answer with the revision the first one
//! made; the same key with other content is `conflict`. The last 16 keys of an app are remembered, over restarts too; a
//! deploy that changed nothing is not, since repeating it changes nothing either.
//!
//! **Reading.** Query parameters and body fields that are not listed are errors, not ignored.

mod apps;
pub mod event;
mod kept;
mod offers;
mod tenants;

use std::collections::BTreeMap;

use model::NodeName;
use serde::{Deserialize, Serialize};

pub use apps::{
    Accepted, AppView, CallRequest, CallResponse, DeployRequest, LinkRequest, MoveRequest, Origin, Plan, RevisionView,
    RollbackRequest, RouteView, ScheduleView,
};
pub use kept::{ConfigFollowed, ConfigRequest, ConfigSet, ConfigUse, ConfigView, KeyRotated, SecretView};
pub use offers::{ContractView, ProviderType, ProviderView, contracts};
pub use tenants::{AuditReport, AuditView, TenantView, TokenMade, TokenRequest, TokenView, WhoAmI};

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

/// A machine, as its node reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeView {
    /// The machine.
    pub name: NodeName,
    /// Its lease is alive. Apps of a lost node stay assigned to it.
    pub alive: bool,
    /// `host:port` of each ingress listener.
    pub ingress: Vec<String>,
    /// Its process; 0 while it is lost.
    pub pid: u32,
    /// When it started, milliseconds since 1970; 0 while it is lost.
    pub since_ms: u64,
    /// Apps assigned to it.
    pub apps: u64,
    /// Layers that isolate tenants there.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Layers that do not, and why: waived by the operator, or refused by the machine.
    #[serde(default)]
    pub waived: BTreeMap<String, String>,
    /// Which control groups it makes (`cgroup v1` or `cgroup v2`), and where; absent where it makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
}

/// A CloudEvent (1.0, structured JSON). `type` is one of the constants of [`event`].
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
    /// Depends on `type`; see [`event`].
    pub data: serde_json::Value,
}

/// Header of a deploy that may be repeated.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Largest artifact, bytes.
pub const MAX_BLOB: usize = 50 << 20;
/// Largest JSON body, bytes.
pub const MAX_JSON: usize = 4 << 20;
/// Largest body of a [`CallRequest`], and of a [`CallResponse`], bytes before base64.
pub const MAX_CALL_BODY: usize = 8 << 20;
