//! Deploy, rollback, link, delete: numbers that mean one thing, losers that are told, and nothing half done.

use api::client::Require;
use api::control::{DeployRequest, LinkRequest, Origin, RollbackRequest};
use api::problem::Code;
use model::app::Revision;
use model::observed::{AppObserved, Phase, Reason};
use model::tenant::TenantSettings;
use store::keys::{self, NodeRecord, RevisionRecord};
use store::{Expect, Store as _};

use crate::rig::{Rig, locked, name, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_makes_a_revision_where_something_differs() {
    let rig = Rig::new().await;
    let app = locked("counter", &rig.artifact(1).await);
    let first = rig.put(&app).await.unwrap();
    assert_eq!((first.revision, first.unchanged), (Revision(1), false));
    let again = rig.put(&app).await.unwrap();
    assert_eq!((again.revision, again.unchanged), (Revision(1), true));
    let second = rig.deploy("counter", 2).await;
    assert_eq!((second.revision, second.unchanged), (Revision(2), false));
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    let view = rig.client.app(&rig.tenant, &name("counter")).await.unwrap();
    assert_eq!((view.desired.revision, &view.desired.origin), (Revision(2), &Origin::Deploy));
    let history = rig.client.revisions(&rig.tenant, &name("counter")).await.unwrap();
    assert_eq!(history.iter().map(|r| r.revision.0).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(rig.client.revision(&rig.tenant, &name("counter"), Revision(1)).await.unwrap().app, app);
    assert_eq!(refused(rig.client.revision(&rig.tenant, &name("counter"), Revision(3)).await).code, Code::NotFound);
    assert_eq!(rig.client.apps(&rig.tenant).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_loses_is_told_and_changes_nothing() {
    let rig = Rig::new().await;
    let apps = [locked("counter", &rig.artifact(1).await), locked("counter", &rig.artifact(2).await)];
    assert_eq!(refused(rig.put_if(&apps[0], Require::At(1), None).await).code, Code::Conflict);
    assert_eq!(refused(rig.put_if(&apps[0], Require::Exists, None).await).code, Code::Conflict);
    rig.put_if(&apps[0], Require::Absent, None).await.unwrap();
    assert_eq!(refused(rig.put_if(&apps[1], Require::Absent, None).await).code, Code::Conflict);
    // Eight writers who all saw revision 1: one wins.
    let mut apps = Vec::new();
    for n in 10..18 {
        apps.push(locked("counter", &rig.artifact(n).await));
    }
    let results = futures::future::join_all(apps.iter().map(|app| rig.put_if(app, Require::At(1), None))).await;
    let won: Vec<_> = results.iter().filter_map(|r| r.as_ref().ok()).collect();
    assert_eq!((won.len(), won[0].revision), (1, Revision(2)));
    for lost in results.into_iter().filter(Result::is_err) {
        assert_eq!(refused(lost).code, Code::Conflict);
    }
    assert_eq!(rig.client.revisions(&rig.tenant, &name("counter")).await.unwrap().len(), 2);
    let gone = rig.client.delete_app(&rig.tenant, &name("counter"), Require::At(1)).await;
    assert_eq!(refused(gone).code, Code::Conflict);
    let link = LinkRequest { component: None, contract: name("wasi:keyvalue"), label: None, provider: name("memory") };
    assert_eq!(
        refused(rig.client.link(&rig.tenant, &name("counter"), &link, Require::At(1)).await).code,
        Code::Conflict
    );
    let back = RollbackRequest { to: None };
    assert_eq!(
        refused(rig.client.rollback(&rig.tenant, &name("counter"), &back, Require::At(1)).await).code,
        Code::Conflict
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_deploy_answers_with_the_revision_it_made() {
    let mut rig = Rig::new().await;
    let apps = [locked("counter", &rig.artifact(1).await), locked("counter", &rig.artifact(2).await)];
    let first = rig.put_if(&apps[0], Require::Any, Some("key-1")).await.unwrap();
    rig.put(&apps[1]).await.unwrap();
    // Without the key this would be revision 3. Also after a restart, and although the condition no longer holds.
    assert_eq!(rig.put_if(&apps[0], Require::Absent, Some("key-1")).await.unwrap(), first);
    rig.restart().await;
    assert_eq!(rig.put_if(&apps[0], Require::Any, Some("key-1")).await.unwrap(), first);
    assert_eq!(refused(rig.put_if(&apps[1], Require::Any, Some("key-1")).await).code, Code::Conflict);
    assert_eq!(refused(rig.put_if(&apps[1], Require::Any, Some("two words")).await).code, Code::RequestInvalid);
    assert_eq!(refused(rig.put_if(&apps[1], Require::Any, Some(&"k".repeat(129))).await).code, Code::RequestInvalid);
    assert_eq!(rig.put_if(&apps[0], Require::Any, Some("key-2")).await.unwrap().revision, Revision(3));
    // Another app of that name later is not this one.
    rig.client.delete_app(&rig.tenant, &name("counter"), Require::Any).await.unwrap();
    assert_eq!(rig.put_if(&apps[0], Require::Any, Some("key-1")).await.unwrap().revision, Revision(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_apps_never_have_one_route() {
    let rig = Rig::new().await;
    rig.deploy("a", 1).await;
    let mut thief = locked("b", &rig.artifact(2).await);
    thief.routes[0].host = "a.localhost".into();
    assert_eq!(refused(rig.put(&thief).await).code, Code::RouteTaken);
    thief.routes[0].path = "/b".into();
    rig.put(&thief).await.expect("another path of the same tenant's host is free");
    // Another tenant gets no part of the host, and is not told whose it is.
    let other = name("other");
    let any = model::tenant::TenantSettings { hosts: vec!["*".into()], ..rig.settings() };
    rig.client.put_tenant(&other, &any, Require::Absent).await.unwrap();
    for host in ["a.localhost", "*.localhost"] {
        let bytes = rig.artifact(3).await;
        rig.client.put_blob(&other, &model::Digest::of(&bytes), bytes.clone()).await.unwrap();
        let mut app = locked("c", &bytes);
        (app.routes[0].host, app.routes[0].path) = (host.into(), "/deep/path".into());
        let request = DeployRequest { app, message: None };
        let problem = refused(rig.client.deploy(&other, &name("c"), &request, Require::Any, None).await);
        assert_eq!(problem.code, Code::RouteTaken, "{host}");
        assert!(!problem.detail.contains("`a`") && !problem.detail.contains("tenant `t`"), "{}", problem.detail);
    }
    // Both at once, many times: exactly one wins, and a deleted app's route is free again.
    for round in 0..10 {
        let mut apps = [locked("x", &rig.artifact(4).await), locked("y", &rig.artifact(5).await)];
        for app in &mut apps {
            app.routes[0].host = "contested.localhost".into();
        }
        let results = tokio::join!(rig.put(&apps[0]), rig.put(&apps[1]));
        let winner = match (&results.0, &results.1) {
            (Ok(_), Err(_)) => "x",
            (Err(_), Ok(_)) => "y",
            other => panic!("round {round}: {other:?}"),
        };
        rig.client.delete_app(&rig.tenant, &name(winner), Require::Exists).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_and_link_are_new_revisions() {
    let rig = Rig::new().await;
    let app = name("counter");
    let first = locked("counter", &rig.artifact(1).await);
    rig.put(&first).await.unwrap();
    let back = |to| RollbackRequest { to };
    let none = rig.client.rollback(&rig.tenant, &app, &back(None), Require::Any).await;
    assert_eq!(refused(none).code, Code::NotFound);
    rig.deploy("counter", 2).await;
    let to = rig.client.rollback(&rig.tenant, &app, &back(None), Require::At(2)).await.unwrap();
    assert_eq!((to.revision, to.unchanged), (Revision(3), false));
    let view = rig.client.app(&rig.tenant, &app).await.unwrap();
    assert_eq!((&view.desired.app, &view.desired.origin), (&first, &Origin::Rollback { to: Revision(1) }));
    let same = rig.client.rollback(&rig.tenant, &app, &back(Some(Revision(1))), Require::Any).await.unwrap();
    assert!(same.unchanged);
    let missing = rig.client.rollback(&rig.tenant, &app, &back(Some(Revision(9))), Require::Any).await;
    assert_eq!(refused(missing).code, Code::NotFound);
    let link = |provider: &str, label: Option<&str>| LinkRequest {
        component: None,
        contract: name("wasi:keyvalue"),
        label: label.map(name),
        provider: name(provider),
    };
    // There and back, again and again: each a revision that differs only there.
    for round in 0..5 {
        for provider in ["memory", "embedded"] {
            let done = rig.client.link(&rig.tenant, &app, &link(provider, None), Require::Exists).await.unwrap();
            assert!(!done.unchanged, "{round}");
            let now = rig.client.app(&rig.tenant, &app).await.unwrap().desired;
            assert_eq!((now.app.links[0].provider.as_str(), &now.origin), (provider, &Origin::Link));
            assert_eq!(now.app.providers.keys().map(|p| p.as_str()).collect::<Vec<_>>(), [provider]);
            assert_eq!(now.app.components, first.components);
        }
    }
    assert_eq!(rig.client.app(&rig.tenant, &app).await.unwrap().desired.app, first);
    let unchanged = rig.client.link(&rig.tenant, &app, &link("embedded", Some("default")), Require::Any).await.unwrap();
    assert_eq!((unchanged.revision, unchanged.unchanged), (Revision(13), true));
    for (request, code) in [(link("nobody", None), Code::NotFound), (link("memory", Some("other")), Code::NotFound)] {
        assert_eq!(refused(rig.client.link(&rig.tenant, &app, &request, Require::Any).await).code, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_on_its_node_is_tried_again_when_it_is_asked_for_again() {
    let rig = Rig::without_node().await;
    let node: model::NodeName = name("local");
    let record = NodeRecord { ingress: vec![], pid: 1, since_ms: 1, ..NodeRecord::default() };
    let record = serde_json::to_vec(&record).unwrap().into();
    rig.store.put(&keys::node(&node), record, Expect::Any, None).await.unwrap();
    let (id, app) = (name("counter"), locked("counter", &rig.artifact(1).await));
    let observed = keys::observed(&node, &rig.tenant, &id);
    let report = |revision, phase| {
        let reason = (phase == Phase::Failed).then(|| Reason {
            code: "provider-unavailable".into(),
            message: "it is down".into(),
            help: None,
        });
        let value = serde_json::to_vec(&AppObserved { revision, phase, serving: None, reason }).unwrap();
        rig.store.put(&observed, value.into(), Expect::Any, None)
    };
    rig.put(&app).await.unwrap();
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(1))).await;
    for phase in [Phase::Fetching, Phase::Starting, Phase::Serving] {
        report(Revision(1), phase).await.unwrap();
        assert!(rig.put(&app).await.unwrap().unchanged, "{phase:?}");
    }
    report(Revision(1), Phase::Failed).await.unwrap();
    let again = rig.put(&app).await.unwrap();
    assert_eq!((again.revision, again.unchanged), (Revision(2), false));
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    // The failure of an older revision is not this one's.
    assert!(rig.put(&app).await.unwrap().unchanged);
    report(Revision(2), Phase::Failed).await.unwrap();
    let link =
        LinkRequest { component: None, contract: name("wasi:keyvalue"), label: None, provider: name("embedded") };
    let again = rig.client.link(&rig.tenant, &id, &link, Require::Any).await.unwrap();
    assert_eq!((again.revision, again.unchanged), (Revision(3), false));
    assert!(rig.client.link(&rig.tenant, &id, &link, Require::Any).await.unwrap().unchanged);
    report(Revision(3), Phase::Failed).await.unwrap();
    let back = RollbackRequest { to: Some(Revision(1)) };
    let again = rig.client.rollback(&rig.tenant, &id, &back, Require::Any).await.unwrap();
    assert_eq!((again.revision, again.unchanged), (Revision(4), false));
    assert!(rig.client.rollback(&rig.tenant, &id, &back, Require::Any).await.unwrap().unchanged);
    assert_eq!(rig.client.app(&rig.tenant, &id).await.unwrap().desired.app, app);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_not_there_is_not_found_whatever_is_required() {
    let rig = Rig::without_node().await;
    let id = name("nothing");
    let back = RollbackRequest { to: None };
    let link = LinkRequest { component: None, contract: name("wasi:keyvalue"), label: None, provider: name("memory") };
    for require in [Require::Any, Require::Exists, Require::At(1)] {
        assert_eq!(refused(rig.client.rollback(&rig.tenant, &id, &back, require).await).code, Code::NotFound);
        assert_eq!(refused(rig.client.link(&rig.tenant, &id, &link, require).await).code, Code::NotFound);
        assert_eq!(refused(rig.client.delete_app(&rig.tenant, &id, require).await).code, Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_delete_create_as_often_as_one_likes() {
    let rig = Rig::new().await;
    let app = locked("counter", &rig.artifact(1).await);
    for round in 1..=8 {
        let accepted = rig.put(&app).await.unwrap();
        assert_eq!(
            (accepted.revision, accepted.unchanged),
            (Revision(round), false),
            "a number never means two things"
        );
        rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(round))).await;
        let history = rig.client.revisions(&rig.tenant, &name("counter")).await.unwrap();
        assert_eq!(history.len(), 1, "the history of an earlier app of that name is not this one's");
        rig.client.delete_app(&rig.tenant, &name("counter"), Require::At(round)).await.unwrap();
        assert_eq!(refused(rig.client.app(&rig.tenant, &name("counter")).await).code, Code::NotFound);
        assert_eq!(
            refused(rig.client.delete_app(&rig.tenant, &name("counter"), Require::Any).await).code,
            Code::NotFound
        );
        assert!(rig.client.apps(&rig.tenant).await.unwrap().is_empty());
        // Every other round at once, without waiting for the traces to go.
        if round % 2 == 0 {
            rig.assigned("counter", |a| a.is_none()).await;
        }
    }
    rig.assigned("counter", |a| a.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_above_the_head_is_skipped_and_never_shown() {
    let rig = Rig::new().await;
    rig.deploy("counter", 1).await;
    let app = name("counter");
    for n in [2, 3] {
        let orphan = RevisionRecord {
            revision: Revision(n),
            previous: Some(Revision(1)),
            created_ms: 1,
            origin: serde_json::json!({"kind": "deploy"}),
            message: None,
            app: locked("counter", &rig.artifact(9).await),
            claims: [].into(),
        };
        let value = serde_json::to_vec(&orphan).unwrap().into();
        rig.store.put(&keys::revision(&rig.tenant, &app, Revision(n)), value, Expect::Absent, None).await.unwrap();
    }
    assert_eq!(rig.client.revisions(&rig.tenant, &app).await.unwrap().len(), 1);
    assert_eq!(refused(rig.client.revision(&rig.tenant, &app, Revision(2)).await).code, Code::NotFound);
    let to_orphan = RollbackRequest { to: Some(Revision(2)) };
    assert_eq!(refused(rig.client.rollback(&rig.tenant, &app, &to_orphan, Require::Any).await).code, Code::NotFound);
    assert_eq!(rig.deploy("counter", 4).await.revision, Revision(4));
    // Also not once a later number is taken: nobody was ever told that it is wanted.
    let numbers = async || {
        let history = rig.client.revisions(&rig.tenant, &app).await.unwrap();
        history.into_iter().map(|r| r.revision.0).collect::<Vec<_>>()
    };
    assert_eq!(numbers().await, [4, 1]);
    assert_eq!(refused(rig.client.revision(&rig.tenant, &app, Revision(2)).await).code, Code::NotFound);
    for orphan in [2, 3] {
        let to = RollbackRequest { to: Some(Revision(orphan)) };
        assert_eq!(refused(rig.client.rollback(&rig.tenant, &app, &to, Require::Any).await).code, Code::NotFound);
    }
    rig.client.rollback(&rig.tenant, &app, &RollbackRequest { to: None }, Require::Any).await.unwrap();
    let desired = rig.client.app(&rig.tenant, &app).await.unwrap().desired;
    assert_eq!(desired.origin, Origin::Rollback { to: Revision(1) });
    assert_eq!(numbers().await, [5, 4, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_a_deleted_app_is_never_the_next_ones() {
    let rig = Rig::new().await;
    let app = name("counter");
    rig.deploy("counter", 1).await;
    let old = keys::revision(&rig.tenant, &app, Revision(1));
    let record = rig.store.get(&old).await.unwrap().unwrap().value;
    rig.client.delete_app(&rig.tenant, &app, Require::Any).await.unwrap();
    assert_eq!(rig.deploy("counter", 2).await.revision, Revision(2));
    // As where the store could not remove it.
    rig.store.put(&old, record, Expect::Any, None).await.unwrap();
    assert_eq!(rig.client.revisions(&rig.tenant, &app).await.unwrap().len(), 1);
    for to in [None, Some(Revision(1))] {
        let back = rig.client.rollback(&rig.tenant, &app, &RollbackRequest { to }, Require::Any).await;
        assert_eq!(refused(back).code, Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_fifty_revisions_are_kept() {
    let rig = Rig::new().await;
    let mut app = locked("counter", &rig.artifact(1).await);
    for n in 1..=55 {
        app.version = Some(n.to_string());
        rig.put(&app).await.unwrap();
    }
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(55))).await;
    // Settings are answered once everything before was acted on, the removal of old records too.
    rig.client.put_tenant(&rig.tenant, &rig.settings(), Require::Exists).await.unwrap();
    let history = rig.client.revisions(&rig.tenant, &name("counter")).await.unwrap();
    assert_eq!((history.len(), history[49].revision), (50, Revision(6)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_serves_is_kept_however_many_newer_ones_fail() {
    let rig = Rig::without_node().await;
    rig.silent_node().await;
    let mut app = locked("counter", &rig.artifact(1).await);
    let first = app.clone();
    rig.put(&app).await.unwrap();
    rig.assigned("counter", |a| a.is_some()).await;
    rig.says("counter", 1, Phase::Serving, (1, None)).await;
    rig.settled().await;
    for n in 2..=56 {
        app.version = Some(n.to_string());
        rig.put(&app).await.unwrap();
    }
    rig.says("counter", 56, Phase::Failed, (1, None)).await;
    rig.settled().await;
    let there = async |n| rig.client.revision(&rig.tenant, &name("counter"), Revision(n)).await;
    assert_eq!(there(1).await.unwrap().app, first);
    assert_eq!(refused(there(3).await).code, Code::NotFound, "others of its age are not kept");
    let to = RollbackRequest { to: Some(Revision(1)) };
    let back = rig.client.rollback(&rig.tenant, &name("counter"), &to, Require::Any).await.unwrap();
    assert_eq!(back.revision, Revision(57));
    assert_eq!(rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app, first);
    // It goes when nobody goes back to it any more.
    rig.says("counter", 57, Phase::Serving, (57, Some(1))).await;
    rig.settled().await;
    there(1).await.unwrap();
    app.version = Some("58".into());
    rig.put(&app).await.unwrap();
    rig.says("counter", 58, Phase::Serving, (58, Some(57))).await;
    rig.settled().await;
    let left = rig.store.list(&keys::revisions_of(&rig.tenant, &name("counter"))).await.unwrap().entries;
    assert_eq!(left.len(), 50, "{:?}", left.iter().map(|entry| &entry.key).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_goes_back_to_what_served() {
    let rig = Rig::without_node().await;
    rig.silent_node().await;
    let mut app = locked("counter", &rig.artifact(1).await);
    rig.put(&app).await.unwrap();
    rig.assigned("counter", |a| a.is_some()).await;
    rig.says("counter", 1, Phase::Serving, (1, None)).await;
    let deploy = async |app: &mut model::LockedApp, version: &str| {
        app.version = Some(version.to_owned());
        rig.put(app).await.unwrap().revision.0
    };
    let back = async || {
        rig.settled().await;
        let to = RollbackRequest { to: None };
        let revision = rig.client.rollback(&rig.tenant, &name("counter"), &to, Require::Any).await.unwrap().revision;
        let desired = rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired;
        let Origin::Rollback { to } = desired.origin else { panic!("{:?}", desired.origin) };
        (revision.0, to.0, desired.app.version)
    };
    // One that serves, and one that does not, however often it is tried.
    for revision in [2, 3] {
        assert_eq!(deploy(&mut app, "bad").await, revision);
        rig.says("counter", revision, Phase::Failed, (1, None)).await;
    }
    assert_eq!(back().await, (4, 1, None));
    rig.says("counter", 4, Phase::Serving, (4, Some(1))).await;
    // What failed between two that served is none of them.
    assert_eq!(deploy(&mut app, "five").await, 5);
    rig.says("counter", 5, Phase::Serving, (5, Some(4))).await;
    assert_eq!(deploy(&mut app, "bad").await, 6);
    rig.says("counter", 6, Phase::Failed, (5, Some(4))).await;
    assert_eq!(deploy(&mut app, "seven").await, 7);
    rig.says("counter", 7, Phase::Serving, (7, Some(5))).await;
    assert_eq!(back().await, (8, 5, Some("five".into())));
    // One that is still starting is given up for what serves.
    assert_eq!(back().await, (9, 7, Some("seven".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_serves_has_its_routes_and_secrets() {
    let rig = Rig::without_node().await;
    rig.silent_node().await;
    let (db, other) = (name::<model::SecretName>("db"), name("other"));
    let value = || model::SecretValue::new(b"x".to_vec());
    rig.client.put_secret(&rig.tenant, &db, value(), Require::Any).await.unwrap();
    let settings = TenantSettings { hosts: vec!["*".into()], ..rig.settings() };
    rig.client.put_tenant(&other, &settings, Require::Absent).await.unwrap();
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    let bytes = rig.artifact(1).await;
    rig.client.put_blob(&other, &model::Digest::of(&bytes), bytes.clone()).await.unwrap();
    let bare = locked("counter", &bytes);
    let mut first = bare.clone();
    let cache = model::ProviderSpec {
        config: [("url".to_owned(), "redis://cache.example".to_owned())].into(),
        secrets: [("password".to_owned(), model::SecretRef::new(db.clone()))].into(),
        ..model::ProviderSpec::new(model::ProviderKind::KeyvalueRedis)
    };
    first.providers = [(name("cache"), cache)].into();
    first.links[0].provider = name("cache");
    first.routes[0].host = "x.example".into();
    rig.put(&first).await.unwrap();
    rig.assigned("counter", |a| a.is_some()).await;
    rig.says("counter", 1, Phase::Serving, (1, None)).await;
    rig.settled().await;
    rig.put(&bare).await.unwrap();
    let steal = async |tenant: &model::TenantName| {
        let mut app = locked("thief", &bytes);
        app.routes[0].host = "x.example".into();
        let request = DeployRequest { app, message: None };
        rig.client.deploy(tenant, &name("thief"), &request, Require::Any, None).await
    };
    for revision in [2, 3] {
        for tenant in [&other, &rig.tenant] {
            assert_eq!(refused(steal(tenant).await).code, Code::RouteTaken, "{tenant}");
        }
        let kept = refused(rig.client.delete_secret(&rig.tenant, &db, false, Require::Any).await);
        assert!(kept.code == Code::Conflict && kept.detail.contains("app `counter`"), "{kept:?}");
        // It fails, and is tried again.
        rig.says("counter", revision, Phase::Failed, (1, None)).await;
        rig.settled().await;
        rig.put(&bare).await.unwrap();
    }
    rig.says("counter", 4, Phase::Serving, (4, Some(1))).await;
    rig.settled().await;
    rig.client.delete_secret(&rig.tenant, &db, false, Require::Any).await.unwrap();
    assert_eq!(refused(steal(&other).await).code, Code::RouteTaken, "it was given up a moment ago");
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    steal(&rig.tenant).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_would_change_and_changes_nothing() {
    let rig = Rig::new().await;
    let mut app = locked("counter", &rig.artifact(1).await);
    let plan = |app: &model::LockedApp| {
        let request = DeployRequest { app: app.clone(), message: None };
        let client = rig.client.clone();
        async move { client.plan(&name("t"), &name("counter"), &request).await.unwrap() }
    };
    let new = plan(&app).await;
    assert_eq!((new.current, new.problems.len()), (None, 0));
    assert!(new.changes.contains(&"+ route counter.localhost/ -> counter".to_owned()), "{:?}", new.changes);
    rig.put(&app).await.unwrap();
    assert_eq!(plan(&app).await.changes, [""; 0]);
    app.links[0].provider = name("memroy");
    app.components.get_mut(&name("counter")).unwrap().limits.memory = model::unit::ByteSize::mib(64 * 1024);
    let bad = plan(&app).await;
    assert_eq!(bad.current, Some(Revision(1)));
    assert!(bad.changes.contains(&"~ link counter wasi:keyvalue default: embedded -> memroy".to_owned()), "{bad:?}");
    assert_eq!(bad.problems.len(), 2, "{bad:?}");
    assert_eq!(rig.client.revisions(&rig.tenant, &name("counter")).await.unwrap().len(), 1);
    // The same app is refused when it is meant, with the same sentences.
    let refused = refused(rig.put(&app).await);
    assert_eq!(refused.findings.len(), 2);
    // Each with what to do about it.
    assert!(refused.findings.iter().any(|f| f.contains("above the tenant's ceiling of 1GiB: set it to at most 1GiB")));
    let same = |findings: &[String]| findings.iter().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(same(&refused.findings), same(&bad.problems));
}
