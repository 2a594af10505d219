//! Messages in JetStream streams of real servers: the suite of the contract, what a stream must have, and that no
//! acknowledged message is lost whatever happens to the server, its consumers or the credentials.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::messaging::{Subscription, subscriptions};
use model::stream::StreamSettings;
use providers::http_out::public_roots;
use providers::messaging::conformance::{self, Promises};
use providers::messaging::jetstream::{Jetstream, REPLY_TO};
use providers::messaging::{Backend, BackendError, Deliveries, Delivery, Message, Outcome};
use providers::nats::jetstream::JetStream;
use providers::nats::{Client, Credentials, Outgoing};
use serde_json::{Value, json};

use crate::nats_server::{NatsServer, client};
use crate::support::{Direct, config};

const SECOND: Duration = Duration::from_secs(1);
const OLD: Promises = Promises { patterns: false };
/// What the suite's links take.
const SUBJECTS: &str = "conf,conf.>,ask.me";

fn broker_of(client: Client, settings: &[(&str, &str)]) -> Jetstream {
    let settings = StreamSettings::read(&config(settings)).unwrap();
    Jetstream::new(client, None, "acme".parse().unwrap(), settings, 1).unwrap()
}

fn broker(server: &NatsServer) -> Jetstream {
    broker_of(server.client(), &[("stream", "CONF"), ("subjects", SUBJECTS)])
}

fn subscription(label: &str, promises: Promises) -> Arc<Subscription> {
    let app = conformance::app_with("bus", promises).unwrap();
    Arc::new(subscriptions(&app).find(|(link, _)| link.label.as_str() == label).unwrap().1)
}

fn work() -> Arc<Subscription> {
    subscription("work", OLD)
}

fn message(body: &str) -> Message {
    Message { subject: "conf.work.a".to_owned(), body: body.as_bytes().to_vec(), reply_to: None }
}

async fn told(server: &NatsServer, call: &str, body: Value) -> Value {
    JetStream::new(server.client(), None).unwrap().call(call, &body).await.unwrap()
}

