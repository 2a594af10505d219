//! Schedules over the API: what is remembered of them, the events it makes, and what a delete leaves.

use api::client::Require;
use api::control::event;
use model::schedule::{Missed, Record, Run, Schedule};
use model::{LockedApp, NodeName, Revision, ScheduleName};
use store::{Expect, Store as _, keys};

use crate::rig::{PATIENCE, Rig, locked, name, refused};

fn schedule() -> Schedule {
    Schedule {
        component: name("counter"),
        cron: "* * * * *".into(),
        timezone: "Europe/Berlin".into(),
        missed: Missed::Once,
        missed_max: 10,
    }
}

/// A component with a schedule's handler, uploaded and signed.
pub(crate) async fn clock(rig: &Rig) -> LockedApp {
    let text = r#"(component
        (instance $handler)
        (export "wasi:http/incoming-handler@0.2.12" (instance $handler))
        (export "sidereal:schedule/handler@0.1.0" (instance $handler))
    )"#;
    let bytes = wat::parse_str(text).unwrap();
    let module = model::claims::KeyPair::from_entropy(model::claims::KeyKind::Module, [9; 32]);
    let claims = model::claims::Claims::new("counter", &module.public(), "token-c".to_owned(), crate::rig::now());
    let bytes = rig.upload(model::claims::sign(&bytes, claims, &rig.account).unwrap().into()).await;
    let mut app = locked("clock", &bytes);
    app.links.clear();
    app.providers.clear();
    app.schedules.insert(name("nightly"), schedule());
    app
}

async fn remember(rig: &Rig, record: &Record) {
    let key = keys::schedule(&rig.tenant, &name("clock"), &name("nightly"));
    rig.store.put(&key, serde_json::to_vec(record).unwrap().into(), Expect::Any, None).await.unwrap();
}

#[tokio::test]
async fn schedules_are_listed_run_and_forgotten() {
    let mut rig = Rig::new().await;
    let app = clock(&rig).await;
    rig.put(&app).await.unwrap();
    let views = rig.client.schedules(&rig.tenant, &app.name).await.unwrap();
    assert_eq!((views.len(), &views[0].schedule, views[0].runs), (1, &schedule(), 0));
    let next = views[0].next_ms.unwrap();
    assert!(next % 60_000 == 0 && next.abs_diff(crate::rig::now() * 1000) <= 61_000);

    // What a node writes down is listed, and is an event.
    let run = Run {
        due_ms: next,
        began_ms: next + 5,
        until_ms: next + 60_000,
        node: name::<NodeName>("local"),
        process: 1,
        revision: Revision(1),
        manual: false,
    };
    let record = Record::begin(&schedule(), next - 1).pass(next - 1, 2).began(run, 1);
    remember(&rig, &record).await;
    remember(&rig, &record.clone().ended(next + 50, Some("no luck".into()))).await;
    let seen = rig.until(Some("0".into()), |event| event.kind == event::SCHEDULE_RAN).await;
    let ran = seen.last().unwrap();
    assert_eq!(ran.subject.as_deref(), Some("t/clock"));
    assert_eq!((&ran.data["schedule"], &ran.data["error"]), (&"nightly".into(), &"no luck".into()));
    remember(&rig, &record.clone().pass(next + 120_000, 2)).await;
    let seen = rig.until(Some("0".into()), |event| event.kind == event::SCHEDULE_PASSED).await;
    assert_eq!(seen.last().unwrap().data["passed"], 5);
    let view = rig.client.schedules(&rig.tenant, &app.name).await.unwrap().remove(0);
    assert_eq!((view.runs, view.failed, view.passed, view.running.is_some()), (1, 0, 5, true));
    assert_eq!(view.next_ms, Some(next + 180_000), "what was decided is not due again");

    // By hand: an unknown one is not even asked for.
    let ask = |schedule: &str| {
        let schedule: ScheduleName = name(schedule);
        let (client, tenant, app) = (&rig.client, &rig.tenant, &app.name);
        async move { client.run_schedule(tenant, app, &schedule).await }
    };
    assert_eq!(ask("nightly").await.unwrap().error.as_deref(), Some("nightly failed"));
    assert_eq!(refused(ask("nothing").await).code, api::Code::NotFound);

    // Deleted, and made again: nothing is remembered.
    rig.client.delete_app(&rig.tenant, &app.name, Require::Any).await.unwrap();
    let key = keys::schedule(&rig.tenant, &app.name, &name("nightly"));
    let gone = async {
        while rig.store.get(&key).await.unwrap().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is still remembered");
    assert_eq!(refused(rig.client.schedules(&rig.tenant, &app.name).await).code, api::Code::NotFound);
    rig.shutdown().await;
}

#[tokio::test]
async fn a_schedule_that_cannot_be_followed_is_refused() {
    let mut rig = Rig::new().await;
    let app = clock(&rig).await;
    let with = |change: &dyn Fn(&mut Schedule)| {
        let mut app = app.clone();
        app.schedules.values_mut().for_each(change);
        app
    };
    let cases: [(LockedApp, &str); 5] = [
        (with(&|s| s.cron = "* * * *".into()), "it has 4 fields"),
        (with(&|s| s.timezone = "Europe/Berlim".into()), "is not a time zone"),
        (with(&|s| s.component = name("other")), "which the app does not have"),
        (with(&|s| (s.missed, s.missed_max) = (Missed::All, 0)), "`missed-max` is 0"),
        (with(&|s| s.cron = "0 0 31 2 *".into()), "no calendar has such a day"),
    ];
    for (app, expected) in cases {
        let problem = refused(rig.put(&app).await);
        assert_eq!(problem.code, api::Code::ManifestInvalid);
        assert!(problem.detail.contains(expected), "{}", problem.detail);
    }
    rig.shutdown().await;
}
