//! A whole node with its store, ingress and host processes; only what runs in the hosts is a stand-in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::control::MoveRequest;
use api::copy::{CopyPhase, CopyView, Extra, MoveRecord};
use api::node::{CopyStep, NodeApi};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::observed::{AppObserved, Phase, Reason};
use model::plan::Older;
use model::tenant::TenantSettings;
use model::{AppName, Digest, LockedApp, NodeName, Revision, TenantName};
use node::confine::Confinement;
use node::{Node, NodeConfig, Storage};
use store::blobs::Blobs;
use store::data::DataEngine;
use store::keys::{self, Assignment, RevisionRecord};
use store::redb::RedbStore;
use store::secrets::Secrets;
use store::{Expect, Store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// For what happens soon, also on a slow machine with much to do.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    blobs: Blobs,
    data: DataEngine,
}

fn tenant() -> TenantName {
    "t".parse().unwrap()
}

fn node_name() -> NodeName {
    "n".parse().unwrap()
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        super::fake_host::program(dir.path());
        let store: Arc<dyn Store> = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
        Self { dir, store, blobs, data }
    }

    async fn start(&self) -> Arc<Node> {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let exe = self.dir.path().join("exe");
        let (store, blobs, data) = (self.store.clone(), self.blobs.clone(), self.data.clone());
        let secrets = Secrets::open(store.clone(), &self.dir.path().join("keys")).await.unwrap();
        let storage = Storage { store, blobs, data, secrets };
        let mut config = NodeConfig::new(node_name(), self.dir.path(), exe, Confinement::bare(), storage, listen);
        config.ingress.workers = 1;
        Node::start(config).await.unwrap()
    }

    fn run(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    fn notes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.run("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn put<T: serde::Serialize>(&self, key: &str, value: &T) {
        let value = serde_json::to_vec(value).unwrap().into();
        self.store.put(key, value, Expect::Any, None).await.unwrap();
    }

    /// What the control plane does: a revision, then its assignment.
    async fn deploy(&self, app: &str, revision: u64, version: &str) {
        self.deploy_linked(app, revision, version, "[]").await;
    }

    async fn deploy_linked(&self, app: &str, revision: u64, version: &str, links: &str) {
        self.record(app, revision, version, links).await;
        let revision = Revision(revision);
        self.assign(app, Assignment { revision, suspended: None, expiry: None, older: None }).await;
    }

    async fn record(&self, app: &str, revision: u64, version: &str, links: &str) {
        let name: AppName = app.parse().unwrap();
        let digest = Digest::of(app.as_bytes());
        self.blobs.put(&digest, app.as_bytes()).unwrap();
        let locked: LockedApp = serde_json::from_str(&format!(
            r#"{{"name":"{app}","version":"{version}","links":{links},
                "components":{{"web":{{"digest":"{digest}","size":1,"world":"p2","imports":[],
                               "exports":["wasi:http/incoming-handler@0.2.0"]}}}},
                "routes":[{{"host":"{app}.test","path":"/","component":"web"}}]}}"#
        ))
        .unwrap();
        let revision = Revision(revision);
        let record = serde_json::json!({ "revision": revision, "created_ms": 0, "origin": null, "app": locked });
        self.put(&keys::revision(&tenant(), &name, revision), &record).await;
    }

    /// The same with what the control plane says of what serves until then: that it must not, or that it may.
    async fn instead(&self, app: &str, revision: u64, (older, why): (u64, Option<&Reason>)) {
        let older = Older { revision: Revision(older), suspended: why.cloned(), expiry: None };
        let assignment = Assignment { revision: Revision(revision), suspended: None, expiry: None, older: Some(older) };
        self.assign(app, assignment).await;
    }

    async fn assign(&self, app: &str, assignment: Assignment) {
        self.put(&keys::assigned(&node_name(), &tenant(), &app.parse().unwrap()), &assignment).await;
    }

    async fn observed(&self, app: &str) -> Option<AppObserved> {
        let key = keys::observed(&node_name(), &tenant(), &app.parse().unwrap());
        let entry = self.store.get(&key).await.unwrap()?;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }

    /// Waits until hosts have noted this line so often.
    async fn noted(&self, line: &str, count: usize) {
        let started = Instant::now();
        while self.notes().iter().filter(|note| note.ends_with(line)).count() < count {
            assert!(started.elapsed() < PATIENCE, "{line}: {:?}", self.notes());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the report of an app is as `wanted` says.
    async fn until(&self, app: &str, wanted: impl Fn(&AppObserved) -> bool) -> AppObserved {
        let started = Instant::now();
        loop {
            let seen = self.observed(app).await;
            if let Some(seen) = seen.clone().filter(|seen| wanted(seen)) {
                return seen;
            }
            assert!(started.elapsed() < PATIENCE, "{app} is {seen:?}; {:?}", self.notes());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn serving(&self, app: &str, revision: u64) {
        self.until(app, |seen| seen.phase == Phase::Serving && seen.serving == Some(Revision(revision))).await;
    }
}

/// One request on its own connection.
async fn get(node: &Node, app: &str, path: &str) -> (u16, String, http::HeaderMap) {
    let stream = tokio::net::TcpStream::connect(node.ingress()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", format!("{app}.test")).body(Full::<Bytes>::default()).unwrap();
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (parts.status.as_u16(), text, parts.headers)
}

fn pid_of(text: &str) -> i32 {
    text.rsplit_once("pid=").unwrap().1.parse().unwrap()
}

fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

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

type Sent = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// Sends a request over either protocol; the answer's head is there, its body is still to come.
async fn send(node: &Node, http2: bool, request: Request<Sent>) -> http::Response<hyper::body::Incoming> {
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

impl Rig {
    /// A new revision of an app with the content of its first, without uploading anything.
    async fn deploy_raw_again(&self, app: &str, revision: u64) {
        let name: AppName = app.parse().unwrap();
        let entry = self.store.get(&keys::revision(&tenant(), &name, Revision(1))).await.unwrap().unwrap();
        let mut record: RevisionRecord = serde_json::from_slice(&entry.value).unwrap();
        record.revision = Revision(revision);
        self.put(&keys::revision(&tenant(), &name, Revision(revision)), &record).await;
        self.assign(app, Assignment { revision: Revision(revision), suspended: None, expiry: None, older: None }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_is_back_with_all_it_had() {
    let rig = Rig::new();
    let node = rig.start().await;
    for n in 0..20 {
        rig.deploy(&format!("a{n}"), 1, "good").await;
    }
    for n in 0..20 {
        rig.serving(&format!("a{n}"), 1).await;
    }
    for _ in 0..3 {
        let (_, text, _) = get(&node, "a0", "/").await;
        let victim = pid_of(&text);
        let ups = || rig.notes().iter().filter(|line| line.contains(" up ")).count();
        let before = ups();
        kill(victim);
        let started = Instant::now();
        // The other shard answers meanwhile; the same shard is back when its requests go to a new process.
        loop {
            let (status, text, _) = get(&node, "a0", "/").await;
            assert!(status == 200 || status == 502, "{status} {text}");
            if status == 200 && pid_of(&text) != victim && ups() > before {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{:?}", rig.notes());
        }
        for n in 0..20 {
            assert_eq!(get(&node, &format!("a{n}"), "/").await.0, 200);
        }
        println!("back after {:?}", started.elapsed());
    }
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_never_starts_is_reported_and_not_hammered() {
    let rig = Rig::new();
    std::fs::create_dir_all(rig.run("")).unwrap();
    std::fs::write(rig.run("broken"), "").unwrap();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    let reason = seen.reason.unwrap();
    assert!(reason.message.contains("this host is broken"), "{reason:?}");
    let (before, began) = (rig.notes().len(), Instant::now());
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Each of two hosts is started again after a second, and then after two.
    let most = 4 + 2 * began.elapsed().as_secs() as usize;
    assert!(rig.notes().len() - before <= most, "{:?}", rig.notes());
    // It heals without anybody's help.
    std::fs::remove_file(rig.run("broken")).unwrap();
    rig.serving("a", 1).await;
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_app_says_so_and_comes_back() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let expired = Reason { code: "artifact-expired".into(), message: "expired".into(), help: None };
    rig.assign("a", Assignment { revision: Revision(1), suspended: Some(expired.clone()), expiry: None, older: None })
        .await;
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!((seen.serving, seen.reason), (None, Some(expired)));
    let (status, _, headers) = get(&node, "a", "/").await;
    assert_eq!((status, headers.get(api::agent::FAULT_HEADER).unwrap().as_bytes()), (503, b"suspended".as_slice()));
    // Nothing of it goes on anywhere.
    let drained = || rig.notes().iter().filter(|line| line.contains("drain a/1")).count();
    let begun = Instant::now();
    while drained() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", rig.notes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.assign("a", Assignment { revision: Revision(1), suspended: None, expiry: None, older: None }).await;
    rig.serving("a", 1).await;
    assert_eq!(get(&node, "a", "/").await.0, 200);
    node.shutdown(Duration::from_secs(5)).await;
}

/// Asks again and again until it is stopped: nothing but what is suspended, or an answer of these revisions. Which they were.
fn asked(node: &Arc<Node>, good: &'static [&'static str]) -> (CancellationToken, JoinHandle<BTreeSet<String>>) {
    let (stop, node) = (CancellationToken::new(), node.clone());
    let stopped = stop.clone();
    let asking = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while !stopped.is_cancelled() {
            let (status, text, headers) = get(&node, "a", "/").await;
            let fault = headers.get(api::agent::FAULT_HEADER).map(|fault| fault.as_bytes().to_vec());
            let answer = match status {
                503 if fault.as_deref() == Some(b"suspended") => "suspended".to_owned(),
                _ => text.chars().take(3).collect(),
            };
            assert!(good.contains(&answer.as_str()), "{status} {text}");
            seen.insert(answer);
        }
        seen
    });
    (stop, asking)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_run_does_not_run_again_because_something_is_deployed_after_it() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let revoked = Reason { code: "artifact-revoked".into(), message: "revoked".into(), help: None };
    let (suspended, older) = (Some(revoked.clone()), None);
    rig.assign("a", Assignment { revision: Revision(1), suspended, expiry: None, older }).await;
    rig.until("a", |seen| seen.reason.is_some()).await;
    let (stop, asking) = asked(&node, &["suspended"]);
    let failed = async |revision| {
        let failed = |seen: &AppObserved| seen.revision == Revision(revision) && seen.phase == Phase::Failed;
        let seen = rig.until("a", failed).await;
        assert_eq!((seen.serving, seen.reason.unwrap().code.as_str()), (None, "link-missing"));
    };
    // Nothing is said of it yet; then that it is as it was.
    rig.deploy("a", 2, "bad").await;
    failed(2).await;
    rig.instead("a", 2, (1, Some(&revoked))).await;
    rig.record("a", 3, "bad", "[]").await;
    rig.instead("a", 3, (1, Some(&revoked))).await;
    failed(3).await;
    stop.cancel();
    assert_eq!(asking.await.unwrap().len(), 1);
    // Nor does a restart bring it back: what is wanted then is tried, and is not what served.
    node.shutdown(Duration::from_secs(5)).await;
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    let (stop, asking) = asked(&node, &["suspended", "a/4"]);
    failed(3).await;
    rig.record("a", 4, "good", "[]").await;
    rig.instead("a", 4, (1, Some(&revoked))).await;
    rig.serving("a", 4).await;
    // Nobody speaks of it any more.
    rig.deploy("a", 4, "good").await;
    let (status, text, _) = get(&node, "a", "/").await;
    assert!(status == 200 && text.starts_with("a/4/"), "{status} {text}");
    stop.cancel();
    asking.await.unwrap();
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_still_serves_is_suspended_and_resumed_though_another_one_is_wanted() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    rig.deploy("a", 2, "bad").await;
    let failed = |serving: Option<u64>| {
        let serving = serving.map(Revision);
        move |seen: &AppObserved| seen.phase == Phase::Failed && seen.serving == serving
    };
    rig.until("a", failed(Some(1))).await;
    let revoked = Reason { code: "artifact-revoked".into(), message: "revoked".into(), help: None };
    rig.instead("a", 2, (1, Some(&revoked))).await;
    rig.until("a", failed(None)).await;
    assert_eq!(get(&node, "a", "/").await.0, 503);
    node.shutdown(Duration::from_secs(5)).await;
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    assert_eq!(get(&node, "a", "/").await.0, 503);
    rig.instead("a", 2, (1, None)).await;
    rig.until("a", failed(Some(1))).await;
    // The wanted one must not run, and what serves may: no request of it fails.
    let (stop, asking) = asked(&node, &["a/1"]);
    let older = Some(Older { revision: Revision(1), suspended: None, expiry: None });
    let suspended = Some(revoked.clone());
    rig.assign("a", Assignment { revision: Revision(2), suspended, expiry: None, older }).await;
    let seen = rig.until("a", |seen| seen.reason.as_ref() == Some(&revoked)).await;
    assert_eq!((seen.phase, seen.serving), (Phase::Failed, Some(Revision(1))));
    stop.cancel();
    asking.await.unwrap();
    // Its claims end, and nobody says so again.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expiry = Some(model::plan::Expiry { at: now + 2, component: "web".parse().unwrap() });
    let older = Some(Older { revision: Revision(1), suspended: None, expiry });
    rig.assign("a", Assignment { revision: Revision(2), suspended: None, expiry: None, older }).await;
    rig.until("a", failed(None)).await;
    assert_eq!(get(&node, "a", "/").await.0, 503);
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_has_no_process_and_comes_back() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let (_, text, _) = get(&node, "a", "/").await;
    let key = keys::tenant(&tenant());
    let suspended = TenantSettings { suspended: Some("a test".into()), ..TenantSettings::default() };
    rig.put(&key, &suspended).await;
    // Nobody has to say it of each app.
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!(seen.serving, None);
    assert_eq!(get(&node, "a", "/").await.0, 503);
    let begun = Instant::now();
    let pid = rustix::process::Pid::from_raw(pid_of(&text)).unwrap();
    while rustix::process::test_kill_process(pid).is_ok() || !node.status(&tenant()).await.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "its hosts are still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nor does a restart bring them back, or wait for them.
    node.shutdown(Duration::from_secs(5)).await;
    std::fs::remove_file(rig.run("notes")).unwrap();
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    assert_eq!((get(&node, "a", "/").await.0, rig.notes()), (503, Vec::new()));
    rig.put(&key, &TenantSettings::default()).await;
    rig.serving("a", 1).await;
    assert_eq!(get(&node, "a", "/").await.0, 200);
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_suspended_though_nobody_says_so_again() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expiry = model::plan::Expiry { at: now + 2, component: "web".parse().unwrap() };
    rig.assign("a", Assignment { revision: Revision(1), suspended: None, expiry: Some(expiry.clone()), older: None })
        .await;
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!((seen.serving, seen.reason), (None, expiry.barred(now + 2)));
    assert_eq!(get(&node, "a", "/").await.0, 503);
    // Nor does a restart bring it back.
    node.shutdown(Duration::from_secs(5)).await;
    let node = rig.start().await;
    rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!(get(&node, "a", "/").await.0, 503);
    rig.assign("a", Assignment { revision: Revision(1), suspended: None, expiry: None, older: None }).await;
    rig.serving("a", 1).await;
    assert_eq!(get(&node, "a", "/").await.0, 200);
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
async fn after_a_restart_it_serves_what_it_served() {
    let rig = Rig::new();
    let node = rig.start().await;
    let apps = 300;
    for n in 0..apps {
        rig.deploy(&format!("a{n}"), 1, "good").await;
    }
    for n in 0..apps {
        rig.serving(&format!("a{n}"), 1).await;
    }
    // The head moved on to a revision that does not start.
    rig.deploy("a0", 2, "bad").await;
    rig.until("a0", |seen| seen.phase == Phase::Failed).await;
    node.shutdown(Duration::from_secs(5)).await;
    assert!(rig.observed("a1").await.is_none());
    std::fs::remove_file(rig.run("notes")).unwrap();

    let started = Instant::now();
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    println!("{apps} apps back after {:?}", started.elapsed());
    for n in 0..apps {
        let (status, text, _) = get(&node, &format!("a{n}"), "/").await;
        assert!(status == 200 && text.starts_with(&format!("a{n}/1/")), "{status} {text}");
    }
    rig.serving("a1", 1).await;
    let seen = rig.until("a0", |seen| seen.phase == Phase::Failed).await;
    assert_eq!((seen.revision, seen.serving), (Revision(2), Some(Revision(1))));
    let loaded = rig.notes().into_iter().filter(|line| line.contains("load=true")).collect::<Vec<_>>();
    assert_eq!(loaded.len(), 1, "only the new revision is loaded at once: {loaded:?}");
    node.shutdown(Duration::from_secs(5)).await;
}

/// What is recorded of a move of data.
fn moving(phase: CopyPhase) -> MoveRecord {
    let (from, to) = ("embedded".parse().unwrap(), "memory".parse().unwrap());
    let (contract, extra) = ("wasi:keyvalue".parse().unwrap(), Extra::Refuse);
    let request = MoveRequest { component: None, contract, label: None, provider: "memory".parse().unwrap(), extra };
    let (held_ms, revision, problem) = (None, None, None);
    let view = CopyView { from, to, phase, read: 0, written: 0, bytes: 0, held_ms, revision, problem };
    MoveRecord { since: None, request, meant: None, looked: None, before: Some(Revision(1)), view }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_whose_link_was_about_to_move_waits_from_the_first_moment_after_a_restart() {
    let rig = Rig::new();
    let node = rig.start().await;
    let apps = [("a", CopyPhase::Switching), ("b", CopyPhase::Following), ("c", CopyPhase::Done)];
    for (app, _) in apps {
        rig.deploy(app, 1, "good").await;
        rig.serving(app, 1).await;
    }
    node.shutdown(Duration::from_secs(5)).await;
    for (app, phase) in apps {
        rig.put(&keys::copy(&tenant(), &app.parse().unwrap()), &moving(phase)).await;
    }
    std::fs::remove_file(rig.run("notes")).unwrap();

    let node = rig.start().await;
    rig.serving("a", 1).await;
    rig.noted("start a/1 load=false", 2).await;
    let notes = rig.notes();
    for host in ["t.0", "t.1"] {
        let at = |line: &str| notes.iter().position(|note| *note == format!("{host} {line}"));
        let held = at("hold a/1").expect("every host lets its calls wait");
        assert!(Some(held) < at("start a/1 load=false"), "before it has anything of it: {notes:?}");
    }
    assert!(!notes.iter().any(|note| note.contains("hold b") || note.contains("hold c")), "{notes:?}");
    let release = |node: Arc<Node>| async move {
        node.copy(&tenant(), &"a".parse().unwrap(), "", CopyStep::Release(None)).await.map(drop)
    };
    release(node.clone()).await.unwrap();
    rig.noted("release a", 2).await;
    node.shutdown(Duration::from_secs(5)).await;

    // Whoever lets them go on in the same moment as the node starts is heard.
    let node = rig.start().await;
    release(node.clone()).await.expect("it is told");
    rig.serving("a", 1).await;
    let (_, text, _) = get(&node, "a", "/").await;
    std::fs::remove_file(rig.run("notes")).unwrap();
    kill(pid_of(&text));
    rig.noted("start a/1 load=false", 1).await;
    assert!(!rig.notes().iter().any(|note| note.contains("hold a")), "{:?}", rig.notes());
    node.shutdown(Duration::from_secs(5)).await;
}

/// As after an upgrade with another engine: what served is there when its code is, and what it waits for is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_without_compiled_code_it_has_settled_when_that_is_made() {
    let rig = Rig::new();
    let node = rig.start().await;
    for app in ["a", "b"] {
        rig.deploy(app, 1, "good").await;
        rig.serving(app, 1).await;
    }
    node.shutdown(Duration::from_secs(5)).await;
    std::fs::remove_dir_all(rig.dir.path().join("cache")).unwrap();
    // The engine takes its time, and cannot compile `b`.
    let compile = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; code=$(cat); case \"$code\" in b) echo 'not with this engine' >&2; exit 1 ;; \
         esac; printf %s \"$code\"; exit 0",
        rig.run("go").display()
    );
    let exe = rig.dir.path().join("exe");
    let script = std::fs::read_to_string(&exe).unwrap();
    assert!(script.contains("exec /bin/cat ;;"), "{script}");
    std::fs::write(&exe, script.replace("exec /bin/cat ;;", &format!("{compile} ;;"))).unwrap();

    let node = rig.start().await;
    for app in ["a", "b"] {
        let seen = rig.until(app, |seen| seen.phase == Phase::Compiling).await;
        assert_eq!((seen.serving, seen.reason), (Some(Revision(1)), None), "its routes are there, and calls wait");
    }
    assert!(!node.settled(Duration::ZERO).await);
    std::fs::write(rig.run("go"), "").unwrap();
    rig.serving("a", 1).await;
    let seen = rig.until("b", |seen| seen.phase == Phase::Failed).await;
    let reason = seen.reason.unwrap();
    assert_eq!((seen.serving, reason.code.as_str()), (None, "compile-failed"));
    assert!(reason.message.contains("not with this engine"), "{}", reason.message);
    assert!(node.settled(PATIENCE).await);
    let code = rig.dir.path().join("cache/aa").join(format!("{}.p2.cwasm", Digest::of(b"a").hex()));
    assert_eq!(std::fs::read(code).unwrap(), b"a", "nobody has asked for it");
    assert_eq!((get(&node, "a", "/").await.0, get(&node, "b", "/").await.0), (200, 404));
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_will_not_drain_does_not_hold_the_node_up() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let (_, text, _) = get(&node, "a", "/").await;
    std::fs::write(rig.run("stubborn"), "").unwrap();
    let started = Instant::now();
    node.shutdown(Duration::from_millis(1500)).await;
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let pid = rustix::process::Pid::from_raw(pid_of(&text)).unwrap();
    assert!(rustix::process::test_kill_process(pid).is_err(), "its process is gone and reaped");
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
