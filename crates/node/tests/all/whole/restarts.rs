//! Hosts that end, hosts that do not, and a node that starts where another one stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::control::MoveRequest;
use api::copy::{CopyPhase, CopyView, Extra, MoveRecord};
use api::node::{CopyStep, NodeApi};
use model::observed::Phase;
use model::{Digest, Revision};
use node::Node;
use store::keys;

use super::{PATIENCE, Rig, get, kill, pid_of, tenant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_is_back_with_all_it_had() {
    let rig = Rig::new();
    let node = rig.start().await;
    for n in 0..20 {
        rig.deploy(&format!("a{n}"), 1, "good").await;
    }
    for n in 0..20 {
        rig.serving(&format!("a{n}"), 1).await;
    }
    for _ in 0..3 {
        let (_, text, _) = get(&node, "a0", "/").await;
        let victim = pid_of(&text);
        let ups = || rig.notes().iter().filter(|line| line.contains(" up ")).count();
        let before = ups();
        kill(victim);
        let started = Instant::now();
        // The other shard answers meanwhile; the same shard is back when its requests go to a new process.
        loop {
            let (status, text, _) = get(&node, "a0", "/").await;
            assert!(status == 200 || status == 502, "{status} {text}");
            if status == 200 && pid_of(&text) != victim && ups() > before {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{:?}", rig.notes());
        }
        for n in 0..20 {
            assert_eq!(get(&node, &format!("a{n}"), "/").await.0, 200);
        }
        println!("back after {:?}", started.elapsed());
    }
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_never_starts_is_reported_and_not_hammered() {
    let rig = Rig::new();
    std::fs::create_dir_all(rig.run("")).unwrap();
    std::fs::write(rig.run("broken"), "").unwrap();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    let reason = seen.reason.unwrap();
    assert!(reason.message.contains("this host is broken"), "{reason:?}");
    let (before, began) = (rig.notes().len(), Instant::now());
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Each of two hosts is started again after a second, and then after two.
    let most = 4 + 2 * began.elapsed().as_secs() as usize;
    assert!(rig.notes().len() - before <= most, "{:?}", rig.notes());
    // It heals without anybody's help.
    std::fs::remove_file(rig.run("broken")).unwrap();
    rig.serving("a", 1).await;
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_it_serves_what_it_served() {
    let rig = Rig::new();
    let node = rig.start().await;
    let apps = 300;
    for n in 0..apps {
        rig.deploy(&format!("a{n}"), 1, "good").await;
    }
    for n in 0..apps {
        rig.serving(&format!("a{n}"), 1).await;
    }
    // The head moved on to a revision that does not start.
    rig.deploy("a0", 2, "bad").await;
    rig.until("a0", |seen| seen.phase == Phase::Failed).await;
    node.shutdown(Duration::from_secs(5)).await;
    assert!(rig.observed("a1").await.is_none());
    std::fs::remove_file(rig.run("notes")).unwrap();

    let started = Instant::now();
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    println!("{apps} apps back after {:?}", started.elapsed());
    for n in 0..apps {
        let (status, text, _) = get(&node, &format!("a{n}"), "/").await;
        assert!(status == 200 && text.starts_with(&format!("a{n}/1/")), "{status} {text}");
    }
    rig.serving("a1", 1).await;
    let seen = rig.until("a0", |seen| seen.phase == Phase::Failed).await;
    assert_eq!((seen.revision, seen.serving), (Revision(2), Some(Revision(1))));
    let loaded = rig.notes().into_iter().filter(|line| line.contains("load=true")).collect::<Vec<_>>();
    assert_eq!(loaded.len(), 1, "only the new revision is loaded at once: {loaded:?}");
    node.shutdown(Duration::from_secs(5)).await;
}

/// What is recorded of a move of data.
fn moving(phase: CopyPhase) -> MoveRecord {
    let (from, to) = ("embedded".parse().unwrap(), "memory".parse().unwrap());
    let (contract, extra) = ("wasi:keyvalue".parse().unwrap(), Extra::Refuse);
    let request = MoveRequest { component: None, contract, label: None, provider: "memory".parse().unwrap(), extra };
    let (held_ms, revision, problem) = (None, None, None);
    let view = CopyView { from, to, phase, read: 0, written: 0, bytes: 0, held_ms, revision, problem };
    MoveRecord { since: None, request, meant: None, looked: None, before: Some(Revision(1)), view }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_whose_link_was_about_to_move_waits_from_the_first_moment_after_a_restart() {
    let rig = Rig::new();
    let node = rig.start().await;
    let apps = [("a", CopyPhase::Switching), ("b", CopyPhase::Following), ("c", CopyPhase::Done)];
    for (app, _) in apps {
        rig.deploy(app, 1, "good").await;
        rig.serving(app, 1).await;
    }
    node.shutdown(Duration::from_secs(5)).await;
    for (app, phase) in apps {
        rig.put(&keys::copy(&tenant(), &app.parse().unwrap()), &moving(phase)).await;
    }
    std::fs::remove_file(rig.run("notes")).unwrap();

    let node = rig.start().await;
    rig.serving("a", 1).await;
    rig.noted("start a/1 load=false", 2).await;
    let notes = rig.notes();
    for host in ["t.0", "t.1"] {
        let at = |line: &str| notes.iter().position(|note| *note == format!("{host} {line}"));
        let held = at("hold a/1").expect("every host lets its calls wait");
        assert!(Some(held) < at("start a/1 load=false"), "before it has anything of it: {notes:?}");
    }
    assert!(!notes.iter().any(|note| note.contains("hold b") || note.contains("hold c")), "{notes:?}");
    let release = |node: Arc<Node>| async move {
        node.copy(&tenant(), &"a".parse().unwrap(), "", CopyStep::Release(None)).await.map(drop)
    };
    release(node.clone()).await.unwrap();
    rig.noted("release a", 2).await;
    node.shutdown(Duration::from_secs(5)).await;

    // Whoever lets them go on in the same moment as the node starts is heard.
    let node = rig.start().await;
    release(node.clone()).await.expect("it is told");
    rig.serving("a", 1).await;
    let (_, text, _) = get(&node, "a", "/").await;
    std::fs::remove_file(rig.run("notes")).unwrap();
    kill(pid_of(&text));
    rig.noted("start a/1 load=false", 1).await;
    assert!(!rig.notes().iter().any(|note| note.contains("hold a")), "{:?}", rig.notes());
    node.shutdown(Duration::from_secs(5)).await;
}

/// As after an upgrade with another engine: what served is there when its code is, and what it waits for is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_without_compiled_code_it_has_settled_when_that_is_made() {
    let rig = Rig::new();
    let node = rig.start().await;
    for app in ["a", "b"] {
        rig.deploy(app, 1, "good").await;
        rig.serving(app, 1).await;
    }
    node.shutdown(Duration::from_secs(5)).await;
    std::fs::remove_dir_all(rig.dir.path().join("cache")).unwrap();
    // The engine takes its time, and cannot compile `b`.
    let compile = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; code=$(cat); case \"$code\" in b) echo 'not with this engine' >&2; exit 1 ;; \
         esac; printf %s \"$code\"; exit 0",
        rig.run("go").display()
    );
    let exe = rig.dir.path().join("exe");
    let script = std::fs::read_to_string(&exe).unwrap();
    assert!(script.contains("exec /bin/cat ;;"), "{script}");
    std::fs::write(&exe, script.replace("exec /bin/cat ;;", &format!("{compile} ;;"))).unwrap();

    let node = rig.start().await;
    for app in ["a", "b"] {
        let seen = rig.until(app, |seen| seen.phase == Phase::Compiling).await;
        assert_eq!((seen.serving, seen.reason), (Some(Revision(1)), None), "its routes are there, and calls wait");
    }
    assert!(!node.settled(Duration::ZERO).await);
    std::fs::write(rig.run("go"), "").unwrap();
    rig.serving("a", 1).await;
    let seen = rig.until("b", |seen| seen.phase == Phase::Failed).await;
    let reason = seen.reason.unwrap();
    assert_eq!((seen.serving, reason.code.as_str()), (None, "compile-failed"));
    assert!(reason.message.contains("not with this engine"), "{}", reason.message);
    assert!(node.settled(PATIENCE).await);
    let code = rig.dir.path().join("cache/aa").join(format!("{}.p2.cwasm", Digest::of(b"a").hex()));
    assert_eq!(std::fs::read(code).unwrap(), b"a", "nobody has asked for it");
    assert_eq!((get(&node, "a", "/").await.0, get(&node, "b", "/").await.0), (200, 404));
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_will_not_drain_does_not_hold_the_node_up() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let (_, text, _) = get(&node, "a", "/").await;
    std::fs::write(rig.run("stubborn"), "").unwrap();
    let started = Instant::now();
    node.shutdown(Duration::from_millis(1500)).await;
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let pid = rustix::process::Pid::from_raw(pid_of(&text)).unwrap();
    assert!(rustix::process::test_kill_process(pid).is_err(), "its process is gone and reaped");
}
