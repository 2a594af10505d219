//! Messages that are kept on disk belong to the app they were kept for, not to its name.

use std::sync::Arc;
use std::time::Duration;

use api::services::messaging::{BrokerKind, MessagingAnswer, MessagingRequest, Settled, WireMessage};
use futures::FutureExt as _;
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
    // And what hosts may have left before the link went here.
    assert_eq!(found.len(), 2);
    found
}

fn group() -> String {
    "web.default".to_owned()
}

async fn publish(messaging: &Arc<Messaging>, holder: &Holder, body: &str) {
    let message = WireMessage { subject: "orders".into(), body: body.into(), reply_to: None, trace: None };
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
    tokio::time::timeout(Duration::from_secs(60), cleared).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_calls_wait_for_the_messages_of_one_group_and_one_more_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let messaging = Messaging::new(DataEngine::open(dir.path().join("data.redb")).unwrap());
    messaging.declare(&tenant(), &app(), &takes());
    let holder = Arc::new(messaging.holder(&tenant()));
    let take = || {
        let request = MessagingRequest::Take { broker: BrokerKind::Durable, group: group(), max: 1 };
        let (messaging, holder) = (messaging.clone(), holder.clone());
        Box::pin(async move { messaging.answer(&tenant(), &app(), &holder, request).await })
    };
    let mut waiting: Vec<_> = (0..1024).map(|_| take()).collect();
    for one in &mut waiting {
        assert!(one.now_or_never().is_none());
    }
    assert!(take().now_or_never().unwrap().is_err());
    // Whoever gives up leaves its place to the next one.
    waiting.pop();
    let mut next = take();
    assert!((&mut next).now_or_never().is_none());
    publish(&messaging, &holder, "one").await;
    drop(waiting);
    assert!(matches!(next.await.unwrap(), MessagingAnswer::Taken(taken) if taken.len() == 1));
}

