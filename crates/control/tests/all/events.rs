//! Every transition is an event, in order, once; and whoever comes back gets what was missed.

use api::client::{EventQuery, Require};
use api::control::{CallRequest, Event, event};
use api::node::LogQuery;
use api::problem::Code;
use futures::StreamExt as _;

use crate::rig::{Node, Rig, collect, name, refused};

fn short(events: &[Event]) -> Vec<String> {
    let text = |e: &Event| {
        let kind = e.kind.trim_start_matches("dev.sidereal.");
        let what = e.data["phase"].as_str().or(e.data["code"].as_str()).unwrap_or_default();
        let revision = e.data["revision"].as_u64().map(|r| r.to_string()).unwrap_or_default();
        [kind, e.subject.as_deref().unwrap_or(&e.source), what, &revision].join(" ").trim().to_owned()
    };
    events.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transition_is_seen_in_order() {
    let rig = Rig::without_node().await;
    let mut events = rig.client.events(EventQuery::default()).await.unwrap();
    rig.deploy("counter", 1).await;
    let view = rig.client.app(&rig.tenant, &name("counter")).await.unwrap();
    assert!(view.reason.unwrap().message.contains("no node"));
    let node = Node::join(&rig.store, "local").await;
    let mut seen = collect(&mut events, |e| e.data["phase"] == "serving").await;
    let view = rig.client.app(&rig.tenant, &name("counter")).await.unwrap();
    assert_eq!(
        (view.reason, view.nodes.len(), view.urls),
        (None, 1, vec!["http://counter.localhost:8080/".to_owned()])
    );
    rig.deploy("counter", 2).await;
    seen.extend(collect(&mut events, |e| e.data["phase"] == "serving").await);
    rig.client.put_tenant(&rig.tenant, &Default::default(), Require::Exists).await.unwrap();
    seen.extend(collect(&mut events, |e| e.data["phase"] == "failed").await);
    rig.client.put_tenant(&rig.tenant, &rig.settings(), Require::Exists).await.unwrap();
    seen.extend(collect(&mut events, |e| e.data["phase"] == "serving").await);
    rig.client.delete_app(&rig.tenant, &name("counter"), Require::Any).await.unwrap();
    seen.extend(collect(&mut events, |e| e.kind == event::GONE).await);
    node.lose().await;
    seen.extend(collect(&mut events, |e| e.kind == event::NODE_LOST).await);
    let phases = |revision: u32| {
        let phase = move |p: &str| format!("app.phase t/counter {p} {revision}");
        ["fetching", "compiling", "starting", "probing", "serving"].map(phase)
    };
    let text = |t: &str| vec![t.to_owned()];
    let expected: Vec<String> = [
        text("app.deployed t/counter  1"),
        text("node.joined /nodes/local"),
        phases(1).into(),
        text("app.deployed t/counter  2"),
        phases(2).into(),
        text("tenant.changed t"),
        text("app.suspended t/counter issuer-untrusted"),
        text("app.phase t/counter failed 2"),
        text("tenant.changed t"),
        text("app.resumed t/counter  2"),
        phases(2).into(),
        text("app.deleted t/counter  2"),
        text("app.gone t/counter"),
        text("node.lost /nodes/local"),
    ]
    .concat();
    assert_eq!(short(&seen), expected);
    let ids: Vec<u64> = seen.iter().map(|e| e.id.parse().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    assert!(seen.iter().all(|e| e.specversion == "1.0" && e.time.parse::<jiff::Timestamp>().is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_back_gets_what_was_missed() {
    let mut rig = Rig::new().await;
    rig.deploy("a", 1).await;
    let all = rig.until(Some("0".into()), |e| e.data["phase"] == "serving").await;
    assert_eq!(all[0].kind, event::MISSED, "an id that never was");
    let middle = all.iter().position(|e| e.kind == event::DEPLOYED).unwrap();
    let rest = rig.until(Some(all[middle].id.clone()), |e| e.data["phase"] == "serving").await;
    assert_eq!(rest, all[middle + 1..]);
    // Only one app's, and what is about no app.
    rig.deploy("b", 2).await;
    let query = EventQuery {
        tenant: Some(name("t")),
        app: Some(name("b")),
        after: Some(all[middle].id.clone()),
        metrics: None,
    };
    let mut events = rig.client.events(query).await.unwrap();
    let of_b = collect(&mut events, |e| e.data["phase"] == "serving").await;
    assert!(of_b.iter().all(|e| e.subject.as_deref().is_none_or(|s| s == "t/b")), "{of_b:#?}");
    assert_eq!(of_b.iter().filter(|e| e.kind == event::PHASE).count(), 5);
    // A stream ends with the server, and the next server knows that it did not see what came before it.
    let last = of_b.last().unwrap().id.clone();
    let mut open = rig.client.events(EventQuery::default()).await.unwrap();
    rig.restart().await;
    assert!(open.next().await.is_none());
    rig.client.put_tenant(&rig.tenant, &rig.settings(), Require::Exists).await.unwrap();
    let after = rig.until(Some(last.clone()), |e| e.kind == event::TENANT_CHANGED).await;
    assert_eq!(after[0].kind, event::MISSED);
    assert!(after.last().unwrap().id.parse::<u64>().unwrap() > last.parse().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_calls_are_passed_through() {
    let mut rig = Rig::new().await;
    let app = name("counter");
    let query = |last, follow| LogQuery { last, follow, ..LogQuery::default() };
    assert_eq!(refused(rig.client.logs(&rig.tenant, &app, query(9, false)).await.map(drop)).code, Code::NotFound);
    rig.deploy("counter", 1).await;
    let lines = rig.client.logs(&rig.tenant, &app, query(9, false)).await.unwrap();
    let lines: Vec<String> = lines.map(|l| l.unwrap().text).collect().await;
    assert_eq!(lines, ["one", "two"]);
    let lines = rig.client.logs(&rig.tenant, &app, query(1, false)).await.unwrap();
    assert_eq!(lines.count().await, 1);
    let call = |body: &str| CallRequest {
        component: Some(name("counter")),
        method: "PUT".into(),
        path: "/a?b=c".into(),
        headers: vec![("x-test".into(), "yes".into())],
        body: body.into(),
    };
    let answer = rig.client.call(&rig.tenant, &app, &call("aGVsbG8=")).await.unwrap();
    let body = data_encoding::BASE64.decode(answer.body.as_bytes()).unwrap();
    assert_eq!((answer.status, String::from_utf8(body).unwrap().as_str()), (200, "t counter PUT /a?b=c hello"));
    assert_eq!(answer.headers, [("x-test".to_owned(), "yes".to_owned())]);
    let large = data_encoding::BASE64.encode(&vec![7; 4 << 20]);
    rig.client.call(&rig.tenant, &app, &call(&large)).await.expect("in base64 larger than other bodies may be");
    let larger = data_encoding::BASE64.encode(&vec![7; api::control::MAX_CALL_BODY + 1]);
    assert_eq!(refused(rig.client.call(&rig.tenant, &app, &call(&larger)).await).code, Code::TooLarge);
    let bad = [
        CallRequest { body: "*".into(), ..call("") },
        CallRequest { method: "G T".into(), ..call("") },
        CallRequest { path: "http://x/".into(), ..call("") },
        CallRequest { headers: vec![("x".into(), "a\r\nb: c".into())], ..call("") },
    ];
    for request in bad {
        assert_eq!(refused(rig.client.call(&rig.tenant, &app, &request).await).code, Code::RequestInvalid);
    }
    let none = CallRequest { component: Some(name("none")), ..call("") };
    assert_eq!(refused(rig.client.call(&rig.tenant, &app, &none).await).code, Code::NotFound);
    assert_eq!(rig.client.hosts(&rig.tenant).await.unwrap()[0].in_flight, 3);
    // One that follows ends with the server.
    let mut lines = rig.client.logs(&rig.tenant, &app, query(9, true)).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().text, "one");
    rig.shutdown().await;
    assert_eq!(lines.count().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_come_to_those_who_ask_and_are_not_kept() {
    let rig = Rig::new().await;
    let watch = |metrics, after| EventQuery { tenant: Some(name("t")), app: None, after, metrics: Some(metrics) };
    for bad in [249, 60_001] {
        let asked = rig.client.events(watch(bad, None)).await.map(drop);
        assert_eq!(refused(asked).code, Code::RequestInvalid);
    }
    let nobody = EventQuery { tenant: Some(name("nobody")), ..watch(250, None) };
    assert_eq!(refused(rig.client.events(nobody).await.map(drop)).code, Code::NotFound);
    let all = EventQuery { tenant: None, ..watch(250, None) };
    assert_eq!(refused(rig.client.events(all).await.map(drop)).code, Code::RequestInvalid);

    let mut events = rig.client.events(watch(250, None)).await.unwrap();
    let first = collect(&mut events, |e| e.kind == event::METRICS).await.pop().unwrap();
    assert_eq!((first.subject.as_deref(), first.data["hosts"][0]["rss"].as_u64()), (Some("t"), Some(4096)));
    let metrics = rig.client.metrics(&rig.tenant).await.unwrap();
    assert_eq!(serde_json::from_value::<api::metrics::TenantMetrics>(first.data.clone()).unwrap(), metrics);
    // They go on, between the events that happen, and one can go on after a reading as after an event.
    rig.deploy("counter", 1).await;
    let seen = collect(&mut events, |e| e.data["phase"] == "serving").await;
    let after = collect(&mut events, |e| e.kind == event::METRICS).await.pop().unwrap();
    let kinds = |of: &[Event]| of.iter().filter(|e| e.kind != event::METRICS).cloned().collect::<Vec<_>>();
    let again = rig.until(Some(first.id), |e| e.data["phase"] == "serving").await;
    assert_eq!(kinds(&again), again, "a reading is not kept");
    assert_eq!(again, kinds(&seen));
    rig.client.put_tenant(&rig.tenant, &rig.settings(), Require::Exists).await.unwrap();
    let rest = rig.until(Some(after.id), |e| e.kind == event::TENANT_CHANGED).await;
    assert_eq!(rest.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_are_asked_for_by_tenant_app_and_verdict() {
    let rig = Rig::new().await;
    let query = |verdict, app: Option<&str>| api::flows::FlowQuery {
        verdict,
        app: app.map(name),
        last: 10,
        ..api::flows::FlowQuery::default()
    };
    let denied = Some(api::flows::Verdict::Denied);
    for (verdict, app, times) in
        [(None, None, vec![1, 2]), (denied, None, vec![2]), (denied, Some("a"), vec![2]), (None, Some("other"), vec![])]
    {
        let found = rig.client.flows(&rig.tenant, query(verdict, app)).await.unwrap();
        let found: Vec<_> = found.map(|record| record.unwrap()).collect().await;
        assert!(found.iter().all(|record| record.tenant == rig.tenant));
        assert_eq!(found.iter().map(|record| record.time_ms).collect::<Vec<_>>(), times, "{verdict:?} {app:?}");
    }
    let nobody: model::TenantName = name("nobody");
    assert_eq!(refused(rig.client.flows(&nobody, query(None, None)).await.map(drop)).code, Code::NotFound);
}
