//! What the nodes report: the state of each app's revisions, and the one sentence that explains it.

use serde::{Deserialize, Serialize};

use crate::app::Revision;

/// Where a revision stands on a node.
///
/// ```text
/// Fetching ─▶ Compiling ─▶ Starting ─▶ Probing ─▶ Serving ─▶ Draining ─▶ Gone
///     └───────────┴────────────┴──────────┴─▶ Failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The artifact is being brought to the node and checked.
    Fetching,
    /// A separate process compiles it.
    Compiling,
    /// A host loads and links it.
    Starting,
    /// The components that name a `health` path are asked for it; routes have not moved yet. Left out where none does: that
    /// one instance could be made is part of *starting*.
    Probing,
    /// Routes point here.
    Serving,
    /// Routes have moved on; calls in flight finish.
    Draining,
    /// A step failed; the reason says which.
    Failed,
}

/// Why something is not as desired: the same words in the cli, the API and the canvas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reason {
    /// A stable code, for example `artifact-unsigned`.
    pub code: String,
    /// What, where and why, in one sentence.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// One app on one node, as last reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppObserved {
    /// The revision the report speaks of: the newest assigned one.
    pub revision: Revision,
    /// Where that revision stands.
    pub phase: Phase,
    /// The revision that routes point to; differs from `revision` while a deploy is under way or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Revision>,
    /// Present when `phase` is `failed`, or when the app serves in a reduced way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// The revision a node last moved the routes of an app to: what it serves again after a restart, before it tries
/// anything newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The revision.
    pub revision: Revision,
    /// The one that served before it: where one goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Revision>,
}
