//! The way in: HTTP/1.1 and HTTP/2 without TLS from clients, one hop over a unix socket to the shard that has the app
//! warm, and back.
//!
//! Each worker is a thread with its own listener, event loop and connections to hosts; nothing is shared on the path of
//! a request but the route table and the shards' counters. Two rules keep requests from being understood differently on
//! both sides: a request is refused unless there is one way to read it, and what a host gets is always written anew.
//!
//! | Module | Answers |
//! |---|---|
//! | `accept` | who gets a connection |
//! | `h1`, `h2` | one client connection |
//! | `head`, `target`, `fields`, `body` | what a valid request is; pure |
//! | [`table`] | which route; pure |
//! | `gate` | whether the tenant may have one more request |
//! | [`shard`], `gateway`, `pool`, `line`, `numbered` | which shard, by which connection |
//! | `upstream_head`, `response` | what is written to hosts and to clients; pure |
//! | `pump`, `wire`, `gathered` | moving bodies |
//! | [`call`] | requests that are no bytes of HTTP/1 |
//! | [`reading`] | what is made of a client's bytes, for comparison with other readers |

mod accept;
mod answer;
mod bad;
mod body;
mod buffer;
pub mod call;
mod config;
mod fields;
mod gate;
mod gateway;
mod gathered;
mod h1;
mod h2;
mod head;
mod line;
mod meter;
mod numbered;
mod pool;
mod pump;
pub mod reading;
mod response;
pub mod shard;
mod streams;
pub mod table;
mod target;
mod trace;
mod upstream_head;
mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use call::{Room, forward};
pub use config::IngressConfig;
pub(crate) use gate::nanos;
pub use gate::{Entered, Gate, Refused};
pub(crate) use meter::{CLASSES, Meter, Requests};
pub use shard::{SPILL, Shard, ShardSet, Target};
pub use table::{Lookup, RouteEntry, RouteTable, Routes};

use accept::Door;
use buffer::Heads;
use gateway::Gateway;

/// Why the ingress did not start.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// The address is taken, not allowed or not there.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A worker thread or its event loop could not be made.
    #[error("cannot start an ingress worker: {0}")]
    Worker(io::Error),
}

impl IngressError {
    /// Somebody else listens on the address; another port will do.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// What the connections of one worker share.
#[derive(Debug)]
struct Worker {
    config: IngressConfig,
    routes: Arc<Routes>,
    gateway: Gateway,
    door: Arc<Door>,
    heads: Arc<Heads>,
    meter: Arc<Meter>,
    draining: CancellationToken,
}

/// A running ingress.
#[derive(Debug)]
pub struct Ingress {
    addr: SocketAddr,
    draining: CancellationToken,
    ended: CancellationToken,
    workers: Vec<oneshot::Receiver<()>>,
    meters: Vec<Arc<Meter>>,
}

impl Ingress {
    /// Starts listening; requests follow `routes` as they are at the time of each request.
    pub fn start(config: IngressConfig, routes: Arc<Routes>) -> Result<Self, IngressError> {
        let count = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let address = config.listen;
        let failed = |source| IngressError::Listen { address, source };
        let listeners = accept::listeners(address, count).map_err(failed)?;
        let addr = listeners.first().map_or(Ok(address), TcpListener::local_addr).map_err(failed)?;
        let door = Door::new(config.connections, config.connections_per_ip);
        let heads = Heads::new(config.heads);
        let mut ingress = Self {
            addr,
            draining: CancellationToken::new(),
            ended: CancellationToken::new(),
            workers: Vec::new(),
            meters: Vec::new(),
        };
        for (number, listener) in listeners.into_iter().enumerate() {
            let worker = Arc::new(Worker {
                gateway: Gateway::new(config.shard_wait, config.shard_waiters),
                config: config.clone(),
                routes: Arc::clone(&routes),
                door: Arc::clone(&door),
                heads: Arc::clone(&heads),
                meter: Arc::default(),
                // Asked about in every request: one for each worker, so that no two of them ask by the same lock.
                draining: ingress.draining.child_token(),
            });
            ingress.meters.push(Arc::clone(&worker.meter));
            let done = start_worker(number, worker, listener, ingress.ended.clone()).map_err(IngressError::Worker)?;
            ingress.workers.push(done);
        }
        Ok(ingress)
    }

    /// One that listens nowhere.
    pub fn closed() -> Self {
        Self {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            draining: CancellationToken::new(),
            ended: CancellationToken::new(),
            workers: Vec::new(),
            meters: Vec::new(),
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What its workers count.
    pub(crate) fn meters(&self) -> &[Arc<Meter>] {
        &self.meters
    }

    /// Stops accepting, closes idle connections, lets requests in flight finish for at most `within`, then ends all. How
    /// many were ended so: their clients have no answer, or half of one.
    pub async fn drain(mut self, within: Duration) -> u64 {
        self.draining.cancel();
        let until = Instant::now() + within;
        let workers = std::mem::take(&mut self.workers);
        let ended = self.ended.clone();
        let mut cut = 0;
        for worker in workers {
            tokio::pin!(worker);
            if tokio::time::timeout_at(until, &mut worker).await.is_err() {
                if !ended.is_cancelled() {
                    let mut all = Requests::default();
                    self.meters.iter().for_each(|meter| meter.add_to(&mut all));
                    cut = all.in_flight;
                    ended.cancel();
                }
                // Whatever it says, the worker is gone.
                let _ = worker.await;
            }
        }
        cut
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.draining.cancel();
        self.ended.cancel();
    }
}

/// Starts a worker's thread; the receiver resolves when it is done.
fn start_worker(
    number: usize,
    worker: Arc<Worker>,
    listener: TcpListener,
    ended: CancellationToken,
) -> io::Result<oneshot::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let (done, receiver) = oneshot::channel();
    std::thread::Builder::new().name(format!("ingress-{number}")).spawn(move || {
        telemetry::schedule::batch(telemetry::schedule::Share::Platform);
        runtime.block_on(work(worker, listener, ended));
        drop(runtime);
        // Nobody may be waiting.
        let _ = done.send(());
    })?;
    Ok(receiver)
}

/// A worker's whole life: accept, drain, end.
async fn work(worker: Arc<Worker>, listener: tokio::net::TcpListener, ended: CancellationToken) {
    let tasks = TaskTracker::new();
    let sweep = async {
        let age = worker.config.upstream_idle;
        loop {
            tokio::time::sleep(age / 4).await;
            worker.gateway.sweep(age);
        }
    };
    let serve = async {
        accept::accept(Arc::clone(&worker), listener, tasks.clone()).await;
        tasks.close();
        tasks.wait().await;
    };
    tokio::select! {
        () = serve => {}
        () = ended.cancelled() => {}
        () = sweep => {}
    }
}
