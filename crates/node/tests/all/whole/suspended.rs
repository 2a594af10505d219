//! What must not run is not served and comes back when it may, whatever is wanted beside it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::node::NodeApi;
use model::Revision;
use model::observed::{AppObserved, Phase, Reason};
use model::plan::Older;
use model::tenant::TenantSettings;
use node::Node;
use store::keys::{self, Assignment};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, Rig, get, pid_of, tenant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_app_says_so_and_comes_back() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let expired = Reason { code: "artifact-expired".into(), message: "expired".into(), help: None };
    rig.assign("a", Assignment { revision: Revision(1), suspended: Some(expired.clone()), expiry: None, older: None })
        .await;
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!((seen.serving, seen.reason), (None, Some(expired)));
    let (status, _, headers) = get(&node, "a", "/").await;
    assert_eq!((status, headers.get(api::agent::FAULT_HEADER).unwrap().as_bytes()), (503, b"suspended".as_slice()));
    // Nothing of it goes on anywhere.
    let drained = || rig.notes().iter().filter(|line| line.contains("drain a/1")).count();
    let begun = Instant::now();
    while drained() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", rig.notes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.assign("a", Assignment { revision: Revision(1), suspended: None, expiry: None, older: None }).await;
    rig.serving("a", 1).await;
    assert_eq!(get(&node, "a", "/").await.0, 200);
    node.shutdown(Duration::from_secs(5)).await;
}

