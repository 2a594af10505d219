//! A store that fails now and then: what is wanted gets assigned all the same, and a refused write is said as such.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use api::client::{ControlClient, EventQuery, Require};
use api::control::{DeployRequest, LinkRequest, MoveRequest, event};
use api::copy::Extra;
use api::problem::Code;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use store::redb::RedbStore;
use store::{Change, Entry, Expect, LeaseId, Snapshot, Store, StoreError};
use tokio::sync::Notify;

use crate::rig::{Inside, Node, Nodes, PATIENCE, Rig, TOKEN, collect, locked, name, refused};

/// Fails as many of the next writes under a prefix, and ends as many of the next watches, as it is told; and the watch over
/// everything whenever it is told.
pub(crate) struct Flaky {
    pub(crate) store: Arc<RedbStore>,
    pub(crate) prefix: &'static str,
    pub(crate) writes: AtomicU32,
    pub(crate) watches: AtomicU32,
    pub(crate) lose: Arc<Notify>,
}

fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl Flaky {
    fn fails(&self, key: &str) -> Option<StoreError> {
        let full = || StoreError::CannotWrite { path: "store.redb".into(), cause: "no space left".into() };
        (key.starts_with(self.prefix) && take(&self.writes)).then(full)
    }
}

impl Store for Flaky {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.store.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.store.list(prefix)
    }
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        lease: Option<LeaseId>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        match self.fails(key) {
            Some(error) => Box::pin(async { Err(error) }),
            None => self.store.put(key, value, expect, lease),
        }
    }
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64, StoreError>> {
        match self.fails(key) {
            Some(error) => Box::pin(async { Err(error) }),
            None => self.store.delete(key, expect),
        }
    }
    fn watch(&self, prefix: &str, after: u64) -> BoxStream<'static, Result<Change, StoreError>> {
        let changes = self.store.watch(prefix, after);
        let lost = StoreError::Compacted { asked: after, oldest: after + 1 };
        if take(&self.watches) {
            return changes.take(2).chain(futures::stream::iter([Err(lost)])).boxed();
        }
        if prefix.is_empty() {
            let lose = self.lose.clone();
            let told = Box::pin(async move { lose.notified().await });
            return changes.take_until(told).chain(futures::stream::iter([Err(lost)])).boxed();
        }
        changes
    }
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.store.grant(ttl)
    }
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.keep_alive(lease)
    }
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.revoke(lease)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn assignments_follow_although_writes_fail_and_watches_end() {
    let mut rig = Rig::new().await;
    rig.shutdown().await;
    let flaky = Flaky {
        store: rig.store.clone(),
        prefix: store::keys::ASSIGNED,
        writes: AtomicU32::new(4),
        watches: AtomicU32::new(3),
        lose: Arc::default(),
    };
    let flaky = Arc::new(flaky);
    let control = crate::rig::control(flaky.clone(), &rig.blobs, &rig.keys()).await;
    rig.client = ControlClient::new(control.addr(), TOKEN);
    for (app, n) in [("a", 1), ("b", 2), ("c", 3)] {
        rig.deploy(app, n).await;
    }
    for app in ["a", "b", "c"] {
        rig.assigned(app, |a| a.is_some()).await;
    }
    rig.client.delete_app(&rig.tenant, &name("b"), Require::Any).await.unwrap();
    rig.assigned("b", |a| a.is_none()).await;
    assert_eq!(
        (flaky.writes.load(Ordering::SeqCst), flaky.watches.load(Ordering::SeqCst)),
        (0, 0),
        "all of it failed once"
    );
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_the_deploy_and_leaves_the_app_as_it_was() {
    let mut rig = Rig::new().await;
    rig.shutdown().await;
    for (prefix, left) in [(store::keys::REVISIONS, 1), (store::keys::APPS, 2)] {
        let (store, writes, watches) = (rig.store.clone(), AtomicU32::new(left), AtomicU32::new(0));
        let flaky = Flaky { store, prefix, writes, watches, lose: Arc::default() };
        let control = crate::rig::control(Arc::new(flaky), &rig.blobs, &rig.keys()).await;
        rig.client = ControlClient::new(control.addr(), TOKEN);
        let request = DeployRequest { app: locked("counter", &rig.artifact(1).await), message: None };
        let deploy = || rig.client.deploy(&rig.tenant, &request.app.name, &request, Require::Absent, None);
        for _ in 0..left {
            assert_eq!(refused(deploy().await).code, Code::StoreUnavailable);
            assert_eq!(refused(rig.client.app(&rig.tenant, &request.app.name).await).code, Code::NotFound);
        }
        let accepted = deploy().await.unwrap();
        rig.assigned("counter", |a| a.is_some_and(|a| a.revision == accepted.revision)).await;
        rig.client.delete_app(&rig.tenant, &request.app.name, Require::Any).await.unwrap();
        rig.assigned("counter", |a| a.is_none()).await;
        control.shutdown().await;
    }
    let node: Option<Node> = rig.node.take();
    node.unwrap().lose().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_lost_leaves_a_move_of_data_what_it_holds() {
    let mut rig = Rig::new().await;
    rig.deploy("counter", 1).await;
    rig.until(Some("0".into()), |e| e.data["phase"] == "serving").await;
    rig.shutdown().await;
    let (store, lose, page) = (rig.store.clone(), Arc::<Notify>::default(), Arc::<Inside>::default());
    let (writes, watches) = (AtomicU32::new(0), AtomicU32::new(0));
    let flaky = Flaky { store, prefix: "none", writes, watches, lose: lose.clone() };
    let nodes = Nodes { copied: Some(Arc::default()), page: Some(page.clone()), ..Nodes::default() };
    let keep = Duration::from_secs(3600);
    let control = crate::rig::control_with(Arc::new(flaky), &rig.blobs, &rig.keys(), nodes, keep, None).await;
    rig.client = ControlClient::new(control.addr(), TOKEN);
    let (app, contract) = (name("counter"), name::<model::ContractId>("wasi:keyvalue"));
    let (component, label, extra) = (None, None, Extra::Refuse);
    let request = MoveRequest { component, contract: contract.clone(), label, provider: name("memory"), extra };
    rig.client.copy(&rig.tenant, &app, &request).await.unwrap();
    let copying = async {
        while page.calls.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, copying).await.expect("nothing is copied");
    let link = async || {
        let link = LinkRequest { component: None, contract: contract.clone(), label: None, provider: name("memory") };
        rig.client.link(&rig.tenant, &app, &link, Require::Any).await
    };
    assert_eq!(refused(link().await).code, Code::Conflict);
    let mut events = rig.client.events(EventQuery::default()).await.unwrap();
    lose.notify_one();
    collect(&mut events, |e| e.kind == event::MISSED).await;
    assert_eq!(refused(link().await).code, Code::Conflict, "the data are still being moved");
    page.go_on.store(true, Ordering::SeqCst);
    control.shutdown().await;
}
