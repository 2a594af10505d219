//! The `type`s of [`super::Event`]s and what their `data` holds.

/// A revision became the wanted one: `{revision, origin}`.
pub const DEPLOYED: &str = "dev.sidereal.app.deployed";
/// A node reports another state of an app: an [`model::observed::AppObserved`]. `source` is the node.
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
