//! One request, one trace: ingress, component, link and outgoing request, told to a collector; and nothing told where
//! nobody asked for it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use sidereal_tests::collector::{Collector, Span};
use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, until, write_app};

pub(crate) const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub(crate) const CALLER: &str = "00f067aa0ba902b7";

pub(crate) fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

pub(crate) fn start(dir: &std::path::Path, collector: &Collector, more: &[(&str, &str)]) -> Platform {
    let endpoint = collector.endpoint();
    let env = [&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())], more].concat();
    // One host: spans that come of one request tell that those of the next one will.
    Platform::start_with(dir, &["--allow-egress", "127.0.0.0/8", "--shards", "1"], &env).unwrap()
}

pub(crate) fn deploy(platform: &Platform, name: &str, guest: &str, rest: &str) {
    let app = tempfile::tempdir().unwrap();
    write_app(app.path(), name, guest, rest).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
}

pub(crate) fn ask(platform: &Platform, host: &str, path: &str, traceparent: Option<&str>) -> u16 {
    let mut connection = Connection::open(platform.ingress).unwrap();
    let fields: Vec<(&str, &str)> = traceparent.map(|value| ("traceparent", value)).into_iter().collect();
    connection.ask("GET", host, path, &fields, &[]).unwrap().status
}

pub(crate) fn one(spans: &[Span], wanted: impl Fn(&Span) -> bool) -> &Span {
    let found: Vec<_> = spans.iter().filter(|span| wanted(span)).collect();
    assert_eq!(found.len(), 1, "{spans:#?}");
    found[0]
}

fn resource(span: &Span, name: &str) -> String {
    span.attributes.get(&format!("resource.{name}")).cloned().unwrap_or_default()
}

/// Answers one request with an empty 200; tells the `traceparent` of each.
fn upstream() -> (SocketAddr, mpsc::Receiver<Option<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (tell, told)) = (listener.local_addr().unwrap(), mpsc::channel());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let fields: Vec<String> = lines.collect();
            let found = fields.iter().find_map(|field| field.strip_prefix("traceparent: ").map(str::to_owned));
            (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            if tell.send(found).is_err() {
                return;
            }
        }
    });
    (address, told)
}

#[test]
fn a_request_is_one_trace_from_the_ingress_to_the_provider() {
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut platform = start(
        dir.path(),
        &collector,
        &[
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=sidereal"),
        ],
    );
    deploy(&platform, "counter", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"");
    // The node follows a host's spans from a moment after the host is ready; until then only the ingress tells.
    let seen = |spans: &[Span]| spans.iter().any(|span| span.attributes.contains_key("sidereal.contract"));
    until(Duration::from_secs(20), || {
        assert_eq!(ask(&platform, "counter.localhost", "/", None), 200);
        seen(&collector.spans())
    })
    .unwrap();

    assert_eq!(ask(&platform, "counter.localhost", "/?secret=1", Some(&traceparent("01"))), 200);
    let ours = |spans: &[Span]| spans.iter().filter(|span| span.trace == TRACE).cloned().collect::<Vec<_>>();
    let spans =
        collector.wait(|spans| ours(spans).len() >= 3 && ours(spans).iter().any(|s| s.parent == CALLER)).unwrap();
    let spans = ours(&spans);
    let ingress = one(&spans, |span| span.parent == CALLER);
    assert_eq!((ingress.name.as_str(), ingress.kind.as_str()), ("GET /", "SPAN_KIND_SERVER"));
    assert_eq!(resource(ingress, "service.name"), "sidereal");
    assert_eq!(resource(ingress, "deployment.environment.name"), "test");
    for (name, value) in [
        ("http.response.status_code", "200"),
        ("http.request.method", "GET"),
        ("url.path", "/"),
        ("server.address", "counter.localhost"),
        ("sidereal.tenant", "local"),
        ("sidereal.app", "counter"),
    ] {
        assert_eq!(ingress.attributes.get(name).map(String::as_str), Some(value), "{name}");
    }
    let component = one(&spans, |span| span.parent == ingress.id);
    assert_eq!((component.name.as_str(), component.kind.as_str()), ("counter/main", "SPAN_KIND_SERVER"));
    assert_eq!(
        (resource(component, "service.name"), resource(component, "service.namespace")),
        ("counter".into(), "local".into())
    );
    assert!(resource(component, "service.instance.id").starts_with("local/local."));
    assert_eq!(component.attributes.get("sidereal.revision").map(String::as_str), Some("1"));
    let links: Vec<_> = spans.iter().filter(|span| span.parent == component.id).collect();
    assert_eq!(links.len(), spans.len() - 2, "{spans:#?}");
    for link in links {
        assert!(link.name.starts_with("wasi:keyvalue ") && link.kind == "SPAN_KIND_CLIENT", "{link:?}");
        let attribute = |name: &str| link.attributes.get(name).map(String::as_str);
        assert_eq!(attribute("sidereal.provider"), Some("embedded"));
        assert_eq!(attribute("sidereal.provider.type"), Some("keyvalue-embedded"));
        assert_eq!(
            (attribute("sidereal.contract"), attribute("sidereal.label")),
            (Some("wasi:keyvalue"), Some("default"))
        );
        assert!(link.start >= component.start && link.end <= component.end, "{link:?} {component:?}");
        assert_eq!(link.error, None);
    }
    assert!(spans.iter().all(|span| !format!("{span:?}").contains("secret")));
    assert_eq!(collector.header("x-scope").as_deref(), Some("sidereal"));
    // Every span's parent is another one's, or the caller's.
    let all = collector.spans();
    let orphan = all.iter().find(|s| {
        !s.parent.is_empty() && s.parent != CALLER && !all.iter().any(|p| (&p.trace, &p.id) == (&s.trace, &s.parent))
    });
    assert_eq!(orphan, None);

    // What the caller does not want recorded is not, and goes on; the span after it is the last to come.
    assert_eq!(ask(&platform, "counter.localhost", "/", Some(&traceparent("00").replace("4bf9", "aaaa"))), 200);
    assert_eq!(ask(&platform, "counter.localhost", "/", Some(&traceparent("01").replace("4bf9", "bbbb"))), 200);
    let after = collector.wait(|spans| spans.iter().filter(|s| s.trace.starts_with("bbbb")).count() >= 3).unwrap();
    assert!(!after.iter().any(|span| span.trace.starts_with("aaaa")));
    // A stop sends what waits.
    assert_eq!(ask(&platform, "counter.localhost", "/", Some(&traceparent("01").replace("4bf9", "cccc"))), 200);
    platform.stop(Duration::from_secs(20)).unwrap();
    assert!(collector.spans().iter().any(|span| span.trace.starts_with("cccc") && span.parent == CALLER));
    assert_eq!(collector.faults(), [""; 0]);
}

