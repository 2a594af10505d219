//! `wasi:blobstore` through the whole platform: the folder of the node does what the contract says, streams without
//! growing, and shows nothing half-written whatever is killed.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::services::blob::{BlobAnswer, BlobOp, BlobRequest, Chunk};
use api::services::client::{CallsClient, NodeWay};
use api::services::{ServiceAnswer, ServiceRequest};
use arc_swap::ArcSwapOption;
use model::Revision;
use node::artifacts::Artifacts;
use node::databases::Databases;
use node::dialer::{Dialer, SystemResolver};
use node::external::{ExternalConfig, Externals};
use node::services::{Client, Services, serve};
use node::tenant::{Prepared, Tenant};
use sidereal_tests::http::Connection;
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until, write_app};
use store::blobs::Blobs;
use store::data::DataEngine;
use store::folder::Folder;
use store::redb::RedbStore;
use store::secrets::Secrets;

/// The node's services behind a socket, as a host meets them.
async fn node(dir: &Path) -> Arc<CallsClient> {
    let data = DataEngine::open(dir.join("data.redb")).unwrap();
    let messaging = node::messaging::Messaging::new(data.clone());
    node_with(dir, data, messaging).await
}

/// A node's services for the tenant `acme`, and a client of them.
pub(crate) async fn node_with(
    dir: &Path,
    data: DataEngine,
    messaging: Arc<node::messaging::Messaging>,
) -> Arc<CallsClient> {
    Arc::new(CallsClient::new(way_to(dir, data, messaging).await, Duration::from_secs(30)))
}

/// A node's services for the tenant `acme`, and a client of them.
pub(crate) async fn services(dir: &Path) -> (Arc<CallsClient>, Arc<Services>) {
    let data = DataEngine::open(dir.join("data.redb")).unwrap();
    let messaging = node::messaging::Messaging::new(data.clone());
    let (way, services) = served(dir, data, messaging).await;
    (Arc::new(CallsClient::new(way, Duration::from_secs(30))), services)
}

/// A node's services for the tenant `acme` with its app `shop`, as a host of it reaches them.
pub(crate) async fn way_to(dir: &Path, data: DataEngine, messaging: Arc<node::messaging::Messaging>) -> NodeWay {
    served(dir, data, messaging).await.0
}

