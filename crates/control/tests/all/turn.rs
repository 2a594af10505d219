//! The turn of all changes is one for all tenants: what one tenant has many of must not keep the others from theirs. A store
//! that holds back the reads of one tenant's apps stands for as many of them as take for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use api::client::{ControlClient, Require};
use api::control::{ConfigRequest, DeployRequest};
use api::problem::Code;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use model::app::LockedApp;
use model::config::SharedConfig;
use model::tenant::TenantSettings;
use model::{ProviderKind, ProviderSpec, SecretRef, SecretValue, TenantName};
use store::redb::RedbStore;
use store::{Change, Entry, Expect, LeaseId, Snapshot, Store, StoreError, keys};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::rig::{PATIENCE, Rig, TOKEN, locked, name, refused};

/// Counts the reads of a tenant's revisions, and holds them back while it is shut.
struct Gate {
    store: Arc<RedbStore>,
    prefix: String,
    open: watch::Sender<bool>,
    reads: AtomicUsize,
    /// Of those, which were not of the app `user`.
    others: AtomicUsize,
}

impl Store for Gate {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        if !key.starts_with(&self.prefix) {
            return self.store.get(key);
        }
        self.reads.fetch_add(1, SeqCst);
        if !key.starts_with(&format!("{}user/", self.prefix)) {
            self.others.fetch_add(1, SeqCst);
        }
        let mut open = self.open.subscribe();
        Box::pin(async move {
            open.wait_for(|open| *open).await.unwrap();
            self.store.get(key).await
        })
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.store.list(prefix)
    }
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        lease: Option<LeaseId>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.store.put(key, value, expect, lease)
    }
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.store.delete(key, expect)
    }
    fn watch(&self, prefix: &str, after: u64) -> BoxStream<'static, Result<Change, StoreError>> {
        self.store.watch(prefix, after)
    }
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.store.grant(ttl)
    }
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.keep_alive(lease)
    }
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.revoke(lease)
    }
}

/// Apps of the tenant beside the one that names things.
const APPS: usize = 40;

fn values(n: usize) -> ConfigRequest {
    ConfigRequest { values: [("n".to_owned(), n.to_string())].into() }
}

fn value() -> SecretValue {
    SecretValue::new(b"x".to_vec())
}

/// An app that names the secret `used` and the config `used`.
fn naming(app: &str, bytes: &[u8]) -> LockedApp {
    let mut app = locked(app, bytes);
    let own = ProviderSpec {
        config: [("url".to_owned(), "redis://cache.example".to_owned())].into(),
        secrets: [("password".to_owned(), SecretRef::new(name("used")))].into(),
        ..ProviderSpec::new(ProviderKind::KeyvalueRedis)
    };
    app.providers = [(name("own"), own)].into();
    app.links[0].provider = name("own");
    for component in app.components.values_mut() {
        component.config_from = vec![SharedConfig::named(name("used"))];
    }
    app
}

