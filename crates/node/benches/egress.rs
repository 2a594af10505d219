//! What the broker costs: a decision with its record, and a connection by way of the node beside one that is made directly,
//! in turns. `cargo bench -p node --bench egress`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that cannot be made fails by panicking"
)]

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
use store::blobs::Blobs;
use store::data::DataEngine;
use store::folder::Folder;
use store::redb::RedbStore;
use store::secrets::Secrets;
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Connections one tenant makes: fewer than its burst, for a dial that is over the rate measures nothing.
const OF_ONE: usize = 300;
const TENANTS: usize = 10;

fn tenant(name: &str) -> Arc<Tenant> {
    let tenant = Tenant::new(name.parse().unwrap());
    tenant.apply(&TenantSettings { egress: vec!["127.0.0.0/8".into()], ..TenantSettings::default() });
    let app: LockedApp = serde_json::from_str(r#"{"name":"a","components":{}}"#).unwrap();
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
        sql: store::sql::Databases::new(dir.join("sql")),
        artifacts: Arc::new(artifacts),
        dialer: Dialer::new(Arc::new(SystemResolver)),
        secrets,
        lent: Default::default(),
        externals,
    }
}

fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let at = |share: usize| times[times.len() * share / 1000];
    println!("{what:<32} n {:>6}  p50 {:>9.2?}  p99 {:>9.2?}", times.len(), at(500), at(990));
    at(500)
}

fn main() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime().block_on(decisions());

    // The node has a thread of its own, as it has a process of its own.
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let (ready, waiting) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let services = Arc::new(services(&root).await);
            for n in 0..TENANTS {
                let (first, theirs) = UnixStream::pair().unwrap();
                let client =
                    Client { tenant: tenant(&format!("t{n}")), shard: 0, info: Arc::new(ArcSwapOption::empty()) };
                tokio::spawn(serve(first, client, services.clone()));
                ready.send(theirs.into_std().unwrap()).unwrap();
            }
            std::future::pending::<()>().await;
        });
    });
    let hosts = waiting.iter().take(TENANTS).collect();
    runtime().block_on(connections(hosts));
}

async fn decisions() {
    let dialer = Dialer::new(Arc::new(SystemResolver));
    let mut times = Vec::new();
    for n in 0..100 {
        let tenant = tenant(&format!("d{n}"));
        let dial = dial("10.0.0.1", 5432);
        for _ in 0..OF_ONE {
            let began = Instant::now();
            assert!(dialer.dial(&tenant, 0, &dial).await.is_err());
            times.push(began.elapsed());
        }
        // The queue to the log is drained between, as it is on a node.
        tokio::task::yield_now().await;
    }
    report("decision and record", times);
}

async fn connections(hosts: Vec<std::os::unix::net::UnixStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(false).unwrap();
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
    let direct = report("direct connection", direct);
    let brokered = report("connection by the broker", brokered);
    println!("the broker adds {:.2?}", brokered.saturating_sub(direct));
}
