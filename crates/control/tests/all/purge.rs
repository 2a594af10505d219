//! `delete --purge-data`: the data goes once, after the last call, and never that of the next app.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Code;
use api::client::Require;
use api::control::DeployRequest;
use model::app::Revision;

use crate::rig::{Nodes, PATIENCE, Rig, locked, name, refused};

const KEEP: Duration = Duration::from_secs(3600);

/// Waits until the data of these apps were removed, in this order, and of no others.
async fn removed(purged: &Mutex<Vec<String>>, apps: &[&str]) {
    let done = async {
        while *purged.lock().unwrap() != apps {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("{:?}", purged.lock().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_goes_when_asked_for_and_when_the_last_call_has_ended() {
    let mut rig = Rig::new().await;
    let purged = Arc::new(Mutex::new(Vec::new()));
    let nodes = |busy| Nodes { busy: AtomicUsize::new(busy), purged: purged.clone(), ..Nodes::default() };
    rig.restart_with(nodes(2), KEEP).await;
    let (client, tenant, app) = (rig.client.clone(), rig.tenant.clone(), name("a"));
    rig.deploy("a", 1).await;
    rig.deploy("b", 1).await;
    client.delete_app(&tenant, &app, Require::Any).await.unwrap();
    assert!(purged.lock().unwrap().is_empty(), "data stays unless it is said");
    // Deleted before: its data can still go. The node says twice that calls are ending.
    assert_eq!(refused(client.delete_app_and_data(&tenant, &name("never"), Require::Any).await).code, Code::NotFound);
    assert!(client.delete_app_and_data(&tenant, &app, Require::Any).await.unwrap());
    assert_eq!(*purged.lock().unwrap(), ["t/a"]);
    // The next one of that name goes on counting, and keeps what it writes.
    assert_eq!(rig.deploy("a", 1).await.revision, Revision(2));
    assert_eq!(refused(client.delete_app_and_data(&tenant, &app, Require::At(1)).await).code, Code::Conflict);
    assert_eq!(*purged.lock().unwrap(), ["t/a"]);

    // While data is being removed, no app of that name comes: it would lose what it writes. Not even over a restart.
    rig.restart_with(nodes(usize::MAX), KEEP).await;
    let client = rig.client.clone();
    let delete = tokio::spawn({
        let (client, tenant, app) = (client.clone(), tenant.clone(), app.clone());
        async move { client.delete_app_and_data(&tenant, &app, Require::At(2)).await }
    });
    rig.assigned("a", |assigned| assigned.is_none()).await;
    let again = locked("a", &rig.artifact(1).await);
    let problem = refused(rig.put(&again).await);
    assert_eq!(problem.code, Code::Conflict, "{problem:?}");
    assert!(problem.detail.contains("still being removed"), "{problem:?}");
    assert!(!delete.await.unwrap().unwrap(), "it still takes longer");
    rig.restart_with(nodes(0), KEEP).await;
    let done = async {
        while rig.put(&again).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.unwrap();
    assert_eq!(*purged.lock().unwrap(), ["t/a", "t/a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_one_tenant_that_takes_for_ever_keeps_no_other_ones() {
    let mut rig = Rig::new().await;
    let purged = Arc::new(Mutex::new(Vec::new()));
    rig.restart_with(Nodes { stuck: Some(name("t")), purged: purged.clone(), ..Nodes::default() }, KEEP).await;
    let (client, tenant, other) = (rig.client.clone(), rig.tenant.clone(), name("u"));
    client.put_tenant(&other, &rig.settings(), Require::Absent).await.unwrap();
    rig.deploy("a", 1).await;
    let hangs = tokio::spawn({
        let (client, tenant) = (client.clone(), tenant.clone());
        async move { client.delete_app_and_data(&tenant, &name("a"), Require::Any).await }
    });
    removed(&purged, &["t/a"]).await;
    // It comes after the other by its name, and while that one's are under way.
    let bytes = rig.artifact(1).await;
    client.put_blob(&other, &model::Digest::of(&bytes), bytes.clone()).await.unwrap();
    for app in ["b", "c"] {
        let request = DeployRequest { app: locked(app, &bytes), message: None };
        client.deploy(&other, &request.app.name, &request, Require::Any, None).await.unwrap();
        // Whether that is done by the time of the answer is for the machine to say: the other one's never are.
        client.delete_app_and_data(&other, &request.app.name, Require::Any).await.unwrap();
    }
    removed(&purged, &["t/a", "u/b", "u/c"]).await;
    // And they are as good as gone: who waits for that is told so.
    let told = async { while !client.delete_app_and_data(&other, &name("c"), Require::Any).await.unwrap() {} };
    tokio::time::timeout(PATIENCE, told).await.expect("it is never said that they are gone");
    assert!(!hangs.await.unwrap().unwrap(), "it takes longer");
}
