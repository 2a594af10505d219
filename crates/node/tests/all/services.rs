//! What a host gets over its node.sock, with the client that hosts use.

mod bounds;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::agent::HostInfo;
use api::services::blob::{BlobOp, BlobRequest};
use api::services::client::{CallsClient, FileError, FilesClient, KvClient, KvError, NodeWay};
use api::services::codec;
use api::services::messaging::{BrokerKind, Handed, MessagingAnswer, MessagingRequest, Settled, WireMessage};
use api::services::secret::SecretRequest;
use api::services::sql::SqlRequest;
use api::services::{
    Caller, Dial, FileFault, FileRequest, Hello, KvAnswer, KvCall, KvFault, KvOp, KvScope, KvTell, KvWrite, KvWritten,
    MAX_TELL, MoreRequest, ServiceAnswer, ServiceRequest,
};
use arc_swap::ArcSwapOption;
use model::app::LockedApp;
use model::tenant::TenantSettings;
use model::{AppName, Digest, Revision, World};
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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

struct Rig {
    dir: tempfile::TempDir,
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
            sql: node::databases::Databases::within(dir.path().join("sql")),
            artifacts: Arc::new(artifacts),
            dialer: Dialer::new(Arc::new(SystemResolver)),
            secrets,
            lent: Default::default(),
            externals,
            confinement: node::confine::Confinement::bare(),
        };
        Self { dir, blobs, services: Arc::new(services) }
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