/// Asks again and again until it is stopped: nothing but what is suspended, or an answer of these revisions. Which they were.
fn asked(node: &Arc<Node>, good: &'static [&'static str]) -> (CancellationToken, JoinHandle<BTreeSet<String>>) {
    let (stop, node) = (CancellationToken::new(), node.clone());
    let stopped = stop.clone();
    let asking = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while !stopped.is_cancelled() {
            let (status, text, headers) = get(&node, "a", "/").await;
            let fault = headers.get(api::agent::FAULT_HEADER).map(|fault| fault.as_bytes().to_vec());
            let answer = match status {
                503 if fault.as_deref() == Some(b"suspended") => "suspended".to_owned(),
                _ => text.chars().take(3).collect(),
            };
            assert!(good.contains(&answer.as_str()), "{status} {text}");
            seen.insert(answer);
        }
        seen
    });
    (stop, asking)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_run_does_not_run_again_because_something_is_deployed_after_it() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let revoked = Reason { code: "artifact-revoked".into(), message: "revoked".into(), help: None };
    let (suspended, older) = (Some(revoked.clone()), None);
    rig.assign("a", Assignment { revision: Revision(1), suspended, expiry: None, older }).await;
    rig.until("a", |seen| seen.reason.is_some()).await;
    let (stop, asking) = asked(&node, &["suspended"]);
    let failed = async |revision| {
        let failed = |seen: &AppObserved| seen.revision == Revision(revision) && seen.phase == Phase::Failed;
        let seen = rig.until("a", failed).await;
        assert_eq!((seen.serving, seen.reason.unwrap().code.as_str()), (None, "link-missing"));
    };
    // Nothing is said of it yet; then that it is as it was.
    rig.deploy("a", 2, "bad").await;
    failed(2).await;
    rig.instead("a", 2, (1, Some(&revoked))).await;
    rig.record("a", 3, "bad", "[]").await;
    rig.instead("a", 3, (1, Some(&revoked))).await;
    failed(3).await;
    stop.cancel();
    assert_eq!(asking.await.unwrap().len(), 1);
    // Nor does a restart bring it back: what is wanted then is tried, and is not what served.
    node.shutdown(Duration::from_secs(5)).await;
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    let (stop, asking) = asked(&node, &["suspended", "a/4"]);
    failed(3).await;
    rig.record("a", 4, "good", "[]").await;
    rig.instead("a", 4, (1, Some(&revoked))).await;
    rig.serving("a", 4).await;
    // Nobody speaks of it any more.
    rig.deploy("a", 4, "good").await;
    let (status, text, _) = get(&node, "a", "/").await;
    assert!(status == 200 && text.starts_with("a/4/"), "{status} {text}");
    stop.cancel();
    asking.await.unwrap();
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_still_serves_is_suspended_and_resumed_though_another_one_is_wanted() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    rig.deploy("a", 2, "bad").await;
    let failed = |serving: Option<u64>| {
        let serving = serving.map(Revision);
        move |seen: &AppObserved| seen.phase == Phase::Failed && seen.serving == serving
    };
    rig.until("a", failed(Some(1))).await;
    let revoked = Reason { code: "artifact-revoked".into(), message: "revoked".into(), help: None };
    rig.instead("a", 2, (1, Some(&revoked))).await;
    rig.until("a", failed(None)).await;
    assert_eq!(get(&node, "a", "/").await.0, 503);
    node.shutdown(Duration::from_secs(5)).await;
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    assert_eq!(get(&node, "a", "/").await.0, 503);
    rig.instead("a", 2, (1, None)).await;
    rig.until("a", failed(Some(1))).await;
    // The wanted one must not run, and what serves may: no request of it fails.
    let (stop, asking) = asked(&node, &["a/1"]);
    let older = Some(Older { revision: Revision(1), suspended: None, expiry: None });
    let suspended = Some(revoked.clone());
    rig.assign("a", Assignment { revision: Revision(2), suspended, expiry: None, older }).await;
    let seen = rig.until("a", |seen| seen.reason.as_ref() == Some(&revoked)).await;
    assert_eq!((seen.phase, seen.serving), (Phase::Failed, Some(Revision(1))));
    stop.cancel();
    asking.await.unwrap();
    // Its claims end, and nobody says so again.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expiry = Some(model::plan::Expiry { at: now + 2, component: "web".parse().unwrap() });
    let older = Some(Older { revision: Revision(1), suspended: None, expiry });
    rig.assign("a", Assignment { revision: Revision(2), suspended: None, expiry: None, older }).await;
    rig.until("a", failed(None)).await;
    assert_eq!(get(&node, "a", "/").await.0, 503);
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_has_no_process_and_comes_back() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let (_, text, _) = get(&node, "a", "/").await;
    let key = keys::tenant(&tenant());
    let suspended = TenantSettings { suspended: Some("a test".into()), ..TenantSettings::default() };
    rig.put(&key, &suspended).await;
    // Nobody has to say it of each app.
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!(seen.serving, None);
    assert_eq!(get(&node, "a", "/").await.0, 503);
    let begun = Instant::now();
    let pid = rustix::process::Pid::from_raw(pid_of(&text)).unwrap();
    while rustix::process::test_kill_process(pid).is_ok() || !node.status(&tenant()).await.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "its hosts are still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nor does a restart bring them back, or wait for them.
    node.shutdown(Duration::from_secs(5)).await;
    std::fs::remove_file(rig.run("notes")).unwrap();
    let node = rig.start().await;
    assert!(node.settled(PATIENCE).await);
    assert_eq!((get(&node, "a", "/").await.0, rig.notes()), (503, Vec::new()));
    rig.put(&key, &TenantSettings::default()).await;
    rig.serving("a", 1).await;
    assert_eq!(get(&node, "a", "/").await.0, 200);
    node.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_suspended_though_nobody_says_so_again() {
    let rig = Rig::new();
    let node = rig.start().await;
    rig.deploy("a", 1, "good").await;
    rig.serving("a", 1).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expiry = model::plan::Expiry { at: now + 2, component: "web".parse().unwrap() };
    rig.assign("a", Assignment { revision: Revision(1), suspended: None, expiry: Some(expiry.clone()), older: None })
        .await;
    let seen = rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!((seen.serving, seen.reason), (None, expiry.barred(now + 2)));
    assert_eq!(get(&node, "a", "/").await.0, 503);
    // Nor does a restart bring it back.
    node.shutdown(Duration::from_secs(5)).await;
    let node = rig.start().await;
    rig.until("a", |seen| seen.reason.is_some()).await;
    assert_eq!(get(&node, "a", "/").await.0, 503);
    rig.assign("a", Assignment { revision: Revision(1), suspended: None, expiry: None, older: None }).await;
    rig.serving("a", 1).await;
    assert_eq!(get(&node, "a", "/").await.0, 200);
    node.shutdown(Duration::from_secs(5)).await;
}
