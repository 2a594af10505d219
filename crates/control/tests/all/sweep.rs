//! What nobody names any more goes from the disk, and nothing else does.

use std::time::Duration;

use api::client::Require;
use model::Digest;

use crate::rig::{Nodes, PATIENCE, Rig, locked, name};

/// Waits until exactly these artifacts are there.
async fn left(rig: &Rig, mut wanted: Vec<Digest>) {
    wanted.sort_unstable();
    let there = || rig.blobs.list().unwrap().into_iter().map(|(digest, _)| digest).collect::<Vec<_>>();
    let gone = async {
        while there() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, gone).await;
    assert!(done.is_ok(), "{:?} is there, {wanted:?} is wanted", there());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_that_no_revision_names_go_and_what_history_or_a_node_needs_stays() {
    let mut rig = Rig::new().await;
    let (one, two, never) = (rig.artifact(1).await, rig.artifact(2).await, rig.artifact(3).await);
    // The same bytes: signed again in another second they would be others.
    for (app, bytes) in [("a", &one), ("a", &two), ("b", &two)] {
        rig.put(&locked(app, bytes)).await.unwrap();
    }
    let (one, two, never) = (Digest::of(&one), Digest::of(&two), Digest::of(&never));
    // Uploaded, and named by nobody within the time: a deploy that never came.
    rig.restart_with(Nodes::default(), Duration::ZERO).await;
    left(&rig, vec![one, two]).await;
    assert!(!rig.blobs.has(&never));
    // Of `a` only what `b` has too stays, once its history is gone; rolling back `a` was possible until then.
    rig.client
        .rollback(&rig.tenant, &name("a"), &api::control::RollbackRequest { to: None }, Require::Any)
        .await
        .unwrap();
    rig.client.delete_app(&rig.tenant, &name("a"), Require::Any).await.unwrap();
    left(&rig, vec![two]).await;
    // What a node still runs stays for as long as it does.
    rig.restart_with(Nodes::default(), Duration::from_secs(3600)).await;
    rig.deploy("c", 4).await;
    assert_eq!(rig.blobs.list().unwrap().len(), 2);
    rig.restart_with(Nodes { running: Some(two), ..Nodes::default() }, Duration::ZERO).await;
    rig.client.delete_app(&rig.tenant, &name("b"), Require::Any).await.unwrap();
    rig.client.delete_app(&rig.tenant, &name("c"), Require::Any).await.unwrap();
    left(&rig, vec![two]).await;
    rig.restart_with(Nodes::default(), Duration::ZERO).await;
    left(&rig, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_stays_until_its_time_is_over() {
    let mut rig = Rig::new().await;
    let fresh = Digest::of(&rig.artifact(1).await);
    rig.restart_with(Nodes::default(), Duration::from_secs(600)).await;
    // An old one that is looked for before a deploy is as good as sent again.
    let old = Digest::of(&rig.artifact(2).await);
    let stale = Digest::of(&rig.artifact(3).await);
    for digest in [&old, &stale] {
        let file = std::fs::File::open(rig.blobs.path(digest)).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(1000)).unwrap();
    }
    assert!(rig.client.has_blob(&rig.tenant, &old).await.unwrap());
    rig.restart_with(Nodes::default(), Duration::from_secs(900)).await;
    assert!([fresh, old, stale].iter().all(|digest| rig.blobs.has(digest)), "it looks in a while, not at once");
    assert_eq!(rig.blobs.unwanted_since(std::time::SystemTime::now() - Duration::from_secs(900)).unwrap(), [stale]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_says_nothing_about_what_a_tenant_has() {
    let mut rig = Rig::new().await;
    let other: model::TenantName = name("u");
    rig.client.put_tenant(&other, &rig.settings(), Require::Absent).await.unwrap();
    // Both send the same; only `t` has a revision with it. The other file is nobody's.
    let (bytes, nobodys) = (rig.artifact(1).await, rig.artifact(2).await);
    let (digest, unnamed) = (Digest::of(&bytes), Digest::of(&nobodys));
    rig.client.put_blob(&other, &digest, bytes.clone()).await.unwrap();
    rig.client.put_blob(&other, &unnamed, nobodys).await.unwrap();
    rig.put(&locked("a", &bytes)).await.unwrap();
    rig.restart_with(Nodes::default(), Duration::ZERO).await;
    left(&rig, vec![digest]).await;
    let gone = async {
        while rig.client.has_blob(&other, &digest).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("to `u` it is there because `t` has it");
    assert!(!rig.client.has_blob(&other, &unnamed).await.unwrap());
    assert!(rig.client.has_blob(&rig.tenant, &digest).await.unwrap());
}
