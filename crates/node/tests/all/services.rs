//! What a host gets over its node.sock, with the client that hosts use.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::agent::HostInfo;
use api::services::client::{FilesClient, KvClient, KvError, NodeWay};
use api::services::{Caller, Dial, FileFault, FileRequest, KvAnswer, KvFault, KvOp, KvScope};
use arc_swap::ArcSwapOption;
use model::app::LockedApp;
use model::tenant::TenantSettings;
use model::{Digest, Revision, World};
use node::artifacts::Artifacts;
use node::confine::Confinement;
use node::dialer::{Dialer, SystemResolver};
use node::external::{ExternalConfig, Externals};
use node::services::{Client, Services, serve};
use node::tenant::{Prepared, Tenant};
use store::blobs::Blobs;
use store::data::DataEngine;
use store::folder::Folder;
use store::redb::RedbStore;
use store::secrets::Secrets;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

struct Rig {
    _dir: tempfile::TempDir,
    blobs: Blobs,
    services: Arc<Services>,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("exe");
        std::fs::write(&exe, "#!/bin/sh\nprintf code:; exec /bin/cat\n").unwrap();
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o700)).unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        let artifacts =
            Artifacts::open(dir.path().join("cache"), dir.path().join("keys"), exe, Confinement::bare(), blobs.clone())
                .unwrap();
        let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
        let secrets = Secrets::open(store, &dir.path().join("keys")).await.unwrap();
        let externals = Externals::new(ExternalConfig {
            exe: "/bin/false".into(),
            confinement: node::confine::Confinement::bare(),
            hide: Vec::new(),
            programs: Default::default(),
            run_dir: dir.path().join("run"),
            data_dir: dir.path().join("externals"),
            secrets: secrets.clone(),
            logs: Default::default(),
            events: tokio::sync::mpsc::unbounded_channel().0,
            pace: Default::default(),
        });
        let services = Services {
            messaging: node::messaging::Messaging::new(data.clone()),
            data,
            folder: Folder::open(dir.path().join("objects")).unwrap(),
            sql: store::sql::Databases::new(dir.path().join("sql")),
            artifacts: Arc::new(artifacts),
            dialer: Dialer::new(Arc::new(SystemResolver)),
            secrets,
            lent: Default::default(),
            externals,
        };
        Self { _dir: dir, blobs, services: Arc::new(services) }
    }

    fn host(&self, tenant: &Arc<Tenant>) -> (NodeWay, JoinHandle<()>) {
        let (first, theirs) = UnixStream::pair().unwrap();
        let info = HostInfo {
            pid: 1,
            version: String::new(),
            tenant: tenant.name.clone(),
            shard: 0,
            fingerprints: [(World::P2, "ab12".to_owned())].into(),
            interfaces: Vec::new(),
        };
        let info = Arc::new(ArcSwapOption::from_pointee(info));
        let client = Client { tenant: tenant.clone(), shard: 0, info };
        (
            NodeWay::handed(theirs.into_std().unwrap()).unwrap(),
            tokio::spawn(serve(first, client, self.services.clone())),
        )
    }
}

fn scope() -> KvScope {
    KvScope { app: "a".parse().unwrap(), provider: "embedded".parse().unwrap(), bucket: "b".into() }
}

