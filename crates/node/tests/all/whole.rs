//! A whole node with its store, ingress and host processes; only what runs in the hosts is a stand-in.

mod deploys;
mod leaving;
mod restarts;
mod suspended;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::observed::{AppObserved, Phase, Reason};
use model::plan::Older;
use model::{AppName, Digest, LockedApp, NodeName, Revision, TenantName};
use node::confine::Confinement;
use node::{Node, NodeConfig, Storage};
use store::blobs::Blobs;
use store::data::DataEngine;
use store::keys::{self, Assignment, RevisionRecord};
use store::redb::RedbStore;
use store::secrets::Secrets;
use store::{Expect, Store};

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
        self.want(app, revision).await;
    }

    /// A new revision of an app with the content of its first, without uploading anything.
    async fn deploy_raw_again(&self, app: &str, revision: u64) {
        let name: AppName = app.parse().unwrap();
        let entry = self.store.get(&keys::revision(&tenant(), &name, Revision(1))).await.unwrap().unwrap();
        let mut record: RevisionRecord = serde_json::from_slice(&entry.value).unwrap();
        record.revision = Revision(revision);
        self.put(&keys::revision(&tenant(), &name, Revision(revision)), &record).await;
        self.assign(app, Assignment { revision: Revision(revision), suspended: None, expiry: None, older: None }).await;
    }

    async fn want(&self, app: &str, revision: u64) {
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
