//! Spans and log lines to an OpenTelemetry collector (OTLP, HTTP with protobuf), where the operator names one in
//! `OTEL_EXPORTER_OTLP_ENDPOINT`. Whoever has something to tell puts it into a bounded queue and goes on; what does not
//! fit is counted and lost. One task empties the queue.

mod config;
mod encode;
mod send;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::agent::{HostSpan, LogLine};
use model::trace::Span;
use model::{NodeName, TenantName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

pub use config::{OtlpConfig, OtlpError, Sampler};

/// Spans and lines that wait to be sent.
const QUEUE: usize = 8192;
/// Those of one tenant among them.
const OF_TENANT: usize = QUEUE / 8;

/// A place in the queue among those of its tenant.
type Place = OwnedSemaphorePermit;

/// One thing to tell.
#[derive(Debug)]
enum Item {
    /// A span of the ingress.
    Ingress { span: Box<Span>, _place: Place },
    /// A span of a host.
    Host { tenant: Arc<TenantName>, shard: u32, span: Box<HostSpan>, _place: Place },
    /// A line of a component.
    Line { tenant: TenantName, line: Arc<LogLine>, _place: Place },
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
    places: Mutex<HashMap<TenantName, Arc<Semaphore>>>,
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
        Arc::new(Self { queue, places: Mutex::default(), sent, config, stop, done })
    }

    /// Whether spans are wanted.
    pub(crate) fn traces(&self) -> bool {
        self.config.traces
    }

    /// The part of the traces that begin here which is recorded, 0 to 1.
    pub(crate) fn part(&self) -> f64 {
        self.config.sampler.part()
    }

    pub(crate) fn sent(&self) -> &Sent {
        &self.sent
    }

    /// A request to an app of the tenant has ended at the ingress. Whoever sends it may say that it is recorded.
    pub(crate) fn ingress(&self, tenant: &TenantName, span: Span) {
        let Some(place) = self.place(tenant) else { return self.lost(1) };
        self.put(Item::Ingress { span: Box::new(span), _place: place });
    }

    /// A host told of a span; `dropped` before it were lost on the way.
    pub(crate) fn host(&self, tenant: &Arc<TenantName>, shard: u32, span: HostSpan) {
        let Some(place) = self.place(tenant) else { return self.lost(1) };
        self.put(Item::Host { tenant: tenant.clone(), shard, span: Box::new(span), _place: place });
    }

    /// Spans were lost before they came here.
    pub(crate) fn lost(&self, spans: u64) {
        self.sent.overflown.fetch_add(spans, Relaxed);
    }

    /// A component wrote a line.
    pub(crate) fn line(&self, tenant: &TenantName, line: &Arc<LogLine>) {
        if self.config.logs {
            let Some(place) = self.place(tenant) else { return self.lost(1) };
            self.put(Item::Line { tenant: tenant.clone(), line: line.clone(), _place: place });
        }
    }

    /// A tenant that tells of much loses some of its own, and leaves room for what others tell.
    fn place(&self, tenant: &TenantName) -> Option<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = match places.get(tenant) {
            Some(known) => known.clone(),
            None => {
                // One that has nothing in the queue is as a new one.
                places.retain(|_, of_tenant| of_tenant.available_permits() < OF_TENANT);
                places.entry(tenant.clone()).or_insert_with(|| Arc::new(Semaphore::new(OF_TENANT))).clone()
            }
        };
        of_tenant.try_acquire_owned().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_one_tenant_tells_leaves_places_for_what_others_tell() {
        let var = |name| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://127.0.0.1:9".to_owned());
        let config = OtlpConfig::read(var).unwrap().unwrap();
        let exporter = Exporter::start(config, &"n".parse().unwrap());
        let (loud, other): (TenantName, TenantName) = ("loud".parse().unwrap(), "other".parse().unwrap());
        let held: Vec<_> = std::iter::from_fn(|| exporter.place(&loud)).collect();
        assert_eq!(held.len(), OF_TENANT);
        assert!(exporter.place(&other).is_some());
        // Whatever it is that is told: whoever sends requests to its apps tells as well.
        let span = Span {
            context: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap(),
            parent: None,
            name: "GET /".to_owned(),
            kind: model::trace::SpanKind::Server,
            start_ns: 0,
            end_ns: 0,
            attributes: Vec::new(),
            error: None,
        };
        let lost = || exporter.sent().overflown.load(Relaxed);
        exporter.ingress(&other, span.clone());
        assert_eq!(lost(), 0);
        exporter.ingress(&loud, span);
        assert_eq!(lost(), 1);
        drop(held);
        assert!(exporter.place(&loud).is_some());
    }
}
