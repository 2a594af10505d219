//! What an ingress is started with: where it listens and what a client may do before it is shown the door.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::otlp::Exporter;

/// Settings of an [`Ingress`](super::Ingress). [`IngressConfig::new`] has the defaults of `docs/limits.md`.
#[derive(Debug, Clone)]
pub struct IngressConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads, each with its own listener, event loop and connections to hosts. 0 stands for one per core.
    pub workers: usize,
    /// Client connections at once; one more is closed unread.
    pub connections: usize,
    /// Client connections of one address (IPv6: one /64) at once. Loopback is exempt: a proxy in front is one address.
    pub connections_per_ip: usize,
    /// What heads that have come in part may take of all connections together, beyond 16 KiB of each, bytes.
    pub heads: usize,
    /// From the first byte of a request to the end of its head.
    pub header_timeout: Duration,
    /// Longest silence of a client that owes us body bytes, or does not take ours.
    pub body_timeout: Duration,
    /// How long a connection may stay open between requests.
    pub keep_alive: Duration,
    /// Longest life of one request, whatever happens in it. Above every wall-time limit a component can have.
    pub request_timeout: Duration,
    /// How long a request waits for one of its shards to come back before it is refused with 503.
    pub shard_wait: Duration,
    /// Requests that may wait so at once, for each set of shards.
    pub shard_waiters: usize,
    /// An unused connection to a host is closed after this.
    pub upstream_idle: Duration,
    /// Streams at once on one HTTP/2 connection.
    pub h2_streams: u32,
    /// Takes the spans of requests; none are made where absent.
    pub exporter: Option<Arc<Exporter>>,
    /// Takes what people should know of connections that were refused, beside the log; what it has no room for is left out.
    pub remarks: Option<mpsc::Sender<String>>,
}

impl IngressConfig {
    /// The defaults, listening there.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            workers: 0,
            connections: 10_000,
            connections_per_ip: 512,
            heads: 64 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(60),
            request_timeout: Duration::from_secs(16 * 60),
            shard_wait: Duration::from_millis(1500),
            shard_waiters: 1024,
            upstream_idle: Duration::from_secs(30),
            h2_streams: 100,
            exporter: None,
            remarks: None,
        }
    }
}
