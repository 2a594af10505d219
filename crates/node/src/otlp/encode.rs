//! Spans and lines as OTLP messages. Pure. A resource is an app on a shard, or the ingress.

use api::agent::{LogLine, LogStream};
use model::NodeName;
use model::trace::{Attribute, Span, SpanKind};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as WireKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan, Status};

use super::{Item, OtlpConfig};

/// Flags of a span: the lower 8 bits are those of the trace context.
const SAMPLED: u32 = 1;

/// What all messages share.
pub(super) struct Encoder {
    node: String,
    service: String,
    attributes: Vec<KeyValue>,
}

/// What a batch is on the wire.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) traces: ExportTraceServiceRequest,
    pub(super) logs: ExportLogsServiceRequest,
    pub(super) spans: u64,
    pub(super) lines: u64,
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    pair(key, Value::StringValue(value.into()))
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn scope() -> Option<InstrumentationScope> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Some(InstrumentationScope { name: "sidereal".to_owned(), version, ..InstrumentationScope::default() })
}

impl Encoder {
    pub(super) fn new(config: &OtlpConfig, node: &NodeName) -> Self {
        let attributes = config.attributes.iter().map(|(key, value)| text(key, value.as_str())).collect();
        Self { node: node.to_string(), service: config.service.clone(), attributes }
    }

    pub(super) fn batch(&self, items: Vec<Item>) -> Batch {
        let mut batch = Batch::default();
        for item in items {
            match item {
                Item::Ingress { span, .. } => {
                    self.span(&mut batch, self.ingress(), self::span(*span));
                }
                Item::Host { tenant, shard, span, .. } => {
                    let origin = span.origin;
                    let resource = self.app(tenant.as_str(), origin.app.as_str(), shard);
                    let mut span = self::span(span.span);
                    span.attributes.push(text("sidereal.component", origin.component.as_str()));
                    span.attributes.push(pair("sidereal.revision", number(origin.revision.0)));
                    self.span(&mut batch, resource, span);
                }
                Item::Line { tenant, line, .. } => {
                    let resource = self.app(tenant.as_str(), line.app.as_str(), line.shard);
                    batch.lines += 1;
                    let all = &mut batch.logs.resource_logs;
                    let known = all.iter().position(|known| known.resource.as_ref() == Some(&resource));
                    let at = known.unwrap_or(all.len());
                    if known.is_none() {
                        let scope_logs = vec![ScopeLogs { scope: scope(), ..ScopeLogs::default() }];
                        let resource = Some(resource);
                        all.push(ResourceLogs { resource, scope_logs, ..ResourceLogs::default() });
                    }
                    if let Some(scope) = all.get_mut(at).and_then(|known| known.scope_logs.first_mut()) {
                        scope.log_records.push(record(&line));
                    }
                }
            }
        }
        batch
    }

    fn span(&self, batch: &mut Batch, resource: Resource, span: WireSpan) {
        batch.spans += 1;
        let all = &mut batch.traces.resource_spans;
        let known = all.iter().position(|known| known.resource.as_ref() == Some(&resource));
        let at = known.unwrap_or(all.len());
        if known.is_none() {
            let scope_spans = vec![ScopeSpans { scope: scope(), ..ScopeSpans::default() }];
            all.push(ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() });
        }
        if let Some(scope) = all.get_mut(at).and_then(|known| known.scope_spans.first_mut()) {
            scope.spans.push(span);
        }
    }

    fn ingress(&self) -> Resource {
        self.resource(vec![
            text("service.name", self.service.as_str()),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", self.node.as_str()),
        ])
    }

    fn app(&self, tenant: &str, app: &str, shard: u32) -> Resource {
        self.resource(vec![
            text("service.name", app),
            text("service.namespace", tenant),
            text("service.instance.id", format!("{}/{tenant}.{shard}", self.node)),
        ])
    }

    fn resource(&self, mut attributes: Vec<KeyValue>) -> Resource {
        attributes.extend(self.attributes.iter().cloned());
        Resource { attributes, ..Resource::default() }
    }
}

fn number(value: u64) -> Value {
    Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX))
}

fn span(span: Span) -> WireSpan {
    let attributes = span.attributes.into_iter().map(|(key, value)| match value {
        Attribute::Int(value) => pair(&key, Value::IntValue(value)),
        Attribute::Text(value) => text(&key, value),
    });
    let kind = match span.kind {
        SpanKind::Server => WireKind::Server,
        SpanKind::Client => WireKind::Client,
        SpanKind::Consumer => WireKind::Consumer,
    };
    let status = span.error.map(|message| Status { message, code: StatusCode::Error.into() });
    WireSpan {
        trace_id: span.context.trace.to_vec(),
        span_id: span.context.span.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        flags: if span.context.sampled { SAMPLED } else { 0 },
        name: span.name,
        kind: kind.into(),
        start_time_unix_nano: span.start_ns,
        end_time_unix_nano: span.end_ns,
        attributes: attributes.collect(),
        status,
        ..WireSpan::default()
    }
}

fn record(line: &LogLine) -> LogRecord {
    let (severity, name, stream) = match line.stream {
        LogStream::Stdout => (SeverityNumber::Info, "INFO", "stdout"),
        LogStream::Stderr => (SeverityNumber::Info, "INFO", "stderr"),
        LogStream::Trace => (SeverityNumber::Trace, "TRACE", "log"),
        LogStream::Debug => (SeverityNumber::Debug, "DEBUG", "log"),
        LogStream::Info => (SeverityNumber::Info, "INFO", "log"),
        LogStream::Warn => (SeverityNumber::Warn, "WARN", "log"),
        LogStream::Error => (SeverityNumber::Error, "ERROR", "log"),
        LogStream::Critical => (SeverityNumber::Fatal, "FATAL", "log"),
        LogStream::Platform => (SeverityNumber::Warn, "WARN", "platform"),
    };
    let mut attributes = vec![
        text("sidereal.component", line.component.as_str()),
        pair("sidereal.revision", number(line.revision.0)),
        text("log.iostream", stream),
    ];
    if !line.instance.is_empty() {
        attributes.push(text("sidereal.instance", line.instance.as_str()));
    }
    if !line.context.is_empty() {
        attributes.push(text("sidereal.context", line.context.as_str()));
    }
    let time = line.time_ms.saturating_mul(1_000_000);
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        severity_number: severity.into(),
        severity_text: name.to_owned(),
        body: Some(AnyValue { value: Some(Value::StringValue(line.text.clone())) }),
        attributes,
        ..LogRecord::default()
    }
}
