//! The turn of all changes is one for all tenants, and so is the task that has the nodes follow, and the threads: what one
//! tenant has many of must not keep the others from theirs. A store that holds back the reads of one tenant's apps stands for
//! as many of them as take for ever.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use api::client::{ClientError, ControlClient, Require};
use api::control::{Accepted, ConfigRequest, DeployRequest, TokenRequest};
use api::problem::Code;
use bytes::Bytes;
use model::access::Role;
use model::app::LockedApp;
use model::config::SharedConfig;
use model::tenant::TenantSettings;
use model::{ProviderKind, ProviderSpec, SecretRef, SecretValue, TenantName};
use store::keys::{self, Assignment};
use tokio::task::JoinSet;

use crate::between::Through;
use crate::gate::{Gate, Way};
use crate::guard::raw;
use crate::rig::{Nodes, PATIENCE, Rig, TOKEN, locked, name, refused};

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

/// The rig over a gate before the apps of its tenant. It has many of one kind, and one that names things.
async fn many(kind: fn(&str, &[u8]) -> LockedApp) -> (Rig, Arc<Through<Gate>>, Bytes) {
    let mut rig = Rig::new().await;
    for thing in ["used", "idle", "old"] {
        rig.client.put_secret(&rig.tenant, &name(thing), value(), Require::Absent).await.unwrap();
        rig.client.put_config(&rig.tenant, &name(thing), &values(0), Require::Absent).await.unwrap();
    }
    let bytes = rig.artifact(1).await;
    for n in 0..APPS {
        rig.put(&kind(&format!("a{n}"), &bytes)).await.unwrap();
    }
    rig.put(&naming("user", &bytes)).await.unwrap();
    let gate = Gate::new(&rig.store, Way::Reads, format!("{}{}/", keys::REVISIONS, rig.tenant));
    rig.restart_over(gate.clone(), Nodes::default()).await;
    (rig, gate, bytes)
}

/// Another tenant, which may deploy the same artifact.
async fn another(rig: &Rig, bytes: &Bytes) -> TenantName {
    let other: TenantName = name("other");
    rig.client.put_tenant(&other, &rig.settings(), Require::Absent).await.unwrap();
    rig.client.put_blob(&other, &model::Digest::of(bytes), bytes.clone()).await.unwrap();
    other
}

async fn deploy(rig: &Rig, tenant: &TenantName, app: LockedApp) -> Result<Accepted, ClientError> {
    let request = DeployRequest { app, message: None };
    rig.client.deploy(tenant, &request.app.name, &request, Require::Any, None).await
}

/// An owner's client, which comes back when it is told to.
async fn owner(rig: &Rig, tenant: &TenantName) -> ControlClient {
    let request = TokenRequest { role: Role::Owner, label: "test".into(), expires_in: None };
    let made = rig.client.create_token(tenant, &request).await.unwrap();
    ControlClient::new(rig.addr, &made.token).patient(PATIENCE)
}

