//! The control plane: the API, the revisions, and the one task that makes what is assigned follow what is wanted.
//!
//! A write is checked from the artifacts' own bytes, recorded in the store, and answered. The reconciler watches the
//! store and writes assignments; nodes watch those. Nothing here runs a component or holds a connection to a host.
#![forbid(unsafe_code)]

mod clock;
mod config;
mod events;
mod http;
mod load;
mod mover;
mod reconcile;
mod state;
mod trust;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use crate::config::{ControlConfig, ControlError};
pub use crate::http::openapi;

use crate::events::Events;
use crate::http::{Api, Guard};
use crate::mover::Mover;
use crate::reconcile::Reconciler;
use crate::state::Shared;
use crate::trust::Vetter;
use crate::writer::{Turn, Writer};

/// The shortest token that is accepted, characters.
const MIN_TOKEN: usize = 16;
/// How long requests may take to finish at shutdown.
const FINISH: Duration = Duration::from_secs(5);

/// A running control plane.
pub struct Control {
    addr: SocketAddr,
    stop: CancellationToken,
    reconciler: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl Control {
    /// Binds the API, reads the state, and starts the reconciler.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn start(config: ControlConfig) -> Result<Self, ControlError> {
        let ControlConfig { listen, token, node, store, blobs, secrets, nodes, env, allowed_hosts, version } = config;
        if token.len() < MIN_TOKEN {
            return Err(ControlError::Token(token.len()));
        }
        let bound = TcpListener::bind(listen).await.and_then(|l| l.local_addr().map(|addr| (l, addr)));
        let (listener, addr) = bound.map_err(|cause| ControlError::Listen { address: listen, cause })?;
        let (stop, state) = (CancellationToken::new(), Arc::new(Shared::default()));
        let (settled_in, settled) = watch::channel(0);
        let turn = Turn::default();
        let events = Events::new(clock::millis());
        let reconciler =
            Reconciler::start(store.clone(), state.clone(), events.clone(), settled_in, turn.clone()).await?;
        let writer = Arc::new(Writer::new(store.clone(), Vetter::new(blobs.clone()), secrets, state.clone(), turn));
        writer.resume_configs(env).await.map_err(|refusal| ControlError::Configs(refusal.problem.detail))?;
        let mover = Mover::new(writer.clone(), store.clone(), nodes.clone(), state.clone(), stop.clone());
        mover.resume().await?;
        let api = Arc::new(Api {
            guard: Guard::new(addr, allowed_hosts, &token),
            writer,
            mover,
            store,
            blobs,
            nodes,
            node,
            state,
            events,
            settled,
            uploads: Semaphore::new(http::UPLOADS),
            stop: stop.clone(),
            version,
            since_ms: clock::millis(),
        });
        let reconciler = tokio::spawn(reconciler.run(stop.clone()));
        let server = tokio::spawn(http::serve(listener, http::router(api), stop.clone()));
        Ok(Self { addr, stop, reconciler, server })
    }

    /// Where the API listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends streams, lets requests finish for at most five seconds, stops the reconciler.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(FINISH, &mut self.server).await.is_err() {
            tracing::warn!("requests did not finish in time and were ended");
            self.server.abort();
        }
        if let Err(cause) = self.reconciler.await {
            tracing::error!(%cause, "the reconciler ended badly");
        }
    }
}