/// The same once it is so: the server counts what was acknowledged a little later.
async fn told_until(server: &NatsServer, call: &str, so: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let info = told(server, call, Value::Null).await;
        if so(&info) || start.elapsed() > 60 * SECOND {
            return info;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn soon(deliveries: &mut dyn Deliveries) -> Delivery {
    tokio::time::timeout(60 * SECOND, deliveries.next()).await.unwrap().unwrap().unwrap()
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.clone()).unwrap()
}

/// Follows the subscription as a host does: made again when it is lost, every message acknowledged.
async fn follow(broker: Jetstream, subscription: Arc<Subscription>, seen: Arc<std::sync::Mutex<Vec<String>>>) {
    loop {
        if let Ok(mut deliveries) = broker.subscribe(subscription.clone()).await {
            while let Some(Ok(next)) = deliveries.next().await {
                let text = body(&next);
                if next.settle.settle(Outcome::Done).await.is_ok() {
                    seen.lock().unwrap().push(text);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn holds(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < 60 * SECOND, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn jetstream_conforms() {
    let server = NatsServer::start();
    let broker = broker(&server);
    broker.check(&[(*work()).clone()]).await.unwrap();
    if let Err(mismatch) = conformance::run_with(&broker, OLD).await {
        panic!("{mismatch}");
    }
    let several = broker.subscribe(subscription("work", Promises::ALL)).await.err();
    assert!(matches!(&several, Some(BackendError::Refused(why)) if why.contains("2.10")), "{several:?}");
    let handled = |info: &Value| info["num_ack_pending"] == 0 && info["num_pending"] == 0;
    let info = told_until(&server, "CONSUMER.INFO.CONF.acme_conformance_work", handled).await;
    assert!(handled(&info), "{info}");
}

#[tokio::test]
async fn jetstream_of_a_newer_server_conforms() {
    let Some(server) = NatsServer::newer("") else { return };
    if let Err(mismatch) = conformance::run(&broker(&server)).await {
        panic!("{mismatch}");
    }
}

#[tokio::test]
async fn a_stream_that_lets_go_what_was_handled_conforms_and_is_empty_then() {
    let server = NatsServer::start();
    let settings = [("stream", "CONF"), ("subjects", SUBJECTS), ("retention", "interest"), ("max-bytes", "64MiB")];
    if let Err(mismatch) = conformance::run_with(&broker_of(server.client(), &settings), OLD).await {
        panic!("{mismatch}");
    }
    let info = told_until(&server, "STREAM.INFO.CONF", |info| info["state"]["messages"] == 0).await;
    assert_eq!((&info["config"]["discard"], &info["state"]["messages"]), (&json!("new"), &json!(0)), "{info}");
}

#[tokio::test]
async fn a_stream_is_as_the_settings_say_or_the_deploy_is_refused() {
    let server = NatsServer::start();
    let none = broker_of(server.client(), &[("stream", "ORDERS")]);
    let refused = none.check(&[]).await.unwrap_err().to_string();
    assert!(refused.contains("there is no stream `ORDERS`") && refused.contains("`subjects`"), "{refused}");
    let settings = [
        ("stream", "ORDERS"),
        ("subjects", "orders.>"),
        ("max-age", "24h"),
        ("max-bytes", "1MiB"),
        ("retention", "workqueue"),
    ];
    broker_of(server.client(), &settings).check(&[]).await.unwrap();
    let made = told(&server, "STREAM.INFO.ORDERS", Value::Null).await;
    let made = &made["config"];
    assert_eq!((&made["subjects"], &made["retention"]), (&json!(["orders.>"]), &json!("workqueue")));
    assert_eq!((&made["max_age"], &made["max_bytes"]), (&json!(86_400_000_000_000_u64), &json!(1 << 20)));
    // Now it is there, whoever made it.
    none.check(&[]).await.unwrap();
    let other = broker_of(server.client(), &[("stream", "ORDERS"), ("subjects", "orders.>,jobs.>")]);
    let refused = other.check(&[]).await.unwrap_err().to_string();
    assert!(refused.contains("not `jobs.>`"), "{refused}");
    for refused in [
        none.check(&[(*work()).clone()]).await.unwrap_err(),
        none.subscribe(work()).await.err().unwrap(),
        none.publish(message("x")).await.unwrap_err(),
    ] {
        let expected =
            matches!(&refused, BackendError::Refused(why) if why.contains("`ORDERS`") && why.contains("`orders.>`"));
        assert!(expected, "{refused}");
    }
}

#[tokio::test]
async fn what_is_put_away_says_why_and_is_there_once() {
    let server = NatsServer::start();
    let broker = broker(&server);
    let mut deliveries = broker.subscribe(work()).await.unwrap();
    broker.publish(message("bad")).await.unwrap();
    let next = soon(&mut *deliveries).await;
    assert_eq!((next.id.as_str(), next.tries), ("CONF-1", 1));
    let to = Some("dead-letter.conformance.main.work.conf.work.a".to_owned());
    next.settle.settle(Outcome::PutAway { to, why: "the handler\r\nrefused it".to_owned() }).await.unwrap();
    let stream = "dead-letter_acme_conformance";
    let found = told(&server, &format!("STREAM.MSG.GET.{stream}"), json!({ "seq": 1 })).await;
    let decoded = |field: &str| {
        let text = found["message"][field].as_str().unwrap();
        String::from_utf8(data_encoding::BASE64.decode(text.as_bytes()).unwrap()).unwrap()
    };
    let headers = decoded("hdrs");
    for line in [
        "Sidereal-Reason: the handler  refused it\r\n",
        "Sidereal-Tries: 1\r\n",
        "Sidereal-Component: main\r\n",
        "Sidereal-Stream: CONF\r\n",
        "Sidereal-Sequence: 1\r\n",
        "Nats-Msg-Id: dead-letter.acme_conformance_work.CONF.1\r\n",
    ] {
        assert!(headers.contains(line), "{line}: {headers}");
    }
    assert_eq!(decoded("data"), "bad");
    let handled = |info: &Value| info["num_ack_pending"] == 0;
    let info = told_until(&server, "CONSUMER.INFO.CONF.acme_conformance_work", handled).await;
    assert!(handled(&info), "it does not come again: {info}");
}

#[tokio::test]
async fn hosts_share_a_group_and_a_message_dropped_without_a_word_comes_again_at_once() {
    let server = NatsServer::start();
    let (one, two) = (broker(&server), broker(&server));
    let mut first = one.subscribe(work()).await.unwrap();
    one.publish(message("held")).await.unwrap();
    let held = soon(&mut *first).await;
    first.stop();
    drop((held, first));
    let start = Instant::now();
    let mut second = two.subscribe(work()).await.unwrap();
    let again = soon(&mut *second).await;
    // Debian's server takes back the count of a try whose asker has left in the same moment.
    assert!((1..=2).contains(&again.tries), "{}", again.tries);
    assert_eq!((body(&again), again.id.as_str()), ("held".to_owned(), "CONF-1"));
    assert!(start.elapsed() < 28 * SECOND, "it was given back, not waited for");
    again.settle.settle(Outcome::Done).await.unwrap();
}

/// However often hosts give a message back that none of them tried, whichever gets it next, it was not tried.
async fn gives_back(server: &NatsServer) {
    let (one, two, three) = (broker(server), broker(server), broker(server));
    let mut first = one.subscribe(work()).await.unwrap();
    one.publish(message("waits")).await.unwrap();
    for _ in 0..4 {
        let next = soon(&mut *first).await;
        assert_eq!(next.tries, 1, "this host has given it back itself");
        next.settle.settle(Outcome::GivenBack).await.unwrap();
    }
    // One that comes later knows of it.
    let mut second = two.subscribe(work()).await.unwrap();
    for _ in 0..20 {
        let next = tokio::select! {
            next = soon(&mut *first) => next,
            next = soon(&mut *second) => next,
        };
        assert_eq!(next.tries, 1, "others have given it back");
        next.settle.settle(Outcome::GivenBack).await.unwrap();
    }
    // As does one that is there when who gave it back has gone.
    let mut third = three.subscribe(work()).await.unwrap();
    for mut gone in [first, second] {
        gone.stop();
        while let Some(next) = gone.next().await {
            let next = next.unwrap();
            assert_eq!(next.tries, 1);
            next.settle.settle(Outcome::GivenBack).await.unwrap();
        }
    }
    for tries in 1..=3 {
        let next = soon(&mut *third).await;
        assert_eq!((body(&next), next.tries), ("waits".to_owned(), tries), "what was tried counts");
        next.settle.settle(Outcome::Again(Duration::from_millis(10))).await.unwrap();
    }
    soon(&mut *third).await.settle.settle(Outcome::Done).await.unwrap();
}

#[tokio::test]
async fn a_message_given_back_by_several_hosts_was_not_tried() {
    gives_back(&NatsServer::start()).await;
    if let Some(server) = NatsServer::newer("") {
        gives_back(&server).await;
    }
}

#[tokio::test]
async fn what_hosts_say_to_each_other_no_component_says() {
    crate::messaging_nats::is_not_theirs(&broker(&NatsServer::start())).await;
}

#[tokio::test]
async fn who_may_not_hear_other_hosts_knows_what_it_gave_back_itself() {
    let server = NatsServer::with(
        "authorization { users: [{ user: ann, password: right, permissions: { \
            publish: [\"$JS.>\", \"conf.>\", \"dead-letter.>\"], subscribe: { deny: [\"_INBOX.sidereal.>\"] } } }] }",
    );
    let who = Credentials::User { user: "ann".into(), password: "right".to_owned().into() };
    let client = client(&server.url(), Some(who), public_roots(), Direct::to(server.address));
    let broker = broker_of(client, &[("stream", "CONF"), ("subjects", SUBJECTS)]);
    let mut deliveries = broker.subscribe(work()).await.unwrap();
    broker.publish(message("waits")).await.unwrap();
    for _ in 0..3 {
        let next = soon(&mut *deliveries).await;
        assert_eq!(next.tries, 1);
        next.settle.settle(Outcome::GivenBack).await.unwrap();
    }
    soon(&mut *deliveries).await.settle.settle(Outcome::Done).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_no_component_asks_with_a_header_and_is_answered() {
    let server = NatsServer::start();
    let broker = broker(&server);
    let mut deliveries = broker.subscribe(work()).await.unwrap();
    let other = server.client();
    let inbox = other.inbox();
    let mut answers = other.subscribe(&inbox, None, providers::nats::Buffer::default()).await.unwrap();
    let headers = providers::nats::Headers::new().with(REPLY_TO, &inbox).unwrap();
    other.publish(Outgoing { headers, ..Outgoing::new("conf.work.a", "hat") }).await.unwrap();
    let asked = soon(&mut *deliveries).await;
    let subject = asked.message.reply_to.clone().unwrap();
    broker.publish(Message { subject, body: b"re: hat".to_vec(), reply_to: None }).await.unwrap();
    assert_eq!(&answers.next().await.unwrap().payload[..], b"re: hat");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_load_loses_no_acknowledged_message() {
    let mut server = NatsServer::start();
    let (sender, taker) = (broker(&server), broker(&server));
    drop(taker.subscribe(work()).await.unwrap());
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let follower = tokio::spawn(follow(taker, work(), seen.clone()));
    let acknowledged = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sending: Vec<_> = (0..4)
        .map(|who| {
            let (sender, acknowledged, over) = (sender.clone(), acknowledged.clone(), over.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    if over.load(std::sync::atomic::Ordering::SeqCst) {
                        return;
                    }
                    let text = format!("{who}-{n}");
                    match sender.publish(message(&text)).await {
                        Ok(()) => drop(acknowledged.lock().unwrap().insert(text)),
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                }
            })
        })
        .collect();
    for round in 1..=3 {
        let count = || acknowledged.lock().unwrap().len();
        holds("messages are acknowledged", || count() > round * 200).await;
        server = tokio::task::spawn_blocking(move || server.kill()()).await.unwrap();
    }
    over.store(true, std::sync::atomic::Ordering::SeqCst);
    for one in sending {
        one.await.unwrap();
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    let missing = || {
        let seen: BTreeSet<String> = seen.lock().unwrap().iter().cloned().collect();
        acknowledged.difference(&seen).cloned().collect::<Vec<_>>()
    };
    let start = Instant::now();
    while !missing().is_empty() {
        assert!(start.elapsed() < 60 * SECOND, "lost: {:?}", missing());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    follower.abort();
    drop(server);
}

#[tokio::test]
async fn a_server_that_hangs_is_said_in_time_and_goes_on() {
    let server = NatsServer::start();
    let broker = broker(&server);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    drop(broker.subscribe(work()).await.unwrap());
    let follower = tokio::spawn(follow(broker.clone(), work(), seen.clone()));
    broker.publish(message("before")).await.unwrap();
    holds("it arrives", || seen.lock().unwrap().len() == 1).await;
    server.signal("-STOP");
    let start = Instant::now();
    let late = broker.publish(message("late")).await.unwrap_err();
    assert!(matches!(late, BackendError::TimedOut { .. } | BackendError::Unavailable(_)), "{late:?}");
    assert!(start.elapsed() < 60 * SECOND);
    server.signal("-CONT");
    let start = Instant::now();
    while let Err(cause) = broker.publish(message("after")).await {
        assert!(start.elapsed() < 60 * SECOND, "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holds("it goes on", || seen.lock().unwrap().iter().any(|text| text == "after")).await;
    follower.abort();
}

#[tokio::test]
async fn a_message_is_not_sent_again_when_the_stream_has_forgotten_its_id() {
    let server = NatsServer::start();
    let made = json!({ "name": "CONF", "subjects": SUBJECTS.split(',').collect::<Vec<_>>(), "duplicate_window": 1_000_000_000_u64 });
    told(&server, "STREAM.CREATE.CONF", made).await;
    let broker = broker(&server);
    // One that is sent twice takes twice as long every time.
    let mut tries = Vec::new();
    while !tries.iter().any(|took| *took < 8 * SECOND) {
        assert!(tries.len() < 4, "it was sent twice: {tries:?}");
        let start = Instant::now();
        while let Err(cause) = broker.publish(message("before")).await {
            assert!(start.elapsed() < 60 * SECOND, "not found again: {cause}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.signal("-STOP");
        let start = Instant::now();
        let late = broker.publish(message("late")).await.unwrap_err();
        tries.push(start.elapsed());
        server.signal("-CONT");
        assert!(matches!(late, BackendError::TimedOut { .. }), "{late:?}");
    }
}

#[tokio::test]
async fn credentials_that_are_revoked_are_said_and_restored_ones_go_on() {
    let users = |password: &str| format!("authorization {{ users: [{{ user: ann, password: {password} }}] }}");
    let server = NatsServer::with(&users("right"));
    let who = Credentials::User { user: "ann".into(), password: "right".to_owned().into() };
    let client = client(&server.url(), Some(who), public_roots(), Direct::to(server.address));
    let broker = broker_of(client, &[("stream", "CONF"), ("subjects", SUBJECTS)]);
    drop(broker.subscribe(work()).await.unwrap());
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let follower = tokio::spawn(follow(broker.clone(), work(), seen.clone()));
    broker.publish(message("before")).await.unwrap();
    server.reload(&users("other"));
    let start = Instant::now();
    loop {
        match broker.publish(message("denied")).await {
            Err(BackendError::Denied(_)) => break,
            other => assert!(start.elapsed() < 60 * SECOND, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.reload(&users("right"));
    let start = Instant::now();
    while let Err(cause) = broker.publish(message("after")).await {
        assert!(start.elapsed() < 60 * SECOND, "not let in again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holds("it goes on", || {
        let seen = seen.lock().unwrap();
        ["before", "after"].iter().all(|text| seen.iter().any(|one| one == text))
    })
    .await;
    follower.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_removed_under_the_hosts_is_made_again_and_nothing_is_lost() {
    let server = NatsServer::start();
    let broker = broker(&server);
    drop(broker.subscribe(work()).await.unwrap());
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let follower = tokio::spawn(follow(broker.clone(), work(), seen.clone()));
    for n in 0..500 {
        broker.publish(message(&n.to_string())).await.unwrap();
        if n % 200 == 100 {
            let js = JetStream::new(server.client(), None).unwrap();
            let delete = || js.call::<Value>("CONSUMER.DELETE.CONF.acme_conformance_work", &());
            while delete().await.is_err() {
                // It is being made again.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    holds("every message is handled", || seen.lock().unwrap().iter().collect::<BTreeSet<_>>().len() == 500).await;
    follower.abort();
}

#[tokio::test]
async fn a_long_handler_keeps_its_message_and_a_slow_one_does_not_lose_what_waits() {
    let Some(server) = NatsServer::newer("") else { return };
    let broker = broker(&server);
    let mut deliveries = broker.subscribe(work()).await.unwrap();
    for n in 0..3 {
        broker.publish(message(&n.to_string())).await.unwrap();
    }
    let first = soon(&mut *deliveries).await;
    // Longer than the server waits without a word.
    tokio::time::sleep(Duration::from_secs(33)).await;
    first.settle.settle(Outcome::Done).await.unwrap();
    for n in 1..3 {
        let next = soon(&mut *deliveries).await;
        assert_eq!((body(&next), next.tries), (n.to_string(), 1), "it waited here and went nowhere else");
        next.settle.settle(Outcome::Done).await.unwrap();
    }
    let handled = |info: &Value| info["num_ack_pending"] == 0;
    let info = told_until(&server, "CONSUMER.INFO.CONF.acme_conformance_work", handled).await;
    assert!(handled(&info) && info["num_redelivered"] == 0, "{info}");
}

#[tokio::test]
async fn what_a_link_takes_may_change_and_what_waits_is_kept() {
    let server = NatsServer::start();
    let broker = broker(&server);
    let wide = work();
    drop(broker.subscribe(wide.clone()).await.unwrap());
    broker.publish(message("waits")).await.unwrap();
    let narrow = Subscription { patterns: vec!["conf.work.a".parse().unwrap()], ..(*wide).clone() };
    let mut deliveries = broker.subscribe(Arc::new(narrow)).await.unwrap();
    assert_eq!(body(&soon(&mut *deliveries).await), "waits");
    let info = told(&server, "CONSUMER.INFO.CONF.acme_conformance_work", Value::Null).await;
    assert_eq!(info["config"]["filter_subject"], "conf.work.a");
}

#[tokio::test]
async fn what_killed_its_hosts_often_enough_is_put_away_untried() {
    let server = NatsServer::start();
    let broker = broker(&server);
    let once = Arc::new(Subscription { tries: 1, ..(*work()).clone() });
    let mut deliveries = broker.subscribe(once).await.unwrap();
    broker.publish(message("poison")).await.unwrap();
    for tries in 1..=6 {
        let next = soon(&mut *deliveries).await;
        assert_eq!(next.tries, tries);
        // The host is gone: nobody says anything.
        drop(next);
    }
    let mut letters = broker.subscribe(subscription("dead", OLD)).await.unwrap();
    drop(letters.next());
    let found = async {
        loop {
            let info = told(&server, "STREAM.INFO.dead-letter_acme_conformance", Value::Null).await;
            if info["state"]["messages"] == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(60 * SECOND, found).await.unwrap();
}
