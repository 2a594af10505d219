//! Why a node cannot start.

use std::path::PathBuf;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A directory or file of the node cannot be made or read.
    #[error("cannot {action} {path}: {cause}", path = .path.display())]
    Files {
        /// What was tried: `create`, `read`, …
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The folder of the apps' objects cannot be used.
    #[error("{path}: {cause}", path = .path.display())]
    Objects {
        /// Where.
        path: PathBuf,
        /// Why not.
        cause: store::folder::FolderError,
    },
    /// The ingress cannot listen.
    #[error("the ingress cannot start: {0}")]
    Ingress(crate::ingress::IngressError),
    /// The listener for monitoring cannot be had.
    #[error("cannot listen for monitoring on {address}: {cause}; choose another `--metrics-listen`, or `off`")]
    Admin {
        /// What was asked for.
        address: std::net::SocketAddr,
        /// Why not.
        cause: std::io::Error,
    },
    /// The MAC key is not 32 bytes.
    #[error("{path} is damaged: a key has 32 bytes. Remove it: compiled code is made anew on the next start", path = .0.display())]
    KeyDamaged(PathBuf),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::StoreError),
}
