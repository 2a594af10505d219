//! What components reach: stores by their links, the network by their allowed hosts, both by way of the node.

use std::sync::Arc;
use std::time::Duration;

use api::Code;
use api::services::Caller;
use api::services::client::{KvClient, NodeWay};
use bytes::Bytes;
use futures::future::join_all;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use model::{Link, LockedApp, ProviderKind, ProviderSpec};
use tokio::net::TcpListener;

use crate::node::Node;
use crate::rig::{Answer, Rig, code, until};

fn link(app: &mut LockedApp, label: &str, provider: &str, bucket: Option<&str>) {
    app.links.push(Link {
        component: "main".parse().unwrap(),
        contract: "wasi:keyvalue".parse().unwrap(),
        label: label.parse().unwrap(),
        provider: provider.parse().unwrap(),
        config: bucket.map(|bucket| ("bucket".to_owned(), bucket.to_owned())).into_iter().collect(),
    });
}

#[tokio::test]
async fn embedded_conforms() {
    let (_node, first) = Node::start();
    let client = Arc::new(KvClient::new(NodeWay::handed(first).unwrap(), Duration::from_secs(10)));
    let embedded = host::Embedded::new(client, "shop".parse().unwrap(), "embedded".parse().unwrap());
    providers::keyvalue::conformance::run(&embedded).await.unwrap();
}

#[tokio::test]
async fn calls_at_once_count_in_the_embedded_store() {
    let rig = Rig::new().await;
    let mut app = rig.app("counter", "kv-counter");
    link(&mut app, "default", "embedded", None);
    rig.run(&app).await;
    let answers = join_all((0..50).map(|_| rig.get("counter/1/main", "/"))).await;
    let mut counts: Vec<u64> = answers.iter().map(|answer| answer.text.parse().unwrap()).collect();
    counts.sort_unstable();
    assert!(counts.into_iter().eq(1..=50));
}

#[tokio::test]
async fn a_swapped_link_is_another_store_and_no_call_fails() {
    let rig = Rig::new().await;
    let mut before = rig.app("counter", "kv-counter");
    link(&mut before, "default", "embedded", None);
    let mut after = rig.app("counter", "kv-counter");
    link(&mut after, "default", "memory", None);
    rig.run(&before).await;
    for _ in 0..3 {
        rig.get("counter/1/main", "/").await;
    }
    rig.start(&after, 2, true).await.unwrap();
    assert_eq!(rig.get("counter/2/main", "/").await, Answer::ok("1"));
    assert_eq!(rig.get("counter/1/main", "/").await, Answer::ok("4"), "the old revision keeps its link");
    // A later revision with the same provider finds its data.
    rig.start(&after, 3, true).await.unwrap();
    assert_eq!(rig.drain("counter", 2, Duration::from_secs(5)).await, 0);
    assert_eq!(rig.get("counter/3/main", "/").await, Answer::ok("2"));
}

#[tokio::test]
async fn apps_and_labels_share_nothing_they_were_not_linked_to() {
    let rig = Rig::new().await;
    let mut one = rig.app("one", "kv-probe");
    link(&mut one, "default", "memory", None);
    link(&mut one, "cart", "memory", Some("default"));
    link(&mut one, "other", "memory", None);
    let mut two = rig.app("two", "kv-probe");
    link(&mut two, "default", "memory", None);
    rig.run(&one).await;
    rig.run(&two).await;
    assert_eq!(rig.get("one/1/main", "/set/default/k/v").await, Answer::ok("ok"));
    assert_eq!(rig.get("one/1/main", "/get/cart/k").await, Answer::ok("v"), "the same bucket under another label");
    assert_eq!(rig.get("one/1/main", "/get/other/k").await, Answer::ok("-"));
    assert_eq!(rig.get("two/1/main", "/get/default/k").await, Answer::ok("-"));
    assert_eq!(rig.get("two/1/main", "/get/cart/k").await.status, 404);
}

