//! A store that fails now and then: what is wanted gets assigned all the same, and a refused write is said as such.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use api::client::{EventQuery, Require};
use api::control::{DeployRequest, LinkRequest, MoveRequest, event};
use api::copy::Extra;
use api::problem::Code;
use futures::stream::{BoxStream, StreamExt as _};
use store::{Change, StoreError};
use tokio::sync::Notify;

use crate::between::{Asked, Between, Through};
use crate::rig::{Inside, Node, Nodes, PATIENCE, Rig, collect, locked, name, refused};

/// Lets some writes under a prefix pass and fails as many of the next ones, and ends as many of the next watches, as it is told; and the watch over
/// everything whenever it is told.
pub(crate) struct Flaky {
    prefix: &'static str,
    pub(crate) pass: AtomicU32,
    pub(crate) writes: AtomicU32,
    watches: AtomicU32,
    lose: Arc<Notify>,
}

fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl Flaky {
    /// No write under `prefix` fails until it is said how many do.
    pub(crate) fn new(prefix: &'static str) -> Self {
        let none = || AtomicU32::new(0);
        Self { prefix, pass: none(), writes: none(), watches: none(), lose: Arc::default() }
    }

    fn passes<'a>(&self, key: &str, asked: Asked<'a, u64>) -> Asked<'a, u64> {
        if !key.starts_with(self.prefix) || take(&self.pass) || !take(&self.writes) {
            return asked;
        }
        let full = StoreError::CannotWrite { path: "store.redb".into(), cause: "no space left".into() };
        Box::pin(async { Err(full) })
    }
}

impl Between for Flaky {
    fn put<'a>(&'a self, key: &'a str, asked: Asked<'a, u64>) -> Asked<'a, u64> {
        self.passes(key, asked)
    }
    fn delete<'a>(&'a self, key: &'a str, asked: Asked<'a, u64>) -> Asked<'a, u64> {
        self.passes(key, asked)
    }
    fn watch(
        &self,
        prefix: &str,
        changes: BoxStream<'static, Result<Change, StoreError>>,
    ) -> BoxStream<'static, Result<Change, StoreError>> {
        let lost = StoreError::Compacted { asked: 0, oldest: 1 };
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
}

#[tokio::test(flavor = "multi_thread")]
async fn assignments_follow_although_writes_fail_and_watches_end() {
    let mut rig = Rig::new().await;
    let (writes, watches) = (AtomicU32::new(4), AtomicU32::new(3));
    let flaky = Through::new(&rig.store, Flaky { writes, watches, ..Flaky::new(store::keys::ASSIGNED) });
    rig.restart_over(flaky.clone(), Nodes::default()).await;
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
    rig.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_the_deploy_and_leaves_the_app_as_it_was() {
    let mut rig = Rig::new().await;
    for (prefix, left) in [(store::keys::REVISIONS, 1), (store::keys::APPS, 2)] {
        let flaky = Through::new(&rig.store, Flaky::new(prefix));
        rig.restart_over(flaky.clone(), Nodes::default()).await;
        let request = DeployRequest { app: locked("counter", &rig.artifact(1).await), message: None };
        flaky.writes.store(left, Ordering::SeqCst);
        let deploy = || rig.client.deploy(&rig.tenant, &request.app.name, &request, Require::Absent, None);
        for _ in 0..left {
            assert_eq!(refused(deploy().await).code, Code::StoreUnavailable);
            assert_eq!(refused(rig.client.app(&rig.tenant, &request.app.name).await).code, Code::NotFound);
        }
        let accepted = deploy().await.unwrap();
        rig.assigned("counter", |a| a.is_some_and(|a| a.revision == accepted.revision)).await;
        rig.client.delete_app(&rig.tenant, &request.app.name, Require::Any).await.unwrap();
        rig.assigned("counter", |a| a.is_none()).await;
    }
    rig.shutdown().await;
    let node: Option<Node> = rig.node.take();
    node.unwrap().lose().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_lost_leaves_a_move_of_data_what_it_holds() {
    let mut rig = Rig::new().await;
    rig.deploy("counter", 1).await;
    rig.until(Some("0".into()), |e| e.data["phase"] == "serving").await;
    let (flaky, page) = (Through::new(&rig.store, Flaky::new("none")), Arc::<Inside>::default());
    let nodes = Nodes { copied: Some(Arc::default()), page: Some(page.clone()), ..Nodes::default() };
    rig.restart_over(flaky.clone(), nodes).await;
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
    flaky.lose.notify_one();
    collect(&mut events, |e| e.kind == event::MISSED).await;
    assert_eq!(refused(link().await).code, Code::Conflict, "the data are still being moved");
    page.go_on.store(true, Ordering::SeqCst);
    rig.shutdown().await;
}
