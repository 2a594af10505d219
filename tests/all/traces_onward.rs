//! Traces that go on past the request: messages and changes on their way to whoever handles them, calls from component to
//! component, and runs of schedules, where a trace begins.

use std::fs;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sidereal_tests::collector::{Collector, Span};
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until};

use crate::traces::{CALLER, TRACE, ask, deploy, one, start, traceparent};

const SERVER: &str = "SPAN_KIND_SERVER";
const CLIENT: &str = "SPAN_KIND_CLIENT";
const CONSUMER: &str = "SPAN_KIND_CONSUMER";

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    span.attributes.get(name).map(String::as_str)
}

/// A trace that no other request of this process is in: what to send, and its id.
fn fresh() -> (String, String) {
    static MADE: AtomicU16 = AtomicU16::new(0);
    let number = format!("{:04x}", MADE.fetch_add(1, Relaxed));
    (traceparent("01").replace("4bf9", &number), TRACE.replace("4bf9", &number))
}

fn of(spans: &[Span], trace: &str) -> Vec<Span> {
    spans.iter().filter(|span| span.trace == trace).cloned().collect()
}

/// The spans of the request and of its component are there, and every span below them has the one it is below.
fn hangs_together(spans: &[Span]) -> bool {
    let root = spans.iter().find(|span| span.parent == CALLER);
    root.is_some_and(|root| spans.iter().any(|span| span.parent == root.id))
        && spans.iter().all(|span| span.parent == CALLER || spans.iter().any(|above| above.id == span.parent))
}

/// The spans of one request in a trace of its own, as soon as they hang together and are `enough`. Asked again, in another
/// trace, where they do not come: the node follows a host's spans from a moment after the host is ready.
fn traced(
    platform: &Platform,
    collector: &Collector,
    host: &str,
    path: &str,
    enough: impl Fn(&[Span]) -> bool,
) -> Vec<Span> {
    const AGAIN: Duration = Duration::from_secs(4);
    let (mut traces, mut asked, mut found) = (Vec::new(), None::<Instant>, Vec::new());
    let there = until(Duration::from_secs(30), || {
        if asked.is_none_or(|asked| asked.elapsed() > AGAIN) {
            let (given, trace) = fresh();
            assert_eq!(ask(platform, host, path, Some(&given)), 200, "{host}{path}");
            traces.push(trace);
            asked = Some(Instant::now());
        }
        // Those of an earlier one may only have taken long.
        let all = collector.spans();
        let mut spans = traces.iter().map(|trace| of(&all, trace));
        found = spans.find(|spans| hangs_together(spans) && enough(spans)).unwrap_or_default();
        !found.is_empty()
    });
    there.unwrap_or_else(|_| panic!("{host}{path}: {:#?}", collector.spans()));
    found
}

/// The chain from `span` up to the caller of the request.
fn ancestors<'a>(spans: &'a [Span], span: &Span) -> Vec<&'a str> {
    let mut names = Vec::new();
    let mut parent = span.parent.clone();
    while parent != CALLER {
        let above = one(spans, |other| other.id == parent);
        names.push(above.name.as_str());
        parent.clone_from(&above.parent);
    }
    names
}

#[test]
fn what_handles_a_message_goes_on_in_the_trace_of_who_sent_it() {
    let collector = Collector::start().unwrap();
    let nats = Nats::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[]);
    let url = nats.url();
    platform.ok(&["provider", "add", "core", "--type", "messaging-nats", "--url", &url]).unwrap();
    let stream = ["--set", "stream=ORDERS", "--set", "subjects=orders.stream,prices.stream"];
    let add = ["provider", "add", "stream", "--type", "messaging-jetstream", "--url", &url];
    platform.ok(&[&add[..], &stream].concat()).unwrap();
    // Subjects are the server's own: each provider has others, so that no app takes what another one sends.
    for provider in ["local", "durable", "core", "stream"] {
        let links = format!(
            "[components.main.links]\n\"wasi:keyvalue\" = \"memory\"\n\
             \"wasmcloud:messaging\" = {{ provider = \"{provider}\", subscriptions = \"orders.{provider}, prices.{provider}\" }}"
        );
        let name = format!("{provider}-app");
        deploy(&platform, &name, "messages", &links);
        let host = format!("{name}.localhost");
        let handled = |spans: &[Span]| spans.iter().any(|span| span.kind == CONSUMER);
        let orders = format!("orders.{provider}");
        let spans = traced(&platform, &collector, &host, &format!("/publish?subject={orders}&body=hat"), handled);
        let handler = one(&spans, |span| span.kind == CONSUMER);
        let main = format!("{name}/main");
        assert_eq!((handler.name.as_str(), handler.error.as_deref()), (main.as_str(), None), "{provider}");
        assert_eq!(attribute(handler, "messaging.destination.name"), Some(orders.as_str()));
        assert_eq!(attribute(handler, "sidereal.tries"), Some("1"));
        assert!(attribute(handler, "messaging.message.id").is_some_and(|id| !id.is_empty()));
        assert_eq!(ancestors(&spans, handler), ["wasmcloud:messaging publish", &main, "GET /"], "{provider}");
        // What the handler does is below it: the links it calls are its own.
        let below: Vec<_> = spans.iter().filter(|span| span.parent == handler.id).collect();
        assert!(!below.is_empty() && below.iter().all(|link| link.name.starts_with("wasi:keyvalue ")), "{spans:#?}");

        // A question is one trace as well: who answers it, answers below it.
        let question = format!("/ask?subject=prices.{provider}&body=hat&timeout=5000");
        let spans = traced(&platform, &collector, &host, &question, handled);
        let handler = one(&spans, |span| span.kind == CONSUMER);
        assert_eq!(ancestors(&spans, handler), ["wasmcloud:messaging request", &main, "GET /"], "{provider}");
        let reply = one(&spans, |span| span.name == "wasmcloud:messaging publish");
        assert_eq!(reply.parent, handler.id, "{provider}");
    }
    assert_eq!(collector.faults(), [""; 0]);
}

