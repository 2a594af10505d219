//! Moving an app's data to another provider: what the control plane shows of it, and what hosts are asked for.
//!
//! | Request of the agent API | Meaning |
//! |---|---|
//! | `PUT /v1/apps/{app}/copies/{id}` ([`CopyRequest`]) | open both providers, note every write to the present one |
//! | `POST /v1/apps/{app}/copies/{id}/page` ([`Cursor`]) | copy one page; [`Step`] |
//! | `POST /v1/apps/{app}/copies/{id}/extra` ([`Cursor`]) | of one page of the target, the keys that the source lacks; [`Keys`] |
//! | `POST /v1/apps/{app}/copies/{id}/noted` ([`Round`]) | keys written since the round before; [`Keys`] |
//! | `POST /v1/apps/{app}/copies/{id}/keys` ([`Keys`]) | make these in the target what they are in the source; [`Step`] |
//! | `DELETE /v1/apps/{app}/copies/{id}` | end it |
//! | `POST /v1/apps/{app}/revisions/{n}/hold` ([`crate::agent::DrainRequest`]) | let new calls wait, also those of revisions still to come, and those in flight end; [`Held`] |
//! | `POST /v1/apps/{app}/release` ([`Release`]) | let the waiting calls go on |

use std::time::Duration;

use std::collections::BTreeMap;

use model::{ComponentName, Label, ProviderName, ProviderSpec, Revision};
use serde::{Deserialize, Serialize};

use crate::Problem;
use crate::control::MoveRequest;

/// The longest a call waits for a move of data; then it is refused. Whoever holds an app is done with it earlier.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CopyEnd {
    /// The provider's name in the app.
    pub provider: ProviderName,
    /// What it is.
    pub spec: ProviderSpec,
    /// The bucket of keys, or the container of objects.
    pub bucket: String,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CopyRequest {
    /// From here.
    pub from: CopyEnd,
    /// To here.
    pub to: CopyEnd,
    /// The providers that secrets of either come from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<ProviderName, ProviderSpec>,
    /// Where present: not the one container, but every one except these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_but: Option<Vec<String>>,
    /// Where other links of the app stay. One that reaches what is copied or what is filled, by a name that does not say so, is
    /// found out before anything is copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<CopyEnd>,
}

/// Where a listing goes on; absent at its beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Cursor {
    /// From the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// What one step of a copy did. Everything written was read back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Step {
    /// Keys looked at.
    pub read: u64,
    /// Keys written or removed.
    pub written: u64,
    /// Bytes of the values written.
    pub bytes: u64,
    /// Where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Some keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Keys {
    /// The keys.
    pub keys: Vec<String>,
    /// Where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Which round of notes; they count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Round {
    /// Asked for once more, it gives again what it gave.
    pub round: u64,
}

/// What a hold left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Held {
    /// Calls that did not end in time; where there are any, nothing is held.
    pub in_flight: u64,
}

/// Where held calls go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Release {
    /// On this revision; on their own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Revision>,
}

/// What becomes of keys that only the new provider has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Extra {
    /// The copy is refused: they may be somebody's.
    #[default]
    Refuse,
    /// They are removed: afterwards the app finds what it had, and nothing else.
    Remove,
    /// They stay.
    Keep,
}

/// How far a move of data has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CopyPhase {
    /// Keys are copied while the app goes on.
    Copying,
    /// What was written meanwhile is copied, still while the app goes on.
    Following,
    /// New calls wait, the last writes are copied, and the link is moved.
    Switching,
    /// The app is answered by the new provider.
    Done,
    /// It ended for `problem`. Nothing was moved, unless `revision` is there: then the link was, and that revision does not serve.
    Failed,
}

/// A move of data, as the control API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CopyView {
    /// From this provider.
    pub from: ProviderName,
    /// To this one.
    pub to: ProviderName,
    /// How far it is.
    pub phase: CopyPhase,
    /// Keys looked at.
    pub read: u64,
    /// Keys written.
    pub written: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How long new calls had to wait, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// The revision that is answered by the new provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What the store keeps of the last move of an app's data. Whoever directs it goes on from here after a restart; a node that
/// starts lets the calls of an app wait that is in [`CopyPhase::Switching`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// The first revision of the app whose data they are: another app of that name has another. Absent where the app is
    /// older than this was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Revision>,
    /// As it was asked for: the same again is this move.
    pub request: MoveRequest,
    /// The link that was meant then. Others of the contract may come while it moves, and the request may name no label.
    #[serde(default)]
    pub meant: Option<(ComponentName, Label)>,
    /// What was copied last, once that which only its target had was dealt with as asked: there is nothing in the target
    /// since that was not copied there.
    #[serde(default)]
    pub looked: Option<CopyRequest>,
    /// From the switch on, the revision whose calls wait.
    #[serde(default)]
    pub before: Option<Revision>,
    /// How far it is.
    pub view: CopyView,
}
