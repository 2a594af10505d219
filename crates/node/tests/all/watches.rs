//! The queues of watches: one change at a time, in order, told again when it failed, kept where the keys are kept.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::services::ServiceFault;
use api::services::messaging::{BrokerKind, Handed, MessagingAnswer, MessagingRequest, Settled, WireMessage};
use model::{AppName, LockedApp, TenantName};
use node::messaging::{Holder, Messaging, declared};
use store::data::DataEngine;

const GROUP: &str = "watch.w.default";

struct Rig {
    messaging: Arc<Messaging>,
    kind: BrokerKind,
}

fn tenant() -> TenantName {
    "t".parse().unwrap()
}

fn app() -> AppName {
    "a".parse().unwrap()
}

fn watching(provider: &str) -> LockedApp {
    serde_json::from_str(&format!(
        r#"{{"name":"a","components":{{"w":{{"digest":"sha256:{:064}","size":1,"world":"p2","imports":[],"exports":[]}}}},
            "links":[{{"component":"w","contract":"wasi:keyvalue","label":"default","provider":"{provider}",
                       "config":{{"watch":"*"}}}}]}}"#,
        0
    ))
    .unwrap()
}

impl Rig {
    fn start(dir: &Path, provider: &str, kind: BrokerKind) -> Self {
        let messaging = Messaging::new(DataEngine::open(dir.join("data.redb")).unwrap());
        messaging.declare(&tenant(), &app(), &declared(&watching(provider)));
        Self { messaging, kind }
    }

    async fn ask(&self, holder: &Holder, request: MessagingRequest) -> Result<MessagingAnswer, ServiceFault> {
        self.messaging.answer(&tenant(), &app(), holder, request).await
    }

    async fn tell(&self, holder: &Holder, keys: &[&str]) -> Result<MessagingAnswer, ServiceFault> {
        let message = |key: &&str| WireMessage {
            subject: "watch".into(),
            body: key.as_bytes().to_vec(),
            reply_to: None,
            trace: None,
        };
        let messages = keys.iter().map(message).collect();
        self.ask(holder, MessagingRequest::Tell { broker: self.kind, group: GROUP.into(), messages }).await
    }

    /// What is handed out at once, or within `wait`.
    async fn take(&self, holder: &Holder, wait: Duration) -> Vec<Handed> {
        let request = MessagingRequest::Take { broker: self.kind, group: GROUP.into(), max: 10 };
        match tokio::time::timeout(wait, self.ask(holder, request)).await {
            Err(_) => Vec::new(),
            Ok(Ok(MessagingAnswer::Taken(taken))) => taken,
            Ok(other) => panic!("{other:?}"),
        }
    }

    async fn next(&self, holder: &Holder) -> (String, u32, u64) {
        let mut taken = self.take(holder, Duration::from_secs(60)).await;
        assert_eq!(taken.len(), 1, "one at a time");
        let one = taken.remove(0);
        (String::from_utf8(one.message.body).unwrap(), one.tries, one.delivery)
    }

    async fn settle(&self, holder: &Holder, delivery: u64, outcome: Settled) {
        let settle = MessagingRequest::Settle { broker: self.kind, group: GROUP.into(), delivery, outcome };
        assert_eq!(self.ask(holder, settle).await.unwrap(), MessagingAnswer::Done);
    }
}

const SOON: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_told_one_by_one_in_order_to_whichever_shard() {
    for (provider, kind) in [("memory", BrokerKind::Local), ("embedded", BrokerKind::Durable)] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path(), provider, kind);
        let (one, two) = (rig.messaging.holder(&tenant()), rig.messaging.holder(&tenant()));
        for key in ["a", "b", "c"] {
            assert_eq!(rig.tell(&one, &[key]).await.unwrap(), MessagingAnswer::Done);
        }
        let (key, _, first) = rig.next(&one).await;
        assert_eq!(key, "a");
        assert!(rig.take(&two, SOON).await.is_empty(), "while one is out, nobody gets another");
        // Whoever waits gets the next as soon as that is settled.
        let (next, ()) = tokio::join!(rig.next(&two), rig.settle(&one, first, Settled::Done));
        assert_eq!((next.0.as_str(), next.1), ("b", 1));
        // It failed: others overtake it, and it comes again.
        rig.settle(&two, next.2, Settled::Again { after_ms: 6000 }).await;
        let (key, _, third) = rig.next(&one).await;
        assert_eq!(key, "c");
        rig.settle(&one, third, Settled::Done).await;
        let (key, tries, _) = rig.next(&one).await;
        assert_eq!((key.as_str(), tries), ("b", 2));
        // A shard that is gone leaves it to the others at once.
        let (again, ()) = tokio::join!(rig.next(&two), async { one.leave() });
        assert_eq!((again.0.as_str(), again.1), ("b", 3));
        rig.settle(&two, again.2, Settled::PutAway { subject: None }).await;
        assert!(rig.take(&two, SOON).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_puts_changes_into_the_queue_of_a_watch() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), "memory", BrokerKind::Local);
    let holder = rig.messaging.holder(&tenant());
    let message = WireMessage { subject: "watch".into(), body: b"x".to_vec(), reply_to: None, trace: None };
    let publish = MessagingRequest::Publish { broker: BrokerKind::Local, message: message.clone() };
    assert_eq!(rig.ask(&holder, publish).await.unwrap(), MessagingAnswer::Done);
    // The same queue of another app is another queue, and one that nobody has takes nothing.
    let tell = MessagingRequest::Tell { broker: BrokerKind::Local, group: GROUP.into(), messages: vec![message] };
    let other: AppName = "b".parse().unwrap();
    assert_eq!(rig.messaging.answer(&tenant(), &other, &holder, tell).await.unwrap(), MessagingAnswer::Done);
    assert!(rig.take(&holder, SOON).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_so_and_what_is_on_disk_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let rig = Rig::start(dir.path(), "memory", BrokerKind::Local);
        let holder = rig.messaging.holder(&tenant());
        let keys = vec!["k"; 1000];
        for _ in 0..10 {
            rig.tell(&holder, &keys).await.unwrap();
        }
        assert!(matches!(rig.tell(&holder, &["k"]).await, Err(ServiceFault::Unavailable(why)) if why.contains("full")));
    }
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), "embedded", BrokerKind::Durable);
    let holder = rig.messaging.holder(&tenant());
    rig.tell(&holder, &["a"]).await.unwrap();
    rig.tell(&holder, &["b"]).await.unwrap();
    let (_, _, first) = rig.next(&holder).await;
    rig.settle(&holder, first, Settled::Done).await;
    drop((holder, rig));
    // The file is free once every task that had it open is gone.
    let started = std::time::Instant::now();
    let data = loop {
        match DataEngine::open(dir.path().join("data.redb")) {
            Ok(data) => break data,
            Err(cause) => assert!(started.elapsed() < Duration::from_secs(60), "{cause}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let messaging = Messaging::new(data);
    messaging.declare(&tenant(), &app(), &declared(&watching("embedded")));
    let rig = Rig { messaging, kind: BrokerKind::Durable };
    let holder = rig.messaging.holder(&tenant());
    assert_eq!(rig.next(&holder).await.0, "b");
}
