//! Whose host is whose: what the operator gives, what a tenant cannot take, and that a host which is given up is nobody
//! else's for a while.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, UNIX_EPOCH};

use api::client::{ClientError, ControlClient, Require};
use api::control::{Accepted, DeployRequest, LinkRequest, TokenRequest};
use api::problem::Code;
use bytes::Bytes;
use model::access::Role;
use model::app::LockedApp;
use model::observed::Phase;
use model::tenant::TenantSettings;
use model::{Digest, TenantName};
use store::{Store as _, keys};

use crate::between::Through;
use crate::failures::Flaky;
use crate::rig::{Nodes, PATIENCE, Rig, locked, name, refused};

/// The app with its one route on another host.
fn on(app: &str, host: &str, bytes: &[u8]) -> LockedApp {
    let mut app = locked(app, bytes);
    host.clone_into(&mut app.routes[0].host);
    app
}

/// An artifact that both tenants have sent.
async fn sent(rig: &Rig, n: u32, other: &TenantName) -> Bytes {
    let bytes = rig.artifact(n).await;
    rig.client.put_blob(other, &Digest::of(&bytes), bytes.clone()).await.unwrap();
    bytes
}

async fn deploy(client: &ControlClient, tenant: &TenantName, app: LockedApp) -> Result<Accepted, ClientError> {
    let name = app.name.clone();
    client.deploy(tenant, &name, &DeployRequest { app, message: None }, Require::Any, None).await
}

async fn give(rig: &Rig, tenant: &TenantName, hosts: &[&str], require: Require) {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    rig.client.put_tenant(tenant, &TenantSettings { hosts, ..rig.settings() }, require).await.unwrap();
}

