//! What is kept of what a tenant's tokens send: how large one revision may be, that lists of them are read as they are sent, and the quota of
//! all of it.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use api::client::{ClientError, Require};
use api::control::{AppView, ConfigRequest, DeployRequest, Origin, RevisionView, RollbackRequest};
use api::{Code, Problem};
use model::app::{LockedApp, Revision};
use model::config::{SharedConfig, Values};
use model::secret::SecretValue;
use model::tenant::{Quotas, TenantSettings};
use model::unit::ByteSize;
use store::keys::{self, Head, RevisionRecord};
use store::redb::RedbStore;
use store::{Entry, Expect, Snapshot, Store as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::between::{Asked, Between, Through};
use crate::rig::{Nodes, PATIENCE, Rig, TOKEN, locked, name, refused};

/// An app with so many bytes of config, in entries of at most 8000.
fn sized(app: &str, artifact: &[u8], bytes: usize) -> LockedApp {
    let mut locked = locked(app, artifact);
    let one = locked.components.values().next().unwrap().clone();
    let entry = |n: usize| (format!("k{n}"), "v".repeat((bytes - n * 8000).min(8000)));
    let entries: Vec<(String, String)> = (0..bytes.div_ceil(8000)).map(entry).collect();
    for (n, some) in entries.chunks(100).enumerate() {
        let component = locked.components.entry(name(if n == 0 { "counter".into() } else { format!("c{n}") }.as_str()));
        component.or_insert(one.clone()).config = some.iter().cloned().collect();
    }
    let links: Vec<_> =
        locked.components.keys().map(|c| model::Link { component: c.clone(), ..locked.links[0].clone() }).collect();
    locked.links = links;
    locked
}

/// Puts a revision into the store as it would be there from before.
async fn stored(store: &RedbStore, app: &LockedApp, revision: u64, previous: Option<u64>) {
    let tenant = name("t");
    let record = RevisionRecord {
        revision: Revision(revision),
        previous: previous.map(Revision),
        created_ms: 1,
        origin: serde_json::to_value(Origin::Deploy).unwrap(),
        message: None,
        app: app.clone(),
        claims: [].into(),
    };
    let value = serde_json::to_vec(&record).unwrap().into();
    store.put(&keys::revision(&tenant, &app.name, record.revision), value, Expect::Absent, None).await.unwrap();
    let head = Head { revision: record.revision, deleted: false, keyed: vec![], since: None };
    let value = serde_json::to_vec(&head).unwrap().into();
    store.put(&keys::app(&tenant, &app.name), value, Expect::Any, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_has_a_mebibyte_and_one_that_is_there_goes_on() {
    let mut rig = Rig::new().await;
    let artifact = rig.artifact(1).await;
    let large = sized("large", &artifact, 1_100_000);
    let problem = refused(rig.put(&large).await);
    assert_eq!((problem.code, problem.findings.len()), (Code::ManifestInvalid, 0), "{problem:?}");
    let size = serde_json::to_vec(&large).unwrap().len();
    assert!(problem.detail.contains(&format!("a revision of app `large` would be {size} bytes")), "{problem:?}");
    assert!(problem.detail.contains("at most 1048576") && problem.help.is_some(), "{problem:?}");
    let request = DeployRequest { app: large.clone(), message: None };
    let plan = rig.client.plan(&rig.tenant, &name("large"), &request).await.unwrap();
    assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
    rig.put(&sized("less", &artifact, 900_000)).await.unwrap();

    // What is vouched for counts too.
    let mut vouched = locked("vouched", &artifact);
    for n in 2..28 {
        let signed = rig.signed(n, |claims| claims.id = "x".repeat(45_000)).await;
        let component = locked("vouched", &signed).components.into_values().next().unwrap();
        let link = model::Link { component: name(&format!("c{n}")), ..vouched.links[0].clone() };
        vouched.links.push(link);
        vouched.components.insert(name(&format!("c{n}")), component);
    }
    let problem = refused(rig.put(&vouched).await);
    assert!(problem.detail.contains("a revision of app `vouched` would be 1"), "{problem:?}");
    let request = DeployRequest { app: vouched.clone(), message: None };
    let plan = rig.client.plan(&rig.tenant, &name("vouched"), &request).await.unwrap();
    assert!(plan.problems.len() == 1 && plan.problems[0].contains("at most 1048576"), "{:?}", plan.problems);

    // One of before there was a bound is placed, shown, replaced, and not come back to.
    rig.shutdown().await;
    stored(&rig.store, &large, 1, None).await;
    rig.settings_now(TenantSettings { allow_unsigned: true, ..rig.settings() }).await;
    rig.start(None).await;
    rig.assigned("large", |assigned| assigned.is_some_and(|a| a.revision == Revision(1) && a.suspended.is_none()))
        .await;
    assert_eq!(rig.client.app(&rig.tenant, &name("large")).await.unwrap().desired.app, large);
    assert_eq!(rig.put(&sized("large", &artifact, 10)).await.unwrap().revision, Revision(2));
    let back = RollbackRequest { to: None };
    let problem = refused(rig.client.rollback(&rig.tenant, &name("large"), &back, Require::Any).await);
    assert_eq!(problem.code, Code::ManifestInvalid, "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_was_never_wanted_is_not_there() {
    let mut rig = Rig::new().await;
    let artifact = rig.artifact(1).await;
    for n in [1, 2] {
        rig.put(&sized("shop", &artifact, n)).await.unwrap();
    }
    // A crash between the record and the head.
    rig.shutdown().await;
    let shop = sized("shop", &artifact, 3);
    stored(&rig.store, &shop, 3, Some(2)).await;
    let head = Head { revision: Revision(2), deleted: false, keyed: vec![], since: None };
    let value = serde_json::to_vec(&head).unwrap().into();
    rig.store.put(&keys::app(&rig.tenant, &name("shop")), value, Expect::Any, None).await.unwrap();
    rig.start(None).await;
    let there = async |n| rig.client.revision(&rig.tenant, &name("shop"), Revision(n)).await.map(|view| view.revision);
    assert_eq!(refused(there(3).await).code, Code::NotFound, "above the head");
    rig.put(&sized("shop", &artifact, 4)).await.unwrap();
    assert_eq!(refused(there(3).await).code, Code::NotFound, "below the head");
    for n in [1, 2, 4] {
        assert_eq!(there(n).await.unwrap(), Revision(n));
    }
    assert_eq!(refused(there(5).await).code, Code::NotFound);
    let all = rig.client.revisions(&rig.tenant, &name("shop")).await.unwrap();
    assert_eq!(all.iter().map(|view| view.revision.0).collect::<Vec<_>>(), [4, 2, 1]);
    rig.client.rollback(&rig.tenant, &name("shop"), &RollbackRequest { to: None }, Require::Any).await.unwrap();
    let now = rig.client.app(&rig.tenant, &name("shop")).await.unwrap().desired;
    assert_eq!((now.revision, now.app), (Revision(5), sized("shop", &artifact, 2)));
}

/// How often a revision is read.
#[derive(Default)]
struct Counted {
    reads: AtomicUsize,
}

impl Between for Counted {
    fn get<'a>(&'a self, key: &'a str, asked: Asked<'a, Option<Entry>>) -> Asked<'a, Option<Entry>> {
        self.reads.fetch_add(usize::from(key.starts_with(keys::REVISIONS)), SeqCst);
        asked
    }
    fn list<'a>(&'a self, prefix: &'a str, asked: Asked<'a, Snapshot>) -> Asked<'a, Snapshot> {
        self.reads.fetch_add(1000 * usize::from(prefix.starts_with(keys::REVISIONS)), SeqCst);
        asked
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_read_as_they_are_sent() {
    // 48 MiB of each: more than what connections hold on the way.
    const MANY: usize = 60;
    let mut rig = Rig::without_node().await;
    let artifact = rig.artifact(1).await;
    rig.shutdown().await;
    for n in 0..MANY {
        stored(&rig.store, &sized(&format!("app{n:02}"), &artifact, 800_000), 1, None).await;
    }
    for n in 1..=50 {
        stored(&rig.store, &sized("app00", &artifact, 800_000), n + 1, Some(n)).await;
    }
    let store = Through::new(&rig.store, Counted::default());
    rig.restart_over(store.clone(), Nodes::default()).await;
    let client = &rig.client;
    // One revision is one read, and one look at what came after it.
    let before = store.reads.load(SeqCst);
    assert_eq!(client.revision(&rig.tenant, &name("app00"), Revision(20)).await.unwrap().revision, Revision(20));
    assert_eq!(store.reads.load(SeqCst) - before, 2);
    for (path, most) in [("apps", MANY / 2), ("apps/app00/revisions", 25)] {
        let before = store.reads.load(SeqCst);
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let request = format!(
            "GET /v1/tenants/t/{path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n",
            rig.addr
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![0; 16];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert!(head.starts_with(b"HTTP/1.1 200"));
        // Whoever does not read goes away; what he was sent so far is all that was read for him.
        let read = store.reads.load(SeqCst) - before;
        assert!(read <= most, "{read} revisions were read for `{path}`");
        drop(stream);
    }
    let apps: Vec<AppView> = client.apps(&rig.tenant).await.unwrap();
    assert_eq!(apps.len(), MANY);
    assert!(apps.iter().enumerate().all(|(n, view)| view.name.as_str() == format!("app{n:02}")));
    let history: Vec<RevisionView> = client.revisions(&rig.tenant, &name("app00")).await.unwrap();
    assert_eq!(history.iter().map(|view| view.revision.0).collect::<Vec<_>>(), (1..=51).rev().collect::<Vec<_>>());
    rig.shutdown().await;
}

pub(crate) fn quota(rig: &Rig, bytes: u64) -> TenantSettings {
    let quotas = Quotas { record_bytes: ByteSize(bytes), ..Quotas::default() };
    TenantSettings { quotas, ..rig.settings() }
}

impl Rig {
    /// Makes the tenant's settings these, whether a control plane runs or not.
    async fn settings_now(&self, settings: TenantSettings) {
        let value = serde_json::to_vec(&settings).unwrap().into();
        self.store.put(&keys::tenant(&self.tenant), value, Expect::Any, None).await.unwrap();
    }
}

/// How much is kept, as a refusal says it.
fn kept(problem: &Problem) -> u64 {
    assert_eq!(problem.code, Code::QuotaExceeded, "{problem:?}");
    assert!(problem.help.as_ref().is_some_and(|help| help.contains("delete")), "{problem:?}");
    let (_, rest) = problem.detail.split_once("bytes, are ").unwrap();
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

async fn set(rig: &Rig, config: &str, bytes: usize) -> Result<(), ClientError> {
    let values: Values = (0..bytes.div_ceil(8000)).map(|n| (format!("k{n}"), "v".repeat(bytes.min(8000)))).collect();
    rig.client.put_config(&rig.tenant, &name(config), &ConfigRequest { values }, Require::Any).await.map(drop)
}

/// Tries until there is room: what was deleted goes a moment later.
async fn in_time<T: std::fmt::Debug>(mut ask: impl AsyncFnMut() -> Result<T, ClientError>) -> T {
    let tried = async {
        loop {
            match ask().await {
                Err(ClientError::Refused(problem)) if problem.code == Code::QuotaExceeded => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done.unwrap(),
            }
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("there never was room")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_has_kept_is_in_its_quota() {
    let mut rig = Rig::new().await;
    let artifact = rig.artifact(1).await;
    rig.client.put_tenant(&rig.tenant, &quota(&rig, 290_000), Require::Exists).await.unwrap();
    let secret = || SecretValue::new(vec![b's'; 40_000]);
    let put_secret =
        async |rig: &Rig, n: &str| rig.client.put_secret(&rig.tenant, &name(n), secret(), Require::Any).await;
    set(&rig, "config", 40_000).await.unwrap();
    put_secret(&rig, "secret").await.unwrap();
    rig.put(&sized("shop", &artifact, 150_000)).await.unwrap();
    let more = sized("more", &artifact, 100_000);
    let first = kept(&refused(rig.put(&more).await));
    assert!((240_000..260_000).contains(&first), "{first}");
    let request = DeployRequest { app: more.clone(), message: None };
    let plan = rig.client.plan(&rig.tenant, &name("more"), &request).await.unwrap();
    assert!(plan.problems.len() == 1 && plan.problems[0].contains("`record_bytes`"), "{:?}", plan.problems);
    assert_eq!(kept(&refused(set(&rig, "other", 60_000).await)), first);
    assert_eq!(kept(&refused(put_secret(&rig, "other").await)), first);
    // The same again, and less than there is, takes nothing.
    assert!(rig.put(&sized("shop", &artifact, 150_000)).await.unwrap().unchanged);
    put_secret(&rig, "secret").await.unwrap();
    set(&rig, "config", 40_000).await.unwrap();
    assert_eq!(kept(&refused(rig.put(&more).await)), first);
    set(&rig, "config", 20_000).await.unwrap();
    let second = kept(&refused(rig.put(&more).await));
    assert!((15_000..25_000).contains(&(first - second)), "{first} {second}");
    // As it is counted, so it is found in the store.
    rig.restart().await;
    assert_eq!(kept(&refused(rig.put(&more).await)), second);
    // The same again, suspending and deleting need no room, also where there is less than nothing.
    rig.client.put_tenant(&rig.tenant, &quota(&rig, 0), Require::Exists).await.unwrap();
    set(&rig, "config", 20_000).await.unwrap();
    let suspended = TenantSettings { suspended: Some("test".to_owned()), ..quota(&rig, 0) };
    rig.client.put_tenant(&rig.tenant, &suspended, Require::Exists).await.unwrap();
    rig.client.put_tenant(&rig.tenant, &quota(&rig, 290_000), Require::Exists).await.unwrap();
    rig.client.delete_app(&rig.tenant, &name("shop"), Require::Any).await.unwrap();
    in_time(async || rig.put(&more).await).await;
    for _ in 0..2 {
        rig.client.delete_config(&rig.tenant, &name("config"), Require::Any).await.unwrap();
        set(&rig, "config", 40_000).await.unwrap();
        rig.client.delete_secret(&rig.tenant, &name("secret"), false, Require::Any).await.unwrap();
        put_secret(&rig, "secret").await.unwrap();
    }
    let third = kept(&refused(rig.put(&sized("large", &artifact, 200_000)).await));
    rig.restart().await;
    assert_eq!(kept(&refused(rig.put(&sized("large", &artifact, 200_000)).await)), third);
    // Nothing is left of a tenant that is gone.
    let etag = rig.client.tenant(&rig.tenant).await.unwrap().etag;
    rig.client.delete_tenant(&rig.tenant, Require::At(etag)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_takes_the_room_of_the_oldest_revision_that_goes() {
    let rig = Rig::new().await;
    let artifact = rig.artifact(1).await;
    let size = |n: usize| sized("shop", &artifact, 20_000 + n % 2);
    rig.put(&size(0)).await.unwrap();
    let tight = quota(&rig, 1000);
    rig.client.put_tenant(&rig.tenant, &tight, Require::Exists).await.unwrap();
    let one = kept(&refused(rig.put(&size(1)).await));
    rig.client.put_tenant(&rig.tenant, &quota(&rig, one * 101 / 2), Require::Exists).await.unwrap();
    for n in 1..56 {
        in_time(async || rig.put(&size(n)).await).await;
    }
    let oldest = rig.client.revisions(&rig.tenant, &name("shop")).await.unwrap().last().unwrap().revision;
    assert!(oldest >= Revision(6), "{oldest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_changes_reaches_apps_of_a_full_tenant() {
    let mut rig = Rig::new().await;
    rig.shutdown().await;
    rig.start(Some([("region".to_owned(), "one".to_owned())].into())).await;
    let mut shop = locked("shop", &rig.artifact(1).await);
    for component in shop.components.values_mut() {
        component.config_from = vec![SharedConfig::named(name("env"))];
    }
    rig.put(&shop).await.unwrap();
    rig.client.put_tenant(&rig.tenant, &quota(&rig, 0), Require::Exists).await.unwrap();
    rig.shutdown().await;
    rig.start(Some([("region".to_owned(), "two".to_owned())].into())).await;
    let now = rig.client.app(&rig.tenant, &name("shop")).await.unwrap().desired;
    let answers = now.app.components.values().next().unwrap().answers();
    assert_eq!((now.revision, answers["region"].as_str()), (Revision(2), "two"));
}
