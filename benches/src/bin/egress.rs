//! What the broker costs: a decision with its record, and a connection by way of the node beside one that is made directly,
//! in turns. `egress`; prints one line of JSON.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that cannot be made fails by panicking"
)]
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::services::client::{FilesClient, NodeWay};
use api::services::{Caller, Dial, FileRequest};
use arc_swap::ArcSwapOption;
use model::Revision;
use model::app::LockedApp;
use model::egress::Transport;
use model::tenant::TenantSettings;
use node::artifacts::Artifacts;
use node::confine::Confinement;
use node::dialer::{Dialer, SystemResolver};
use node::external::{ExternalConfig, Externals};
use node::services::{Client, Services, serve};
use node::tenant::{Prepared, Tenant};
use serde::Serialize;
use store::blobs::Blobs;
use store::data::DataEngine;
use store::folder::Folder;
use store::redb::RedbStore;
use store::secrets::Secrets;
use tokio::net::{TcpStream, UnixStream};

/// Connections one tenant makes: fewer than its burst, for a dial that is over the rate measures nothing.
const OF_ONE: usize = 300;
const TENANTS: usize = 10;

/// A tenant with an app whose provider `p` is at `host` and `port`.
fn tenant(name: &str, host: &str, port: u16) -> Arc<Tenant> {
    let tenant = Tenant::new(name.parse().unwrap());
    tenant.apply(&TenantSettings { egress: vec!["127.0.0.0/8".into()], ..TenantSettings::default() });
    let redis = serde_json::json!({"type": "keyvalue-redis", "config": {"url": format!("redis://{host}:{port}")}});
    let link = serde_json::json!({"component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": "p"});
    let app = serde_json::json!({"name": "a", "components": {}, "providers": {"p": redis}, "links": [link]});
    let app: LockedApp = serde_json::from_value(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    tenant
}

fn dial(host: &str, port: u16) -> Dial {
    let caller = Caller::Provider("p".parse().unwrap());
    Dial { app: "a".parse().unwrap(), caller, transport: Transport::Tcp, host: host.into(), port }
}

async fn services(dir: &Path) -> Services {
    let blobs = Blobs::open(dir.join("blobs")).unwrap();
    let artifacts =
        Artifacts::open(dir.join("cache"), dir.join("keys"), "/bin/false".into(), Confinement::bare(), blobs).unwrap();
    let secrets = Secrets::open(RedbStore::open(dir.join("store.redb")).unwrap(), &dir.join("keys")).await.unwrap();
    let data = DataEngine::open(dir.join("data.redb")).unwrap();
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
    Services {
        messaging: node::messaging::Messaging::new(data.clone()),
        data,
        folder: Folder::open(dir.join("objects")).unwrap(),
        sql: node::databases::Databases::within(dir.join("sql")),
        artifacts: Arc::new(artifacts),
        dialer: Dialer::new(Arc::new(SystemResolver)),
        secrets,
        lent: Default::default(),
        externals,
        confinement: Confinement::bare(),
    }
}

/// How long something took, microseconds.
#[derive(Serialize)]
struct Figure {
    times: usize,
    p50_us: f64,
    p99_us: f64,
}

impl Figure {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: usize| times[times.len() * share / 1000].as_secs_f64() * 1e6;
        Self { times: times.len(), p50_us: at(500), p99_us: at(990) }
    }
}

#[derive(Serialize)]
struct Report {
    /// A decision about a connection, and its record.
    decision: Figure,
    /// A connection that is made directly, and one by way of the node.
    direct: Figure,
    brokered: Figure,
}

fn main() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let decision = runtime().block_on(decisions());

    // The node has a thread of its own, as it has a process of its own.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let (ready, waiting) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let services = Arc::new(services(&root).await);
            for n in 0..TENANTS {
                let (first, theirs) = UnixStream::pair().unwrap();
                let tenant = tenant(&format!("t{n}"), "127.0.0.1", address.port());
                let client = Client { tenant, shard: 0, info: Arc::new(ArcSwapOption::empty()) };
                tokio::spawn(serve(first, client, services.clone()));
                ready.send(theirs.into_std().unwrap()).unwrap();
            }
            std::future::pending::<()>().await;
        });
    });
    let hosts = waiting.iter().take(TENANTS).collect();
    let (direct, brokered) = runtime().block_on(connections(listener, hosts));
    println!("{}", serde_json::to_string(&Report { decision, direct, brokered }).unwrap());
}

async fn decisions() -> Figure {
    let dialer = Dialer::new(Arc::new(SystemResolver));
    let mut times = Vec::new();
    for n in 0..100 {
        let tenant = tenant(&format!("d{n}"), "10.0.0.1", 5432);
        let dial = dial("10.0.0.1", 5432);
        for _ in 0..OF_ONE {
            let began = Instant::now();
            assert!(dialer.dial(&tenant, 0, &dial).await.is_err());
            times.push(began.elapsed());
        }
        // The queue to the log is drained between, as it is on a node.
        tokio::task::yield_now().await;
    }
    Figure::of(times)
}

async fn connections(listener: std::net::TcpListener, hosts: Vec<std::os::unix::net::UnixStream>) -> (Figure, Figure) {
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let (mut direct, mut brokered) = (Vec::new(), Vec::new());
    for host in hosts {
        let files = FilesClient::new(NodeWay::handed(host).unwrap());
        let request = FileRequest::Dial(dial("127.0.0.1", address.port()));
        for _ in 0..OF_ONE {
            let began = Instant::now();
            let stream = TcpStream::connect(address).await.unwrap();
            direct.push(began.elapsed());
            drop(stream);
            let began = Instant::now();
            let (fd, _) = files.request(&request).await.unwrap();
            let stream = TcpStream::from_std(fd.into()).unwrap();
            brokered.push(began.elapsed());
            rustix::net::shutdown(&stream, rustix::net::Shutdown::Both).unwrap();
        }
    }
    (Figure::of(direct), Figure::of(brokered))
}
