//! What an app may be: judged from the artifacts' bytes when it is deployed, and again while it runs.

use api::client::Require;
use api::control::event;
use api::problem::Code;
use model::app::Revision;
use model::claims::{KeyKind, KeyPair, LEEWAY};
use model::observed::Phase;
use model::tenant::TenantSettings;
use model::{Digest, World};
use store::keys::{self, Assignment, Head, RevisionRecord};
use store::{Expect, Store as _};

use crate::rig::{Rig, collect, component, locked, name, now, refused};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_client_says_of_an_artifact_counts() {
    let rig = Rig::without_node().await;
    let signed = rig.artifact(1).await;
    let good = locked("counter", &signed);
    let lie = |change: fn(&mut model::LockedComponent)| {
        let mut app = good.clone();
        app.components.values_mut().for_each(change);
        app
    };
    let rows = [
        ("never uploaded", lie(|c| c.digest = Digest::of(b"other")), Code::ArtifactMissing),
        ("fewer imports", lie(|c| c.imports.clear()), Code::ManifestInvalid),
        ("more exports", lie(|c| c.exports.push(name("a:b/c"))), Code::ManifestInvalid),
        ("another world", lie(|c| c.world = World::P3), Code::ManifestInvalid),
        ("another size", lie(|c| c.size += 1), Code::ManifestInvalid),
        (
            "above the ceiling",
            lie(|c| c.limits.memory = model::unit::ByteSize::mib(64 * 1024)),
            Code::LimitAboveCeiling,
        ),
    ];
    for (what, app, code) in rows {
        assert_eq!(refused(rig.put(&app).await).code, code, "{what}");
    }
    let mut unlinked = good.clone();
    unlinked.links.clear();
    assert_eq!(refused(rig.put(&unlinked).await).code, Code::LinkMissing);
    let mut renamed = good.clone();
    renamed.name = name("other");
    let request = api::control::DeployRequest { app: renamed, message: None };
    let answer = rig.client.deploy(&rig.tenant, &name("counter"), &request, Require::Any, None).await;
    assert_eq!(refused(answer).code, Code::RequestInvalid);
    let request = api::control::DeployRequest { app: good.clone(), message: None };
    let answer = rig.client.deploy(&name("nobody"), &name("counter"), &request, Require::Any, None).await;
    assert_eq!(refused(answer).code, Code::NotFound);
    assert!(rig.client.apps(&rig.tenant).await.unwrap().is_empty());
    rig.put(&good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_artifacts_are_refused_by_reason() {
    let rig = Rig::without_node().await;
    let unsigned = rig.upload(component(1).into()).await;
    let mut tampered = rig.artifact(2).await.to_vec();
    let at = tampered.windows(20).position(|w| w == b"wasi:keyvalue/store@").unwrap();
    tampered[at + 5] = b'K';
    let tampered = rig.upload(tampered.into()).await;
    let expired = rig.signed(3, |c| c.expires = Some(now() - LEEWAY - 1)).await;
    let early = rig.signed(4, |c| c.not_before = Some(now() + LEEWAY + 100)).await;
    let ungranted = rig.signed(5, |c| c.component.granted = Some(vec![])).await;
    let stranger = KeyPair::from_entropy(KeyKind::Account, [8; 32]);
    let module = KeyPair::from_entropy(KeyKind::Module, [9; 32]);
    let claims = model::claims::Claims::new("x", &module.public(), "id", now());
    let foreign = model::claims::sign(&component(6), claims, &stranger).unwrap();
    let foreign = rig.upload(foreign.into()).await;
    let core = rig.upload(wat::parse_str("(module)").unwrap().into()).await;
    let rows = [
        ("unsigned", unsigned.clone(), Code::ArtifactUnsigned),
        ("tampered", tampered, Code::ArtifactTampered),
        ("expired", expired, Code::ArtifactExpired),
        ("early", early, Code::ArtifactNotYetValid),
        ("ungranted", ungranted, Code::InterfaceNotGranted),
        ("foreign", foreign, Code::IssuerUntrusted),
    ];
    for (what, bytes, code) in rows {
        let problem = refused(rig.put(&locked("counter", &bytes)).await);
        assert_eq!(problem.code, code, "{what}");
        assert!(problem.detail.contains("`counter`") && problem.help.is_some(), "{what}: {problem:?}");
    }
    let mut app = locked("counter", &unsigned);
    app.components.values_mut().for_each(|c| c.digest = Digest::of(&core));
    assert_eq!(refused(rig.put(&app).await).code, Code::ArtifactInvalid);
    // The same bytes are judged by each tenant's own settings, also when they were read before.
    let lax = TenantSettings { allow_unsigned: true, ..TenantSettings::default() };
    rig.client.put_tenant(&name("lax"), &lax, Require::Absent).await.unwrap();
    rig.client.put_blob(&name("lax"), &Digest::of(&unsigned), unsigned.clone()).await.unwrap();
    let request = api::control::DeployRequest { app: locked("counter", &unsigned), message: None };
    rig.client.deploy(&name("lax"), &name("counter"), &request, Require::Any, None).await.unwrap();
    assert_eq!(refused(rig.put(&locked("other", &unsigned)).await).code, Code::ArtifactUnsigned);
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_an_app_opens_are_granted_by_the_signer() {
    let rig = Rig::without_node().await;
    let component = wat::parse_str(
        r#"(component
            (import "wasi:sockets/tcp@0.2.12" (instance))
            (instance $handler)
            (export "wasi:http/incoming-handler@0.2.12" (instance $handler)))"#,
    )
    .unwrap();
    let signed = async |granted: &[&str]| {
        let module = KeyPair::from_entropy(KeyKind::Module, [9; 32]);
        let mut claims = model::claims::Claims::new("x", &module.public(), granted.join(" "), now());
        claims.component.granted = Some(granted.iter().map(|&entry| entry.to_owned()).collect());
        rig.upload(model::claims::sign(&component, claims, &rig.account).unwrap().into()).await
    };
    let app = |bytes: &[u8], host: &str| {
        let mut app = locked("counter", bytes);
        (app.links, app.providers) = (vec![], [].into());
        app.components.values_mut().for_each(|c| c.allow_hosts = vec![host.into()]);
        app
    };
    let (none, granted) = (signed(&[]).await, signed(&["wasi:sockets"]).await);
    for host in ["tcp://db.example.com:5432", "udp://10.0.0.2:53"] {
        let problem = refused(rig.put(&app(&none, host)).await);
        assert_eq!(problem.code, Code::InterfaceNotGranted, "{host}");
        assert!(problem.detail.contains("wasi:sockets/tcp") && problem.help.is_some(), "{problem:?}");
        rig.put(&app(&granted, host)).await.unwrap();
    }
    // An import alone reaches nothing, and outgoing HTTP is another interface.
    rig.put(&app(&none, "https://api.example.com")).await.unwrap();
}

/// For how many seconds claims are valid that are to end in a test. Where the machine stood still for longer, and what is to come
/// before their end did not, it is tried with the next.
const VALID: [u64; 3] = [5, 20, 50];

/// An artifact whose claims are valid for so many seconds, or one less.
async fn ending(rig: &Rig, valid: u64) -> bytes::Bytes {
    rig.signed(1, |c| c.expires = Some(now() - LEEWAY + valid)).await
}

/// An app that serves until its claims expire; `None` where they had before it did.
async fn suspended_while_it_runs(valid: u64) -> Option<(Rig, api::client::Events)> {
    let rig = Rig::new().await;
    let bytes = ending(&rig, valid).await;
    let mut events = rig.client.events(api::client::EventQuery::default()).await.unwrap();
    match rig.put(&locked("counter", &bytes)).await {
        Err(api::client::ClientError::Refused(problem)) if problem.code == Code::ArtifactExpired => return None,
        put => put.unwrap(),
    };
    let seen = collect(&mut events, |e| e.kind == event::SUSPENDED).await;
    let served = |e: &&api::control::Event| e.kind == event::PHASE && e.data["phase"] == "serving";
    match seen.iter().filter(served).count() {
        0 => None,
        times => {
            assert_eq!(times, 1, "it served until then: {seen:#?}");
            Some((rig, events))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_expire_while_running_suspend_the_app() {
    let mut tried = Vec::new();
    for valid in VALID {
        tried.extend(suspended_while_it_runs(valid).await);
        if !tried.is_empty() {
            break;
        }
    }
    let (rig, mut events) = tried.pop().expect("it never served before its claims had expired");
    let assignment = rig.assigned("counter", |a| a.is_some_and(|a| a.suspended.is_some())).await.unwrap();
    let reason = assignment.suspended.unwrap();
    assert_eq!(reason.code, Code::ArtifactExpired.as_str());
    assert!(reason.message.contains("`counter`"), "{}", reason.message);
    let view = rig.client.app(&rig.tenant, &name("counter")).await.unwrap();
    assert_eq!(view.reason, Some(reason));
    // A good revision brings it back.
    rig.deploy("counter", 2).await;
    collect(&mut events, |e| e.kind == event::RESUMED).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.suspended.is_none() && a.revision.0 == 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_suspends_before_it_is_answered_and_a_pardon_resumes() {
    let rig = Rig::new().await;
    rig.deploy("a", 1).await;
    rig.deploy("b", 2).await;
    rig.assigned("a", |a| a.is_some()).await;
    rig.assigned("b", |a| a.is_some()).await;
    let digest = rig.client.app(&rig.tenant, &name("b")).await.unwrap().desired.app.components[&name("counter")].digest;
    let none: &[&str] = &[];
    let lists: [(Vec<String>, &[&str]); 5] = [
        (vec!["token-1".into()], &["a"]),
        (vec![digest.to_string()], &["b"]),
        (vec![rig.account.public_key()], &["a", "b"]),
        (vec!["token-9".into()], none),
        (vec![], none),
    ];
    for (revoked, suspended) in lists {
        let settings = TenantSettings { revoked: revoked.clone(), ..rig.settings() };
        rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
        for app in ["a", "b"] {
            let key = store::keys::assigned(&name("local"), &rig.tenant, &name(app));
            let entry = store::Store::get(&*rig.store, &key).await.unwrap().unwrap();
            let assignment: store::keys::Assignment = serde_json::from_slice(&entry.value).unwrap();
            let code = assignment.suspended.map(|r| r.code);
            let expected = suspended.contains(&app).then(|| Code::ArtifactRevoked.as_str().to_owned());
            assert_eq!(code, expected, "{app} with {revoked:?}");
        }
    }
    // Revoked now: nothing new of it gets in, although it was read before.
    let settings = TenantSettings { revoked: vec!["token-1".into()], ..rig.settings() };
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    assert_eq!(refused(rig.put(&locked("c", &rig.artifact(1).await)).await).code, Code::ArtifactRevoked);
    let settings = TenantSettings { trust_anchors: vec![], ..rig.settings() };
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    let view = rig.client.app(&rig.tenant, &name("b")).await.unwrap();
    assert_eq!(view.reason.unwrap().code, Code::IssuerUntrusted.as_str());
}

/// Of an assignment, what is told of what serves in the place of the wanted revision.
fn older(assignment: &Assignment) -> Option<(u64, Option<&str>)> {
    let older = assignment.older.as_ref()?;
    Some((older.revision.0, older.suspended.as_ref().map(|reason| reason.code.as_str())))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_serves_is_held_to_the_revocation_list_whatever_is_wanted() {
    let mut rig = Rig::without_node().await;
    rig.silent_node().await;
    rig.deploy("counter", 1).await;
    rig.assigned("counter", |a| a.is_some()).await;
    rig.says("counter", 1, Phase::Serving, (1, None)).await;
    rig.deploy("counter", 2).await;
    rig.says("counter", 2, Phase::Failed, (1, None)).await;
    rig.settled().await;
    let told = rig.assignment("counter").await;
    assert_eq!((told.revision, older(&told)), (Revision(2), Some((1, None))));
    let revoke = async |rig: &Rig, revoked: &[&str]| {
        let revoked = revoked.iter().map(|&token| token.to_owned()).collect();
        let settings = TenantSettings { revoked, ..rig.settings() };
        rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
        rig.assignment("counter").await
    };
    let why = async |rig: &Rig| rig.client.app(&rig.tenant, &name("counter")).await.unwrap().reason;
    // Also where the control plane has only read of it.
    for _ in 0..2 {
        let told = revoke(&rig, &["token-1"]).await;
        assert_eq!((&told.suspended, older(&told)), (&None, Some((1, Some("artifact-revoked")))));
        let reason = why(&rig).await.unwrap();
        assert_eq!(reason.code, Code::ArtifactRevoked.as_str());
        assert!(reason.message.starts_with("revision 1 must not serve any more"), "{reason:?}");
        let told = revoke(&rig, &[]).await;
        assert_eq!((older(&told), why(&rig).await), (Some((1, None)), None));
        rig.restart().await;
    }
    // The wanted one is judged for itself.
    let told = revoke(&rig, &["token-2"]).await;
    let own = told.suspended.as_ref().map(|reason| reason.code.as_str());
    assert_eq!((own, older(&told)), (Some("artifact-revoked"), Some((1, None))));
    let told = revoke(&rig, &["token-1"]).await;
    assert_eq!((&told.suspended, older(&told)), (&None, Some((1, Some("artifact-revoked")))));
    // What is deployed next brings nothing of it back: not while it starts, and not when it fails.
    rig.deploy("counter", 3).await;
    let told = rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(3))).await.unwrap();
    assert_eq!((&told.suspended, older(&told)), (&None, Some((1, Some("artifact-revoked")))));
    assert_eq!(why(&rig).await, None, "whoever deploys it waits for it");
    rig.says("counter", 3, Phase::Failed, (1, None)).await;
    assert_eq!(older(&revoke(&rig, &["token-1"]).await), Some((1, Some("artifact-revoked"))));
    let back = api::control::RollbackRequest { to: None };
    let refusal = refused(rig.client.rollback(&rig.tenant, &name("counter"), &back, Require::Any).await);
    assert_eq!(refusal.code, Code::ArtifactRevoked);
    rig.deploy("counter", 4).await;
    rig.says("counter", 4, Phase::Serving, (4, Some(1))).await;
    let told = rig.assigned("counter", |a| a.is_some_and(|a| a.older.is_none())).await.unwrap();
    assert_eq!((told.revision, told.suspended), (Revision(4), None));
    let events = rig.until(Some("0".into()), |e| e.kind == event::RESUMED && e.data["revision"] == 4).await;
    assert!(events.iter().any(|e| e.kind == event::SUSPENDED), "{events:#?}");
}

/// An app that serves while another revision is wanted, told until when it may; `None` where it might not by then.
async fn older_that_ends(valid: u64) -> Option<Rig> {
    let rig = Rig::without_node().await;
    rig.silent_node().await;
    let bytes = ending(&rig, valid).await;
    match rig.put(&locked("counter", &bytes)).await {
        Err(api::client::ClientError::Refused(problem)) if problem.code == Code::ArtifactExpired => return None,
        put => put.unwrap(),
    };
    rig.assigned("counter", |a| a.is_some()).await;
    rig.says("counter", 1, Phase::Serving, (1, None)).await;
    rig.deploy("counter", 2).await;
    rig.says("counter", 2, Phase::Failed, (1, None)).await;
    let told = |a: Option<&Assignment>| {
        a.and_then(|a| a.older.as_ref()).is_some_and(|older| older.expiry.is_some() || older.suspended.is_some())
    };
    let told = rig.assigned("counter", told).await.unwrap();
    assert_eq!((told.revision, &told.expiry), (Revision(2), &None));
    // The node knows when, and needs nobody to say so again.
    told.older.unwrap().expiry.map(|_| rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claims_of_what_still_serves_expire_whatever_is_wanted() {
    let mut tried = Vec::new();
    for valid in VALID {
        tried.extend(older_that_ends(valid).await);
        if !tried.is_empty() {
            break;
        }
    }
    let rig = tried.pop().expect("it is never told until when it may serve");
    let expired = |a: Option<&Assignment>| a.is_some_and(|a| older(a) == Some((1, Some("artifact-expired"))));
    let told = rig.assigned("counter", expired).await.unwrap();
    assert_eq!(told.suspended, None);
    rig.until(Some("0".into()), |e| e.kind == event::SUSPENDED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_judge_any_more_does_not_serve() {
    let mut rig = Rig::without_node().await;
    rig.silent_node().await;
    rig.deploy("counter", 1).await;
    rig.assigned("counter", |a| a.is_some()).await;
    rig.says("counter", 1, Phase::Serving, (1, None)).await;
    rig.settled().await;
    rig.shutdown().await;
    // Deleted and deployed anew while nobody looked: what serves is of the app that is gone.
    let (id, key) = (name("counter"), |n| keys::revision(&name("t"), &name("counter"), Revision(n)));
    let record = rig.store.get(&key(1)).await.unwrap().unwrap().value;
    let record: RevisionRecord = serde_json::from_slice(&record).unwrap();
    let next = serde_json::to_vec(&RevisionRecord { revision: Revision(2), ..record }).unwrap();
    rig.store.put(&key(2), next.into(), Expect::Absent, None).await.unwrap();
    let head = serde_json::to_vec(&Head { revision: Revision(2), deleted: false, keyed: vec![], since: None }).unwrap();
    rig.store.put(&keys::app(&rig.tenant, &id), head.into(), Expect::Any, None).await.unwrap();
    rig.start(None).await;
    rig.settled().await;
    let told = rig.assignment("counter").await;
    assert_eq!((told.revision, &told.suspended, older(&told)), (Revision(2), &None, Some((1, Some("not-found")))));
}