/// What goes over a link of each contract is a span below its component's, with the function it called.
#[test]
fn a_call_over_a_link_of_any_contract_is_in_the_trace() {
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[]);
    platform.secret("api-key", "value").unwrap();
    let link = |contract: &str, more: &str| format!("[components.main.links]\n\"{contract}\" = {more}\n");
    let kv = "\"wasi:keyvalue\" = \"memory\"\n";
    let cases = [
        ("counter", "kv-counter", link("wasi:keyvalue", "\"memory\""), "/", "wasi:keyvalue increment"),
        ("blobs", "blob-probe", link("wasi:blobstore", "\"folder\""), "/exists/a", "wasi:blobstore container-info"),
        (
            "sender",
            "messages",
            link("wasmcloud:messaging", "\"local\"") + kv,
            "/publish?subject=orders.new&body=hat",
            "wasmcloud:messaging publish",
        ),
        (
            "asker",
            "messages",
            link("wasmcloud:messaging", "{ provider = \"local\", subscriptions = \"prices\" }") + kv,
            "/ask?subject=prices&body=hat",
            "wasmcloud:messaging request",
        ),
        (
            "keys",
            "secret-probe",
            link("wasmcloud:secrets", "[{ provider = \"secrets\", label = \"api-key\" }]") + kv,
            "/get/api-key",
            "wasmcloud:secrets get",
        ),
        ("tables", "sql-probe", link("sidereal:sql", "\"sqlite\""), "/query/-?sql=SELECT%201", "sidereal:sql query"),
    ];
    for (n, (name, guest, rest, path, wanted)) in cases.into_iter().enumerate() {
        deploy(&platform, name, guest, &rest);
        let host = format!("{name}.localhost");
        let trace = TRACE.replace("4bf9", &format!("e00{n}"));
        // The node follows a host's spans from a moment after the host is ready.
        let link_of = |spans: &[Span]| {
            spans
                .iter()
                .find(|span| span.trace == trace && span.name == wanted && span.kind == "SPAN_KIND_CLIENT")
                .cloned()
        };
        // Those above it come later.
        let above = |spans: &[Span], below: &Span| {
            spans.iter().find(|span| span.trace == trace && span.id == below.parent).cloned()
        };
        until(Duration::from_secs(20), || {
            assert_eq!(
                ask(&platform, &host, path, Some(&traceparent("01").replace("4bf9", &format!("e00{n}")))),
                200,
                "{name}"
            );
            std::thread::sleep(Duration::from_millis(100));
            let spans = collector.spans();
            link_of(&spans).and_then(|link| above(&spans, &link)).is_some_and(|one| above(&spans, &one).is_some())
        })
        .unwrap_or_else(|_| panic!("{name}: no span `{wanted}`"));
        let spans = collector.spans();
        let link = link_of(&spans).unwrap();
        let component = one(&spans, |span| span.trace == trace && span.id == link.parent);
        assert_eq!(component.name, format!("{name}/main"));
        let ingress = one(&spans, |span| span.trace == trace && span.id == component.parent);
        assert_eq!((ingress.kind.as_str(), ingress.parent.as_str()), ("SPAN_KIND_SERVER", CALLER));
        assert!(link.attributes.contains_key("sidereal.provider") && link.error.is_none(), "{link:?}");
    }
    assert_eq!(collector.faults(), [""; 0]);
}

