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

use std::collections::BTreeMap;

use model::access::{Role, TokenId};
use model::app::{LockedApp, ProviderKind, Revision, Route};
use model::config::Values;
use model::observed::{AppObserved, Reason};
use model::offers::{OFFERS, Offer, Offered};
use model::promises::Promises;
use model::schedule::{Ended, Run, Schedule};
use model::tenant::TenantSettings;
use model::{
    AppName, ComponentName, ConfigName, ContractId, Label, NodeName, ProviderName, ScheduleName, SecretName, TenantName,
};
use serde::{Deserialize, Serialize};

use crate::Problem;

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

/// A provider an app of the tenant can link to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProviderView {
    /// Its name.
    pub name: ProviderName,
    /// Its implementation.
    pub kind: ProviderKind,
    /// The contracts it answers, with commas between them.
    pub contract: String,
    /// `built-in`, `operator` or `app <name>`.
    pub from: String,
    /// Who links to it, as `app/component contract label`.
    pub links: Vec<String>,
}

/// One version of a contract that components may import here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ContractView {
    /// `namespace:package`.
    pub contract: String,
    /// The version; of a `track`, the one that is built in. `none`: the package has no version.
    pub version: String,
    /// Every release of this minor version is accepted; else this version only.
    pub track: bool,
    /// Its interfaces.
    pub interfaces: Vec<String>,
    /// A component that imports it needs a link to a provider.
    pub by_link: bool,
    /// The provider types that answer it over a link. Another component of the app can, too.
    pub providers: Vec<ProviderType>,
}

/// A provider type and what it promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProviderType {
    /// The type.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// The name under which it is there without being declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_in_as: Option<String>,
    /// What an acknowledged write, or message, survives.
    pub durability: String,
    /// What happens at once or not at all, and what order there is.
    pub atomicity: String,
    /// Who can have the same data.
    pub reach: String,
}

/// What this version of the platform offers to components.
pub fn contracts() -> Vec<ContractView> {
    let one = |offer: &Offer| ContractView {
        contract: offer.contract.to_owned(),
        version: offer.version.to_string(),
        track: matches!(offer.version, Offered::Track(..)),
        interfaces: offer.interfaces.iter().map(|&interface| interface.to_owned()).collect(),
        by_link: offer.by_link,
        providers: match offer.by_link {
            true => ProviderKind::ALL
                .into_iter()
                .filter(|k| k.contracts().contains(&offer.contract))
                .map(provider_type)
                .collect(),
            false => Vec::new(),
        },
    };
    OFFERS.iter().map(one).collect()
}

fn provider_type(kind: ProviderKind) -> ProviderType {
    let Promises { durability, atomicity, reach } = kind.promises();
    ProviderType {
        kind,
        built_in_as: kind.built_in_as().map(str::to_owned),
        durability: durability.to_owned(),
        atomicity: atomicity.to_owned(),
        reach: reach.to_owned(),
    }
}

/// A secret without its value: values go in and never come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretView {
    /// Its name.
    pub name: SecretName,
    /// How often it was set since it was made; starts at 1.
    pub version: u64,
    /// When it was last set, milliseconds since 1970.
    pub updated_ms: u64,
    /// For `If-Match`.
    pub etag: u64,
    /// What names it now, for people.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// What a shared config is to hold: all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigRequest {
    /// Keys and what is answered for them. Stored and shown: no secrets.
    pub values: Values,
}

/// A config that apps of the tenant share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigView {
    /// Its name; `env` is the environment of the operator's choice, the same for all tenants.
    pub name: ConfigName,
    /// What it holds.
    pub values: Values,
    /// How often it was changed since it was made; starts at 1.
    pub version: u64,
    /// When it was last changed, milliseconds since 1970.
    pub updated_ms: u64,
    /// For `If-Match`; 0 for `env`, which is changed by nobody here.
    pub etag: u64,
    /// The apps that name it.
    #[serde(default)]
    pub used_by: Vec<ConfigUse>,
}

/// An app that names a shared config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigUse {
    /// The app.
    pub app: AppName,
    /// Its wanted revision.
    pub revision: Revision,
    /// That revision holds other values: it was rolled back, or could not follow. It follows with its next deploy, or
    /// when the config is set again.
    pub differs: bool,
}

