//! From a deploy to the next and to the end of an app: no call is lost, what fails changes nothing, and nothing is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::node::NodeApi;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::observed::Phase;
use model::tenant::TenantSettings;
use model::{AppName, Digest, Revision};
use node::Node;
use store::Expect;
use store::keys::{self, Assignment, RevisionRecord};

use super::{PATIENCE, Rig, get, node_name, tenant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_lives_from_deploy_to_delete() {
    let rig = Rig::new();
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let (status, text, _) = get(&node, "a", "/").await;
    assert!(status == 200 && text.starts_with("a/1/web "), "{status} {text}");
    let loads: Vec<_> = rig.notes().into_iter().filter(|line| line.contains("load=true")).collect();
    assert_eq!(loads.len(), 1, "one host loads it: {:?}", rig.notes());
    // What a host says that it offers is not what the node says.
    let record = rig.store.get(&keys::node(&node_name())).await.unwrap().unwrap();
    let record: keys::NodeRecord = serde_json::from_slice(&record.value).unwrap();
    assert!(record.interfaces.contains(&"wasi:keyvalue/store@0.2.0-draft".to_owned()), "{record:?}");
    assert!(!record.interfaces.iter().any(|one| one.starts_with("fake:")), "{record:?}");

    // A deploy under load: no request fails, and the old revision leaves after its last call.
    let stop = tokio_util::sync::CancellationToken::new();
    let load = {
        let (node, stop) = (node.clone(), stop.clone());
        tokio::spawn(async move {
            let mut seen = BTreeSet::new();
            while !stop.is_cancelled() {
                let (status, text, _) = get(&node, "a", "/").await;
                assert_eq!(status, 200, "{text}");
                seen.insert(text.chars().take(3).collect::<String>());
            }
            seen
        })
    };
    let slow = tokio::spawn({
        let node = node.clone();
        async move { get(&node, "a", "/slow").await }
    });
    rig.noted("slow a/1", 1).await;
    rig.deploy("a", 2, "good").await;
    rig.serving("a", 2).await;
    let (status, text, _) = slow.await.unwrap();
    assert!(status == 200 && text.starts_with("a/1/"), "{status} {text}");
    let drained = |rig: &Rig| rig.notes().iter().filter(|line| line.contains("drain a/1")).count();
    let started = Instant::now();
    while drained(&rig) < 2 {
        assert!(started.elapsed() < PATIENCE, "{:?}", rig.notes());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    assert_eq!(load.await.unwrap().into_iter().collect::<Vec<_>>(), ["a/1", "a/2"]);

    // Calls that do not come through the ingress.
    let call = |component: Option<&str>| {
        let component = component.map(|name| name.parse().unwrap());
        let request = Request::get("/x").body(Bytes::new()).unwrap();
        node.call(&tenant(), &"a".parse().unwrap(), component.as_ref(), request)
    };
    assert!(call(None).await.unwrap().body().starts_with(b"a/2/web "));
    assert_eq!(call(Some("nope")).await.unwrap_err().code, api::Code::NotFound);
    assert_eq!(node.status(&tenant()).await.len(), 2);

    let assigned = keys::assigned(&node_name(), &tenant(), &"a".parse().unwrap());
    rig.store.delete(&assigned, Expect::Any).await.unwrap();
    let started = Instant::now();
    while rig.observed("a").await.is_some() || get(&node, "a", "/").await.0 != 404 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.shutdown(Duration::from_secs(5)).await;
    assert!(rig.store.list(keys::NODES).await.unwrap().entries.is_empty(), "a node that left is not there");
}

pub(super) type Sent = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// Sends a request over either protocol; the answer's head is there, its body is still to come.
pub(super) async fn send(node: &Node, http2: bool, request: Request<Sent>) -> http::Response<hyper::body::Incoming> {
    let io = TokioIo::new(tokio::net::TcpStream::connect(node.ingress()).await.unwrap());
    if http2 {
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        return sender.send_request(request).await.unwrap();
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_streams_goes_on_over_a_deploy_by_either_protocol() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let uri = |http2: bool, path: &str| if http2 { format!("http://a.test{path}") } else { path.to_owned() };
    let request = |http2: bool, path: &str, body: Sent| {
        let request = Request::post(uri(http2, path));
        let request = if http2 { request } else { request.header("host", "a.test") };
        request.body(body).unwrap()
    };
    let mut streams = Vec::new();
    let mut uploads = Vec::new();
    for http2 in [false, true] {
        let answer = send(&node, http2, request(http2, "/stream", Full::default().boxed())).await;
        assert_eq!(answer.status(), 200);
        streams.push(tokio::spawn(answer.into_body().collect()));
        let (pieces, body) = tokio::sync::mpsc::channel::<Bytes>(1);
        let body = futures::stream::unfold(body, |mut body| async {
            let piece = body.recv().await?;
            Some((Ok(hyper::body::Frame::data(piece)), body))
        });
        pieces.send("one".into()).await.unwrap();
        let body = BodyExt::boxed(http_body_util::StreamBody::new(body));
        let (node, request) = (node.clone(), request(http2, "/upload", body));
        let answer = tokio::spawn(async move { send(&node, http2, request).await.into_body().collect().await });
        uploads.push((pieces, answer));
    }
    rig.noted("upload a/1", 2).await;
    rig.deploy("a", 2, "good").await;
    rig.serving("a", 2).await;
    // One that has no calls leaves at once: by then the first would have left too.
    rig.deploy("a", 3, "good").await;
    rig.serving("a", 3).await;
    rig.noted("drain a/2", 2).await;
    for (pieces, _) in &uploads {
        pieces.send("two".into()).await.unwrap();
    }
    std::fs::write(rig.run("enough"), "").unwrap();
    for stream in streams {
        let body = stream.await.unwrap().expect("the stream was cut off").to_bytes();
        assert!(body.ends_with(b"more end"), "{body:?}");
    }
    for (pieces, answer) in uploads {
        drop(pieces);
        assert_eq!(answer.await.unwrap().unwrap().to_bytes(), "a/1/web took 6");
    }
    rig.noted("drain a/1", 2).await;
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_names_its_reason_and_the_old_revision_goes_on() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    for (revision, version, code) in [(2, "bad", "link-missing"), (3, "crash", "start-failed")] {
        rig.deploy("a", revision, version).await;
        let seen =
            rig.until("a", |seen| seen.revision == Revision(revision) && matches!(seen.phase, Phase::Failed)).await;
        assert_eq!(seen.serving, Some(Revision(1)));
        assert_eq!(seen.reason.unwrap().code, code);
        assert_eq!(get(&node, "a", "/").await.0, 200);
    }
    // An artifact that is not there.
    let missing = Digest::of(b"b");
    rig.deploy("b", 1, "good").await;
    rig.serving("b", 1).await;
    std::fs::remove_file(rig.blobs.path(&missing)).unwrap();
    std::fs::remove_dir_all(rig.dir.path().join("cache/aa")).unwrap();
    rig.deploy_raw_again("b", 2).await;
    let seen = rig.until("b", |seen| seen.revision == Revision(2) && seen.phase == Phase::Failed).await;
    assert_eq!((seen.serving, seen.reason.unwrap().code.as_str()), (Some(Revision(1)), "artifact-missing"));
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_serves_once_its_health_path_is_answered() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let entry = rig.store.get(&keys::revision(&tenant(), &"a".parse().unwrap(), Revision(1))).await.unwrap().unwrap();
    let mut record: RevisionRecord = serde_json::from_slice(&entry.value).unwrap();
    record.revision = Revision(2);
    record.app.components.values_mut().for_each(|component| component.health = Some("/ill".into()));
    rig.put(&keys::revision(&tenant(), &"a".parse().unwrap(), Revision(2)), &record).await;
    rig.assign("a", Assignment { revision: Revision(2), suspended: None, expiry: None, older: None }).await;
    let seen = rig.until("a", |seen| matches!(seen.phase, Phase::Failed)).await;
    let reason = seen.reason.unwrap();
    assert_eq!((seen.serving, reason.code.as_str()), (Some(Revision(1)), "probe-failed"));
    assert!(reason.message.contains("`GET /ill` is answered with 500"), "{}", reason.message);
    assert!(get(&node, "a", "/").await.1.starts_with("a/1/"));
    // It is asked where its code was loaded, with a host of its routes.
    let asked: BTreeSet<_> = rig.notes().into_iter().filter(|note| note.contains("ill a/2")).collect();
    assert!(asked.len() == 1 && asked.iter().all(|note| note.ends_with(" a.test")), "{asked:?}");
    // What it depended on is back: nobody has to deploy again.
    std::fs::write(rig.run("well"), "").unwrap();
    rig.serving("a", 2).await;
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_with_state_in_memory_runs_on_one_shard_and_shards_can_change() {
    let rig = Rig::new();
    let node = rig.start().await;
    let links = r#"[{"component":"web","contract":"wasi:keyvalue","label":"default","provider":"memory"}]"#;
    for n in 0..6 {
        rig.deploy_linked(&format!("m{n}"), 1, "good", links).await;
    }
    for n in 0..6 {
        rig.serving(&format!("m{n}"), 1).await;
    }
    let homes = |app: &str| {
        let starts = rig.notes().into_iter().filter(|line| line.contains(&format!("start {app}/1")));
        starts.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect::<std::collections::BTreeSet<_>>()
    };
    for n in 0..6 {
        assert_eq!(homes(&format!("m{n}")).len(), 1, "{:?}", rig.notes());
    }
    for shards in [4, 1, 2] {
        rig.put(&keys::tenant(&tenant()), &TenantSettings { shards, ..TenantSettings::default() }).await;
        let started = Instant::now();
        loop {
            let up = node.status(&tenant()).await.len();
            for n in 0..6 {
                let (status, text, _) = get(&node, &format!("m{n}"), "/").await;
                assert_eq!(status, 200, "{shards} shards, m{n}: {text}");
            }
            if up == shards as usize {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{up} of {shards} hosts");
        }
    }
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_an_app_is_removed_when_no_host_has_it_any_more() {
    use store::data::{Answer, Op};
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let (app, provider) = ("a".parse::<AppName>().unwrap(), "embedded".parse().unwrap());
    let set = Op::Set { key: "k".into(), value: b"v".to_vec() };
    let other: AppName = "b".parse().unwrap();
    rig.data.call(&tenant(), &app, &provider, "default", set.clone()).await.unwrap();
    rig.data.call(&tenant(), &other, &provider, "default", set).await.unwrap();
    let folder = store::folder::Folder::open(rig.dir.path().join("objects")).unwrap();
    let files = "files".parse().unwrap();
    let scope = store::folder::Scope { tenant: &tenant(), app: &app, provider: &files };
    folder.create(scope, "box").unwrap();
    let external = rig.dir.path().join("externals/t/a");
    std::fs::create_dir_all(external.join("kv")).unwrap();
    assert_eq!(node.purge(&tenant(), &app).await.unwrap_err().code, api::Code::Busy, "it serves");
    rig.store.delete(&keys::assigned(&node_name(), &tenant(), &app), Expect::Any).await.unwrap();
    let started = Instant::now();
    while let Err(problem) = node.purge(&tenant(), &app).await {
        assert!(problem.code == api::Code::Busy && started.elapsed() < PATIENCE, "{problem:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let get = || Op::Get { key: "k".into() };
    let gone = rig.data.call(&tenant(), &app, &provider, "default", get()).await.unwrap();
    assert_eq!(gone, Answer::Value(None));
    let kept = rig.data.call(&tenant(), &other, &provider, "default", get()).await.unwrap();
    assert_eq!(kept, Answer::Value(Some(b"v".to_vec())));
    assert_eq!(folder.container(scope, "box").unwrap(), None);
    assert!(!external.exists(), "what a program of the operator's kept for it goes too");
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_from_inside_are_held_to_the_tenants_quotas() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let app: AppName = "a".parse().unwrap();
    let call = || node.call(&tenant(), &app, None, Request::get("/").body(Bytes::new()).unwrap());
    for _ in 0..40 {
        assert_eq!(call().await.unwrap().status(), 200);
    }
    let quotas = model::tenant::Quotas { requests_per_second: Some(1), ..Default::default() };
    rig.put(&keys::tenant(&tenant()), &TenantSettings { quotas, ..TenantSettings::default() }).await;
    let started = Instant::now();
    let problem = loop {
        if let Err(problem) = call().await {
            break problem;
        }
        assert!(started.elapsed() < PATIENCE, "calls are not held to the quota");
    };
    assert_eq!(problem.code, api::Code::RateLimited);
    node.shutdown(Duration::from_secs(5)).await;
}
