//! The listener for monitoring: `GET /metrics` answers with Prometheus text, without a token and on loopback unless the
//! operator says otherwise. What is told are counts and names of tenants, apps and providers, nothing else; the hosts
//! are asked for it when somebody asks here.

mod facts;
mod families;
mod slots;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use facts::Source;
use slots::Slots;

/// Connections at once: one or two scrapers, and somebody with a browser.
const CONNECTIONS: usize = 16;
/// How long a request's head may take to arrive, and how long a connection may rest.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where monitoring listens.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// The address.
    pub listen: SocketAddr,
    /// Where it is taken, listen on a free port.
    pub fallback: bool,
    /// Files whose size is told, with a name for each.
    pub files: Vec<(&'static str, std::path::PathBuf)>,
}

/// The listener; it ends when this goes away.
#[derive(Debug)]
pub(crate) struct Admin {
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Admin {
    /// Starts listening.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn start(config: &AdminConfig, source: Source) -> io::Result<Self> {
        let listener = match TcpListener::bind(config.listen).await {
            Err(cause) if config.fallback && cause.kind() == io::ErrorKind::AddrInUse => {
                TcpListener::bind(SocketAddr::new(config.listen.ip(), 0)).await?
            }
            other => other?,
        };
        let address = listener.local_addr()?;
        let answering = Arc::new(Answering { source, slots: Mutex::default(), anyone: !address.ip().is_loopback() });
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, answering)));
        Ok(Self { address, _accepting: accepting })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }
}

struct Answering {
    source: Source,
    slots: Mutex<Slots>,
    /// Any `Host` will do: the operator has opened the listener to others.
    anyone: bool,
}

async fn accept(listener: TcpListener, answering: Arc<Answering>) {
    let mut connections = tokio::task::JoinSet::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answering = answering.clone();
                connections.spawn(async move {
                    serve(stream, answering).await;
                    drop(permit);
                });
            }
            Err(cause) => {
                tracing::warn!(%cause, "a connection to the metrics listener could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, answering: Arc<Answering>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answering = answering.clone();
        async move { Ok::<_, Infallible>(answering.answer(&request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10);
    if let Err(cause) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%cause, "a connection to the metrics listener ended early");
    }
}

impl Answering {
    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !self.anyone && !is_local(request.headers().get(HOST)) {
            return text(StatusCode::FORBIDDEN, "ask by address or as localhost\n");
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {
                let facts = self.source.gather().await;
                let families = {
                    let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                    families::families(&facts, &mut slots)
                };
                let mut body = Vec::new();
                match TextEncoder::new().encode(&families, &mut body) {
                    Ok(()) => metrics(body),
                    Err(cause) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{cause}\n")),
                }
            }
            (_, "/metrics") => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
            _ => text(StatusCode::NOT_FOUND, "there is only /metrics here\n"),
        }
    }
}

fn metrics(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
    response
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A page in a browser of this machine can reach loopback under a name of its own (DNS rebinding), but cannot choose
/// what is in `Host`.
fn is_local(host: Option<&HeaderValue>) -> bool {
    let authority = host.and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok());
    authority.is_some_and(|authority| {
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_local() {
        let is = |host: &'static str| is_local(Some(&HeaderValue::from_static(host)));
        for local in ["localhost", "localhost:8089", "127.0.0.1:8089", "[::1]:8089", "127.9.9.9"] {
            assert!(is(local), "{local}");
        }
        for other in ["evil.example", "localhost.evil.example:8089", "192.0.2.1", "", "a b"] {
            assert!(!is(other), "{other}");
        }
        assert!(!is_local(None));
    }
}