/// The rig over a gate: a tenant with many apps, one of which names things, and another tenant.
async fn many() -> (Rig, Arc<Gate>, control::Control, Bytes) {
    let mut rig = Rig::new().await;
    for thing in ["used", "idle", "old"] {
        rig.client.put_secret(&rig.tenant, &name(thing), value(), Require::Absent).await.unwrap();
        rig.client.put_config(&rig.tenant, &name(thing), &values(0), Require::Absent).await.unwrap();
    }
    let bytes = rig.artifact(1).await;
    for n in 0..APPS {
        rig.put(&locked(&format!("a{n}"), &bytes)).await.unwrap();
    }
    rig.put(&naming("user", &bytes)).await.unwrap();
    rig.shutdown().await;
    let gate = Arc::new(Gate {
        store: rig.store.clone(),
        prefix: format!("{}{}/", keys::REVISIONS, rig.tenant),
        open: watch::Sender::new(true),
        reads: AtomicUsize::new(0),
        others: AtomicUsize::new(0),
    });
    let control = crate::rig::control(gate.clone(), &rig.blobs, &rig.keys()).await;
    rig.addr = control.addr();
    rig.client = ControlClient::new(control.addr(), TOKEN);
    (rig, gate, control, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_changes_of_one_tenant_wait_for_no_app_of_another() {
    let (rig, gate, control, bytes) = many().await;
    let other: TenantName = name("other");
    rig.client.put_tenant(&other, &rig.settings(), Require::Absent).await.unwrap();
    rig.client.put_blob(&other, &model::Digest::of(&bytes), bytes.clone()).await.unwrap();
    assert!(gate.reads.load(SeqCst) > APPS, "the gate is where apps are read");
    gate.open.send_replace(false);
    let before = gate.reads.load(SeqCst);
    // Their answers may wait for the apps of the tenant, and the turn does not.
    let mut changes = JoinSet::new();
    let client = || (rig.client.clone(), rig.tenant.clone());
    for n in 0..8 {
        let (client, tenant) = client();
        changes.spawn(async move {
            client.put_secret(&tenant, &name("used"), value(), Require::Any).await.unwrap();
            client.put_secret(&tenant, &name(&format!("new{n}")), value(), Require::Any).await.unwrap();
        });
    }
    let (one, tenant) = client();
    changes.spawn(async move {
        let refusal = refused(one.delete_secret(&tenant, &name("used"), false, Require::Any).await);
        assert_eq!(refusal.findings, ["app `user`, the `password` of provider `own`"], "{refusal:?}");
    });
    let (one, tenant) = client();
    changes.spawn(async move { drop(one.put_config(&tenant, &name("used"), &values(1), Require::Any).await.unwrap()) });
    let reads = async {
        while gate.reads.load(SeqCst) == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reads).await.expect("somebody asks who names it");

    let others = async {
        // What nobody names is changed without a look at any app, also of that tenant.
        rig.client.delete_secret(&rig.tenant, &name("idle"), false, Require::Any).await.unwrap();
        rig.client.delete_config(&rig.tenant, &name("idle"), Require::Any).await.unwrap();
        rig.client.put_config(&rig.tenant, &name("old"), &values(2), Require::Any).await.unwrap();
        let refusal = refused(rig.client.delete_config(&rig.tenant, &name("used"), Require::Any).await);
        assert_eq!((refusal.code, refusal.findings.as_slice()), (Code::ConfigInUse, &["app `user`".to_owned()][..]));
        rig.client.put_config(&other, &name("mine"), &values(3), Require::Any).await.unwrap();
        let app = locked("mine", &bytes);
        let request = DeployRequest { app, message: None };
        rig.client.deploy(&other, &name("mine"), &request, Require::Absent, None).await.unwrap();
        let view = rig.client.tenant(&rig.tenant).await.unwrap();
        let suspended = TenantSettings { suspended: Some("unpaid".into()), ..view.settings };
        // It is written; the answer waits for what is made of it, and that for the apps.
        let (client, tenant) = client();
        changes
            .spawn(async move { drop(client.put_tenant(&tenant, &suspended, Require::At(view.etag)).await.unwrap()) });
        while rig.client.tenant(&rig.tenant).await.unwrap().settings.suspended.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, others).await.expect("the turn is held while apps of a tenant are read");
    gate.open.send_replace(true);
    let all = async {
        while let Some(done) = changes.join_next().await {
            done.unwrap()
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("what waited for the apps is answered");
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reads_those_apps_that_it_concerns_and_no_others() {
    let (rig, gate, control, bytes) = many().await;
    let (client, tenant) = (&rig.client, &rig.tenant);
    let offering =
        |kind| TenantSettings { providers: [(name("shared"), ProviderSpec::new(kind))].into(), ..rig.settings() };
    // Answered when all apps were judged by it; nothing reads them after that but what follows here.
    let etag = client.put_tenant(tenant, &offering(ProviderKind::KeyvalueMemory), Require::Exists).await.unwrap().etag;
    let before = gate.others.load(SeqCst);
    let set = client.put_config(tenant, &name("used"), &values(7), Require::Any).await.unwrap();
    assert_eq!((set.apps.len(), set.config.used_by.len()), (1, 1));
    let set = client.put_secret(tenant, &name("used"), value(), Require::Any).await.unwrap();
    assert_eq!(set.used_by.len(), 1);
    client.put_secret(tenant, &name("old"), value(), Require::Any).await.unwrap();
    client.delete_secret(tenant, &name("used"), true, Require::Any).await.unwrap();
    client.put_secret(tenant, &name("used"), value(), Require::Any).await.unwrap();
    assert_eq!(client.config(tenant, &name("used")).await.unwrap().used_by.len(), 1);
    assert_eq!(client.secrets(tenant).await.unwrap().iter().filter(|secret| !secret.used_by.is_empty()).count(), 1);
    // The type of a provider that only this one links to.
    let mut app = naming("user", &bytes);
    let shared = ProviderSpec { operator: true, ..ProviderSpec::new(ProviderKind::KeyvalueMemory) };
    app.providers.insert(name("shared"), shared);
    app.links[0].provider = name("shared");
    rig.put(&app).await.unwrap();
    let retyped = offering(ProviderKind::KeyvalueEmbedded);
    let refusal = refused(client.put_tenant(tenant, &retyped, Require::At(etag)).await);
    assert!(refusal.detail.contains("user/counter wasi:keyvalue default goes to `shared`"), "{refusal:?}");
    client.delete_app(tenant, &name("user"), Require::Any).await.unwrap();
    client.delete_secret(tenant, &name("used"), false, Require::Any).await.unwrap();
    client.delete_config(tenant, &name("used"), Require::Any).await.unwrap();
    assert_eq!(gate.others.load(SeqCst) - before, 0, "reads of apps that name none of it");
    client.put_tenant(tenant, &retyped, Require::At(etag)).await.unwrap();
    control.shutdown().await;
}