fn increment(key: &str) -> KvOp {
    KvOp::Increment { key: key.into(), delta: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_value_calls_of_two_tenants_never_meet() {
    let rig = Rig::new().await;
    let (one, two) = (Tenant::new("one".parse().unwrap()), Tenant::new("two".parse().unwrap()));
    let (first, second) = (rig.host(&one), rig.host(&two));
    let kv = |socket: NodeWay| Arc::new(KvClient::new(socket, Duration::from_secs(20)));
    let (first, second) = (kv(first.0), kv(second.0));

    let count = 2000;
    let started = Instant::now();
    let calls = (0..count).map(|_| {
        let first = first.clone();
        tokio::spawn(async move { first.call(&scope(), &increment("n")).await.unwrap() })
    });
    let mut seen: Vec<i64> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(|answer| match answer.unwrap() {
            KvAnswer::Number(number) => number,
            other => panic!("{other:?}"),
        })
        .collect();
    println!("{count} increments in {:?}", started.elapsed());
    seen.sort_unstable();
    assert_eq!(seen, (1..=count).collect::<Vec<i64>>(), "each increment is counted once");

    assert_eq!(second.call(&scope(), &KvOp::Get { key: "n".into() }).await.unwrap(), KvAnswer::Value(None));
    let value = first.call(&scope(), &KvOp::Get { key: "n".into() }).await.unwrap();
    assert_eq!(value, KvAnswer::Value(Some(count.to_string().into_bytes())));
    let fault = {
        let set = KvOp::Set { key: "text".into(), value: b"abc".to_vec() };
        first.call(&scope(), &set).await.unwrap();
        first.call(&scope(), &increment("text")).await.unwrap_err()
    };
    assert!(matches!(fault, KvError::Fault(KvFault::NotANumber(_))), "{fault}");
}

#[tokio::test]
async fn every_operation_is_mapped_to_itself() {
    let rig = Rig::new().await;
    let (socket, _server) = rig.host(&Tenant::new("t".parse().unwrap()));
    let kv = KvClient::new(socket, Duration::from_secs(20));
    let pair = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    let found = |key: &str, value: Option<&str>| (key.to_owned(), value.map(|v| v.as_bytes().to_vec()));
    let keys = |list: &[&str]| list.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let table = [
        (KvOp::Set { key: "a".into(), value: b"1".to_vec() }, KvAnswer::Done),
        (KvOp::Get { key: "a".into() }, KvAnswer::Value(Some(b"1".to_vec()))),
        (KvOp::Exists { key: "a".into() }, KvAnswer::Bool(true)),
        (increment("a"), KvAnswer::Number(2)),
        (
            KvOp::CompareAndSet { key: "a".into(), expected: Some(b"1".to_vec()), value: b"9".to_vec() },
            KvAnswer::Bool(false),
        ),
        (KvOp::SetMany { pairs: vec![pair("b", "x"), pair("c", "y")] }, KvAnswer::Done),
        (
            KvOp::GetMany { keys: keys(&["c", "z", "a"]) },
            KvAnswer::Values(vec![found("c", Some("y")), found("z", None), found("a", Some("2"))]),
        ),
        (KvOp::ListKeys { cursor: None, limit: 10 }, KvAnswer::Keys { keys: keys(&["a", "b", "c"]), cursor: None }),
        (KvOp::DeleteMany { keys: keys(&["b", "c"]) }, KvAnswer::Done),
        (KvOp::Delete { key: "a".into() }, KvAnswer::Done),
        (KvOp::Exists { key: "a".into() }, KvAnswer::Bool(false)),
    ];
    for (op, expected) in table {
        assert_eq!(kv.call(&scope(), &op).await.unwrap(), expected, "{op:?}");
    }
}

#[tokio::test]
async fn code_is_handed_out_for_what_the_tenant_runs_only() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    let (socket, _server) = rig.host(&tenant);
    let files = FilesClient::new(socket);
    let (mine, other) = (Digest::of(b"mine"), Digest::of(b"other"));
    rig.blobs.put(&mine, b"mine").unwrap();
    rig.blobs.put(&other, b"other").unwrap();
    let app = format!(
        r#"{{"name":"a","components":{{"c":{{"digest":"{mine}","size":4,"world":"p2","imports":[],"exports":[]}}}}}}"#
    );
    let app: LockedApp = serde_json::from_str(&app).unwrap();
    let ask = |digest, world| FileRequest::Compiled { digest, world };
    assert!(files.request(&ask(mine, World::P2)).await.is_err(), "before it runs here");
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    for _ in 0..3 {
        let (fd, address) = files.request(&ask(mine, World::P2)).await.unwrap();
        assert_eq!(address, None);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(fd), &mut text).unwrap();
        assert_eq!(text, "code:mine");
    }
    assert!(files.request(&ask(other, World::P2)).await.is_err(), "another tenant's");
    assert!(files.request(&ask(mine, World::P3)).await.is_err(), "another engine's");
    tenant.remove(&"a".parse().unwrap(), Revision(1));
    assert!(files.request(&ask(mine, World::P2)).await.is_err(), "after it is gone");
}

#[tokio::test]
async fn a_dialled_socket_arrives_connected() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    tenant.apply(&TenantSettings { egress: vec!["127.0.0.1".into()], ..TenantSettings::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hosts = [format!("http://127.0.0.1:{port}"), format!("http://127.0.0.2:{port}")];
    let component = serde_json::json!({"digest": Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
        "exports": [], "allow_hosts": hosts});
    let app = serde_json::json!({"name": "a", "components": {"c": component}});
    let app: LockedApp = serde_json::from_value(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    let (socket, _server) = rig.host(&tenant);
    let files = FilesClient::new(socket);
    let dial = |host: &str| {
        FileRequest::Dial(Dial {
            app: "a".parse().unwrap(),
            caller: Caller::Component("c".parse().unwrap()),
            transport: model::egress::Transport::Tcp,
            host: host.into(),
            port,
        })
    };
    let (fd, address) = files.request(&dial("127.0.0.1")).await.unwrap();
    assert_eq!(address.unwrap().port(), port);
    let mut stream = std::net::TcpStream::from(fd);
    let (mut server, _) = listener.accept().await.unwrap();
    std::io::Write::write_all(&mut stream, b"hello").unwrap();
    // The node has the socket too: closing it alone would tell nobody.
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let refused = files.request(&dial("127.0.0.2")).await.unwrap_err();
    let api::services::client::FileError::Fault(FileFault::Denied { address, what }) = refused else {
        panic!("{refused}")
    };
    assert_eq!((address, what.as_str()), (format!("127.0.0.2:{port}"), "a loopback address"));
}

#[tokio::test]
async fn the_alive_connection_ends_with_the_node() {
    let rig = Rig::new().await;
    let (socket, server) = rig.host(&Tenant::new("t".parse().unwrap()));
    let held = socket.alive().await.unwrap();
    tokio::pin!(held);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut held).await.is_err());
    server.abort();
    tokio::time::timeout(Duration::from_secs(5), held).await.unwrap();
}
