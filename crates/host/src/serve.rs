//! Puts a host together, runs it on one thread, and ends it: when it is drained, or when its node is gone.

use std::sync::Arc;
use std::time::Duration;

use api::services::Standing;
use api::services::client::{CallsClient, FilesClient, KvClient, NodeWay, StandingWord};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use providers::blobstore::Blobstore;
use providers::bus::Bus;
use providers::config::Config;
use providers::http_out::{Tls, public_roots};
use providers::keyvalue::{KeyValue, Room};
use providers::logging::Logging;
use providers::messaging::Messaging;
use providers::secrets::Secrets;
use providers::sql::{Sql, WasmcloudPostgres};
use runtime::{Capability, Place, Runtime};
use telemetry::schedule::Seat;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{self, Agent};
use crate::apps::{Apps, Identity};
use crate::code::CodeStore;
use crate::data::{self, Data};
use crate::dialer::NodeDialer;
use crate::handed::listener;
use crate::line;
use crate::links::{Means, Providers};
use crate::logs::Logs;
use crate::secrets::NodeSecrets;
use crate::{Handed, HostArgs, HostError, HostSettings, memory};

/// A key-value call that the node does not answer for this long has failed.
const KV_TIMEOUT: Duration = Duration::from_secs(10);
/// A call about an object that the node does not answer for this long has failed: the last one waits for the disk.
const BLOB_TIMEOUT: Duration = Duration::from_secs(30);
/// As [`KV_TIMEOUT`], for every other service: longer than a request for a message may wait for its answer.
const CALLS_TIMEOUT: Duration = Duration::from_secs(75);
/// What is written already may take this long to be sent when the host ends.
const FLUSH: Duration = Duration::from_secs(1);
/// Headers a request may have: what the ingress lets through, and what it adds.
pub(crate) const MAX_HEADERS: usize = 128;
/// Bytes a request's head may have.
const MAX_HEAD: usize = 128 << 10;

/// The thread that runs guests, in the queue for the cores. It is moved by itself where it may come back from there, and with
/// its control group where the node has one for it.
struct Guests {
    seat: Option<Seat>,
    word: StandingWord,
}

impl runtime::Queue for Guests {
    fn prompt(&self) {
        telemetry::schedule::prompt();
    }

    fn stand(&self, place: Place) -> bool {
        let standing = match place {
            Place::Usual => Standing::Usual,
            Place::Last => Standing::Last,
            Place::Owed => Standing::Owed,
        };
        match (&self.seat, place) {
            (Some(seat), Place::Last) => seat.last(),
            (Some(seat), Place::Usual | Place::Owed) => seat.usual(),
            (None, _) => {}
        }
        self.word.say(standing)
    }
}

/// Runs a host until it is drained, with the settings of its environment. `confine` is called once, while the process has
/// one thread and has done nothing for a tenant; afterwards it needs no file, makes no socket and starts no process.
///
/// # Errors
/// Any [`HostError`]: the process should end with a failure.
pub fn run<E: std::fmt::Display>(
    args: HostArgs,
    handed: Handed,
    confine: impl FnOnce() -> Result<(), E>,
) -> Result<(), HostError> {
    run_with(args, handed, HostSettings::from_env()?, confine)
}

/// As [`run`], with other settings.
///
/// # Errors
/// Any [`HostError`].
pub fn run_with<E: std::fmt::Display>(
    args: HostArgs,
    handed: Handed,
    settings: HostSettings,
    confine: impl FnOnce() -> Result<(), E>,
) -> Result<(), HostError> {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // Every dropped instance would look its backtrace up in all code that is loaded.
        if std::env::var_os(name).is_some_and(|value| value != "0") {
            return Err(HostError::Environment(name));
        }
    }
    telemetry::schedule::batch(telemetry::schedule::Share::Host);
    memory::prepare();
    if !runtime::prepare() {
        tracing::debug!("this kernel cannot scan page maps");
    }
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    confine().map_err(|cause| HostError::Confinement(cause.to_string()))?;
    let ended = tokio.block_on(serve(args, handed, settings));
    // Guests that were ended and still run have nothing to wait for.
    tokio.shutdown_background();
    ended
}

