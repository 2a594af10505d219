//! Messages that are kept on disk belong to the app they were kept for, not to its name.

use std::sync::Arc;
use std::time::Duration;

use api::services::messaging::{BrokerKind, MessagingAnswer, MessagingRequest, WireMessage};
use model::{AppName, LockedApp, TenantName};
use node::messaging::{Declared, Holder, Messaging, declared};
use store::data::{Answer, DataEngine, Op};

fn tenant() -> TenantName {
    "t".parse().unwrap()
}

fn app() -> AppName {
    "shop".parse().unwrap()
}

/// What an app with one durable subscription takes.
fn takes() -> Vec<Declared> {
    let text = serde_json::json!({
        "name": "shop",
        "components": {"web": {"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
            "exports": ["wasmcloud:messaging/handler@0.2.0"]}},
        "links": [{"component": "web", "contract": "wasmcloud:messaging", "label": "default", "provider": "durable",
            "config": {"subscriptions": "orders"}}],
    });
    let app: LockedApp = serde_json::from_value(text).unwrap();
    let found = declared(&app);
    assert_eq!(found.len(), 1);
    found
}

fn group() -> String {
    "web.default".to_owned()
}

async fn publish(messaging: &Arc<Messaging>, holder: &Holder, body: &str) {
    let message = WireMessage { subject: "orders".into(), body: body.into(), reply_to: None };
    let request = MessagingRequest::Publish { broker: BrokerKind::Durable, message };
    assert_eq!(messaging.answer(&tenant(), &app(), holder, request).await.unwrap(), MessagingAnswer::Done);
}

async fn bodies(messaging: &Arc<Messaging>, holder: &Holder) -> Vec<String> {
    let request = MessagingRequest::Take { broker: BrokerKind::Durable, group: group(), max: 10 };
    match messaging.answer(&tenant(), &app(), holder, request).await.unwrap() {
        MessagingAnswer::Taken(taken) => {
            taken.into_iter().map(|one| String::from_utf8(one.message.body.to_vec()).unwrap()).collect()
        }
        other => panic!("{other:?}"),
    }
}

async fn on_disk(data: &DataEngine) -> usize {
    let provider = "durable".parse().unwrap();
    let op = Op::ListKeys { cursor: None, limit: 100 };
    match data.call(&tenant(), &app(), &provider, &group(), op).await.unwrap() {
        Answer::Keys { keys, .. } => keys.len(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_app_of_a_name_gets_no_message_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let messaging = Messaging::new(data.clone());
    let holder = messaging.holder(&tenant());
    messaging.declare(&tenant(), &app(), &takes());
    for body in ["old 1", "old 2"] {
        publish(&messaging, &holder, body).await;
    }
    assert_eq!(on_disk(&data).await, 2);
    // The next app of that name is there at once, before anything of the first one is gone from the disk.
    let cleared = messaging.forget(&tenant(), &app());
    messaging.declare(&tenant(), &app(), &takes());
    publish(&messaging, &holder, "new").await;
    assert_eq!(bodies(&messaging, &holder).await, ["new"]);
    tokio::time::timeout(Duration::from_secs(10), cleared).await.unwrap();
    assert_eq!(on_disk(&data).await, 1, "the new one waits for its handler");
    // After a restart of the node nothing else comes either.
    drop(holder);
    let again = Messaging::new(data.clone());
    let holder = again.holder(&tenant());
    again.declare(&tenant(), &app(), &takes());
    assert_eq!(bodies(&again, &holder).await, ["new"]);
    again.forget(&tenant(), &app()).await;
    assert_eq!(on_disk(&data).await, 0);
}