/// A tenant whose app `a` runs here.
fn running(name: &str) -> Arc<Tenant> {
    let tenant = Tenant::new(name.parse().unwrap());
    let app: LockedApp = serde_json::from_str(r#"{"name":"a","components":{}}"#).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    tenant
}

fn scope() -> KvScope {
    KvScope { app: "a".parse().unwrap(), provider: "embedded".parse().unwrap(), bucket: "b".into() }
}

fn increment(key: &str) -> KvOp {
    KvWrite::Increment { key: key.into(), delta: 1 }.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_value_calls_of_two_tenants_never_meet() {
    let rig = Rig::new().await;
    let (one, two) = (running("one"), running("two"));
    let (first, second) = (rig.host(&one), rig.host(&two));
    let kv = |socket: NodeWay| Arc::new(KvClient::new(socket, Duration::from_secs(20)));
    let (first, second) = (kv(first.0), kv(second.0));

    let count = 2000;
    let started = Instant::now();
    let calls = (0..count).map(|_| {
        let first = first.clone();
        tokio::spawn(async move { first.call(&scope(), &increment("n")).await.unwrap() })
    });
    let mut seen: Vec<u64> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(|answer| match answer.unwrap() {
            KvAnswer::Number(number) => number,
            other => panic!("{other:?}"),
        })
        .collect();
    println!("{count} increments in {:?}", started.elapsed());
    seen.sort_unstable();
    assert_eq!(seen, (1..=count).collect::<Vec<u64>>(), "each increment is counted once");

    assert_eq!(second.call(&scope(), &KvOp::Get { key: "n".into() }).await.unwrap(), KvAnswer::Value(None));
    let value = first.call(&scope(), &KvOp::Get { key: "n".into() }).await.unwrap();
    assert_eq!(value, KvAnswer::Value(Some(count.to_string().into_bytes())));
    let fault = {
        let set = KvWrite::Set { key: "text".into(), value: b"abc".to_vec() }.into();
        first.call(&scope(), &set).await.unwrap();
        first.call(&scope(), &increment("text")).await.unwrap_err()
    };
    assert!(matches!(fault, KvError::Fault(KvFault::NotANumber(_))), "{fault}");
}

#[tokio::test]
async fn every_operation_is_mapped_to_itself() {
    let rig = Rig::new().await;
    let (socket, _server) = rig.host(&running("t"));
    let kv = KvClient::new(socket, Duration::from_secs(20));
    let pair = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    let found = |key: &str, value: Option<&str>| (key.to_owned(), value.map(|v| v.as_bytes().to_vec()));
    let keys = |list: &[&str]| list.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let table = [
        (KvWrite::Set { key: "a".into(), value: b"1".to_vec() }.into(), KvAnswer::Done),
        (KvOp::Get { key: "a".into() }, KvAnswer::Value(Some(b"1".to_vec()))),
        (KvOp::Exists { key: "a".into() }, KvAnswer::Bool(true)),
        (increment("a"), KvAnswer::Number(2)),
        (
            KvWrite::CompareAndSet { key: "a".into(), expected: Some(b"1".to_vec()), value: b"9".to_vec() }.into(),
            KvAnswer::Bool(false),
        ),
        (KvWrite::SetMany { pairs: vec![pair("b", "x"), pair("c", "y")] }.into(), KvAnswer::Done),
        (
            KvOp::GetMany { keys: keys(&["c", "z", "a"]) },
            KvAnswer::Values(vec![found("c", Some("y")), found("z", None), found("a", Some("2"))]),
        ),
        (KvOp::ListKeys { cursor: None, limit: 10 }, KvAnswer::Keys { keys: keys(&["a", "b", "c"]), cursor: None }),
        (KvWrite::DeleteMany { keys: keys(&["b", "c"]) }.into(), KvAnswer::Done),
        (KvWrite::Delete { key: "a".into() }.into(), KvAnswer::Done),
        (KvOp::Exists { key: "a".into() }, KvAnswer::Bool(false)),
    ];
    for (op, expected) in table {
        assert_eq!(kv.call(&scope(), &op).await.unwrap(), expected, "{op:?}");
    }
}

#[tokio::test]
async fn a_host_of_a_suspended_tenant_gets_neither_data_nor_secrets() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    let app = r#"{"name":"a","components":{},
        "providers":{"cache":{"type":"keyvalue-redis","config":{"url":"redis://cache"},"secrets":{"password":{"secret":"s"}}}},
        "links":[{"component":"c","contract":"wasi:keyvalue","label":"default","provider":"cache"}]}"#;
    let locked: LockedApp = serde_json::from_str(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &locked).unwrap()));
    let (way, _server) = rig.host(&tenant);
    let kv = KvClient::new(way.clone(), Duration::from_secs(20));
    let calls = CallsClient::new(way, Duration::from_secs(20));
    let app: AppName = "a".parse().unwrap();
    let blob = |op| ServiceRequest::Blob(BlobRequest { provider: "folder".parse().unwrap(), op });
    let requests = [
        ServiceRequest::Secret(SecretRequest::Reveal { secret: "s".parse().unwrap() }),
        blob(BlobOp::Create { container: "c".into() }),
    ];
    kv.call(&scope(), &increment("n")).await.unwrap();
    for request in &requests {
        calls.call(&app, request).await.unwrap();
    }
    tenant.apply(&TenantSettings { suspended: Some("a test".into()), ..TenantSettings::default() });
    kv.call(&scope(), &increment("n")).await.unwrap_err();
    for request in &requests {
        let refused = calls.call(&app, request).await.unwrap_err();
        assert!(refused.to_string().contains("suspended"), "{request:?}: {refused}");
    }
    tenant.apply(&TenantSettings::default());
    assert_eq!(kv.call(&scope(), &increment("n")).await.unwrap(), KvAnswer::Number(2), "nothing was written meanwhile");
    for request in &requests {
        calls.call(&app, request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_a_suspended_app_has_come_back_untried() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    let text = format!(
        r#"{{"name":"a","components":{{"w":{{"digest":"{}","size":1,"world":"p2","imports":[],"exports":[]}}}},
            "links":[{{"component":"w","contract":"wasmcloud:messaging","label":"default","provider":"durable",
                       "config":{{"subscriptions":"orders"}}}},
                     {{"component":"w","contract":"wasi:keyvalue","label":"kv","provider":"embedded",
                       "config":{{"watch":"*"}}}}]}}"#,
        Digest::of(b"w")
    );
    let locked: LockedApp = serde_json::from_str(&text).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &locked).unwrap()));
    rig.services.messaging.declare(&tenant.name, &locked.name, &node::messaging::declared(&locked));
    let calls = Arc::new(CallsClient::new(rig.host(&tenant).0, Duration::from_secs(20)));
    let ask = |request| {
        let (calls, app) = (calls.clone(), locked.name.clone());
        async move { calls.call(&app, &ServiceRequest::Messaging(request)).await }
    };
    let suspend = |suspended: bool| {
        let suspended = suspended.then(|| "a test".to_owned());
        tenant.apply(&TenantSettings { suspended, ..TenantSettings::default() });
    };
    let broker = BrokerKind::Durable;
    let tell = |group: &str| {
        let message = WireMessage { subject: "orders".into(), body: b"x".to_vec(), reply_to: None, trace: None };
        MessagingRequest::Tell { broker, group: group.into(), messages: vec![message] }
    };
    let take = |group: &str| ask(MessagingRequest::Take { broker, group: group.into(), max: 8 });
    let taken = |answer| match answer {
        Ok(ServiceAnswer::Messaging(MessagingAnswer::Taken(taken))) => {
            taken.iter().map(|one: &Handed| (one.delivery, one.tries)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let away = Settled::PutAway { subject: Some("orders".into()) };
    for (group, outcome) in [("w.default", Settled::GivenBack), ("watch.w.kv", Settled::GivenBack), ("w.default", away)]
    {
        ask(tell(group)).await.unwrap();
        let out = taken(take(group).await);
        let [(delivery, 1)] = out[..] else { panic!("{out:?}") };
        suspend(true);
        take(group).await.unwrap_err();
        ask(tell(group)).await.unwrap_err();
        let settle = |delivery, outcome| MessagingRequest::Settle { broker, group: group.into(), delivery, outcome };
        ask(settle(delivery, outcome)).await.unwrap();
        suspend(false);
        let out = taken(take(group).await);
        let [(delivery, 1)] = out[..] else { panic!("{group}: {out:?}") };
        ask(settle(delivery, Settled::Done)).await.unwrap();
    }
    // Nothing is handed to one that waited when it was suspended.
    let mut waits = Box::pin(take("w.default"));
    assert!(futures::poll!(&mut waits).is_pending());
    let waits = tokio::spawn(waits);
    // What it is asked later on the same connection, it answers later.
    ask(tell("watch.w.kv")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    suspend(true);
    let mine = rig.services.messaging.holder(&tenant.name);
    rig.services.messaging.answer(&tenant.name, &locked.name, &mine, tell("w.default")).await.unwrap();
    assert_eq!(taken(waits.await.unwrap()), []);
    suspend(false);
    let out = taken(take("w.default").await);
    assert!(matches!(out[..], [(_, 1)]), "{out:?}");
}

#[tokio::test]
async fn a_host_has_the_data_of_apps_that_run_here_and_of_no_others() {
    let rig = Rig::new().await;
    let (first, theirs) = rig.host(&running("t"));
    let kv = KvClient::new(first.clone(), Duration::from_secs(20));
    let calls = CallsClient::new(first, Duration::from_secs(20));
    let sql = |sql: &str| {
        let call = model::sql::Call::Execute(model::sql::Statement { sql: sql.to_owned(), params: vec![] });
        ServiceRequest::Sql(SqlRequest { provider: "sqlite".parse().unwrap(), call })
    };
    let blob = |op| ServiceRequest::Blob(BlobRequest { provider: "folder".parse().unwrap(), op });
    let create = || blob(BlobOp::Create { container: "c".into() });
    let (mine, invented): (AppName, AppName) = ("a".parse().unwrap(), "invented".parse().unwrap());
    kv.call(&scope(), &increment("n")).await.unwrap();
    for request in [sql("CREATE TABLE t (n BIGINT)"), create()] {
        calls.call(&mine, &request).await.unwrap();
        let refused = calls.call(&invented, &request).await.unwrap_err();
        assert!(refused.to_string().contains("no app `invented` of this tenant runs here"), "{refused}");
    }
    let refused = kv.call(&KvScope { app: invented.clone(), ..scope() }, &increment("n")).await.unwrap_err();
    assert!(refused.to_string().contains("no app `invented` of this tenant runs here"), "{refused}");
    for kept in ["sql/t", "objects/t"] {
        assert!(rig.dir.path().join(kept).join("a").exists(), "{kept}");
        assert!(!rig.dir.path().join(kept).join("invented").exists(), "{kept}");
    }
    drop(theirs);
}

/// One test at a time measures the memory of the process.
pub(crate) static MEASURES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A connection that a host which was taken over says whatever it likes on.
async fn raw(first: &mut UnixStream) -> UnixStream {
    let mut wire = bytes::BytesMut::new();
    codec::encode(&MoreRequest::Connection, &mut wire).unwrap();
    first.write_all(&wire).await.unwrap();
    first.readable().await.unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut buffer = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 256];
    let got = first.async_io(tokio::io::Interest::READABLE, || {
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        Ok(rustix::net::recvmsg(&*first, &mut parts, &mut buffer, rustix::net::RecvFlags::empty())?)
    });
    got.await.unwrap();
    let fds = buffer.drain().find_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let stream = std::os::unix::net::UnixStream::from(fds.expect("a connection"));
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_reads_no_answer_and_ends_no_call_takes_little_and_holds_up_nobody_else() {
    let rig = Rig::new().await;
    let (greedy, other) = (running("greedy"), running("other"));
    rig.services.messaging.declare(&greedy.name, &scope().app, &node::messaging::declared(&watching()));
    let (way, _theirs) = rig.host(&greedy);
    let kv = KvClient::new(way, Duration::from_secs(20));
    kv.call(&scope(), &KvWrite::Set { key: "large".into(), value: vec![7; 4 << 20] }.into()).await.unwrap();
    drop(kv);
    let (first, server) = UnixStream::pair().unwrap();
    let client = Client { tenant: greedy.clone(), shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    let _served = AbortOnDrop(tokio::spawn(serve(server, client, rig.services.clone())));
    let mut first = first;
    let mut wire = bytes::BytesMut::new();
    codec::encode(&Hello::More, &mut wire).unwrap();
    first.write_all(&wire).await.unwrap();
    let _measures = MEASURES.lock().await;
    let before = resident();
    let mut held = tokio::task::JoinSet::new();
    for n in 0..80 {
        let mut stream = raw(&mut first).await;
        held.spawn(async move {
            let mut wire = bytes::BytesMut::new();
            codec::encode(&Hello::KeyValue, &mut wire).unwrap();
            let of_keys = |id, keys| KvCall { id, scope: scope(), op: KvOp::GetMany { keys } };
            let telling = |id, tell| KvCall { id, scope: scope(), op: KvOp::Write { write: set("told"), tell } };
            if n % 16 == 0 {
                // A call of twenty million keys, a byte each.
                wire.extend_from_slice(&with_list(&of_keys(1, Vec::new()), 20_000_000, &[0]));
                // Refused, now or once it has room: the connection ends.
                drop(stream.write_all(&wire).await);
                wire = bytes::BytesMut::new();
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 4 {
                // Calls of one byte over and over, each of which might hold the rest.
                let mut call = bytes::BytesMut::new();
                codec::encode(&of_keys(1, Vec::new()), &mut call).unwrap();
                let head = call.get(4..call.len() - 2).unwrap();
                wire.extend_from_slice(&u32::try_from(head.len() + (1 << 20)).unwrap().to_le_bytes());
                wire.extend_from_slice(head);
                wire.resize(wire.len() + (1 << 20), u8::try_from(n / 16 + 7).unwrap());
                drop(stream.write_all(&wire).await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 8 {
                // A write that tells nobody of nothing, six million times.
                wire.extend_from_slice(&with_list(&telling(1, Vec::new()), 6_000_000, &[0; 3]));
                drop(stream.write_all(&wire).await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 12 {
                // One that tells whoever watches of 19 million keys.
                let told = [&[15], WATCH.as_bytes(), &[0x80, 0x08], &[0; 1024], &[0]].concat();
                wire.extend_from_slice(&with_list(&telling(1, Vec::new()), 19_000, &told));
                drop(stream.write_all(&wire).await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 6 {
                // As many keys as a write may tell of, and more of it than the queue has room for.
                for id in 0..200 {
                    codec::encode(&telling(id, tells(16)), &mut wire).unwrap();
                }
                stream.write_all(&wire).await.unwrap();
            } else if n % 4 == 1 {
                // Many of as many keys as one may have, in frames of a little more than a KiB.
                for id in 0..4000 {
                    codec::encode(&of_keys(id, vec![String::new(); 1024]), &mut wire).unwrap();
                }
                stream.write_all(&wire).await.unwrap();
            } else if n % 4 == 2 {
                // Answers of 800 MiB, of which none is read.
                for id in 0..200 {
                    let call = KvCall { id, scope: scope(), op: KvOp::Get { key: "large".into() } };
                    codec::encode(&call, &mut wire).unwrap();
                }
                stream.write_all(&wire).await.unwrap();
            } else {
                // A call of 19 MiB that lacks its last byte.
                wire.extend_from_slice(&(19u32 << 20).to_le_bytes());
                stream.write_all(&wire).await.unwrap();
                let part = vec![0; 1 << 20];
                for _ in 0..18 {
                    stream.write_all(&part).await.unwrap();
                }
            }
            // What was sent is not the node's.
            drop(wire);
            std::future::pending::<()>().await;
        });
    }
    let (way, _theirs) = rig.host(&other);
    let kv = KvClient::new(way, Duration::from_secs(20));
    let (mut most, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(2) {
        tokio::time::timeout(Duration::from_secs(60), kv.call(&scope(), &increment("n"))).await.unwrap().unwrap();
        most = most.max(resident().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("at most {} MiB more", most >> 20);
    // With what the hosts of this test have in hand themselves; what they ask for would be many GiB.
    assert!(most < 900 << 20, "{} MiB", most >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_has_told_of_takes_room_also_when_it_has_hung_up() {
    let rig = Rig::new().await;
    let (greedy, other) = (running("greedy"), running("other"));
    let (mut first, server) = UnixStream::pair().unwrap();
    let client = Client { tenant: greedy, shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    let _served = AbortOnDrop(tokio::spawn(serve(server, client, rig.services.clone())));
    let mut calls = bytes::BytesMut::new();
    codec::encode(&Hello::More, &mut calls).unwrap();
    first.write_all(&calls).await.unwrap();
    calls.clear();
    codec::encode(&Hello::KeyValue, &mut calls).unwrap();
    for id in 0..60 {
        let write = KvWrite::Set { key: format!("k{id}"), value: vec![7; 1 << 20] };
        let tell = vec![KvTell { group: "x".into(), keys: Vec::new(), trace: None }];
        codec::encode(&KvCall { id, scope: scope(), op: KvOp::Write { write, tell } }, &mut calls).unwrap();
    }
    // No frame begins so: the node ends the connection, and the host has the next one at once.
    calls.extend_from_slice(&[0xff; 4]);
    let _measures = MEASURES.lock().await;
    let before = resident();
    let _greedy = AbortOnDrop(tokio::spawn(async move {
        loop {
            let mut stream = raw(&mut first).await;
            drop(stream.write_all(&calls).await);
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
    }));
    let (way, _theirs) = rig.host(&other);
    let kv = KvClient::new(way, Duration::from_secs(20));
    let (mut most, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(5) {
        tokio::time::timeout(Duration::from_secs(60), kv.call(&scope(), &increment("n"))).await.unwrap().unwrap();
        most = most.max(resident().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("at most {} MiB more", most >> 20);
    // With what the hosts of this test have in hand themselves; what they ask for would be many GiB.
    assert!(most < 900 << 20, "{} MiB", most >> 20);
}

/// The queue of what [`watching`] watches.
const WATCH: &str = "watch.w.default";

/// An app that is told of every key.
fn watching() -> LockedApp {
    let component =
        serde_json::json!({"digest": Digest::of(b"x"), "size": 1, "world": "p2", "imports": [], "exports": []});
    let link = serde_json::json!({"component": "w", "contract": "wasi:keyvalue", "label": "default",
        "provider": "embedded", "config": {"watch": "*"}});
    serde_json::from_value(serde_json::json!({"name": "a", "components": {"w": component}, "links": [link]})).unwrap()
}

fn set(key: &str) -> KvWrite {
    KvWrite::Set { key: key.into(), value: vec![1] }
}

/// The watch, told so many times of 1024 keys that are all the first one.
fn tells(times: usize) -> Vec<KvTell> {
    vec![KvTell { group: WATCH.into(), keys: vec![0; 1024], trace: None }; times]
}

/// The frame of a call that ends with an empty list, with a list of so many of one entry in its place.
fn with_list(call: &KvCall, mut count: usize, entry: &[u8]) -> Vec<u8> {
    let mut empty = bytes::BytesMut::new();
    codec::encode(call, &mut empty).unwrap();
    let mut frame = empty[..empty.len() - 1].to_vec();
    let entries = entry.repeat(count);
    while count > 127 {
        frame.push(u8::try_from(count & 127).unwrap() | 128);
        count >>= 7;
    }
    frame.push(u8::try_from(count).unwrap());
    frame.extend_from_slice(&entries);
    let size = u32::try_from(frame.len() - 4).unwrap();
    frame[..4].copy_from_slice(&size.to_le_bytes());
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_tells_of_so_many_keys_and_no_more() {
    let rig = Rig::new().await;
    let (way, _theirs) = rig.host(&running("t"));
    let kv = KvClient::new(way, Duration::from_secs(20));
    let write = |tell| KvOp::Write { write: set("k"), tell };
    assert_eq!(kv.call(&scope(), &write(tells(16))).await.unwrap(), KvAnswer::Done, "nobody watches");
    let refused = kv.call(&scope(), &write(tells(17))).await.unwrap_err();
    assert!(matches!(refused, KvError::Fault(KvFault::TooLarge(_))), "{refused}");
    let nobody = KvTell { group: String::new(), keys: Vec::new(), trace: None };
    assert_eq!(kv.call(&scope(), &write(vec![nobody.clone(); MAX_TELL])).await.unwrap(), KvAnswer::Done);
    let refused = kv.call(&scope(), &write(vec![nobody; MAX_TELL + 1])).await.unwrap_err();
    assert!(matches!(refused, KvError::Lost(_)), "{refused}");
    // The queue holds ten thousand; what it is not told of is said.
    rig.services.messaging.declare(&"t".parse().unwrap(), &scope().app, &node::messaging::declared(&watching()));
    let told = kv.call(&scope(), &write(tells(16))).await.unwrap();
    let lost = vec![(WATCH.to_owned(), 16 * 1024 - 10_000)];
    assert_eq!(told, KvAnswer::Untold { answer: KvWritten::Done, lost });
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test]
async fn a_host_says_where_it_stands_on_one_connection() {
    let rig = Rig::new().await;
    let (mut first, server) = UnixStream::pair().unwrap();
    let client = Client { tenant: running("t"), shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    let _served = AbortOnDrop(tokio::spawn(serve(server, client, rig.services.clone())));
    let (mut more, mut standing) = (bytes::BytesMut::new(), bytes::BytesMut::new());
    codec::encode(&Hello::More, &mut more).unwrap();
    codec::encode(&Hello::Standing, &mut standing).unwrap();
    first.write_all(&more).await.unwrap();
    let ended = async |stream: &mut UnixStream, within| {
        // What it says is not answered: all that can come is the end.
        matches!(tokio::time::timeout(within, stream.read_u8()).await, Ok(Err(_)))
    };
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(60));
    let mut only = raw(&mut first).await;
    only.write_all(&standing).await.unwrap();
    assert!(!ended(&mut only, short).await);
    for _ in 0..100 {
        let mut another = raw(&mut first).await;
        another.write_all(&standing).await.unwrap();
        assert!(ended(&mut another, long).await, "it might move the group as often again");
    }
    only.write_all(&[api::services::Standing::Last.byte()]).await.unwrap();
    assert!(!ended(&mut only, short).await, "it goes on");
    drop(only);
    // The node learns of it by itself.
    let began = Instant::now();
    loop {
        let mut next = raw(&mut first).await;
        next.write_all(&standing).await.unwrap();
        if !ended(&mut next, short).await {
            break;
        }
        assert!(began.elapsed() < long, "its place stays taken");
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
    let being_made = |cause: &FileError| matches!(cause, FileError::Fault(FileFault::NotReady { soon: true, why }) if why.contains("compiled"));
    assert!(being_made(&files.request(&ask(mine, World::P2)).await.unwrap_err()), "nobody waits for it here");
    let ready = async || loop {
        match files.request(&ask(mine, World::P2)).await {
            Err(cause) if being_made(&cause) => tokio::time::sleep(Duration::from_millis(5)).await,
            answer => return answer.unwrap(),
        }
    };
    for _ in 0..3 {
        let (fd, address) = tokio::time::timeout(Duration::from_secs(60), ready()).await.unwrap();
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
    tokio::time::timeout(Duration::from_secs(60), held).await.unwrap();
}