/// Waits until what a node was told of an app is as wanted.
async fn told(rig: &Rig, tenant: &TenantName, app: &str, good: impl Fn(Option<Assignment>) -> bool) {
    let key = keys::assigned(&name("local"), tenant, &name(app));
    let told = async {
        loop {
            let entry = store::Store::get(&*rig.store, &key).await.unwrap();
            if good(entry.map(|entry| serde_json::from_slice(&entry.value).unwrap())) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the node is never told");
}

/// Waits until everything of a tenant that runs follows its settings.
async fn carried_out(rig: &Rig, tenant: &TenantName) {
    let done = async {
        while rig.client.tenant(tenant).await.unwrap().pending {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("its settings are never carried out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_changes_of_one_tenant_wait_for_no_app_of_another() {
    let (mut rig, gate, bytes) = many(locked).await;
    let other = another(&rig, &bytes).await;
    assert!(gate.came.load(SeqCst) > APPS, "the gate is where apps are read");
    gate.open.send_replace(false);
    let before = gate.came.load(SeqCst);
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
    gate.more_than(before).await;

    let others = async {
        // What nobody names is changed without a look at any app, also of that tenant.
        rig.client.delete_secret(&rig.tenant, &name("idle"), false, Require::Any).await.unwrap();
        rig.client.delete_config(&rig.tenant, &name("idle"), Require::Any).await.unwrap();
        rig.client.put_config(&rig.tenant, &name("old"), &values(2), Require::Any).await.unwrap();
        let refusal = refused(rig.client.delete_config(&rig.tenant, &name("used"), Require::Any).await);
        assert_eq!((refusal.code, refusal.findings.as_slice()), (Code::ConfigInUse, &["app `user`".to_owned()][..]));
        rig.client.put_config(&other, &name("mine"), &values(3), Require::Any).await.unwrap();
        deploy(&rig, &other, locked("mine", &bytes)).await.unwrap();
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
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reads_those_apps_that_it_concerns_and_no_others() {
    let (mut rig, gate, bytes) = many(locked).await;
    let (client, tenant) = (&rig.client, &rig.tenant);
    let offering =
        |kind| TenantSettings { providers: [(name("shared"), ProviderSpec::new(kind))].into(), ..rig.settings() };
    let etag = client.put_tenant(tenant, &offering(ProviderKind::KeyvalueMemory), Require::Exists).await.unwrap().etag;
    // Nothing reads them after that but what follows here.
    carried_out(&rig, tenant).await;
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
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_waits_for_no_app_of_another_tenant_and_is_not_answered_as_done_before_it_is() {
    let (mut rig, gate, bytes) = many(locked).await;
    let other = another(&rig, &bytes).await;
    deploy(&rig, &other, locked("mine", &bytes)).await.unwrap();
    told(&rig, &other, "mine", |assigned| assigned.is_some_and(|a| a.suspended.is_none())).await;
    let revoking = |what: &str| TenantSettings { revoked: vec![what.to_owned()], ..rig.settings() };
    let theirs = owner(&rig, &rig.tenant).await;
    gate.open.send_replace(false);
    let before = gate.came.load(SeqCst);
    // Whom a tenant trusts is its owner's to say, as often as he likes, and each time all its apps are judged again.
    let mut greedy = JoinSet::new();
    for n in 0..50 {
        let (client, tenant, settings) = (theirs.clone(), rig.tenant.clone(), revoking(&format!("token-9{n}")));
        greedy.spawn(async move { client.put_tenant(&tenant, &settings, Require::Exists).await });
    }
    gate.more_than(before).await;

    let ours = owner(&rig, &other).await;
    let view = ours.put_tenant(&other, &revoking(&rig.account.public_key()), Require::Exists).await.unwrap();
    if view.pending {
        // This machine was busy, and it is said.
        carried_out(&rig, &other).await;
    }
    let key = keys::assigned(&name("local"), &other, &name("mine"));
    let entry = store::Store::get(&*rig.store, &key).await.unwrap().unwrap();
    let assigned: Assignment = serde_json::from_slice(&entry.value).unwrap();
    assert_eq!(assigned.suspended.unwrap().code, Code::ArtifactRevoked.as_str());
    ours.put_tenant(&other, &rig.settings(), Require::Exists).await.unwrap();
    deploy(&rig, &other, locked("more", &bytes)).await.unwrap();
    for app in ["mine", "more"] {
        told(&rig, &other, app, |assigned| assigned.is_some_and(|a| a.suspended.is_none())).await;
    }

    // Its own is on its way, and that is what is said.
    let body = serde_json::to_string(&revoking("token-1")).unwrap();
    let (status, _, text) = raw(
        rig.addr,
        &format!(
            "PUT /v1/tenants/{} HTTP/1.1\r\nconnection: close\r\nhost: {}\r\nauthorization: Bearer {TOKEN}\r\nif-match: *\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            rig.tenant,
            rig.addr,
            body.len()
        ),
    )
    .await;
    assert!(status == 202 && text.contains(r#""pending":true"#), "{status} {text}");
    assert!(rig.client.tenant(&rig.tenant).await.unwrap().pending);
    assert_eq!(gate.came.load(SeqCst) - before, 1, "its apps are read one by one, and for one change at a time");
    // What of it is still on its way changes nothing any more.
    let token = theirs.whoami().await.unwrap().token.unwrap();
    rig.client.revoke_token(&rig.tenant, &token).await.unwrap();
    greedy.shutdown().await;
    gate.open.send_replace(true);
    rig.client.put_tenant(&rig.tenant, &revoking("token-1"), Require::Exists).await.unwrap();
    carried_out(&rig, &rig.tenant).await;
    told(&rig, &rig.tenant, "a0", |assigned| assigned.is_some_and(|a| a.suspended.is_some())).await;
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_change_nobodys_trust_read_no_app() {
    let (mut rig, gate, _) = many(locked).await;
    let theirs = owner(&rig, &rig.tenant).await;
    let before = gate.came.load(SeqCst);
    for _ in 0..3 {
        theirs.put_tenant(&rig.tenant, &rig.settings(), Require::Exists).await.unwrap();
    }
    let settings = TenantSettings { shards: 3, egress: vec!["10.0.0.0/8".into()], ..rig.settings() };
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    carried_out(&rig, &rig.tenant).await;
    assert_eq!(gate.came.load(SeqCst), before);
    let settings = TenantSettings { revoked: vec!["token-9".into()], ..settings };
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    carried_out(&rig, &rig.tenant).await;
    assert!(gate.came.load(SeqCst) > before + APPS);
    rig.shutdown().await;
}

/// One thread, so that whatever goes on without giving way is seen: nobody else has it meanwhile.
#[tokio::test]
async fn whoever_reads_many_apps_gives_way_after_each() {
    let (mut rig, gate, _) = many(naming).await;
    let (client, tenant) = (&rig.client, &rig.tenant);
    let before = gate.came.load(SeqCst);
    let work = async {
        // One that another one outruns is refused, when it has read as much.
        let set = async |n| drop(client.put_config(tenant, &name("used"), &values(n), Require::Any).await);
        let secret = async || drop(client.put_secret(tenant, &name("used"), value(), Require::Any).await.unwrap());
        tokio::join!(set(1), set(2), set(3), secret());
        client.configs(tenant).await.unwrap();
        client.secrets(tenant).await.unwrap();
        client.providers(tenant).await.unwrap();
        let settings = TenantSettings { revoked: vec!["token-9".into()], ..rig.settings() };
        client.put_tenant(tenant, &settings, Require::Exists).await.unwrap();
    };
    let most = Cell::new(0);
    let others = async {
        let mut last = before;
        loop {
            let reads = gate.came.load(SeqCst);
            most.set(most.get().max(reads - last));
            last = reads;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = others => {}
    }
    assert!(gate.came.load(SeqCst) - before > 6 * APPS, "all of it was read");
    assert!(most.get() < APPS / 2, "{} reads, and nobody else had the thread meanwhile", most.get());
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_much_a_tenant_asks_for_few_of_its_apps_are_read_at_once() {
    let (mut rig, gate, _) = many(naming).await;
    gate.open.send_replace(false);
    gate.together.store(0, SeqCst);
    let begun = |all: &[api::control::AuditView]| {
        let put = format!("PUT /v1/tenants/{}/configs/used", rig.tenant);
        all.iter().filter(|line| line.what == put && line.outcome == "begun").count()
    };
    let already = begun(&rig.client.audit(None, 10_000).await.unwrap());
    let mut sets = JoinSet::new();
    for n in 0..8 {
        let (client, tenant) = (rig.client.clone(), rig.tenant.clone());
        sets.spawn(async move { client.put_config(&tenant, &name("used"), &values(n), Require::Any).await });
    }
    let all = async {
        while begun(&rig.client.audit(None, 10_000).await.unwrap()) < already + 8 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("not all of them have begun");
    gate.open.send_replace(true);
    let answers = sets.join_all().await;
    assert!(answers.iter().any(Result::is_ok), "{answers:?}");
    // One that looks whether the apps can bear it, one that brings it to them, and what follows that for all tenants.
    assert!(gate.together.load(SeqCst) <= 3, "{} at once", gate.together.load(SeqCst));
    rig.shutdown().await;
}
