//! What survives the control plane, and what the loss of a node must not do.

use api::control::event;
use api::problem::Code;
use model::app::Revision;
use store::keys::{self, Head};
use store::{Expect, Store as _};

use crate::rig::{Node, Rig, name, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_nothing() {
    let mut rig = Rig::new().await;
    for (app, n) in [("a", 1), ("b", 2), ("c", 3)] {
        rig.deploy(app, n).await;
        rig.assigned(app, |a| a.is_some()).await;
    }
    rig.client.delete_app(&rig.tenant, &name("c"), api::client::Require::Any).await.unwrap();
    rig.assigned("c", |a| a.is_none()).await;
    let before = rig.client.apps(&rig.tenant).await.unwrap();
    let written = rig.store.list(keys::ASSIGNED).await.unwrap();
    rig.restart().await;
    assert_eq!(rig.client.apps(&rig.tenant).await.unwrap(), before);
    // Settings are answered once all before was acted on.
    rig.client.put_tenant(&rig.tenant, &rig.settings(), api::client::Require::Exists).await.unwrap();
    assert_eq!(rig.store.list(keys::ASSIGNED).await.unwrap().entries, written.entries);
    assert!(rig.store.list(&keys::revisions_of(&rig.tenant, &name("c"))).await.unwrap().entries.is_empty());
    assert_eq!(rig.deploy("c", 3).await.revision, Revision(2));
    let taken = crate::rig::locked("d", &rig.artifact(4).await);
    let mut taken = taken;
    taken.routes[0].host = "a.localhost".into();
    assert_eq!(refused(rig.put(&taken).await).code, Code::RouteTaken, "routes are known again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_wanted_and_not_done_is_done_after_a_restart() {
    let mut rig = Rig::new().await;
    rig.deploy("a", 1).await;
    rig.deploy("b", 2).await;
    rig.assigned("a", |a| a.is_some()).await;
    rig.assigned("b", |a| a.is_some()).await;
    rig.shutdown().await;
    // As a crash leaves it: a head that moved, an app that was deleted, and nobody who acted on either.
    let key = keys::app(&rig.tenant, &name("a"));
    let record = rig.store.get(&keys::revision(&rig.tenant, &name("a"), Revision(1))).await.unwrap().unwrap();
    let mut record: keys::RevisionRecord = serde_json::from_slice(&record.value).unwrap();
    record.revision = Revision(2);
    let head = |revision, deleted| Head { revision: Revision(revision), deleted, keyed: vec![], since: None };
    let json = |value: &Head| serde_json::to_vec(value).unwrap().into();
    let value = serde_json::to_vec(&record).unwrap().into();
    rig.store.put(&keys::revision(&rig.tenant, &name("a"), Revision(2)), value, Expect::Absent, None).await.unwrap();
    rig.store.put(&key, json(&head(2, false)), Expect::Any, None).await.unwrap();
    rig.store.put(&keys::app(&rig.tenant, &name("b")), json(&head(1, true)), Expect::Any, None).await.unwrap();
    let control = crate::rig::control(rig.store.clone(), &rig.blobs, &rig.keys()).await;
    rig.assigned("a", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    rig.assigned("b", |a| a.is_none()).await;
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_node_freezes_and_deletes_nothing() {
    let mut rig = Rig::new().await;
    rig.deploy("a", 1).await;
    rig.assigned("a", |a| a.is_some()).await;
    rig.node.take().unwrap().lose().await;
    rig.until(Some("0".into()), |e| e.kind == event::NODE_LOST).await;
    let nodes = rig.client.nodes().await.unwrap();
    assert_eq!((nodes.len(), nodes[0].alive, nodes[0].apps), (1, false, 1));
    let view = rig.client.app(&rig.tenant, &name("a")).await.unwrap();
    assert!(view.reason.unwrap().message.contains("lost"));
    // Another node comes: what the lost one has stays there, what is new goes to the one that is there.
    let other = Node::join(&rig.store, "other").await;
    rig.deploy("b", 2).await;
    rig.until(Some("0".into()), |e| e.source == "/nodes/other" && e.data["phase"] == "serving").await;
    assert!(rig.assigned("a", |a| a.is_some()).await.is_some());
    let on_other = rig.store.list(&keys::assigned_to(&name("other"))).await.unwrap();
    assert_eq!(on_other.entries.into_iter().map(|e| e.key).collect::<Vec<_>>(), ["assigned/other/t/b"]);
    // What is changed meanwhile waits for it.
    rig.deploy("a", 3).await;
    rig.assigned("a", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    let back = Node::join(&rig.store, "local").await;
    rig.until(Some("0".into()), |e| e.source == "/nodes/local" && e.data["serving"] == 2).await;
    back.lose().await;
    other.lose().await;
}
