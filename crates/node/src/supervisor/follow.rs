//! What a host says of its calls, read as long as it runs: lines of its components and spans. Whatever it says is read at a
//! bounded rate, in bytes, before anybody looks at it: the threads that read are those of everybody, and a host that was
//! taken over says what costs the most. What is not read waits in the host, and is its own affair.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Problem;
use api::agent::LogLine;
use api::agent_client::HostClient;
use futures::stream::{BoxStream, StreamExt};
use model::escape;
use tokio_util::sync::CancellationToken;

use crate::logs::Logs;
use crate::otlp::Exporter;
use crate::pace::Pace;
use crate::tenant::Tenant;

/// Spans of one host a second; one that tells of more is read no faster.
const SPANS: u64 = 20_000;
/// What they have about, bytes.
const SPAN: u64 = 512;
/// Before a host is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// The host has ended when this is cancelled: what it said last is still to be read, and then there is nothing more.
pub(super) type Gone = CancellationToken;

/// The lines of a host's components, or why there are none yet.
pub(super) type Lines = Result<BoxStream<'static, LogLine>, Problem>;

/// The lines of a host's components from now on. Opened before the host has a call: one that ends at once says something, too.
pub(super) async fn open_lines(client: &HostClient, tenant: &Tenant, logs: &Arc<Logs>) -> Lines {
    let (quota, name) = (logs.clone(), tenant.name.clone());
    client.logs(move |bytes| quota.read(&name, bytes)).await
}

/// Copies the lines of a host's components to the node's log, as long as the host runs. `first` are open already.
pub(super) async fn lines(client: Arc<HostClient>, tenant: Arc<Tenant>, logs: Arc<Logs>, gone: Gone, first: Lines) {
    let mut first = Some(first);
    loop {
        let opened = match first.take() {
            Some(first) => first,
            None => open_lines(&client, &tenant, &logs).await,
        };
        match opened {
            Ok(mut lines) => {
                while let Some(line) = lines.next().await {
                    // Of other apps a host has nothing to say.
                    if tenant.knows(&line.app) {
                        logs.push(&tenant.name, shown(line));
                    }
                }
            }
            Err(cause) => tracing::debug!(tenant = %tenant.name, %cause, "cannot follow a host's log"),
        }
        if gone.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return;
        }
    }
}

/// A host of ours escaped it already, and this changes nothing.
fn shown(line: LogLine) -> LogLine {
    let text = |text: String| if text.chars().any(escape::hidden) { escape::one_line(&text) } else { text };
    LogLine { text: text(line.text), context: text(line.context), instance: text(line.instance), ..line }
}

