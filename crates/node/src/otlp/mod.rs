//! Spans and log lines to an OpenTelemetry collector (OTLP, HTTP with protobuf), where the operator names one in
//! `OTEL_EXPORTER_OTLP_ENDPOINT`. Whoever has something to tell puts it into a bounded queue and goes on; what does not
//! fit is counted and lost. One task empties the queue.

mod config;
mod encode;
mod send;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use api::agent::{HostSpan, LogLine};
use model::trace::Span;
use model::{NodeName, TenantName};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::{OtlpConfig, OtlpError, Sampler};

/// Spans and lines that wait to be sent.
const QUEUE: usize = 8192;

/// One thing to tell.
#[derive(Debug)]
enum Item {
    /// A span of the ingress.
    Ingress(Span),
    /// A span of a host.
    Host { tenant: Arc<TenantName>, shard: u32, span: Box<HostSpan> },
    /// A line of a component.
    Line { tenant: TenantName, line: Arc<LogLine> },
}

/// What became of what there was to tell.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Spans and lines the collector took.
    pub(crate) taken: AtomicU64,
    /// Lost because the queue was full.
    pub(crate) overflown: AtomicU64,
    /// Lost because the collector refused them, or was not there.
    pub(crate) failed: AtomicU64,
}

/// Takes what is told, for as long as the node runs.
pub struct Exporter {
    queue: mpsc::Sender<Item>,
    sent: Arc<Sent>,
    config: OtlpConfig,
    stop: CancellationToken,
    done: CancellationToken,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration may hold credentials.
        f.debug_struct("Exporter").field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl Exporter {
    /// Starts sending; connects with the first batch.
    pub(crate) fn start(config: OtlpConfig, node: &NodeName) -> Arc<Self> {
        let (queue, items) = mpsc::channel(QUEUE);
        let (sent, stop, done) = (Arc::<Sent>::default(), CancellationToken::new(), CancellationToken::new());
        let encoder = encode::Encoder::new(&config, node);
        let sender = send::Sender::new(config.clone(), encoder, sent.clone());
        let ended = done.clone().drop_guard();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let _ended = ended;
            sender.run(items, stopped).await;
        });
        Arc::new(Self { queue, sent, config, stop, done })
    }

    /// Whether spans are wanted.
    pub(crate) fn traces(&self) -> bool {
        self.config.traces
    }

    /// Whether a trace that begins here is recorded.
    pub(crate) fn samples(&self, trace: &[u8; 16]) -> bool {
        self.config.sampler.samples(trace)
    }

    pub(crate) fn sent(&self) -> &Sent {
        &self.sent
    }

    /// A request has ended at the ingress.
    pub(crate) fn ingress(&self, span: Span) {
        self.put(Item::Ingress(span));
    }

    /// A host told of a span; `dropped` before it were lost on the way.
    pub(crate) fn host(&self, tenant: &Arc<TenantName>, shard: u32, span: HostSpan) {
        self.put(Item::Host { tenant: tenant.clone(), shard, span: Box::new(span) });
    }

    /// Spans were lost before they came here.
    pub(crate) fn lost(&self, spans: u64) {
        self.sent.overflown.fetch_add(spans, Relaxed);
    }

    /// A component wrote a line.
    pub(crate) fn line(&self, tenant: &TenantName, line: &Arc<LogLine>) {
        if self.config.logs {
            self.put(Item::Line { tenant: tenant.clone(), line: line.clone() });
        }
    }

    fn put(&self, item: Item) {
        if self.queue.try_send(item).is_err() {
            self.lost(1);
        }
    }

    /// Sends what waits, for at most so long, and ends.
    pub(crate) async fn shutdown(&self, within: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(within, self.done.cancelled()).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}