#[test]
fn outgoing_requests_carry_the_trace_and_failures_are_told() {
    let collector = Collector::start().unwrap();
    let (address, told) = upstream();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[("OTEL_TRACES_SAMPLER", "parentbased_always_off")]);
    deploy(&platform, "probe", "probe", &format!("allow-hosts = [\"http://{address}\"]"));
    let fetch = format!("/fetch?url=http://{address}/path");
    // Nobody decided, and the sampler says no: not recorded, but the same trace everywhere.
    let mut unsampled = String::new();
    until(Duration::from_secs(20), || {
        assert_eq!(ask(&platform, "probe.localhost", &fetch, None), 200);
        unsampled = told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_or_default();
        !unsampled.is_empty()
    })
    .unwrap();
    assert!(unsampled.ends_with("-00"), "{unsampled}");
    assert_eq!(ask(&platform, "probe.localhost", &fetch, Some(&traceparent("01"))), 200);
    let sent = told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
    let spans = collector.wait(|spans| spans.len() >= 3).unwrap();
    let outgoing = one(&spans, |span| span.kind == "SPAN_KIND_CLIENT");
    assert_eq!(sent, format!("00-{TRACE}-{}-01", outgoing.id));
    let component = one(&spans, |span| span.id == outgoing.parent);
    assert_eq!((component.name.as_str(), outgoing.name.as_str()), ("probe/main", "GET"));
    assert_eq!(outgoing.attributes.get("http.response.status_code").map(String::as_str), Some("200"));
    assert_eq!(outgoing.attributes.get("server.port"), Some(&address.port().to_string()));

    // A call that traps is a failure of its component and of the request.
    assert_eq!(ask(&platform, "probe.localhost", "/trap", Some(&traceparent("01").replace("4bf9", "dddd"))), 500);
    let spans = collector.wait(|spans| spans.iter().filter(|s| s.trace.starts_with("dddd")).count() == 2).unwrap();
    assert!(spans.iter().filter(|s| s.trace.starts_with("dddd")).all(|s| s.error.is_some()), "{spans:#?}");
    assert_eq!(collector.faults(), [""; 0]);
}

#[test]
fn lines_go_to_the_collector_and_are_sent_again_where_it_was_busy() {
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[("OTEL_TRACES_EXPORTER", "none")]);
    deploy(&platform, "probe", "probe", "");
    collector.refuse(&[503, 429]);
    assert_eq!(ask(&platform, "probe.localhost", "/log?text=hello", None), 200);
    until(Duration::from_secs(20), || collector.records().iter().any(|record| record.body.contains("hello"))).unwrap();
    let records = collector.records();
    let hello = records.iter().find(|record| record.body.contains("hello")).unwrap();
    let attribute = |name: &str| hello.attributes.get(name).map(String::as_str);
    assert_eq!((attribute("resource.service.name"), attribute("sidereal.component")), (Some("probe"), Some("main")));
    assert!(attribute("sidereal.instance").is_some_and(|instance| instance.split('-').count() == 3), "{hello:?}");
    assert!(["INFO", "WARN", "ERROR", "DEBUG"].contains(&hello.severity.as_str()), "{hello:?}");
    assert!(collector.spans().is_empty(), "spans were not asked for");
    assert_eq!(collector.faults(), [""; 0]);
}

#[test]
fn what_the_environment_asks_and_cannot_be_done_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:4318"), ("OTEL_TRACES_SAMPLER", "nonsense")]
    {
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), (name, value)];
        let refused = Platform::start_with(dir.path(), &[], &env).err().unwrap().to_string();
        assert!(refused.contains(name), "{refused}");
    }
}
