//! Runs of programs, as the node asks a host for them.

use std::time::Duration;

use api::run::{RunEnd, RunFrame, RunRequest};
use api::{Code, Problem};
use futures::StreamExt as _;
use model::unit::Millis;
use model::{LockedApp, Revision};

use crate::rig::{Rig, until};

fn app(rig: &Rig) -> LockedApp {
    let mut app = rig.app("batch", "batch");
    let limits = &mut app.components.values_mut().next().unwrap().limits;
    (limits.cpu, limits.wall, limits.concurrency) = (Millis(u64::MAX), Millis(u64::MAX), 1);
    app
}

fn request(args: &[&str]) -> RunRequest {
    RunRequest {
        component: "main".parse().unwrap(),
        export: "wasi:cli/run@0.2.12".to_owned(),
        args: std::iter::once("batch").chain(args.iter().copied()).map(str::to_owned).collect(),
        env: vec![("A".to_owned(), "b".to_owned())],
    }
}

/// What it wrote, and how it ended.
async fn run(rig: &Rig, app: &LockedApp, args: &[&str]) -> Result<(String, String, RunEnd), Problem> {
    let mut frames = rig.agent.run(&app.name, Revision(1), &request(args)).await?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(frame) = frames.next().await {
        match frame? {
            RunFrame::Stdout(bytes) => out.extend_from_slice(&bytes),
            RunFrame::Stderr(bytes) => err.extend_from_slice(&bytes),
            RunFrame::End(end) => {
                assert!(frames.next().await.is_none(), "the end is the last frame");
                return Ok((String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), end));
            }
        }
    }
    panic!("a run without an end");
}

#[tokio::test]
async fn a_program_writes_and_ends() {
    let rig = Rig::new().await;
    let app = app(&rig);
    rig.run(&app).await;
    let (out, err, end) = run(&rig, &app, &["env", "err:e", "spin:400", "exit:3"]).await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("[(\"A\", \"b\")]\n", "e\n"));
    assert_eq!(end, RunEnd { code: 3, fault: None });
    let (out, _, end) = run(&rig, &app, &["flood:5000"]).await.unwrap();
    assert_eq!((out.len(), end.code), (5000 * 65, 0));
    let (_, _, end) = run(&rig, &app, &["trap"]).await.unwrap();
    assert!(end.code == RunEnd::FAILED && end.fault.unwrap().contains("trapped"));
    let missing = rig.agent.run(&app.name, Revision(2), &request(&[])).await;
    assert_eq!(missing.err().unwrap().code, Code::NotFound);
}

#[tokio::test]
async fn a_program_ends_with_the_connection_of_its_caller() {
    let rig = Rig::new().await;
    let app = app(&rig);
    rig.run(&app).await;
    for steps in [["print:x", "forever"], ["print:x", "sleep:600000"], ["print:x", "flood:100000000"]] {
        let mut frames = rig.agent.run(&app.name, Revision(1), &request(&steps)).await.unwrap();
        assert_eq!(frames.next().await, Some(Ok(RunFrame::Stdout(bytes::Bytes::from_static(b"x\n")))));
        let second = rig.agent.run(&app.name, Revision(1), &request(&[])).await;
        assert_eq!(second.err().unwrap().code, Code::Busy, "it has one place");
        drop(frames);
        until("the program ends", || async { rig.status("batch").await.in_flight == 0 }).await;
    }
}

#[tokio::test]
async fn a_program_waits_while_its_app_is_held_and_runs_then() {
    let rig = Rig::new().await;
    let app = app(&rig);
    rig.run(&app).await;
    let held = rig.agent.hold(&app.name, Revision(1), Duration::from_secs(5)).await.unwrap();
    assert_eq!(held.in_flight, 0);
    let released = async {
        tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(rig.status("batch").await.in_flight, 0, "it waits");
        rig.agent.release(&app.name, None).await.unwrap();
    };
    let args = ["print:x", "exit:3"];
    let (ran, ()) = futures::join!(run(&rig, &app, &args), released);
    let (out, _, end) = ran.unwrap();
    assert_eq!((out.as_str(), end.code), ("x\n", 3));
}
