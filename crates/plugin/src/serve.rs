//! From process start to process end: handshake, transport, services, shutdown.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::contracts::grpc::health::v1::health_server::HealthServer;
use crate::contracts::hashicorp::nomad::plugins::base::proto::base_plugin_server::BasePluginServer;
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::driver_server::DriverServer;
use crate::contracts::plugin::grpc_broker_server::GrpcBrokerServer;
use crate::contracts::plugin::grpc_controller_server::GrpcControllerServer;
use crate::contracts::plugin::grpc_stdio_server::GrpcStdioServer;
use crate::controller::{Broker, Controller, Pulse, Stdio};
use crate::handshake::{Request, line};
use crate::listen::{Connection, Listener, NETWORK_ENV};
use crate::service::{Service, Told};
use crate::{Driver, base, files, log, tls};

/// What hosts accept and may send, bytes.
const MAX_MESSAGE: usize = i32::MAX as usize;
/// A connection that does not finish its TLS handshake is closed.
const TLS_PATIENCE: Duration = Duration::from_secs(10);
/// After a shutdown, calls in flight get this to end; the host kills us after two seconds.
const LAST_CALLS: Duration = Duration::from_millis(500);
/// And the driver this, to be done.
const LAST_DEEDS: Duration = Duration::from_secs(1);
/// Threads for what blocks, however many tasks there are.
const BLOCKING: usize = 8;

/// Runs a driver as a plugin: the whole `main` of its program. Returns when the host ends it; tasks go on.
pub fn run<D: Driver>(make: impl FnOnce() -> D) -> ExitCode {
    let request = match Request::read(|name| std::env::var(name).ok()) {
        Ok(request) => request,
        Err(refusal) => {
            eprintln!("{refusal}");
            return ExitCode::FAILURE;
        }
    };
    log::init();
    files::raise();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = match builder.worker_threads(2).max_blocking_threads(BLOCKING).enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            eprintln!("[ERROR] cannot start the async runtime: {cause}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(serve(request, make));
    runtime.shutdown_timeout(Duration::from_millis(200));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("[ERROR] {cause}");
            ExitCode::FAILURE
        }
    }
}

async fn serve<D: Driver>(request: Request, make: impl FnOnce() -> D) -> io::Result<()> {
    let end = CancellationToken::new();
    signals(&end)?;
    let (config, certificate) = match &request.client_cert {
        Some(pem) => {
            let (config, field) = tls::server(pem).map_err(io::Error::other)?;
            (Some(config), field)
        }
        None => (None, String::new()),
    };
    let tcp = std::env::var(NETWORK_ENV).is_ok_and(|network| network == "tcp");
    let (listener, address) = Listener::bind(&request, tcp).await?;
    let driver = Arc::new(make());
    let (connections, accepting) = accept(listener, config, end.clone());
    {
        // The host reads one line; whoever connects on reading it is served.
        let mut out = io::stdout().lock();
        writeln!(out, "{}", line(&address, &certificate, &request))?;
        out.flush()?;
    }
    let limits = |base| BasePluginServer::new(base).max_decoding_message_size(MAX_MESSAGE);
    let told = Arc::new(Told::new(driver.clone()));
    let service = Service { driver: driver.clone(), told: told.clone(), end: end.clone() };
    let service =
        DriverServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    let server = Server::builder()
        .add_service(limits(base::Base(driver)).max_encoding_message_size(MAX_MESSAGE))
        .add_service(service)
        .add_service(GrpcControllerServer::new(Controller(end.clone())))
        .add_service(GrpcBrokerServer::new(Broker(end.clone())))
        .add_service(GrpcStdioServer::new(Stdio(end.clone())))
        .add_service(HealthServer::new(Pulse(end.clone())))
        .serve_with_incoming_shutdown(connections, end.clone().cancelled_owned());
    let late = async {
        end.cancelled().await;
        tokio::time::sleep(LAST_CALLS).await;
    };
    let done = tokio::select! {
        done = server => done.map_err(io::Error::other),
        // Somebody waits for a task: that goes on in the next process.
        () = late => Ok(()),
    };
    if tokio::time::timeout(LAST_DEEDS, told.end()).await.is_err() {
        tracing::warn!("the driver is not done with its end, and the host waits no longer");
    }
    // With the listener its socket goes, before the process does.
    end.cancel();
    if tokio::time::timeout(LAST_CALLS, accepting).await.is_err() {
        tracing::debug!("the plugin's socket stays");
    }
    done
}

/// SIGINT is for the agent, which shares our terminal, and is ignored; SIGTERM ends the plugin.
fn signals(end: &CancellationToken) -> io::Result<()> {
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let end = end.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = int.recv() => tracing::debug!("an interrupt is left to the agent"),
                _ = term.recv() => end.cancel(),
            }
        }
    });
    Ok(())
}

/// Every connection, with its TLS handshake done, and what takes them until the end. One that takes its time holds up no other.
fn accept(
    listener: Listener,
    config: Option<Arc<ServerConfig>>,
    end: CancellationToken,
) -> (impl futures::Stream<Item = io::Result<Connection>>, JoinHandle<()>) {
    let (ready, coming) = mpsc::channel(16);
    let acceptor = config.map(TlsAcceptor::from);
    let accepting = tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = end.cancelled() => return,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(cause) => {
                    tracing::warn!(%cause, "cannot accept a connection of the host");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let stream = match acceptor {
                    None => stream,
                    Some(acceptor) => match tokio::time::timeout(TLS_PATIENCE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => Connection::new(stream),
                        Ok(Err(cause)) => return tracing::warn!(%cause, "a connection is not the host's"),
                        Err(_) => return tracing::warn!("a connection does not finish its TLS handshake"),
                    },
                };
                drop(ready.send(Ok(stream)).await);
            });
        }
    });
    (futures::stream::unfold(coming, |mut coming| async move { Some((coming.recv().await?, coming)) }), accepting)
}