/// Takes one message; its id and which try it is.
async fn take(messaging: &Arc<Messaging>, holder: &Holder) -> (String, u32, u64) {
    let request = MessagingRequest::Take { broker: BrokerKind::Durable, group: group(), max: 1 };
    match messaging.answer(&tenant(), &app(), holder, request).await.unwrap() {
        MessagingAnswer::Taken(taken) => (taken[0].id.clone(), taken[0].tries, taken[0].delivery),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_often_a_message_was_handed_out_outlives_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let start = || {
        let messaging = Messaging::new(data.clone());
        messaging.declare(&tenant(), &app(), &takes());
        messaging
    };
    let messaging = start();
    publish(&messaging, &messaging.holder(&tenant()), "poison").await;
    for tries in 1..=5 {
        // The host ends with it in its hands.
        let holder = messaging.holder(&tenant());
        assert_eq!(take(&messaging, &holder).await.1, tries);
    }
    // And so does the node.
    drop(messaging);
    let messaging = start();
    let holder = messaging.holder(&tenant());
    let (_, tries, delivery) = take(&messaging, &holder).await;
    assert_eq!(tries, 6);
    let settle = |delivery, outcome| {
        let request = MessagingRequest::Settle { broker: BrokerKind::Durable, group: group(), delivery, outcome };
        let (messaging, holder) = (messaging.clone(), &holder);
        async move { messaging.answer(&tenant(), &app(), holder, request).await.unwrap() }
    };
    settle(delivery, Settled::GivenBack).await;
    let again = start();
    let (_, tries, _) = take(&again, &again.holder(&tenant())).await;
    assert_eq!(tries, 6, "one that was given back was not tried");
    let (_, _, delivery) = take(&messaging, &holder).await;
    settle(delivery, Settled::Done).await;
    assert_eq!(on_disk(&data).await, 0, "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_delivered_is_numbered_for_each_tenant_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let messaging = Messaging::new(data.clone());
    let (one, other): (TenantName, TenantName) = (tenant(), "other".parse().unwrap());
    let (mine, theirs) = (messaging.holder(&one), messaging.holder(&other));
    for whose in [&one, &other] {
        messaging.declare(whose, &app(), &takes());
    }
    let mut numbers = Vec::new();
    for others in [0, 3, 20] {
        for _ in 0..others {
            let message = WireMessage { subject: "orders".into(), body: b"theirs".into(), reply_to: None, trace: None };
            let request = MessagingRequest::Publish { broker: BrokerKind::Durable, message };
            messaging.answer(&other, &app(), &theirs, request).await.unwrap();
        }
        publish(&messaging, &mine, "mine").await;
        let request = MessagingRequest::Take { broker: BrokerKind::Durable, group: group(), max: 10 };
        let taken = messaging.answer(&one, &app(), &mine, request).await.unwrap();
        let MessagingAnswer::Taken(taken) = taken else { panic!("{taken:?}") };
        assert_eq!(taken.len(), 1);
        // The id is its time, a number, and which process gave it.
        numbers.push((taken[0].delivery, u64::from_str_radix(&taken[0].id[12..24], 16).unwrap()));
    }
    let steps: Vec<_> = numbers.windows(2).map(|two| (two[1].0 - two[0].0, two[1].1 - two[0].1)).collect();
    assert_eq!(steps[0], steps[1], "whatever the other tenant sends: {numbers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_queues_of_a_tenant_together_hold_only_so_much() {
    let dir = tempfile::tempdir().unwrap();
    let messaging = Messaging::new(DataEngine::open(dir.path().join("data.redb")).unwrap());
    let holder = messaging.holder(&tenant());
    let apps: Vec<AppName> = (0..3).map(|n| format!("shop-{n}").parse().unwrap()).collect();
    for app in &apps {
        messaging.declare(&tenant(), app, &takes_of(app));
    }
    let body = vec![0; 1 << 20];
    let send = async |tenant: &TenantName| {
        let message = WireMessage { subject: "orders".into(), body: body.clone(), reply_to: None, trace: None };
        let request = MessagingRequest::Publish { broker: BrokerKind::Local, message };
        messaging.answer(tenant, &apps[0], &holder, request).await
    };
    // Each goes to three groups, none of which is full by itself.
    for _ in 0..21 {
        send(&tenant()).await.unwrap();
    }
    let refused = send(&tenant()).await.unwrap_err().to_string();
    assert!(refused.contains("wait for the handlers of this tenant"), "{refused}");
    let other: TenantName = "other".parse().unwrap();
    messaging.declare(&other, &apps[0], &takes_of(&apps[0]));
    send(&other).await.unwrap();
    // What is handled makes room.
    for app in &apps {
        let take = MessagingRequest::Take { broker: BrokerKind::Local, group: group(), max: 1 };
        let taken = messaging.answer(&tenant(), app, &holder, take).await.unwrap();
        let MessagingAnswer::Taken(taken) = taken else { panic!("{taken:?}") };
        let (broker, group, delivery) = (BrokerKind::Local, group(), taken[0].delivery);
        let settle = MessagingRequest::Settle { broker, group, delivery, outcome: Settled::Done };
        messaging.answer(&tenant(), app, &holder, settle).await.unwrap();
    }
    send(&tenant()).await.unwrap();
}

#[tokio::test]
async fn what_a_host_leaves_is_kept_for_links_whose_broker_keeps_none() {
    let dir = tempfile::tempdir().unwrap();
    let messaging = Messaging::new(DataEngine::open(dir.path().join("data.redb")).unwrap());
    let (one, other) = (messaging.holder(&tenant()), messaging.holder(&tenant()));
    let app: AppName = "shop".parse().unwrap();
    let message =
        || WireMessage { subject: "orders".into(), body: b"hat".to_vec(), reply_to: Some("a.b".into()), trace: None };
    let leave = || MessagingRequest::Leave { group: group(), message: message() };
    let untried = || format!("{}/untried", group());
    let take = || MessagingRequest::Take { broker: BrokerKind::Local, group: untried(), max: 10 };
    let answer = messaging.answer(&tenant(), &app, &one, leave()).await;
    assert_eq!(answer, Ok(MessagingAnswer::NotSubscribed), "no link takes it");
    messaging.declare(&tenant(), &app, &takes_by(&app, "bus"));
    assert_eq!(messaging.answer(&tenant(), &app, &one, leave()).await, Ok(MessagingAnswer::Done));
    // Nothing that is published comes there.
    let publish = MessagingRequest::Publish { broker: BrokerKind::Local, message: message() };
    messaging.answer(&tenant(), &app, &one, publish).await.unwrap();
    let taken = messaging.answer(&tenant(), &app, &other, take()).await.unwrap();
    let MessagingAnswer::Taken(taken) = taken else { panic!("{taken:?}") };
    assert_eq!(taken.iter().map(|one| (&one.message, one.tries)).collect::<Vec<_>>(), [(&message(), 1)]);
    // Also for a revision that takes no such messages any more, as far as they are there.
    let (broker, delivery, outcome) = (BrokerKind::Local, taken[0].delivery, Settled::GivenBack);
    let settle = MessagingRequest::Settle { broker, group: untried(), delivery, outcome };
    messaging.answer(&tenant(), &app, &other, settle).await.unwrap();
    messaging.declare(&tenant(), &app, &takes_of(&app));
    let taken = messaging.answer(&tenant(), &app, &one, take()).await.unwrap();
    assert!(matches!(&taken, MessagingAnswer::Taken(taken) if taken.len() == 1 && taken[0].tries == 1), "{taken:?}");
    // What comes later is where the link goes now.
    assert_eq!(messaging.answer(&tenant(), &app, &one, leave()).await, Ok(MessagingAnswer::Done));
    let take_own = MessagingRequest::Take { broker: BrokerKind::Local, group: group(), max: 10 };
    let own = messaging.answer(&tenant(), &app, &one, take_own).await.unwrap();
    assert!(matches!(&own, MessagingAnswer::Taken(own) if own.len() == 1), "{own:?}");
    let MessagingAnswer::Taken(taken) = taken else { unreachable!() };
    let (delivery, outcome) = (taken[0].delivery, Settled::Done);
    let settle = MessagingRequest::Settle { broker, group: untried(), delivery, outcome };
    messaging.answer(&tenant(), &app, &one, settle).await.unwrap();
    let end = messaging.answer(&tenant(), &app, &one, take()).await;
    assert_eq!(end, Ok(MessagingAnswer::NotSubscribed), "nothing of it is left");
}

#[tokio::test]
async fn what_a_host_left_of_a_link_that_is_gone_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let messaging = Messaging::new(DataEngine::open(dir.path().join("data.redb")).unwrap());
    let holder = messaging.holder(&tenant());
    let (app, other): (AppName, AppName) = ("shop".parse().unwrap(), "other".parse().unwrap());
    messaging.declare(&tenant(), &app, &takes_by(&app, "bus"));
    messaging.declare(&tenant(), &other, &takes_of(&other));
    let message = || WireMessage { subject: "orders".into(), body: vec![0; 1 << 20], reply_to: None, trace: None };
    let leave = || MessagingRequest::Leave { group: group(), message: message() };
    while messaging.answer(&tenant(), &app, &holder, leave()).await.is_ok() {}
    let publish = || MessagingRequest::Publish { broker: BrokerKind::Local, message: message() };
    let refused = messaging.answer(&tenant(), &other, &holder, publish()).await.unwrap_err().to_string();
    assert!(refused.contains("wait for the handlers of this tenant"), "{refused}");
    messaging.declare(&tenant(), &app, &[]);
    assert_eq!(messaging.answer(&tenant(), &other, &holder, publish()).await, Ok(MessagingAnswer::Done));
}

/// Waits until nothing of the app's group is on disk any more.
async fn until_nothing_is_on_disk(data: &DataEngine) {
    let gone = async {
        while on_disk(data).await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it is removed");
}

async fn take_all(messaging: &Arc<Messaging>, holder: &Holder, group: &str) -> MessagingAnswer {
    let request = MessagingRequest::Take { broker: BrokerKind::Durable, group: group.to_owned(), max: 10 };
    messaging.answer(&tenant(), &app(), holder, request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_moved_link_left_on_disk_is_handed_out_after_a_restart_of_the_node() {
    for provider in ["local", "bus", "stream", "program"] {
        let dir = tempfile::tempdir().unwrap();
        let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
        let before = Messaging::new(data.clone());
        before.declare(&tenant(), &app(), &takes());
        let holder = before.holder(&tenant());
        for body in ["one", "two"] {
            publish(&before, &holder, body).await;
        }
        // The link moves, and before anything of the old queue is handled the node ends.
        before.declare(&tenant(), &app(), &takes_by(&app(), provider));
        drop((before, holder));
        let after = Messaging::new(data.clone());
        after.declare(&tenant(), &app(), &takes_by(&app(), provider));
        let holder = after.holder(&tenant());
        let MessagingAnswer::Taken(taken) = take_all(&after, &holder, &group()).await else { panic!("{provider}") };
        let bodies: Vec<_> = taken.iter().map(|one| one.message.body.clone()).collect();
        assert_eq!(bodies, [b"one", b"two"], "{provider}");
        // Nothing new comes there.
        let message = WireMessage { subject: "orders".into(), body: b"new".to_vec(), reply_to: None, trace: None };
        let request = MessagingRequest::Publish { broker: BrokerKind::Durable, message };
        after.answer(&tenant(), &app(), &holder, request).await.unwrap();
        for one in taken {
            let (broker, group, delivery) = (BrokerKind::Durable, group(), one.delivery);
            let request = MessagingRequest::Settle { broker, group, delivery, outcome: Settled::Done };
            after.answer(&tenant(), &app(), &holder, request).await.unwrap();
        }
        assert_eq!(take_all(&after, &holder, &group()).await, MessagingAnswer::NotSubscribed, "{provider}");
        assert_eq!(on_disk(&data).await, 0, "{provider}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_waited_on_disk_are_told_after_a_move_and_a_restart() {
    let watch = |provider: &str| {
        let text = serde_json::json!({
            "name": "shop",
            "components": {"web": {"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
                "exports": ["wasi:keyvalue/watcher@0.2.0-draft"]}},
            "providers": {"cache": {"type": "keyvalue-redis"}},
            "links": [{"component": "web", "contract": "wasi:keyvalue", "label": "default", "provider": provider,
                "config": {"watch": "*"}}],
        });
        declared(&serde_json::from_value::<LockedApp>(text).unwrap())
    };
    let dir = tempfile::tempdir().unwrap();
    let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let name = "watch.web.default";
    let before = Messaging::new(data.clone());
    before.declare(&tenant(), &app(), &watch("embedded"));
    let message = WireMessage { subject: "watch".into(), body: b"key".to_vec(), reply_to: None, trace: None };
    let tell = MessagingRequest::Tell { broker: BrokerKind::Durable, group: name.into(), messages: vec![message] };
    before.answer(&tenant(), &app(), &before.holder(&tenant()), tell).await.unwrap();
    drop(before);
    for provider in ["memory", "cache"] {
        let after = Messaging::new(data.clone());
        after.declare(&tenant(), &app(), &watch(provider));
        let holder = after.holder(&tenant());
        let taken = take_all(&after, &holder, name).await;
        let MessagingAnswer::Taken(taken) = taken else { panic!("{provider}: {taken:?}") };
        assert_eq!(taken.iter().map(|one| &one.message.body[..]).collect::<Vec<_>>(), [b"key"], "{provider}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_link_names_any_more_takes_no_room_and_leaves_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let messaging = Messaging::new(data.clone());
    let holder = messaging.holder(&tenant());
    messaging.declare(&tenant(), &app(), &takes());
    let full = || WireMessage { subject: "orders".into(), body: vec![0; 1 << 20], reply_to: None, trace: None };
    let publish = || MessagingRequest::Publish { broker: BrokerKind::Durable, message: full() };
    while messaging.answer(&tenant(), &app(), &holder, publish()).await.is_ok() {}
    let other: AppName = "other".parse().unwrap();
    let theirs: Vec<Declared> = takes_by(&other, "durable");
    messaging.declare(&tenant(), &other, &theirs);
    let refused = messaging.answer(&tenant(), &other, &holder, publish()).await.unwrap_err().to_string();
    assert!(refused.contains("is full") || refused.contains("wait for the handlers of this tenant"), "{refused}");
    // The component is removed, or has another name.
    messaging.declare(&tenant(), &app(), &[]);
    assert_eq!(messaging.answer(&tenant(), &other, &holder, publish()).await, Ok(MessagingAnswer::Done));
    assert_eq!(take_all(&messaging, &holder, &group()).await, MessagingAnswer::NotSubscribed);
    until_nothing_is_on_disk(&data).await;
    // One that comes back takes what comes from then on, and is not swept away.
    messaging.declare(&tenant(), &app(), &takes());
    self::publish(&messaging, &holder, "new").await;
    assert_eq!(bodies(&messaging, &holder).await, ["new"]);
    assert_eq!(on_disk(&data).await, 1);
    // A node that ends before all of it is removed goes on with it.
    drop((messaging, holder));
    let again = Messaging::new(data.clone());
    again.declare(&tenant(), &app(), &[]);
    until_nothing_is_on_disk(&data).await;
    let list = Op::ListKeys { cursor: None, limit: 9 };
    let theirs = data.call(&tenant(), &other, &"durable".parse().unwrap(), &group(), list).await;
    assert!(matches!(theirs, Ok(Answer::Keys { keys, .. }) if keys.len() == 2), "what others have stays");
}

/// What an app with one subscription in memory takes.
fn takes_of(name: &AppName) -> Vec<Declared> {
    takes_by(name, "local")
}

fn takes_by(name: &AppName, provider: &str) -> Vec<Declared> {
    let text = serde_json::json!({
        "name": name,
        "components": {"web": {"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
            "exports": ["wasmcloud:messaging/handler@0.2.0"]}},
        "providers": {"bus": {"type": "messaging-nats"}, "stream": {"type": "messaging-jetstream"},
            "program": {"type": "external", "contract": "wasmcloud:messaging"}},
        "links": [{"component": "web", "contract": "wasmcloud:messaging", "label": "default", "provider": provider,
            "config": {"subscriptions": "orders"}}],
    });
    declared(&serde_json::from_value::<LockedApp>(text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_put_away_yet_waits_and_is_not_handed_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let messaging = Messaging::new(DataEngine::open(dir.path().join("data.redb")).unwrap());
    let link = |component: &str, subject: &str| {
        serde_json::json!({"component": component, "contract": "wasmcloud:messaging", "label": "default",
            "provider": "local", "config": {"subscriptions": subject}})
    };
    let component = serde_json::json!({"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
        "exports": ["wasmcloud:messaging/handler@0.2.0"]});
    let text = serde_json::json!({"name": "shop", "components": {"web": component, "grave": component},
        "links": [link("grave", "dead.>"), link("web", "orders")]});
    let locked: LockedApp = serde_json::from_value(text).unwrap();
    messaging.declare(&tenant(), &app(), &declared(&locked));
    let holder = messaging.holder(&tenant());
    let broker = BrokerKind::Local;
    let ask = async |holder: &Holder, request| messaging.answer(&tenant(), &app(), holder, request).await;
    let publish = async |subject: &str, body: &str| {
        let message = WireMessage { subject: subject.into(), body: body.into(), reply_to: None, trace: None };
        ask(&holder, MessagingRequest::Publish { broker, message }).await
    };
    let take = async |holder: &Holder, group: &str, max| match ask(
        holder,
        MessagingRequest::Take { broker, group: group.to_owned(), max },
    )
    .await
    .unwrap()
    {
        MessagingAnswer::Taken(taken) => taken,
        other => panic!("{other:?}"),
    };
    let settle = async |group: &str, delivery, outcome| {
        ask(&holder, MessagingRequest::Settle { broker, group: group.to_owned(), delivery, outcome }).await
    };
    while publish("dead.orders", "old").await.is_ok() {}
    publish("orders", "poison").await.unwrap();
    let delivery = take(&holder, "web.default", 1).await[0].delivery;
    let subject = Some("dead.orders".to_owned());
    let told = settle("web.default", delivery, Settled::PutAway { subject }).await;
    assert_eq!(told, Ok(MessagingAnswer::Done), "it is the broker's now");
    // Also when who had it is gone.
    holder.leave();
    let another = messaging.holder(&tenant());
    let again = tokio::time::timeout(Duration::from_secs(2), take(&another, "web.default", 1)).await;
    assert!(again.is_err(), "{again:?}");
    let found = async {
        loop {
            for one in take(&another, "grave.default", 64).await {
                settle("grave.default", one.delivery, Settled::Done).await.unwrap();
                if one.message.body == b"poison" {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), found).await.expect("it is put away when there is room");
}

/// As a host left it that could write there, or a node whose queues held more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_beyond_what_a_queue_holds_comes_when_most_of_that_is_handled() {
    let _measures = crate::services::MEASURES.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
    // With what is around them 63 messages of a MiB are within 64 MiB.
    let (all, fit) = (80, 63);
    let ids: Vec<String> = (0..all).map(|n| format!("{n:032x}")).collect();
    let message = WireMessage { subject: "orders".into(), body: vec![1; 1 << 20], reply_to: None, trace: None };
    let value = postcard::to_allocvec(&message).unwrap();
    for key in &ids {
        let op = Op::Set { key: key.clone(), value: value.clone() };
        data.call(&tenant(), &app(), &"durable".parse().unwrap(), &group(), op).await.unwrap();
    }
    let messaging = Messaging::new(data.clone());
    let holder = messaging.holder(&tenant());
    messaging.declare(&tenant(), &app(), &takes());
    let broker = BrokerKind::Durable;
    let take = async || {
        let request = MessagingRequest::Take { broker, group: group(), max: 64 };
        match messaging.answer(&tenant(), &app(), &holder, request).await.unwrap() {
            MessagingAnswer::Taken(taken) => {
                taken.into_iter().map(|one| (one.delivery, one.id)).collect::<Vec<(u64, String)>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let mut out = Vec::new();
    while out.len() < fit {
        out.extend(take().await);
    }
    assert_eq!(out.len(), fit);
    let more = tokio::time::timeout(Duration::from_millis(300), take()).await;
    assert!(more.is_err(), "more is in memory than a queue holds: {more:?}");
    let small = WireMessage { subject: "orders".into(), body: b"new".to_vec(), reply_to: None, trace: None };
    let publish = MessagingRequest::Publish { broker, message: small };
    let refused = messaging.answer(&tenant(), &app(), &holder, publish).await.unwrap_err();
    assert!(refused.to_string().contains("is full"), "{refused}");
    let mut seen = Vec::new();
    while seen.len() < all {
        for (delivery, id) in out.drain(..) {
            let done = MessagingRequest::Settle { broker, group: group(), delivery, outcome: Settled::Done };
            messaging.answer(&tenant(), &app(), &holder, done).await.unwrap();
            seen.push(id);
        }
        if seen.len() < all {
            out = take().await;
        }
    }
    assert_eq!(seen, ids, "each once, oldest first");
    self::publish(&messaging, &holder, "new").await;
    assert_eq!(bodies(&messaging, &holder).await, ["new"]);
}