/// A config was set, and the apps that name it follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigSet {
    /// What it is now.
    pub config: ConfigView,
    /// It held the same already: its version is the same.
    pub unchanged: bool,
    /// What became of each app that names it.
    pub apps: Vec<ConfigFollowed>,
}

/// What became of an app when a config it names was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigFollowed {
    /// The app.
    pub app: AppName,
    /// Its new revision, which differs in configuration only, or the current one where it had the values already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// Why it goes on with the values it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// The master key of the secret store was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyRotated {
    /// The id of the new key; no secret.
    pub key: String,
    /// Tenants whose data key was wrapped anew.
    pub tenants: u64,
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

/// The `type`s of [`Event`]s and what their `data` holds.
pub mod event {
    /// A revision became the wanted one: `{revision, origin}`.
    pub const DEPLOYED: &str = "dev.sidereal.app.deployed";
    /// A node reports another state of an app: an [`super::AppObserved`]. `source` is the node.
    pub const PHASE: &str = "dev.sidereal.app.phase";
    /// A node stopped reporting an app, because it is gone there or the node is: `{}`. `source` is the node.
    pub const GONE: &str = "dev.sidereal.app.gone";
    /// An app was deleted: `{revision}`, its last.
    pub const DELETED: &str = "dev.sidereal.app.deleted";
    /// An app must not be served any longer: a [`model::observed::Reason`].
    pub const SUSPENDED: &str = "dev.sidereal.app.suspended";
    /// It may be served again: `{revision}`.
    pub const RESUMED: &str = "dev.sidereal.app.resumed";
    /// A run of a schedule ended: `{schedule, due_ms, began_ms, ended_ms, manual, error}`; `error` is null where it
    /// went well.
    pub const SCHEDULE_RAN: &str = "dev.sidereal.schedule.ran";
    /// Due times of a schedule were passed over: `{schedule, decided_ms, passed}`; `passed` counts all there were.
    pub const SCHEDULE_PASSED: &str = "dev.sidereal.schedule.passed";
    /// Settings were written: `{etag}`. `subject` is the tenant.
    pub const TENANT_CHANGED: &str = "dev.sidereal.tenant.changed";
    /// A secret was set: `{secret, version}`. `subject` is the tenant.
    pub const SECRET_SET: &str = "dev.sidereal.secret.set";
    /// A secret was deleted: `{secret}`. `subject` is the tenant.
    pub const SECRET_DELETED: &str = "dev.sidereal.secret.deleted";
    /// A shared config was set: `{config, version}`. `subject` is the tenant.
    pub const CONFIG_SET: &str = "dev.sidereal.config.set";
    /// A shared config was deleted: `{config}`. `subject` is the tenant.
    pub const CONFIG_DELETED: &str = "dev.sidereal.config.deleted";
    /// The master key of all secrets was changed: `{key, tenants}`.
    pub const SECRETS_KEY_ROTATED: &str = "dev.sidereal.secrets.key-rotated";
    /// A node is there: `{ingress, pid}`. `source` is the node.
    pub const NODE_JOINED: &str = "dev.sidereal.node.joined";
    /// A node's lease ended: `{}`. `source` is the node.
    pub const NODE_LOST: &str = "dev.sidereal.node.lost";
    /// What a tenant's components and links have counted: a [`crate::metrics::TenantMetrics`]. Only on streams that
    /// ask for it with `metrics`, and not kept: its id is that of the event before it and a time, and going on after
    /// it goes on after that event. `subject` is the tenant.
    pub const METRICS: &str = "dev.sidereal.metrics";
    /// Events before this one are no longer kept: read the state anew.
    pub const MISSED: &str = "dev.sidereal.events.missed";
}

/// Header of a deploy that may be repeated.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Largest artifact, bytes.
pub const MAX_BLOB: usize = 50 << 20;
/// Largest JSON body, bytes.
pub const MAX_JSON: usize = 4 << 20;
/// Largest body of a [`CallRequest`], and of a [`CallResponse`], bytes before base64.
pub const MAX_CALL_BODY: usize = 8 << 20;
