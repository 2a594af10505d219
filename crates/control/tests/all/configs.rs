//! Configs that apps share: set by compare-and-set, brought to the apps as new revisions, kept while they are named.

use std::time::Duration;

use api::Code;
use api::client::{ClientError, EventQuery, Require};
use api::control::{ConfigRequest, ConfigSet, Origin, RollbackRequest, event};
use model::app::{LockedApp, Revision};
use model::config::{SharedConfig, Values};
use model::{ConfigName, TenantName};
use store::keys::{self, ConfigRecord};
use store::{Expect, Store as _};

use crate::rig::{PATIENCE, Rig, collect, locked, name, refused};

fn values(pairs: &[(&str, &str)]) -> Values {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn set(rig: &Rig, config: &str, pairs: &[(&str, &str)], require: Require) -> Result<ConfigSet, ClientError> {
    let request = ConfigRequest { values: values(pairs) };
    rig.client.put_config(&rig.tenant, &name(config), &request, require).await
}

/// An app that names `configs`.
async fn using(rig: &Rig, app: &str, configs: &[&str]) -> LockedApp {
    let mut locked = locked(app, &rig.artifact(1).await);
    let component = locked.components.values_mut().next().unwrap();
    component.config_from = configs.iter().map(|config| SharedConfig::named(name(config))).collect();
    locked
}

async fn answers(rig: &Rig, app: &str) -> (Revision, Values, Origin) {
    let desired = rig.client.app(&rig.tenant, &name(app)).await.unwrap().desired;
    (desired.revision, desired.app.components.values().next().unwrap().answers(), desired.origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_is_set_by_compare_and_set_within_limits() {
    let rig = Rig::new().await;
    assert_eq!(rig.client.configs(&rig.tenant).await.unwrap(), []);
    let first = set(&rig, "shared", &[("a", "1")], Require::Absent).await.unwrap();
    assert_eq!((first.config.version, first.unchanged, first.apps.len()), (1, false, 0));
    for require in [Require::Absent, Require::At(first.config.etag + 7)] {
        assert_eq!(refused(set(&rig, "shared", &[], require).await).code, Code::Conflict);
    }
    assert_eq!(refused(set(&rig, "other", &[], Require::Exists).await).code, Code::Conflict);
    let again = set(&rig, "shared", &[("a", "1")], Require::At(first.config.etag)).await.unwrap();
    assert_eq!((again.config.version, again.unchanged), (1, true));
    let second = set(&rig, "shared", &[("a", "2")], Require::Any).await.unwrap();
    assert_eq!((second.config.version, &second.config.values), (2, &values(&[("a", "2")])));
    assert_eq!(rig.client.configs(&rig.tenant).await.unwrap(), [second.config]);

    let large = "v".repeat(9000);
    let refusal = refused(set(&rig, "shared", &[("k", &large), ("a=b", "")], Require::Any).await);
    assert_eq!((refusal.code, refusal.findings.len()), (Code::RequestInvalid, 2), "{refusal:?}");
    let total: Vec<(String, String)> = (0..9).map(|n| (format!("k{n}"), "v".repeat(8000))).collect();
    let total: Vec<(&str, &str)> = total.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(refused(set(&rig, "shared", &total, Require::Any).await).code, Code::TooLarge);
    assert_eq!(refused(set(&rig, "env", &[], Require::Any).await).code, Code::RequestInvalid);
    let other: TenantName = name("other");
    rig.client.put_tenant(&other, &rig.settings(), Require::Absent).await.unwrap();
    assert_eq!(rig.client.configs(&other).await.unwrap(), []);
    assert_eq!(refused(rig.client.config(&other, &name("shared")).await).code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_follow_as_revisions_and_a_rollback_brings_the_values_back() {
    let rig = Rig::new().await;
    let shop = using(&rig, "shop", &["base", "shared"]).await;
    let missing = refused(rig.put(&shop).await);
    assert_eq!((missing.code, missing.findings.len()), (Code::ConfigMissing, 2), "{missing:?}");
    set(&rig, "base", &[("a", "base"), ("b", "base")], Require::Absent).await.unwrap();
    set(&rig, "shared", &[("a", "1")], Require::Absent).await.unwrap();
    let mut forged = shop.clone();
    forged.components.values_mut().next().unwrap().config_from[1].values = values(&[("forged", "yes")]);
    rig.put(&forged).await.unwrap();
    assert_eq!(answers(&rig, "shop").await, (Revision(1), values(&[("a", "1"), ("b", "base")]), Origin::Deploy));
    assert!(rig.put(&shop).await.unwrap().unchanged, "the same wish and the same values");

    let mut events = rig.client.events(EventQuery::default()).await.unwrap();
    let done = set(&rig, "shared", &[("a", "2")], Require::Any).await.unwrap();
    assert_eq!((done.apps.len(), done.apps[0].revision), (1, Some(Revision(2))));
    let origin = Origin::Config { name: name("shared"), version: 2 };
    assert_eq!(answers(&rig, "shop").await, (Revision(2), values(&[("a", "2"), ("b", "base")]), origin));
    let seen = collect(&mut events, |event| event.kind == event::CONFIG_SET).await;
    assert_eq!(seen.last().unwrap().data, serde_json::json!({ "config": "shared", "version": 2 }));
    assert!(!serde_json::to_string(&seen.last().unwrap().data).unwrap().contains("\"a\""), "no values in events");

    // Back to what ran before, with the values it had; the config says who differs.
    rig.client.rollback(&rig.tenant, &name("shop"), &RollbackRequest { to: None }, Require::Any).await.unwrap();
    assert_eq!(answers(&rig, "shop").await.1, values(&[("a", "1"), ("b", "base")]));
    let view = rig.client.config(&rig.tenant, &name("shared")).await.unwrap();
    assert_eq!((view.used_by[0].revision, view.used_by[0].differs), (Revision(3), true));
    // Set again, the app follows, though the config holds that already.
    let again = set(&rig, "shared", &[("a", "2")], Require::Any).await.unwrap();
    assert_eq!((again.unchanged, again.apps[0].revision), (true, Some(Revision(4))));
    assert!(!again.config.used_by[0].differs);

    let used = refused(rig.client.delete_config(&rig.tenant, &name("shared"), Require::Any).await);
    assert_eq!((used.code, used.findings), (Code::ConfigInUse, vec!["app `shop`".to_owned()]));
    rig.put(&using(&rig, "shop", &["base"]).await).await.unwrap();
    // As long as the revision before serves, it is in use as well.
    let deleted = async {
        while let Err(refusal) = rig.client.delete_config(&rig.tenant, &name("shared"), Require::Any).await {
            assert_eq!(refusal.problem().code, Code::ConfigInUse);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, deleted).await.expect("it is in use for ever");
    assert_eq!(refused(rig.client.config(&rig.tenant, &name("shared")).await).code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_an_app_could_not_bear_is_not_set() {
    let rig = Rig::new().await;
    set(&rig, "shared", &[("a", "1")], Require::Absent).await.unwrap();
    let mut shop = using(&rig, "shop", &["shared"]).await;
    let own = (0..127).map(|n| (format!("own{n}"), String::new()));
    shop.components.values_mut().next().unwrap().config = own.collect();
    rig.put(&shop).await.unwrap();
    let refusal = refused(set(&rig, "shared", &[("a", "1"), ("b", "2")], Require::Any).await);
    assert_eq!(refusal.code, Code::TooLarge);
    assert!(refusal.findings[0].contains("app `shop` would have 129"), "{refusal:?}");
    assert_eq!(rig.client.config(&rig.tenant, &name("shared")).await.unwrap().version, 1);
    assert_eq!(answers(&rig, "shop").await.0, Revision(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_undone_is_done_at_the_next_start() {
    let mut rig = Rig::new().await;
    set(&rig, "shared", &[("a", "1")], Require::Absent).await.unwrap();
    rig.put(&using(&rig, "shop", &["shared"]).await).await.unwrap();
    rig.shutdown().await;
    let key = keys::config(&rig.tenant, &name::<ConfigName>("shared"));
    let record = ConfigRecord { version: 2, updated_ms: 1, values: values(&[("a", "2")]), pending: true };
    rig.store.put(&key, serde_json::to_vec(&record).unwrap().into(), Expect::Any, None).await.unwrap();
    rig.start(None).await;
    let origin = Origin::Config { name: name("shared"), version: 2 };
    assert_eq!(answers(&rig, "shop").await, (Revision(2), values(&[("a", "2")]), origin));
    rig.shutdown().await;
    rig.start(None).await;
    assert_eq!(answers(&rig, "shop").await.0, Revision(2), "done once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_the_operators_and_never_comes_back_by_itself() {
    let mut rig = Rig::new().await;
    let shop = using(&rig, "shop", &["env"]).await;
    assert_eq!(refused(rig.put(&shop).await).code, Code::ConfigMissing);
    rig.shutdown().await;
    rig.start(Some(values(&[("APP_A", "1")]))).await;
    rig.put(&shop).await.unwrap();
    assert_eq!(answers(&rig, "shop").await.1, values(&[("APP_A", "1")]));
    let view = rig.client.config(&rig.tenant, &name("env")).await.unwrap();
    assert_eq!((view.version, view.etag, view.used_by[0].app.as_str()), (1, 0, "shop"));
    assert_eq!(
        refused(rig.client.delete_config(&rig.tenant, &name("env"), Require::Any).await).code,
        Code::RequestInvalid
    );

    // Another choice at the next start: the app follows, and rolling back does not bring back what is not offered.
    rig.shutdown().await;
    rig.start(Some(values(&[("APP_B", "2")]))).await;
    let origin = Origin::Config { name: name("env"), version: 2 };
    assert_eq!(answers(&rig, "shop").await, (Revision(2), values(&[("APP_B", "2")]), origin));
    rig.client.rollback(&rig.tenant, &name("shop"), &RollbackRequest { to: None }, Require::Any).await.unwrap();
    assert_eq!(answers(&rig, "shop").await.1, values(&[("APP_B", "2")]));
    rig.shutdown().await;
    rig.start(None).await;
    assert_eq!(answers(&rig, "shop").await.1, values(&[]));
    assert_eq!(refused(rig.put(&shop).await).code, Code::ConfigMissing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_of_many_apps_keeps_nobody_else_waiting() {
    let rig = Rig::new().await;
    set(&rig, "shared", &[("a", "1")], Require::Absent).await.unwrap();
    let app = using(&rig, "a0", &["shared"]).await;
    let apps = 60;
    for n in 0..apps {
        let mut app = app.clone();
        app.name = name(&format!("a{n}"));
        app.routes[0].host = format!("a{n}.localhost");
        rig.put(&app).await.unwrap();
    }
    rig.client.put_tenant(&name("other"), &rig.settings(), Require::Absent).await.unwrap();
    // One that waits for all of them is late every time; one that does not may be late once, where it was slow itself.
    let in_between = async |version: u64| {
        let ended = std::sync::atomic::AtomicBool::new(false);
        let new = version.to_string();
        let rolling = async {
            let done = set(&rig, "shared", &[("a", &new)], Require::Any).await.unwrap();
            ended.store(true, std::sync::atomic::Ordering::SeqCst);
            done
        };
        let others = async {
            // It has begun; then changes of others come in between.
            let key = keys::config(&rig.tenant, &name::<ConfigName>("shared"));
            loop {
                let entry = rig.store.get(&key).await.unwrap().unwrap();
                if serde_json::from_slice::<ConfigRecord>(&entry.value).unwrap().version == version {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let other: TenantName = name("other");
            let value = model::SecretValue::new(b"x".to_vec());
            rig.client.put_secret(&other, &name("s"), value, Require::Any).await.unwrap();
            let meanwhile = !ended.load(std::sync::atomic::Ordering::SeqCst);
            // One that is deployed in between has the new values, and is not made again.
            let last = format!("a{}", apps - 1);
            let mut app = app.clone();
            (app.name, app.routes[0].host) = (name(&last), format!("{last}.localhost"));
            rig.put(&app).await.unwrap();
            assert_eq!(answers(&rig, &last).await.1, values(&[("a", &new)]));
            meanwhile
        };
        let (done, meanwhile) = tokio::join!(rolling, others);
        assert_eq!(done.apps.len(), apps);
        (done, meanwhile)
    };
    let (done, mut meanwhile) = in_between(2).await;
    assert!(done.apps.iter().all(|one| one.revision == Some(Revision(2))), "{:?}", done.apps);
    for version in 3..12 {
        if !meanwhile {
            meanwhile = in_between(version).await.1;
        }
    }
    assert!(meanwhile, "it waits for all of the other tenant's apps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_set_a_config_at_once_the_last_one_reaches_every_app() {
    let rig = Rig::new().await;
    set(&rig, "shared", &[("a", "0")], Require::Absent).await.unwrap();
    let app = using(&rig, "a0", &["shared"]).await;
    for n in 0..10 {
        let mut app = app.clone();
        app.name = name(&format!("a{n}"));
        app.routes[0].host = format!("a{n}.localhost");
        rig.put(&app).await.unwrap();
    }
    let (one, two) = ([("a", "1")], [("a", "2")]);
    let (first, second) =
        tokio::join!(set(&rig, "shared", &one, Require::Exists), set(&rig, "shared", &two, Require::Exists));
    for lost in [first, second].into_iter().filter_map(Result::err) {
        assert_eq!(lost.problem().code, Code::Conflict);
    }
    let kept = rig.client.config(&rig.tenant, &name("shared")).await.unwrap();
    assert!(kept.used_by.iter().all(|used| !used.differs), "{kept:?}");
}