#[test]
fn a_message_that_failed_is_in_its_trace_as_often_as_it_was_tried() {
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[]);
    let links = "[components.main.links]\n\"wasi:keyvalue\" = \"memory\"\n\
        \"wasmcloud:messaging\" = { provider = \"local\", subscriptions = \"orders.*\" }";
    deploy(&platform, "worker", "messages", links);
    let twice = |spans: &[Span]| spans.iter().filter(|span| span.kind == CONSUMER).count() == 2;
    let spans = traced(&platform, &collector, "worker.localhost", "/publish?subject=orders.new&body=flaky-1", twice);
    let tried = |n: &str| one(&spans, |span| span.kind == CONSUMER && attribute(span, "sidereal.tries") == Some(n));
    let (first, second) = (tried("1"), tried("2"));
    assert_eq!((first.error.as_deref(), second.error.as_deref()), (Some("refused"), None));
    assert_eq!(first.parent, second.parent, "both are of the one that was sent");
    assert_eq!(attribute(first, "messaging.message.id"), attribute(second, "messaging.message.id"));
    assert_eq!(collector.faults(), [""; 0]);
}

#[test]
fn what_is_told_of_a_change_goes_on_in_the_trace_of_who_changed_it() {
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[]);
    for provider in ["memory", "embedded"] {
        let name = format!("watched-{provider}");
        let links = format!(
            "[components.main.links]\n\
             \"wasi:keyvalue\" = [{{ provider = \"{provider}\" }}, {{ provider = \"embedded\", label = \"log\" }}]\n\
             [components.index]\nsource = \"component.wasm\"\n[components.index.links]\n\
             \"wasi:keyvalue\" = [{{ provider = \"{provider}\", watch = \"*\" }}, {{ provider = \"embedded\", label = \"log\" }}]"
        );
        deploy(&platform, &name, "watcher", &links);
        let told = |spans: &[Span]| spans.iter().any(|span| span.kind == CONSUMER);
        let spans = traced(&platform, &collector, &format!("{name}.localhost"), "/set?key=canary&value=1", told);
        let watcher = one(&spans, |span| span.kind == CONSUMER);
        assert_eq!(watcher.name, format!("{name}/index"));
        assert_eq!(
            (attribute(watcher, "sidereal.contract"), attribute(watcher, "sidereal.label")),
            (Some("wasi:keyvalue"), Some("default"))
        );
        assert_eq!(ancestors(&spans, watcher), ["wasi:keyvalue set", &format!("{name}/main"), "GET /"]);
        let of_it = |operation: &str| {
            one(&spans, |span| span.parent == watcher.id && span.name == format!("wasi:keyvalue {operation}")).clone()
        };
        assert_eq!(attribute(&of_it("get"), "sidereal.provider"), Some(provider), "what is there now");
        assert!(!format!("{spans:?}").contains("canary"), "keys are nobody's business");
    }
    assert_eq!(collector.faults(), [""; 0]);
}

