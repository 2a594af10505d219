//! What a host gets over its node.sock, with the client that hosts use.

mod bounds;
mod handed;
mod keys;
mod room;
mod suspended;

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

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
