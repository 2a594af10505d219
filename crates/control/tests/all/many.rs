//! Ten thousand apps: a start loads them all, and each is placed once.

use std::collections::BTreeSet;
use std::time::Instant;

use futures::stream::{self, StreamExt as _};
use model::app::Revision;
use store::keys::{self, Head, RevisionRecord};
use store::{Expect, Store as _};

use crate::rig::{Node, PATIENCE, Rig, locked, name};

const APPS: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_apps_are_there_after_a_start() {
    let mut rig = Rig::without_node().await;
    let lax = model::tenant::TenantSettings { allow_unsigned: true, ..rig.settings() };
    rig.client.put_tenant(&rig.tenant, &lax, api::client::Require::Exists).await.unwrap();
    rig.shutdown().await;
    let app = locked("app", &crate::rig::component(1));
    let put = |n: usize| {
        let (store, tenant, mut app) = (rig.store.clone(), rig.tenant.clone(), app.clone());
        app.name = name(&format!("app-{n}"));
        app.routes[0].host = format!("app-{n}.localhost");
        async move {
            let record = RevisionRecord {
                previous: None,
                revision: Revision(1),
                created_ms: 1,
                origin: serde_json::json!({"kind": "deploy"}),
                message: None,
                claims: [].into(),
                app,
            };
            let id = record.app.name.clone();
            let value = serde_json::to_vec(&record).unwrap().into();
            store.put(&keys::revision(&tenant, &id, Revision(1)), value, Expect::Absent, None).await.unwrap();
            let head = Head { revision: Revision(1), deleted: false, keyed: vec![], since: None };
            store
                .put(&keys::app(&tenant, &id), serde_json::to_vec(&head).unwrap().into(), Expect::Absent, None)
                .await
                .unwrap();
        }
    };
    stream::iter(0..APPS).map(put).buffer_unordered(256).collect::<()>().await;
    let started = Instant::now();
    let control = crate::rig::control(rig.store.clone(), &rig.blobs, &rig.keys()).await;
    println!("{APPS} apps are loaded after {:?}", started.elapsed());
    let assigned = rig.store.watch(keys::ASSIGNED, rig.store.list(keys::ASSIGNED).await.unwrap().revision);
    let node = Node::join(&rig.store, "local").await;
    let all = assigned.take(APPS).map(|change| change.unwrap().key).collect::<BTreeSet<_>>();
    assert_eq!(tokio::time::timeout(PATIENCE * 2, all).await.unwrap().len(), APPS, "each once");
    control.shutdown().await;
    node.lose().await;
}