async fn served(dir: &Path, data: DataEngine, messaging: Arc<node::messaging::Messaging>) -> (NodeWay, Arc<Services>) {
    let artifacts = Artifacts::open(
        dir.join("cache"),
        dir.join("keys"),
        std::env::current_exe().unwrap(),
        node::confine::Confinement::bare(),
        Blobs::open(dir.join("blobs")).unwrap(),
    );
    let store = RedbStore::open(dir.join("store.redb")).unwrap();
    let secrets = Secrets::open(store, &dir.join("keys")).await.unwrap();
    let externals = Externals::new(ExternalConfig {
        exe: "/bin/false".into(),
        confinement: node::confine::Confinement::bare(),
        hide: Vec::new(),
        programs: Default::default(),
        run_dir: dir.join("run"),
        data_dir: dir.join("externals"),
        secrets: secrets.clone(),
        logs: Default::default(),
        events: tokio::sync::mpsc::unbounded_channel().0,
        pace: Default::default(),
    });
    let services = Arc::new(Services {
        messaging,
        lent: Arc::default(),
        data,
        folder: Folder::open(dir.join("objects")).unwrap(),
        sql: Databases::within(dir.join("sql")),
        artifacts: Arc::new(artifacts.unwrap()),
        dialer: Dialer::new(Arc::new(SystemResolver)),
        secrets,
        externals,
        confinement: node::confine::Confinement::bare(),
    });
    let (first, theirs) = tokio::net::UnixStream::pair().unwrap();
    let tenant = Tenant::new("acme".parse().unwrap());
    let app = serde_json::from_str(r#"{"name":"shop","components":{}}"#).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    let client = Client { tenant, shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    tokio::spawn(serve(first, client, services.clone()));
    (NodeWay::handed(theirs.into_std().unwrap()).unwrap(), services)
}

fn partials(data_dir: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(data_dir.join("objects/.partial")).unwrap();
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let client = node(dir.path()).await;
    let folder = host::Folder::new(client.clone(), "shop".parse().unwrap(), "folder".parse().unwrap());
    providers::blobstore::conformance::run(&folder).await.unwrap();
    // What was removed gives its room back after the answer.
    until(Duration::from_secs(10), || partials(dir.path()).is_empty()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_that_is_gone_had_begun_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let client = node(dir.path()).await;
    let app = "shop".parse().unwrap();
    let call = async |op| {
        let request = ServiceRequest::Blob(BlobRequest { provider: "folder".parse().unwrap(), op });
        client.call(&app, &request).await.unwrap()
    };
    call(BlobOp::Create { container: "c".into() }).await;
    let begun = call(BlobOp::Begin { container: "c".into(), object: "o".into() }).await;
    let ServiceAnswer::Blob(Ok(BlobAnswer::Begun { upload })) = begun else { panic!("{begun:?}") };
    call(BlobOp::Write { upload, chunk: Chunk(vec![1; 1000].into()) }).await;
    assert_eq!(partials(dir.path()), [1000]);
    // A host that dies says no more: its connection ends.
    drop(client);
    until(Duration::from_secs(10), || partials(dir.path()).is_empty()).unwrap();
}

/// An app with a blob link to the folder.
fn deploy(platform: &Platform, dir: &Path) {
    let rest = "limits = { request-body = \"64MiB\", wall = \"5m\", cpu = \"60s\", memory = \"32MiB\" }\n\
                [components.main.links]\n\
                \"wasi:blobstore\" = [{ provider = \"folder\" }, { label = \"mine\", provider = \"folder\", container = \"theirs\" }]";
    write_app(dir, "blobs", "blob-probe", rest).unwrap();
    platform.ok(&["deploy", dir.to_str().unwrap()]).unwrap();
}

fn ask(platform: &Platform, path: &str) -> (u16, String) {
    let answer = platform.get("blobs.localhost", path).unwrap();
    (answer.status, answer.body.trim().to_owned())
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn an_app_keeps_objects_in_the_folder_and_a_large_one_is_never_whole_in_memory() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    deploy(&platform, app.path());
    let ok = |text: &str| (200, text.to_owned());
    for (path, expected) in [
        ("/create/photos", "photos"),
        ("/fill/photos/a%2Fb/100000", "ok"),
        ("/sum/photos/a%2Fb", "100000"),
        ("/list/photos", "a/b"),
        ("/create/mine", "mine"),
        ("/copy/photos/a%2Fb/mine/copy", "ok"),
        ("/list/theirs", "copy"),
        ("/sum/theirs/copy", "100000"),
    ] {
        assert_eq!(ask(&platform, path), ok(expected), "{path}");
    }
    let hosts = platform.hosts();
    let before = resident(hosts[0]);
    let size = 200 << 20;
    assert_eq!(ask(&platform, &format!("/fill/photos/large/{size}")), ok("ok"));
    assert_eq!(ask(&platform, "/sum/photos/large"), ok(&size.to_string()));
    assert_eq!(platform.hosts(), hosts);
    let grown = resident(hosts[0]).saturating_sub(before);
    assert!(grown < 64 << 20, "an object of {size} bytes went through, and the host grew by {grown}");
    until(Duration::from_secs(10), || partials(dir.path()).is_empty()).unwrap();
}

#[test]
fn the_object_store_of_nats_keeps_the_objects_of_an_app() {
    let nats = Nats::start().unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.ok(&["provider", "add", "objects", "--type", "blobstore-nats", "--url", &nats.url()]).unwrap();
    let rest = "limits = { wall = \"5m\", cpu = \"60s\", memory = \"32MiB\" }\n\
                [components.main.links]\n\
                \"wasi:blobstore\" = [{ provider = \"objects\" }, { label = \"mine\", provider = \"folder\" }]";
    write_app(app.path(), "blobs", "blob-probe", rest).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let ok = |text: &str| (200, text.to_owned());
    let before = resident(platform.hosts()[0]);
    let size = 50 << 20;
    for (path, expected) in [
        ("/create/photos", "photos"),
        (&*format!("/fill/photos/a%2Fb/{size}"), "ok"),
        ("/sum/photos/a%2Fb", &*size.to_string()),
        ("/stat/photos/a%2Fb", &*format!("photos a/b {size}")),
        ("/create/mine", "mine"),
        ("/copy/photos/a%2Fb/mine/copy", "ok"),
        ("/copy/mine/copy/photos/back", "ok"),
        ("/move/photos/back/photos/moved", "ok"),
        ("/list/photos", "a/b\nmoved"),
        ("/delete/photos/a%2Fb", "ok"),
        ("/list/photos", "moved"),
        ("/delete-container/photos", "ok"),
        ("/exists/photos", "false"),
    ] {
        assert_eq!(ask(&platform, path), ok(expected), "{path}");
    }
    let grown = resident(platform.hosts()[0]).saturating_sub(before);
    assert!(grown < 64 << 20, "an object of {size} bytes went through, and the host grew by {grown}");
}

#[test]
fn kill_9_in_the_middle_of_an_upload_leaves_the_old_object_and_nothing_else() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    deploy(&platform, app.path());
    assert_eq!(ask(&platform, "/create/c").0, 200);
    let put = |platform: &Platform, path: &str, body: &[u8]| {
        Connection::open(platform.ingress).unwrap().send("PUT", "blobs.localhost", path, body).unwrap()
    };
    assert_eq!(put(&platform, "/put/c/kept", b"the old one").status, 200);

    // Half of two uploads: one replaces an object, one makes a new one.
    let mut halves = Vec::new();
    for name in ["kept", "new"] {
        let mut stream = TcpStream::connect(platform.ingress).unwrap();
        let length = 32 << 20;
        write!(stream, "PUT /put/c/{name} HTTP/1.1\r\nHost: blobs.localhost\r\nContent-Length: {length}\r\n\r\n")
            .unwrap();
        stream.write_all(&vec![b'x'; length / 2]).unwrap();
        halves.push(stream);
    }
    let arrived = || partials(dir.path()).iter().filter(|size| **size > 1 << 20).count() == 2;
    until(Duration::from_secs(20), arrived).unwrap();
    assert_eq!(ask(&platform, "/get/c/kept"), (200, "the old one".to_owned()));
    assert_eq!(ask(&platform, "/list/c"), (200, "kept".to_owned()));
    platform.kill().unwrap();

    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    assert_eq!(partials(dir.path()), [] as [u64; 0], "unfinished uploads are swept at the start");
    assert_eq!(ask(&platform, "/list/c"), (200, "kept".to_owned()));
    assert_eq!(ask(&platform, "/get/c/kept"), (200, "the old one".to_owned()));
    assert_eq!(put(&platform, "/put/c/kept", b"the new one").status, 200);
    assert_eq!(ask(&platform, "/get/c/kept"), (200, "the new one".to_owned()));
}