async fn serve(args: HostArgs, handed: Handed, settings: HostSettings) -> Result<(), HostError> {
    let way = NodeWay::handed(handed.node)?;
    let node = way.alive().await.map_err(HostError::Node)?;
    let (seat, _sitting) = Seat::take().unzip();
    let guests = Guests { seat, word: way.standing().await.map_err(HostError::Node)? };
    let apps = assemble(&args, way, &settings, guests)?;
    let done = CancellationToken::new();
    let agent = Arc::new(Agent {
        apps: apps.clone(),
        identity: Identity { tenant: args.tenant, shard: args.shard },
        done: done.clone(),
        info: Default::default(),
    });
    let telling = apps.logs().clone();
    tokio::spawn(async move { telling.tell_dropped().await });

    let connections = TaskTracker::new();
    let calls = listener(handed.data)?;
    let lines = listener(handed.line)?;
    let control = listener(handed.agent)?;
    let data = Data::new(apps.clone());
    let (for_lines, until) = (data.clone(), done.clone());
    accept(&connections, &done, lines, move |stream| line::serve(stream, for_lines.clone(), until.clone()));
    serve_http(&connections, &done, calls, move |request| data::answer_or_hand_over(data.clone(), request));
    serve_http(&connections, &done, control, move |request| agent::answer(agent.clone(), request));

    let stop = telemetry::shutdown_signal()?;
    tokio::select! {
        () = node => return Err(HostError::NodeGone),
        () = done.cancelled() => {}
        () = stop.cancelled() => {
            apps.drain(Duration::from_millis(settings.drain_ms)).await;
            done.cancel();
        }
    }
    connections.close();
    if tokio::time::timeout(FLUSH, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were still open when the host ended");
    }
    Ok(())
}

fn assemble(args: &HostArgs, node: NodeWay, settings: &HostSettings, guests: Guests) -> Result<Arc<Apps>, HostError> {
    let capabilities: Vec<Box<dyn Capability>> = vec![
        Box::new(KeyValue),
        Box::new(Blobstore),
        Box::new(Messaging),
        Box::new(Secrets),
        Box::new(Sql),
        Box::new(WasmcloudPostgres),
        Box::new(Config),
        Box::new(Logging),
        Box::new(Bus),
    ];
    let runtime = Runtime::new(settings.runtime, capabilities)?;
    runtime.queue_in(Box::new(guests));
    let files = Arc::new(FilesClient::new(node.clone()));
    let store = Arc::new(KvClient::new(node.clone(), KV_TIMEOUT));
    let calls = Arc::new(CallsClient::new(node.clone(), CALLS_TIMEOUT));
    let secrets = NodeSecrets::new(calls.clone());
    let blobs = Arc::new(CallsClient::new(node, BLOB_TIMEOUT));
    let dialer = Arc::new(NodeDialer::new(files.clone()));
    let tls = Tls::new(public_roots())?;
    let means = Means {
        tenant: args.tenant.clone(),
        store,
        blobs,
        calls,
        files: files.clone(),
        dialer: dialer.clone(),
        secrets,
        tls: tls.clone(),
        memory: Room::new(crate::links::ALL_MEMORY),
    };
    let providers = Providers::new(means);
    let code = CodeStore::new(runtime, files);
    Ok(Apps::new(code, providers, dialer, tls, Logs::new(args.shard), (settings.max_loaded, settings.code_budget)))
}

/// Serves HTTP/1.1 on a listener until `done`; then each connection ends after its answer.
fn serve_http<B, F>(
    connections: &TaskTracker,
    done: &CancellationToken,
    listener: UnixListener,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    F: Future<Output = Result<Response<B>, std::convert::Infallible>> + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD).pipeline_flush(true);
    let until = done.clone();
    accept(connections, done, listener, move |stream| {
        let connection = http.serve_connection(TokioIo::new(stream), service_fn(answer.clone()));
        let until = until.clone();
        async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = until.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(cause) = ended {
                tracing::debug!(%cause, "a connection ended early");
            }
        }
    });
}

/// Serves each connection in a task of its own; none is accepted after `done`.
fn accept<F: Future<Output = ()> + Send + 'static>(
    connections: &TaskTracker,
    done: &CancellationToken,
    listener: UnixListener,
    serve: impl Fn(UnixStream) -> F + Send + 'static,
) {
    let (connections, done) = (connections.clone(), done.clone());
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(cause) => {
                        // Out of descriptors: others must close before there is room.
                        tracing::warn!(%cause, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
                () = done.cancelled() => return,
            };
            connections.spawn(serve(stream));
        }
    });
}