async fn owner(rig: &Rig) -> ControlClient {
    let request = TokenRequest { role: Role::Owner, label: String::new(), expires_in: None };
    ControlClient::new(rig.addr, &rig.client.create_token(&rig.tenant, &request).await.unwrap().token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_the_hosts_it_was_given_and_takes_none() {
    let rig = Rig::new().await;
    let (tenant, owner, bytes) = (&rig.tenant, owner(&rig).await, rig.artifact(1).await);
    for host in ["*.com", "*.localhost", "shop.example", "shop.acme.example"] {
        let app = on("a", host, &bytes);
        let plan = owner.plan(tenant, &app.name, &DeployRequest { app: app.clone(), message: None }).await.unwrap();
        let says = format!("host `{host}` is none of those that tenant `t` was given");
        assert!(plan.problems.len() == 1 && plan.problems[0].starts_with(&says), "{plan:?}");
        let problem = refused(deploy(&owner, tenant, app).await);
        assert!(problem.code == Code::HostNotGiven && problem.detail.starts_with(&says), "{problem:?}");
        assert!(problem.help.unwrap().contains(&format!("sidereal tenant set t --host '{host}'")));
    }
    deploy(&owner, tenant, on("b", "b.localhost", &bytes)).await.unwrap();

    // It is the operator's to give.
    let view = owner.tenant(tenant).await.unwrap();
    let wider = TenantSettings { hosts: vec!["*".into()], ..view.settings };
    assert_eq!(refused(owner.put_tenant(tenant, &wider, Require::At(view.etag)).await).code, Code::Forbidden);
    let bad = TenantSettings { hosts: vec!["*.*.example".into(), "a/b".into()], ..rig.settings() };
    let problem = refused(rig.client.put_tenant(tenant, &bad, Require::Exists).await);
    assert!(problem.code == Code::RequestInvalid && problem.findings.len() == 2, "{problem:?}");
    give(&rig, tenant, &["*.acme.example"], Require::Exists).await;
    deploy(&owner, tenant, on("a", "shop.acme.example", &bytes)).await.unwrap();
    for host in ["*.com", "c.localhost"] {
        let problem = refused(deploy(&owner, tenant, on("c", host, &bytes)).await);
        assert!(problem.code == Code::HostNotGiven && problem.detail.contains("`*.acme.example`"), "{problem:?}");
    }

    // What is taken back, or was there before anything was given, stays with the app that has it, and with no other one.
    give(&rig, tenant, &["else.example"], Require::Exists).await;
    let more = rig.artifact(2).await;
    for (app, host) in [("a", "shop.acme.example"), ("b", "b.localhost")] {
        assert_eq!(deploy(&owner, tenant, on(app, host, &more)).await.unwrap().revision.0, 2);
        let link =
            LinkRequest { component: None, contract: name("wasi:keyvalue"), label: None, provider: name("memory") };
        owner.link(tenant, &name(app), &link, Require::Any).await.unwrap();
        let mut beside = on("c", host, &more);
        beside.routes[0].path = "/beside".into();
        assert_eq!(refused(deploy(&owner, tenant, beside).await).code, Code::HostNotGiven);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_given_up_is_no_other_tenants_for_a_while() {
    let mut rig = Rig::new().await;
    let (tenant, other) = (rig.tenant.clone(), name("u"));
    give(&rig, &tenant, &["*"], Require::Exists).await;
    give(&rig, &other, &["*"], Require::Absent).await;
    let bytes = sent(&rig, 1, &other).await;
    let is_kept = async |rig: &Rig, host: &str| {
        let until = tokio::time::Instant::now() + PATIENCE;
        let problem = loop {
            let problem = refused(deploy(&rig.client, &other, on("mine", host, &bytes)).await);
            // As long as the revision before serves, the host is in use as well.
            if problem.detail.contains("gave up") || tokio::time::Instant::now() > until {
                break problem;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        assert!(problem.code == Code::RouteTaken && problem.detail.contains("gave up"), "{problem:?}");
        assert!(!problem.detail.contains("tenant `t`") && !problem.detail.contains("old"), "{problem:?}");
        assert!(problem.help.unwrap().contains(&format!("sidereal route free '{host}'")));
    };

    // By the end of the app, whatever overlaps, and over a restart.
    deploy(&rig.client, &tenant, on("old", "shop.example", &bytes)).await.unwrap();
    rig.client.delete_app(&tenant, &name("old"), Require::Any).await.unwrap();
    is_kept(&rig, "shop.example").await;
    is_kept(&rig, "*.example").await;
    rig.restart().await;
    is_kept(&rig, "shop.example").await;
    // Its own it takes back at once, and gives up by another revision.
    deploy(&rig.client, &tenant, on("new", "shop.example", &bytes)).await.unwrap();
    deploy(&rig.client, &tenant, on("new", "b.test", &bytes)).await.unwrap();
    is_kept(&rig, "shop.example").await;

    // The operator frees it, and nobody else does.
    assert_eq!(refused(owner(&rig).await.free_host("shop.example").await).code, Code::Forbidden);
    assert_eq!(refused(rig.client.free_host("*.*.example").await).code, Code::RequestInvalid);
    assert_eq!(refused(rig.client.free_host("other.test").await).code, Code::NotFound);
    rig.client.free_host("*.example").await.unwrap();
    rig.restart().await;
    deploy(&rig.client, &other, on("mine", "shop.example", &bytes)).await.unwrap();
    assert_eq!(refused(rig.client.free_host("shop.example").await).code, Code::NotFound);

    // What a deleted tenant had is kept as well.
    rig.client.delete_tenant(&tenant, Require::Exists).await.unwrap();
    is_kept(&rig, "b.test").await;
    is_kept(&rig, "*.test").await;
    deploy(&rig.client, &other, on("mine", "c.test", &bytes)).await.expect("it overlaps with nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_freed_to_its_end_is_freed_when_it_is_asked_again() {
    let mut rig = Rig::new().await;
    let flaky = Through::new(&rig.store, Flaky::new(keys::LEFT));
    rig.restart_over(flaky.clone(), Nodes::default()).await;
    let (tenant, second, third) = (rig.tenant.clone(), name("u"), name("v"));
    give(&rig, &tenant, &["*"], Require::Exists).await;
    let bytes = rig.artifact(1).await;
    for other in [&second, &third] {
        give(&rig, other, &["*"], Require::Absent).await;
        rig.client.put_blob(other, &Digest::of(&bytes), bytes.clone()).await.unwrap();
    }
    let mine = async |rig: &Rig, host: &str| deploy(&rig.client, &third, on("mine", host, &bytes)).await;
    let hosts = [(&tenant, "a.example"), (&second, "b.example")];
    // Of both tenants nothing is written, then only of the last one.
    for fails in [0, 1] {
        for (tenant, host) in hosts {
            deploy(&rig.client, tenant, on("old", host, &bytes)).await.unwrap();
            rig.client.delete_app(tenant, &name("old"), Require::Any).await.unwrap();
            assert_eq!(refused(mine(&rig, host).await).code, Code::RouteTaken);
        }
        flaky.pass.store(fails, SeqCst);
        flaky.writes.store(1, SeqCst);
        assert_eq!(refused(rig.client.free_host("*.example").await).code, Code::StoreUnavailable);
        assert_eq!(mine(&rig, "a.example").await.is_ok(), fails == 1);
        assert_eq!(refused(mine(&rig, "b.example").await).code, Code::RouteTaken);
        rig.client.free_host("*.example").await.unwrap();
        for (_, host) in hosts {
            mine(&rig, host).await.unwrap();
        }
        rig.client.delete_app(&third, &name("mine"), Require::Any).await.unwrap();
        rig.client.free_host("*.example").await.unwrap();
    }
    // As it is in memory, so it is in the store.
    rig.restart().await;
    for (_, host) in hosts {
        mine(&rig, host).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_host_begins_when_nothing_serves_on_it_any_more() {
    let mut rig = Rig::without_node().await;
    rig.silent_node().await;
    let tenant = rig.tenant.clone();
    let given = TenantSettings { hosts: vec!["*".into()], ..rig.settings() };
    rig.client.put_tenant(&tenant, &given, Require::Exists).await.unwrap();
    let settled = async |rig: &Rig| drop(rig.client.put_tenant(&tenant, &given, Require::Exists).await.unwrap());
    let bytes = rig.artifact(1).await;
    // When each host was given up, as it is kept; one whose time has not begun is kept for ever.
    let left = async |rig: &Rig| -> BTreeMap<String, u64> {
        let entry = rig.store.get(&keys::left(&tenant)).await.unwrap();
        entry.map(|entry| serde_json::from_slice(&entry.value).unwrap()).unwrap_or_default()
    };
    let begun = async |rig: &Rig, host: &str, after: u64| {
        let begun = async {
            loop {
                match left(rig).await[host] {
                    u64::MAX => tokio::time::sleep(Duration::from_millis(5)).await,
                    at => return at,
                }
            }
        };
        let at = tokio::time::timeout(PATIENCE, begun).await.expect("its time never begins");
        assert!(at >= after && at <= now_ms(), "{after} {at}");
    };

    deploy(&rig.client, &tenant, on("old", "one.example", &bytes)).await.unwrap();
    rig.assigned("old", |assigned| assigned.is_some()).await;
    rig.says("old", 1, Phase::Serving, (1, None)).await;
    settled(&rig).await;
    // What replaces it does not start, however often, and one of them is on a host where nothing ever served.
    for (revision, host) in [(2, "two.example"), (3, "three.example")] {
        deploy(&rig.client, &tenant, on("old", host, &bytes)).await.unwrap();
        rig.says("old", revision, Phase::Failed, (1, None)).await;
        settled(&rig).await;
        assert_eq!(left(&rig).await["one.example"], u64::MAX);
    }
    assert!(left(&rig).await["two.example"] <= now_ms());
    rig.restart().await;
    settled(&rig).await;
    assert_eq!(left(&rig).await["one.example"], u64::MAX, "it serves still");
    let before = now_ms();
    rig.says("old", 3, Phase::Serving, (3, Some(1))).await;
    begun(&rig, "one.example", before).await;

    // Also where the control plane is away when it ends.
    deploy(&rig.client, &tenant, on("old", "four.example", &bytes)).await.unwrap();
    rig.says("old", 4, Phase::Failed, (3, Some(1))).await;
    settled(&rig).await;
    assert_eq!(left(&rig).await["three.example"], u64::MAX);
    rig.shutdown().await;
    let before = now_ms();
    rig.says("old", 4, Phase::Serving, (4, Some(3))).await;
    rig.start(None).await;
    begun(&rig, "three.example", before).await;

    // A deletion ends all at once.
    let before = now_ms();
    rig.client.delete_app(&tenant, &name("old"), Require::Any).await.unwrap();
    let at = left(&rig).await["four.example"];
    assert!(at >= before && at <= now_ms(), "{before} {at}");
}

fn now_ms() -> u64 {
    u64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}
