//! Calls by the clock, as the node asks a host for them.

use std::time::Duration;

use api::Code;
use api::agent::ScheduledCall;
use model::schedule::Entrance;
use model::unit::Millis;
use model::{LockedApp, Revision};

use crate::rig::{Answer, Rig, line};

const HANDLER: &str = "sidereal:schedule/handler@0.1.0";
const COMMAND: &str = "wasi:cli/run@0.2.12";

fn app(rig: &Rig) -> LockedApp {
    let mut app = rig.app("clock", "scheduled");
    let links = serde_json::json!([{ "component": "main", "contract": "wasi:keyvalue", "label": "default", "provider": "memory" }]);
    app.links = serde_json::from_value(links).unwrap();
    app.components.values_mut().next().unwrap().limits.wall = Millis(5000);
    app
}

fn call(schedule: &str, entrance: Entrance, export: &str) -> ScheduledCall {
    let (component, schedule) = ("main".parse().unwrap(), schedule.parse().unwrap());
    ScheduledCall { component, entrance, export: export.to_owned(), schedule, due_ms: 1000 }
}

#[tokio::test]
async fn a_schedule_calls_its_component_within_its_limits() {
    let rig = Rig::new().await;
    let app = app(&rig);
    rig.run(&app).await;
    let mut logs = rig.logs().await;
    let run = |schedule: &'static str| {
        let (agent, app) = (&rig.agent, &app.name);
        async move { agent.scheduled(app, Revision(1), &call(schedule, Entrance::Handler, HANDLER)).await.unwrap().error }
    };
    assert_eq!(run("nightly").await, None);
    let answer = rig.get("clock/1/main", "/").await;
    assert_eq!(answer, Answer::ok("done:nightly=1\ndue:nightly:1000=1\n"));
    assert_eq!(run("fail").await.as_deref(), Some("the component failed: it was told to"));
    line(&mut logs, |line| line.text.contains("schedule `fail`: the component failed: it was told to")).await;
    assert!(run("trap").await.unwrap().contains("trap"));
    let error = run("slow-60000").await.unwrap();
    assert!(error.contains(&Millis(5000).to_string()), "{error}");
    let status = rig.status("clock").await;
    assert_eq!((status.calls, status.failed), (5, 2), "what is told politely is no failure of the call");
    // Nothing is there by that name, and nothing was called.
    let missing = rig.agent.scheduled(&app.name, Revision(2), &call("nightly", Entrance::Handler, HANDLER)).await;
    assert_eq!(missing.unwrap_err().code, Code::NotFound);
    // A call that is under way is finished when its revision leaves.
    let slow =
        async { rig.agent.scheduled(&app.name, Revision(1), &call("slow-2000", Entrance::Handler, HANDLER)).await };
    let drain = async {
        crate::rig::until("the run begins", || async { rig.status("clock").await.in_flight == 1 }).await;
        rig.drain("clock", 1, Duration::from_secs(10)).await
    };
    let (slow, ended) = tokio::join!(slow, drain);
    assert_eq!((slow.unwrap().error, ended), (None, 0));
}

#[tokio::test]
async fn a_program_without_a_server_is_called_too() {
    let rig = Rig::new().await;
    let app = rig.app("clock", "command");
    rig.run(&app).await;
    let mut logs = rig.logs().await;
    let run = async |revision| {
        let called = rig.agent.scheduled(&app.name, Revision(revision), &call("n", Entrance::Command, COMMAND)).await;
        called.unwrap().error
    };
    assert_eq!(run(1).await, None);
    line(&mut logs, |line| line.text == "the clock called").await;
    let mut failing = app.clone();
    failing.components.values_mut().next().unwrap().config.insert("fail".into(), "yes".into());
    rig.start(&failing, 2, true).await.unwrap();
    assert!(run(2).await.unwrap().contains("it returned an error"));
}

#[tokio::test]
async fn a_run_that_waits_for_a_place_waits_for_a_move_of_data_too() {
    let rig = Rig::new().await;
    let mut app = app(&rig);
    let limits = &mut app.components.values_mut().next().unwrap().limits;
    (limits.concurrency, limits.wall) = (1, Millis(30_000));
    rig.run(&app).await;
    let run = |schedule: &'static str| {
        let (agent, app) = (&rig.agent, &app.name);
        async move { agent.scheduled(app, Revision(1), &call(schedule, Entrance::Handler, HANDLER)).await }
    };
    let moved = async {
        crate::rig::until("the first is under way", || async { rig.status("clock").await.in_flight == 1 }).await;
        // By now the second one waits.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(rig.agent.hold(&app.name, Revision(1), Duration::from_secs(5)).await.unwrap().in_flight, 0);
        tokio::time::sleep(Duration::from_millis(200)).await;
        rig.agent.release(&app.name, None).await.unwrap();
    };
    let second = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        run("nightly").await
    };
    let (first, second, ()) = tokio::join!(run("slow-1000"), second, moved);
    assert_eq!((first.unwrap().error, second.unwrap().error), (None, None));
}