#[tokio::test]
async fn links_that_lead_nowhere_are_refused() {
    let rig = Rig::new().await;
    let mut app = rig.app("shop", "kv-probe");
    link(&mut app, "default", "nobody", None);
    assert_eq!(code(rig.start(&app, 1, true).await), Code::LinkMissing);
    app.links[0].provider = "embedded".parse().unwrap();
    app.links[0].contract = "wasi:blobstore".parse().unwrap();
    assert_eq!(code(rig.start(&app, 1, true).await), Code::LinkMissing);

    let mut app = rig.app("shop", "kv-probe");
    link(&mut app, "default", "cache", None);
    let mut redis = ProviderSpec::new(ProviderKind::KeyvalueRedis);
    app.providers.insert("cache".parse().unwrap(), redis.clone());
    let refused = rig.start(&app, 1, true).await.unwrap_err();
    assert_eq!(refused.code, Code::ManifestInvalid, "no other try reads other settings: {refused}");
    redis.config.insert("url".into(), "redis://10.0.0.1:6379".into());
    app.providers.insert("cache".parse().unwrap(), redis);
    let refused = rig.start(&app, 1, true).await.unwrap_err();
    assert_eq!(refused.code, Code::ProviderUnavailable);
    assert!(refused.detail.contains("10.0.0.1 (private)"), "{}", refused.detail);
    let dials = rig.node.dials.lock().unwrap();
    assert_eq!(dials[0].caller, Caller::Provider("cache".parse().unwrap()));
    assert_eq!((dials[0].host.as_str(), dials[0].port), ("10.0.0.1", 6379));
}

#[tokio::test]
async fn outgoing_requests_go_through_the_node() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new().await;
    *rig.node.dial_to.lock().unwrap() = Some(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from_static(b"outside"))))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let mut app = rig.app("probe", "probe");
    app.components.values_mut().next().unwrap().allow_hosts = vec!["http://api.example".into()];
    rig.run(&app).await;
    assert_eq!(rig.get("probe/1/main", "/fetch?url=http://api.example/&n=3").await, Answer::ok("outside"));
    {
        let dials = rig.node.dials.lock().unwrap();
        assert_eq!(dials.len(), 1, "the connection is kept");
        assert_eq!(dials[0].caller, Caller::Component("main".parse().unwrap()));
        assert_eq!((dials[0].app.as_str(), dials[0].host.as_str(), dials[0].port), ("probe", "api.example", 80));
    }
    let denied = rig.get("probe/1/main", "/fetch?url=http://other.example/").await;
    assert!(denied.text.contains("HttpRequestDenied"), "{denied:?}");
    assert_eq!(rig.node.dials.lock().unwrap().len(), 1);

    // Another revision has connections of its own, and the node's word is final.
    *rig.node.dial_to.lock().unwrap() = None;
    rig.start(&app, 2, true).await.unwrap();
    let refused = rig.get("probe/2/main", "/fetch?url=http://api.example/").await;
    assert!(refused.text.contains("DestinationIpProhibited"), "{refused:?}");
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_call() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let gone = rig.send(crate::rig::request("probe/1/main", "/park"));
    assert!(tokio::time::timeout(Duration::from_millis(200), gone).await.is_err());
    until("the call is gone", || async { rig.agent.status(1 << 20).await.unwrap().in_flight == 0 }).await;
}

#[tokio::test]
async fn calls_over_links_are_counted_over_revisions() {
    let rig = Rig::new().await;
    let mut before = rig.app("counter", "kv-counter");
    link(&mut before, "default", "embedded", None);
    let mut after = rig.app("counter", "kv-counter");
    link(&mut after, "default", "memory", None);
    rig.run(&before).await;
    for _ in 0..3 {
        rig.get("counter/1/main", "/").await;
    }
    rig.start(&after, 2, true).await.unwrap();
    rig.get("counter/2/main", "/").await;
    let seen = rig.agent.metrics(1 << 20).await.unwrap();
    let calls = |of: &api::metrics::HostMetrics| {
        let links = of.links.iter().map(|l| (l.link.provider.to_string(), l.counts.calls, l.counts.errors.sum()));
        links.collect::<Vec<_>>()
    };
    let each = calls(&seen);
    let [(_, embedded, 0), (_, memory, 0)] = each.as_slice() else { panic!("{each:?}") };
    assert!(*embedded > 0 && *embedded == 3 * memory, "{each:?}");
    assert_eq!(seen.components[0].counts.calls, 4);
    // The revision leaves, what it counted does not.
    rig.drain("counter", 1, Duration::from_secs(5)).await;
    let later = rig.agent.metrics(1 << 20).await.unwrap();
    assert_eq!((calls(&later), later.components[0].counts.calls), (each, 4));
    // With its last revision the app is gone.
    rig.drain("counter", 2, Duration::from_secs(5)).await;
    let last = rig.agent.metrics(1 << 20).await.unwrap();
    assert!(last.links.is_empty() && last.components.is_empty() && last.since_us == seen.since_us);
}
