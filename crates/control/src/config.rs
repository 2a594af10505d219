//! What a control plane is started with, and why it does not start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::node::NodeApi;
use model::NodeName;
use model::config::Values;
use store::Store;
use store::blobs::Blobs;
use store::secrets::Secrets;

use crate::audit::Audit;
use crate::mover::MoveWaits;

/// What a control plane is started with.
pub struct ControlConfig {
    /// Where the API listens; port 0 takes a free one. Keep it on loopback: it speaks HTTP without TLS.
    pub listen: SocketAddr,
    /// The bearer token of every request but `GET /v1/healthz`; at least 16 characters.
    pub token: String,
    /// The machine this process runs on.
    pub node: NodeName,
    /// The audit log.
    pub audit: Arc<Audit>,
    /// Desired and observed state.
    pub store: Arc<dyn Store>,
    /// The artifacts of this machine.
    pub blobs: Blobs,
    /// The tenants' secrets.
    pub secrets: Arc<Secrets>,
    /// Logs and calls.
    pub nodes: Arc<dyn NodeApi>,
    /// What the operator offers of the environment, as the config `env`; `None`: nothing is offered.
    pub env: Option<Values>,
    /// Values of `Host` that are accepted beside loopback names and `listen` itself, `name` or `name:port`.
    pub allowed_hosts: Vec<String>,
    /// How long an artifact stays that no revision names: it was sent for a deploy that is still to come.
    pub keep_unnamed: Duration,
    /// What moves of data wait for while calls wait for them.
    pub move_waits: MoveWaits,
    /// The product's version, for `GET /v1/version`.
    pub version: String,
}

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address is taken or not ours. The caller chooses another port.
    #[error("the API cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's own words.
        cause: std::io::Error,
    },
    /// The token is too short to protect anything.
    #[error("the API token has {0} characters; it needs at least 16")]
    Token(usize),
    /// Shared configs could not be brought to the apps that name them.
    #[error("shared configs: {0}")]
    Configs(String),
    /// A tenant that was being deleted could not be deleted to the end.
    #[error("deleting a tenant: {0}")]
    Gone(String),
    /// It cannot be read which hosts tenants gave up a short time ago.
    #[error("hosts that were given up: {0}")]
    Hosts(String),
    /// The audit log cannot be opened: nothing could be changed.
    #[error("the audit log in {} cannot be used: {cause}", dir.display())]
    Audit {
        /// Its folder.
        dir: PathBuf,
        /// The system's own words.
        cause: String,
    },
    /// The state cannot be read.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// Something in the store is not what this version writes there.
    #[error("`{key}` in the store cannot be read: {cause}")]
    Unreadable {
        /// The key.
        key: String,
        /// What was wrong.
        cause: String,
    },
}
