//! A fake OpenTelemetry collector: takes OTLP over HTTP, decodes it with the published messages, and is strict where a
//! real one is lenient. What is wrong is kept and answered with 400.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use crate::platform::until;

/// A span with the attributes of its resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// 32 hex digits.
    pub trace: String,
    /// 16 hex digits.
    pub id: String,
    /// 16 hex digits; empty for a root.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// `SPAN_KIND_…`.
    pub kind: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// Of the span and, with `resource.` before them, of its resource.
    pub attributes: HashMap<String, String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A log record with the attributes of its resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The line.
    pub body: String,
    /// `INFO`, …
    pub severity: String,
    /// Of the record and, with `resource.` before them, of its resource.
    pub attributes: HashMap<String, String>,
}

#[derive(Default)]
struct Seen {
    spans: Vec<Span>,
    records: Vec<Record>,
    faults: Vec<String>,
    /// Header fields of the last request.
    headers: HashMap<String, String>,
    /// Answers of this status before anything is taken.
    refuse: Vec<u16>,
}

/// A running collector; it ends with the process.
pub struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, seen) = (listener.local_addr()?, Arc::<Mutex<Seen>>::default());
        let shared = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = shared.clone();
                std::thread::spawn(move || while serve(&stream, &seen).is_ok() {});
            }
        });
        Ok(Self { address, seen })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the next requests with these statuses and takes nothing of them.
    pub fn refuse(&self, statuses: &[u16]) {
        self.seen().refuse = statuses.to_vec();
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        self.seen().spans.clone()
    }

    /// Every log record so far.
    pub fn records(&self) -> Vec<Record> {
        self.seen().records.clone()
    }

    /// A header field of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        self.seen().headers.get(name).cloned()
    }

    /// Everything that was wrong.
    pub fn faults(&self) -> Vec<String> {
        self.seen().faults.clone()
    }

    /// Waits until the spans are as wanted; all of them.
    ///
    /// # Errors
    /// With what there was instead.
    pub fn wait(&self, wanted: impl Fn(&[Span]) -> bool) -> anyhow::Result<Vec<Span>> {
        let found = until(Duration::from_secs(20), || wanted(&self.spans()));
        found.with_context(|| format!("spans: {:#?}, faults: {:?}", self.spans(), self.faults()))?;
        Ok(self.spans())
    }
}

/// One request on a connection.
fn serve(stream: &TcpStream, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    ensure!(reader.read_line(&mut line)? > 0, "the client has left");
    let mut headers = HashMap::new();
    loop {
        let mut field = String::new();
        reader.read_line(&mut field)?;
        match field.trim_end().split_once(": ") {
            Some((name, value)) => drop(headers.insert(name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let length: usize = headers.get("content-length").context("no length")?.parse()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let status = if seen.refuse.is_empty() {
        match take(line.trim_end(), &headers, &body, &mut seen) {
            Ok(()) => 200,
            Err(fault) => {
                seen.faults.push(format!("{fault:#}"));
                400
            }
        }
    } else {
        seen.refuse.remove(0)
    };
    seen.headers = headers;
    drop(seen);
    // An empty message: everything was taken.
    let answer = format!("HTTP/1.1 {status} -\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n");
    (&mut &*stream).write_all(answer.as_bytes())?;
    Ok(())
}

fn take(line: &str, headers: &HashMap<String, String>, body: &[u8], seen: &mut Seen) -> anyhow::Result<()> {
    let kind = headers.get("content-type").map(String::as_str);
    ensure!(kind == Some("application/x-protobuf"), "content type {kind:?}");
    match line {
        "POST /v1/traces HTTP/1.1" => traces(body, seen),
        "POST /v1/logs HTTP/1.1" => logs(body, seen),
        other => bail!("request line `{other}`"),
    }
}

fn traces(body: &[u8], seen: &mut Seen) -> anyhow::Result<()> {
    let request = ExportTraceServiceRequest::decode(body)?;
    ensure!(!request.resource_spans.is_empty(), "no resource spans");
    for resource_spans in request.resource_spans {
        let shared = resource(resource_spans.resource.as_ref())?;
        for scope in resource_spans.scope_spans {
            ensure!(scope.scope.is_some_and(|scope| scope.name == "sidereal"), "no scope");
            ensure!(!scope.spans.is_empty(), "no spans in a scope");
            for span in scope.spans {
                let what = format!("span `{}`", span.name);
                ensure!(!span.name.is_empty(), "a span without a name");
                ensure!(span.start_time_unix_nano > 1_500_000_000_000_000_000, "{what}: start");
                ensure!(span.end_time_unix_nano >= span.start_time_unix_nano, "{what}: ends before it begins");
                ensure!(span.flags & 1 == 1, "{what}: recorded and not sampled");
                let kind = span.kind().as_str_name().to_owned();
                let kinds = ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_CONSUMER"];
                ensure!(kinds.contains(&kind.as_str()), "{what}: kind {kind}");
                let (trace, id) = (hex(&span.trace_id, 16)?, hex(&span.span_id, 8)?);
                let parent = if span.parent_span_id.is_empty() { String::new() } else { hex(&span.parent_span_id, 8)? };
                ensure!(parent != id, "{what}: its own parent");
                ensure!(!seen.spans.iter().any(|s| (&s.trace, &s.id) == (&trace, &id)), "{what}: its id comes twice");
                let mut attributes = shared.clone();
                attributes.extend(own(&span.attributes, "")?);
                seen.spans.push(Span {
                    trace,
                    id,
                    parent,
                    name: span.name,
                    kind,
                    start: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                    attributes,
                    error: span.status.map(|status| status.message),
                });
            }
        }
    }
    Ok(())
}

fn logs(body: &[u8], seen: &mut Seen) -> anyhow::Result<()> {
    let request = ExportLogsServiceRequest::decode(body)?;
    ensure!(!request.resource_logs.is_empty(), "no resource logs");
    for resource_logs in request.resource_logs {
        let shared = resource(resource_logs.resource.as_ref())?;
        for record in resource_logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            ensure!(record.time_unix_nano > 1_500_000_000_000_000_000, "a record without time");
            ensure!(record.severity_number > 0 && !record.severity_text.is_empty(), "a record without severity");
            let Some(Value::StringValue(body)) = record.body.and_then(|body| body.value) else {
                bail!("a record without text")
            };
            let mut attributes = shared.clone();
            attributes.extend(own(&record.attributes, "")?);
            seen.records.push(Record { body, severity: record.severity_text, attributes });
        }
    }
    Ok(())
}

fn resource(resource: Option<&Resource>) -> anyhow::Result<HashMap<String, String>> {
    let attributes = own(&resource.context("no resource")?.attributes, "resource.")?;
    for name in ["service.name", "service.instance.id"] {
        let value = attributes.get(&format!("resource.{name}"));
        ensure!(value.is_some_and(|value| !value.is_empty()), "a resource without {name}");
    }
    Ok(attributes)
}

fn own(pairs: &[KeyValue], prefix: &str) -> anyhow::Result<HashMap<String, String>> {
    let (mut all, mut names) = (HashMap::new(), HashSet::new());
    for pair in pairs {
        ensure!(names.insert(&pair.key), "attribute {} comes twice", pair.key);
        let value = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            other => bail!("attribute {} is {other:?}", pair.key),
        };
        all.insert(format!("{prefix}{}", pair.key), value);
    }
    Ok(all)
}

fn hex(id: &[u8], length: usize) -> anyhow::Result<String> {
    ensure!(id.len() == length, "an id of {} bytes", id.len());
    ensure!(id.iter().any(|byte| *byte != 0), "an id of zeros");
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}
