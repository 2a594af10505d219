//! The node's brokers of messages, asked the way a host asks them: over a socket, by the client of hosts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::services::client::{CallsClient, NodeWay};
use api::services::messaging::BrokerKind;
use host::NodeBroker;
use model::LockedApp;
use model::messaging::{Subscription, subscriptions};
use node::messaging::{Messaging, declared};
use providers::messaging::conformance;
use providers::messaging::{Backend, BackendError, Delivery, Message, Outcome};
use store::data::DataEngine;

use crate::blobstore::way_to;

struct Rig {
    app: LockedApp,
    messaging: Arc<Messaging>,
    node: NodeWay,
    calls: Arc<CallsClient>,
    kind: BrokerKind,
}

impl Rig {
    async fn start(dir: &Path, provider: &str, kind: BrokerKind) -> Self {
        let data = DataEngine::open(dir.join("data.redb")).unwrap();
        let messaging = Messaging::new(data.clone());
        let app = conformance::app(provider).unwrap();
        let node = way_to(dir, data, messaging.clone()).await;
        let calls = Arc::new(CallsClient::new(node.clone(), Duration::from_secs(30)));
        let rig = Self { app, messaging, node, calls, kind };
        rig.declare(&rig.app);
        rig
    }

    fn declare(&self, app: &LockedApp) {
        self.messaging.declare(&"acme".parse().unwrap(), &app.name, &declared(app));
    }

    fn backend(&self) -> NodeBroker {
        NodeBroker::new(self.calls.clone(), self.app.name.clone(), self.kind)
    }

    fn subscription(&self, label: &str) -> Arc<Subscription> {
        Arc::new(subscriptions(&self.app).find(|(link, _)| link.label.as_str() == label).unwrap().1)
    }

    async fn send(&self, body: &str) -> Result<(), BackendError> {
        let body = body.as_bytes().to_vec();
        self.backend().publish(Message { subject: "conf.other".to_owned(), body, reply_to: None }).await
    }

    async fn next(&self) -> Delivery {
        let mut deliveries = self.backend().subscribe(self.subscription("work")).await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), deliveries.next()).await.unwrap().unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_brokers_conform() {
    for (provider, kind) in [("local", BrokerKind::Local), ("durable", BrokerKind::Durable)] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path(), provider, kind).await;
        if let Err(mismatch) = conformance::run(&rig.backend()).await {
            panic!("{provider}: {mismatch}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_connection_held_comes_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), "local", BrokerKind::Local).await;
    rig.send("held").await.unwrap();
    let other = Arc::new(CallsClient::new(rig.node.clone(), Duration::from_secs(30)));
    let first = {
        let dying = NodeBroker::new(other.clone(), rig.app.name.clone(), BrokerKind::Local);
        let mut deliveries = dying.subscribe(rig.subscription("work")).await.unwrap();
        deliveries.next().await.unwrap().unwrap()
    };
    let id = first.id.clone();
    // The delivery, its subscription and the client go: so does the connection.
    drop((first, other));
    let again = rig.next().await;
    assert_eq!((again.id, again.tries), (id, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_link_moved_gives_out_what_it_holds_and_takes_no_more() {
    let (of, to) = (("local", BrokerKind::Local), ("durable", BrokerKind::Durable));
    for ((from, kind), to) in [(of, to.0), (to, of.0)] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path(), from, kind).await;
        rig.send("before").await.unwrap();
        rig.declare(&conformance::app(to).unwrap());
        rig.send("after").await.unwrap();
        let mut left = rig.backend().subscribe(rig.subscription("work")).await.unwrap();
        let before = left.next().await.unwrap().unwrap();
        assert_eq!(before.message.body, b"before");
        before.settle.settle(Outcome::Done).await.unwrap();
        assert!(left.next().await.is_none(), "nothing is left, and nothing will come");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_no_link_names_any_more_is_gone_with_what_it_holds() {
    for (provider, kind) in [("local", BrokerKind::Local), ("durable", BrokerKind::Durable)] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path(), provider, kind).await;
        rig.send("before").await.unwrap();
        rig.declare(&LockedApp { links: Vec::new(), ..rig.app.clone() });
        let mut left = rig.backend().subscribe(rig.subscription("work")).await.unwrap();
        assert!(left.next().await.is_none(), "nobody would ever take it");
        // The next link of the name begins with nothing.
        rig.declare(&rig.app);
        rig.send("new").await.unwrap();
        assert_eq!(rig.next().await.message.body, b"new");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), "local", BrokerKind::Local).await;
    let mib = "x".repeat(1 << 20);
    let mut sent = 0;
    let why = loop {
        match rig.send(&mib).await {
            Ok(()) => sent += 1,
            Err(why) => break why,
        }
    };
    // Each of them waits in two queues.
    assert!((30..32).contains(&sent), "{sent}");
    let told = "wait for the handlers of this tenant";
    assert!(matches!(&why, BackendError::Unavailable(text) if text.contains(told)), "{why:?}");
    for label in ["work", "audit"] {
        let mut deliveries = rig.backend().subscribe(rig.subscription(label)).await.unwrap();
        deliveries.next().await.unwrap().unwrap().settle.settle(Outcome::Done).await.unwrap();
    }
    rig.send(&mib).await.unwrap();
}
