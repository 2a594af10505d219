//! Empties the queue: batches by size or time, one request at a time, tried again where that may help.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::encode::Encoder;
use super::{Item, OtlpConfig, Sent};

/// What one request carries at most.
const BATCH: usize = 512;
/// How long something waits for company.
const LINGER: Duration = Duration::from_millis(500);
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How often one batch is sent.
const TRIES: u32 = 4;
/// The largest answer that is read, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The task's state.
pub(super) struct Sender {
    config: OtlpConfig,
    encoder: Encoder,
    sent: Arc<Sent>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// The collector did not take the last batch: said once.
    failing: bool,
}

/// Why a batch was not taken.
struct NotTaken {
    why: String,
    again: bool,
}

impl Sender {
    pub(super) fn new(config: OtlpConfig, encoder: Encoder, sent: Arc<Sent>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(ANSWER));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self { config, encoder, sent, client, failing: false }
    }

    /// Sends until told to stop, then what is left.
    pub(super) async fn run(mut self, mut items: mpsc::Receiver<Item>, stop: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                count = items.recv_many(&mut batch, BATCH) => if count == 0 { return },
                () = stop.cancelled() => return,
            }
            let full = async { while batch.len() < BATCH && items.recv_many(&mut batch, BATCH).await > 0 {} };
            tokio::select! {
                () = full => {}
                () = tokio::time::sleep(LINGER) => {}
                () = stop.cancelled() => {}
            }
            self.send(batch, &stop).await;
        }
    }

    async fn send(&mut self, items: Vec<Item>, stop: &CancellationToken) {
        let batch = self.encoder.batch(items);
        if batch.spans > 0 {
            let body = batch.traces.encode_to_vec().into();
            let refused = |answer: Bytes| {
                let answer = ExportTraceServiceResponse::decode(answer).ok()?.partial_success?;
                Some((answer.rejected_spans, answer.error_message))
            };
            self.deliver("traces", body, batch.spans, refused, stop).await;
        }
        if batch.lines > 0 {
            let body = batch.logs.encode_to_vec().into();
            let refused = |answer: Bytes| {
                let answer = ExportLogsServiceResponse::decode(answer).ok()?.partial_success?;
                Some((answer.rejected_log_records, answer.error_message))
            };
            self.deliver("logs", body, batch.lines, refused, stop).await;
        }
    }

    /// Sends one message of `count` spans or lines until it is taken, given up, or there is no time left.
    async fn deliver(
        &mut self,
        signal: &str,
        body: Bytes,
        count: u64,
        refused: impl Fn(Bytes) -> Option<(i64, String)>,
        stop: &CancellationToken,
    ) {
        let url = self.config.url(signal);
        let mut tries = 1;
        let outcome = loop {
            match self.post(&url, body.clone()).await {
                Err(NotTaken { again: true, .. }) if tries < TRIES && !stop.is_cancelled() => {
                    // Half a second, one, two, each up to half as long again.
                    let pause = Duration::from_millis(250 << tries).mul_f64(rand::random_range(1.0..1.5));
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stop.cancelled() => {}
                    }
                    tries += 1;
                }
                other => break other,
            }
        };
        match outcome {
            Ok(answer) => {
                let (lost, why) = refused(answer).unwrap_or_default();
                let lost = u64::try_from(lost).unwrap_or(0).min(count);
                if lost > 0 {
                    tracing::warn!(signal, lost, why, "the collector refused a part of what it was sent");
                }
                self.sent.failed.fetch_add(lost, Relaxed);
                self.sent.taken.fetch_add(count - lost, Relaxed);
                self.failing = false;
            }
            Err(NotTaken { why, .. }) => {
                self.sent.failed.fetch_add(count, Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        signal,
                        lost = count,
                        why,
                        "the collector does not take spans and lines; they are lost until it does"
                    );
                }
            }
        }
    }

    async fn post(&self, url: &Uri, body: Bytes) -> Result<Bytes, NotTaken> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.clone();
        request.headers_mut().extend(self.config.headers.iter().cloned());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let exchange = async {
            let response = self.client.request(request).await.map_err(|cause| cause.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok::<_, String>((status, body.map_err(|cause| cause.to_string())?.to_bytes()))
        };
        let answered = tokio::time::timeout(ANSWER, exchange).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {ANSWER:?}")));
        match answered {
            Err(why) => Err(NotTaken { why, again: true }),
            Ok((status, body)) if status.is_success() => Ok(body),
            Ok((status, _)) => {
                let again = matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS
                        | StatusCode::BAD_GATEWAY
                        | StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::GATEWAY_TIMEOUT
                );
                Err(NotTaken { why: format!("it answered {status}"), again })
            }
        }
    }
}
