//! The connections of the API: accepted, served, and ended. HTTP/1.1 with a limit on how long a request's head may take,
//! which is also how long an idle connection is kept.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The longest time in which a request's head arrives.
const HEAD: Duration = Duration::from_secs(10);
/// The pause after the system had no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(200);

/// Who is on the other side of the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Serves until `stop`, then until the requests under way are answered. Dropping it ends all connections.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => drop(open.spawn(connection(stream, peer, router.clone(), stop.clone()))),
            // The other side was gone before we came to it.
            Err(cause) if matches!(cause.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(cause) => {
                tracing::warn!(%cause, "the API cannot accept a connection");
                tokio::time::sleep(NO_ROOM).await;
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    let router = router.layer(Extension(Peer(peer)));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut served = pin!(server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let done = tokio::select! {
        done = served.as_mut() => done,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(cause) = done {
        tracing::debug!(%cause, "a connection to the API ended early");
    }
}