#[test]
fn a_run_of_a_schedule_is_a_trace_of_its_own() {
    let schedules = "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"\n\
        [schedules.tick]\ncomponent = \"main\"\ncron = \"* * * * * *\"\n\
        [schedules.fail]\ncomponent = \"main\"\ncron = \"* * * * * *\"";
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[]);
    deploy(&platform, "clock", "scheduled", schedules);
    let runs = |spans: &[Span], name: &str| -> Vec<Span> {
        spans.iter().filter(|span| attribute(span, "sidereal.schedule") == Some(name)).cloned().collect()
    };
    let enough = |spans: &[Span]| ["tick", "fail"].iter().all(|name| runs(spans, name).len() >= 2);
    let spans = collector.wait(enough).unwrap();
    for (name, error) in [("tick", None), ("fail", Some("the component says so"))] {
        let runs = runs(&spans, name);
        for run in &runs {
            assert_eq!((run.name.as_str(), run.kind.as_str(), run.parent.as_str()), ("clock/main", SERVER, ""));
            assert_eq!((attribute(run, "faas.trigger"), run.error.as_deref()), (Some("timer"), error));
            let links: Vec<_> = spans.iter().filter(|span| span.parent == run.id).collect();
            assert!(!links.is_empty() && links.iter().all(|link| link.trace == run.trace), "{spans:#?}");
        }
        assert_ne!(runs[0].trace, runs[1].trace);
    }
    drop(platform);
    assert_eq!(collector.faults(), [""; 0]);

    // Where the sampler records nothing that begins here, neither are these; what comes with a decision is.
    let (collector, dir) = (Collector::start().unwrap(), tempfile::tempdir().unwrap());
    let platform = start(dir.path(), &collector, &[("OTEL_TRACES_SAMPLER", "parentbased_always_off")]);
    deploy(&platform, "clock", "scheduled", schedules);
    let component = |spans: &[Span]| spans.iter().any(|span| span.name == "clock/main");
    traced(&platform, &collector, "clock.localhost", "/", component);
    let listed = || platform.ok(&["schedule", "list", "clock"]).unwrap();
    let ran = |all: &serde_json::Value| all.as_array().unwrap().iter().all(|one| one["runs"].as_u64() >= Some(2));
    until(Duration::from_secs(20), || ran(&listed())).unwrap_or_else(|_| panic!("{}", listed()));
    traced(&platform, &collector, "clock.localhost", "/", component);
    let schedules: Vec<_> =
        collector.spans().into_iter().filter(|span| span.attributes.contains_key("sidereal.schedule")).collect();
    assert!(schedules.is_empty(), "{schedules:#?}");
}

#[test]
fn a_call_from_component_to_component_is_a_link_and_a_call_in_the_trace() {
    let collector = Collector::start().unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = start(dir.path(), &collector, &[]);
    for name in ["shop", "pricing"] {
        fs::copy(sidereal_tests::guest(name), app.path().join(format!("{name}.wasm"))).unwrap();
    }
    fs::write(app.path().join("app.toml"), crate::components::SHOP).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let called = |spans: &[Span]| spans.iter().any(|span| span.name == "shop/pricing");
    let spans = traced(&platform, &collector, "shop.localhost", "/next?n=1", called);
    let callee = one(&spans, |span| span.name == "shop/pricing");
    assert_eq!((callee.kind.as_str(), callee.error.as_deref()), (SERVER, None));
    assert_eq!(ancestors(&spans, callee), ["acme:pricing next", "shop/shop", "GET /"]);
    let link = one(&spans, |span| span.id == callee.parent);
    assert_eq!((link.kind.as_str(), link.error.as_deref()), (CLIENT, None));
    assert_eq!(
        (attribute(link, "sidereal.contract"), attribute(link, "sidereal.operation")),
        (Some("acme:pricing"), Some("next"))
    );
    assert!(link.start <= callee.start && callee.end <= link.end, "{link:?} {callee:?}");
    // Functions of resources, their end included.
    let spans = traced(&platform, &collector, "shop.localhost", "/basket?lines=pear:2", called);
    let operations: Vec<_> = spans.iter().filter_map(|span| attribute(span, "sidereal.operation")).collect();
    assert!(["[constructor]basket", "[method]basket.add", "pay", "drop"].iter().all(|one| operations.contains(one)));
    assert_eq!(spans.iter().filter(|span| span.name == "shop/pricing").count(), operations.len(), "{operations:?}");

    // A callee that fails is told as what it is, and so is the call of it.
    let (given, trace) = fresh();
    assert_eq!(ask(&platform, "shop.localhost", "/act?what=trap", Some(&given)), 500);
    let spans = of(&collector.wait(|spans| hangs_together(&of(spans, &trace))).unwrap(), &trace);
    let callee = one(&spans, |span| span.name == "shop/pricing");
    assert_eq!(callee.error.as_deref(), Some("component-trapped"));
    assert_eq!(attribute(one(&spans, |span| span.id == callee.parent), "error.type"), Some("unavailable"));
    assert_eq!(collector.faults(), [""; 0]);
}

#[test]
fn a_component_that_is_a_provider_has_its_own_links_below_the_call_of_it() {
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), &collector, &[]);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/prefix-keyvalue");
    for signer in ["../counter/signer.pub", "signer.pub"] {
        let key = fs::read_to_string(format!("{example}/{signer}")).unwrap();
        platform.ok(&["tenant-settings", "set", "--trust", key.trim()]).unwrap();
    }
    platform.ok(&["deploy", example]).unwrap();
    let kept = |spans: &[Span]| spans.iter().any(|span| attribute(span, "sidereal.provider") == Some("embedded"));
    let spans = traced(&platform, &collector, "prefix-keyvalue.localhost", "/", kept);
    let kept = one(&spans, |span| attribute(span, "sidereal.provider") == Some("embedded"));
    assert_eq!(
        ancestors(&spans, kept),
        ["prefix-keyvalue/prefixer", "wasi:keyvalue increment", "prefix-keyvalue/counter", "GET /"]
    );
    assert_eq!(collector.faults(), [""; 0]);
}
