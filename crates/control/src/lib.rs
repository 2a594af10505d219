//! The control plane: the API, the revisions, and the one task that makes what is assigned follow what is wanted.
//!
//! A write is checked from the artifacts' own bytes, recorded in the store, and answered. The reconciler watches the
//! store and writes assignments; nodes watch those. Nothing here runs a component or holds a connection to a host.
#![forbid(unsafe_code)]

mod audit;
mod clock;
mod config;
mod etags;
mod events;
mod http;
mod left;
mod load;
mod moved;
mod mover;
mod named;
mod place;
mod purge;
mod reconcile;
mod state;
mod sweep;
mod taken;
mod tokens;
mod trust;
mod turns;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use crate::audit::Audit;
pub use crate::config::{ControlConfig, ControlError};
pub use crate::http::openapi;
pub use crate::mover::MoveWaits;

use crate::etags::Etags;
use crate::events::Events;
use crate::http::{Api, Guard, Shares};
use crate::mover::Mover;
use crate::purge::Purger;
use crate::reconcile::{Reconciler, Settled};
use crate::state::Shared;
use crate::sweep::Sweeper;
use crate::tokens::Tokens;
use crate::trust::Vetter;
use crate::turns::Turns;
use crate::writer::Writer;

/// The shortest token that is accepted, characters.
const MIN_TOKEN: usize = 16;
/// How long requests may take to finish at shutdown.
const FINISH: Duration = Duration::from_secs(5);

/// A running control plane.
pub struct Control {
    addr: SocketAddr,
    stop: CancellationToken,
    reconciler: JoinHandle<()>,
    sweeper: JoinHandle<()>,
    purger: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl Control {
    /// Binds the API, reads the state, and starts the reconciler.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn start(config: ControlConfig) -> Result<Self, ControlError> {
        let ControlConfig {
            listen,
            token,
            node,
            audit,
            store,
            blobs,
            secrets,
            nodes,
            env,
            allowed_hosts,
            keep_unnamed,
            move_waits,
            version,
        } = config;
        if token.len() < MIN_TOKEN {
            return Err(ControlError::Token(token.len()));
        }
        let bound = TcpListener::bind(listen).await.and_then(|l| l.local_addr().map(|addr| (l, addr)));
        let (listener, addr) = bound.map_err(|cause| ControlError::Listen { address: listen, cause })?;
        let (stop, state) = (CancellationToken::new(), Arc::new(Shared::default()));
        let (settled_in, settled) = watch::channel(Settled::default());
        // One change at a time, whosever.
        let turns = Turns::new(1, 1);
        let looks = Turns::new(http::LOOKS.0, http::LOOKS.1);
        let events = Events::new(clock::millis());
        let etags = Etags::new(&token);
        let reconciler =
            Reconciler::start(store.clone(), state.clone(), events.clone(), etags.clone(), settled_in, turns.clone())
                .await?;
        let vetter = Vetter::new(blobs.clone());
        let writer = Writer::new(store.clone(), vetter, secrets, state.clone(), turns, looks.clone());
        let writer = Arc::new(writer);
        writer.resume_hosts().await.map_err(|refusal| ControlError::Hosts(refusal.problem.detail))?;
        writer.resume_configs(env).await.map_err(|refusal| ControlError::Configs(refusal.problem.detail))?;
        let mover = Mover::new(
            writer.clone(),
            store.clone(),
            nodes.clone(),
            state.clone(),
            audit.clone(),
            stop.clone(),
            move_waits,
        );
        mover.resume().await?;
        writer.finish_gone().await.map_err(|refusal| ControlError::Gone(refusal.problem.detail))?;
        let purger = Purger { store: store.clone(), nodes: nodes.clone(), state: state.clone() };
        let sweeper = Sweeper::new(store.clone(), blobs.clone(), nodes.clone(), keep_unnamed);
        let api = Arc::new(Api {
            guard: Guard::new(addr, allowed_hosts),
            tokens: Tokens::new(store.clone(), &token),
            etags,
            audit,
            writer,
            mover,
            store,
            blobs,
            nodes,
            node,
            state,
            events,
            settled,
            uploads: Shares::new(http::UPLOADS),
            counts: Turns::new(http::COUNTS.0, http::COUNTS.1),
            calls: Shares::new(http::CALLS),
            answers: Shares::new(http::ANSWERS),
            bounds: http::Bounds::new(),
            looks,
            stop: stop.clone(),
            version,
            since_ms: clock::millis(),
        });
        let reconciler = tokio::spawn(reconciler.run(stop.clone()));
        {
            let writer = api.writer.clone();
            let follow = async move {
                if let Err(cause) = writer.follow_all().await {
                    tracing::warn!(cause = %cause.problem, "not every app has the operator's providers as they are now");
                }
            };
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(follow).await });
        }
        {
            let (writer, stop) = (api.writer.clone(), stop.clone());
            tokio::spawn(async move { writer.follow_hosts(&stop).await });
        }
        let sweeper = tokio::spawn(sweeper.run(stop.clone()));
        let purger = tokio::spawn(purger.run(stop.clone()));
        let server = tokio::spawn(http::serve(listener, http::router(api), stop.clone()));
        Ok(Self { addr, stop, reconciler, sweeper, purger, server })
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
        for (name, task) in [("reconciler", self.reconciler), ("sweeper", self.sweeper), ("purger", self.purger)] {
            if let Err(cause) = task.await {
                tracing::error!(task = name, %cause, "a task ended badly");
            }
        }
    }
}