/// Passes the spans of a host's calls on, as long as the host runs.
pub(super) async fn spans(
    client: Arc<HostClient>,
    tenant: Arc<Tenant>,
    shard: u32,
    exporter: Arc<Exporter>,
    gone: Gone,
) {
    let name = Arc::new(tenant.name.clone());
    let mut pace = Pace::new(SPANS, 2 * SPANS);
    let bytes = Arc::new(Mutex::new(Pace::new(SPANS * SPAN, 2 * SPANS * SPAN)));
    loop {
        let bytes = bytes.clone();
        let read = move |count: usize| bytes.lock().unwrap_or_else(PoisonError::into_inner).take(count as u64);
        match client.spans(exporter.part(), read).await {
            Ok(mut batches) => {
                while let Some(batch) = batches.next().await {
                    let count = batch.spans.len() as u64;
                    // One that tells of nothing is read as well.
                    if let Some(wait) = pace.take(count.max(1)) {
                        exporter.lost(count);
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                    exporter.lost(batch.dropped);
                    for span in batch.spans {
                        // Of other apps a host has nothing to say.
                        if tenant.knows(&span.origin.app) {
                            exporter.host(&name, shard, span);
                        }
                    }
                }
            }
            Err(cause) => tracing::debug!(tenant = %tenant.name, %cause, "cannot follow a host's spans"),
        }
        if gone.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use model::tenant::Quotas;
    use model::unit::ByteSize;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use api::node::LogQuery;
    use model::LockedApp;
    use model::Revision;

    use super::*;
    use crate::tenant::Prepared;

    /// A host that answers everything with `piece` over and over, and counts how much of it was taken.
    fn flooding(dir: &std::path::Path, piece: Vec<u8>) -> (Arc<HostClient>, Arc<AtomicUsize>) {
        let (socket, taken) = (dir.join("agent"), Arc::new(AtomicUsize::new(0)));
        let (listener, counted) = (UnixListener::bind(&socket).unwrap(), taken.clone());
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _asked = stream.read(&mut [0; 4096]).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
                while stream.write_all(&chunk).await.is_ok() {
                    counted.fetch_add(chunk.len(), Relaxed);
                }
            }
        });
        (Arc::new(HostClient::new(socket)), taken)
    }

    fn line_of(app: &str) -> String {
        let line = serde_json::json!({"time_ms": 0, "app": app, "component": "c", "revision": 1, "shard": 0,
            "instance": "", "stream": "stdout", "context": "", "text": "x"});
        format!("{line}\n")
    }

    /// What buffers of sockets and of HTTP hold on the way, bytes, and more.
    const ON_THE_WAY: usize = 2 << 20;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_host_says_is_paid_for_also_where_it_is_of_no_use() {
        let unknown = line_of("unknown");
        assert!(serde_json::from_str::<LogLine>(&unknown).is_ok(), "it is read");
        for piece in [unknown.repeat(1000), "no line\n".repeat(1000), "\n".repeat(100_000), "x".repeat(100_000)] {
            let (dir, tenant) = (tempfile::tempdir().unwrap(), Tenant::new("t".parse().unwrap()));
            let logs = Arc::new(Logs::default());
            logs.limit(&tenant.name, &Quotas { log_rate: ByteSize::kib(10), ..Quotas::default() });
            let (client, taken) = flooding(dir.path(), piece.clone().into_bytes());
            let following = async {
                let first = open_lines(&client, &tenant, &logs).await;
                lines(client.clone(), tenant, logs, Gone::new(), first).await;
            };
            assert!(tokio::time::timeout(Duration::from_secs(1), following).await.is_err());
            let taken = taken.load(Relaxed);
            assert!(taken < ON_THE_WAY, "{taken} bytes of {:?}", &piece[..8]);
        }
    }

    /// Why a host or a program ended is in its last lines: they are read when it is gone already.
    #[tokio::test]
    async fn what_a_host_said_last_is_read_after_its_end() {
        const LINES: usize = 500;
        let (dir, tenant) = (tempfile::tempdir().unwrap(), Tenant::new("t".parse().unwrap()));
        let logs = Arc::new(Logs::default());
        let socket = dir.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        let gone = Gone::new();
        let (client, known, into, end) = (HostClient::new(socket), tenant.clone(), logs.clone(), gone.clone());
        let following = tokio::spawn(async move {
            let first = open_lines(&client, &known, &into).await;
            lines(Arc::new(client), known, into, end, first).await;
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let _asked = stream.read(&mut [0; 4096]).await.unwrap();
        let body = line_of("a").repeat(LINES);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        let app: LockedApp = serde_json::from_str(r#"{"name":"a","components":{}}"#).unwrap();
        tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
        // It is gone before anybody has read a line.
        gone.cancel();
        drop(listener);
        stream.write_all(body.as_bytes()).await.unwrap();
        drop(stream);
        tokio::time::timeout(Duration::from_secs(60), following).await.unwrap().unwrap();
        let query = LogQuery { last: 2 * LINES, ..LogQuery::default() };
        let seen = logs.query(&tenant.name, &"a".parse().unwrap(), query);
        assert_eq!(seen.count().await, LINES);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn spans_are_paid_for_also_where_there_are_none() {
        let var = |name| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://127.0.0.1:9".to_owned());
        let exporter = Exporter::start(crate::otlp::OtlpConfig::read(var).unwrap().unwrap(), &"n".parse().unwrap());
        let (dir, tenant) = (tempfile::tempdir().unwrap(), Tenant::new("t".parse().unwrap()));
        let empty = b"{\"spans\":[],\"dropped\":0}\n";
        let (client, taken) = flooding(dir.path(), empty.repeat(1000));
        let following = spans(client, tenant, 0, exporter, Gone::new());
        assert!(tokio::time::timeout(Duration::from_secs(1), following).await.is_err());
        // Two seconds' worth at once, and that of the second.
        let (taken, most) = (taken.load(Relaxed), 3 * SPANS as usize * empty.len() + ON_THE_WAY);
        assert!(taken < most, "{taken} bytes");
    }
}
