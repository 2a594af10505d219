//! External providers of objects, messages and secrets: the examples in Python pass the suites of the built-in ones, keep
//! what they acknowledged when they are killed, and whatever a program does wrong is an error in bounded time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use model::SecretRef;
use model::messaging::subscriptions;
use model::secret::SecretField;
use model::sql::{Call, SqlError, Statement};
use providers::blobstore::external::External as Objects;
use providers::blobstore::{Backend as _, BackendError as ObjectError};
use providers::messaging::external::External as Messages;
use providers::messaging::{Backend as _, BackendError as MessageError, Deliveries, Delivery, Message, Outcome};
use providers::secrets::external::External as Secrets;
use providers::secrets::{Resolver as _, SecretError};
use providers::sql::Backend as _;
use providers::sql::external::External as Database;

use crate::external::{Process, misbehaving};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/external-providers").join(name)
}

fn objects(process: &Process) -> Objects {
    Objects::new("objects".parse().unwrap(), process.connect())
}

fn messages(process: &Process) -> Messages {
    Messages::new("messages".parse().unwrap(), process.connect())
}

async fn ready(store: &Objects) {
    store.check().await.unwrap();
}

#[tokio::test]
async fn objects_conform() {
    let process = Process::start(&example("objects.py"));
    providers::blobstore::conformance::run(&objects(&process)).await.unwrap();
    // Nothing of it is left: each file goes with its object.
    assert_eq!(std::fs::read_dir(process.dir.path().join("files")).unwrap().count(), 0);
}

async fn put(store: &Objects, object: &str, bytes: &'static [u8]) -> Result<(), ObjectError> {
    let mut upload = store.write("c", object).await?;
    upload.write(Bytes::from_static(bytes)).await?;
    upload.finish().await
}

async fn get(store: &Objects, object: &str) -> Result<Vec<u8>, ObjectError> {
    let mut reading = store.read("c", object, 0, u64::MAX).await?;
    let mut all = Vec::new();
    while let Some(chunk) = reading.chunks.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

#[tokio::test]
async fn objects_that_were_acknowledged_survive_a_sudden_end_and_half_ones_are_swept_away() {
    let mut process = Process::start(&example("objects.py"));
    let store = objects(&process);
    ready(&store).await;
    store.create("c").await.unwrap();
    put(&store, "whole", b"kept").await.unwrap();
    let mut half = store.write("c", "half").await.unwrap();
    half.write(Bytes::from(vec![7; 100_000])).await.unwrap();
    let files = process.dir.path().join("files");
    let begun = Instant::now();
    while std::fs::read_dir(&files).unwrap().count() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    process.again(&example("objects.py"));
    let lost = half.finish().await.unwrap_err();
    assert!(matches!(lost, ObjectError::Unavailable(_)), "{lost:?}");
    assert_eq!(get(&store, "whole").await.unwrap(), b"kept");
    assert_eq!(store.object("c", "half").await.unwrap(), None);
    assert_eq!(std::fs::read_dir(&files).unwrap().count(), 1);
}

#[tokio::test]
async fn whatever_a_store_of_objects_does_wrong_is_an_error_in_bounded_time() {
    let says = |answer: Result<Vec<u8>, ObjectError>, what: &str| {
        let said = answer.unwrap_err().to_string();
        assert!(said.contains(what), "{what}: {said}");
    };
    says(get(&objects(&misbehaving("c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')")), "k").await, "is not wRPC");
    says(get(&objects(&misbehaving("kept.pop().close()")), "k").await, "hung up");
    // It has ten bytes and gives three; more than it said; and an end that is no good one.
    let answers = |stream: &str| {
        misbehaving(&format!(
            "call = c.recv(4096)\n    c.sendall(b'\\0\\3\\0\\1\\x0a' if b'get-object-info' in call else b'\\0\\3\\0\\0\\0{stream}')"
        ))
    };
    let whole = get(&objects(&answers("\\2\\0\\0\\x0b\\x0aaaaaaaaaaa\\2\\0\\0\\1\\0\\2\\0\\1\\1\\0")), "k").await;
    assert_eq!(whole.unwrap(), b"aaaaaaaaaa");
    says(get(&objects(&answers("\\2\\0\\0\\4\\3abc\\2\\0\\0\\1\\0\\2\\0\\1\\4\\1\\2no")), "k").await, "damaged: no");
    let short = get(&objects(&answers("\\2\\0\\0\\4\\3abc\\2\\0\\0\\1\\0\\2\\0\\1\\1\\0")), "k").await.unwrap();
    assert_eq!(short, b"abc", "the adapter compares it with the size");
    let endless = misbehaving(
        "\n    try:\n        c.sendall(b'\\0\\3\\0\\0\\0')\n        while True: c.sendall(b'\\2\\0\\0\\x80\\x80\\4' + bytes([255]) * 65536)\n    except OSError: pass",
    );
    let said = objects(&endless).list("c", None).await.unwrap_err();
    assert!(matches!(said, ObjectError::Unavailable(_) | ObjectError::TooLarge(_)), "{said:?}");
    let (begun, silent) = (Instant::now(), misbehaving("pass"));
    let said = objects(&silent).container("c").await.unwrap_err();
    assert_eq!(said, ObjectError::TimedOut { ms: 5000 });
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_conform() {
    let process = Process::start(&example("messages.py"));
    providers::messaging::conformance::run(&messages(&process)).await.unwrap();
}

async fn publish(broker: &Messages, body: &str) {
    let message = Message { subject: "conf.other".to_owned(), body: body.as_bytes().to_vec(), reply_to: None };
    broker.publish(message).await.unwrap();
}

async fn next(deliveries: &mut Box<dyn Deliveries>) -> Delivery {
    let next = tokio::time::timeout(Duration::from_secs(60), deliveries.next()).await.unwrap();
    next.unwrap().unwrap()
}

async fn follow(broker: &Messages) -> Box<dyn Deliveries> {
    let app = providers::messaging::conformance::app("any").unwrap();
    let (_, work) = subscriptions(&app).find(|(link, _)| link.label.as_str() == "work").unwrap();
    broker.subscribe(Arc::new(work)).await.unwrap()
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_were_acknowledged_come_again_after_a_sudden_end() {
    let mut process = Process::start(&example("messages.py"));
    let broker = messages(&process);
    broker.check().await.unwrap();
    let mut deliveries = follow(&broker).await;
    for n in 0..5 {
        publish(&broker, &n.to_string()).await;
    }
    next(&mut deliveries).await.settle.settle(Outcome::Done).await.unwrap();
    let held = next(&mut deliveries).await;
    let id = held.id.clone();
    process.again(&example("messages.py"));
    // What was handed out before may still be there; then the loss is told, once.
    let mut handed = Vec::new();
    let lost = loop {
        match tokio::time::timeout(Duration::from_secs(60), deliveries.next()).await.unwrap() {
            Some(Ok(delivery)) => handed.push(delivery),
            Some(Err(cause)) => break cause,
            None => panic!("the end was not asked for"),
        }
    };
    assert!(matches!(lost, MessageError::Unavailable(_)), "{lost:?}");
    let told = held.settle.settle(Outcome::Done).await;
    assert!(told.is_err(), "a process that is gone knows of nothing");
    drop(handed);
    let mut deliveries = follow(&broker).await;
    let mut again = BTreeSet::new();
    for _ in 0..4 {
        let delivery = next(&mut deliveries).await;
        again.insert((body(&delivery), delivery.id == id));
        delivery.settle.settle(Outcome::Done).await.unwrap();
    }
    let expected: Vec<(String, bool)> = (1..5).map(|n| (n.to_string(), n == 1)).collect();
    assert_eq!(again.into_iter().collect::<Vec<_>>(), expected, "with the ids they had");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_follower_leaves_behind_comes_to_another_and_who_stops_finishes_what_it_has() {
    let process = Process::start(&example("messages.py"));
    let broker = messages(&process);
    broker.check().await.unwrap();
    let mut one = follow(&broker).await;
    publish(&broker, "first").await;
    let first = next(&mut one).await;
    one.stop();
    assert!(one.next().await.is_none());
    let mut two = follow(&broker).await;
    publish(&broker, "second").await;
    let second = next(&mut two).await;
    assert_eq!(body(&second), "second", "the first one is being handled still");
    first.settle.settle(Outcome::Done).await.unwrap();
    // Dropped without a word.
    drop(second);
    let second = next(&mut two).await;
    assert_eq!(body(&second), "second");
    second.settle.settle(Outcome::Done).await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_millis(300), two.next()).await;
    assert!(nothing.is_err(), "each was handled once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_beside_it_takes_in_is_handed_out_though_nobody_says_so() {
    let process = Process::start(&example("messages.py"));
    let broker = messages(&process);
    broker.check().await.unwrap();
    let mut deliveries = follow(&broker).await;
    // As while a deploy changes the settings: the old process still takes what is sent by the old revision.
    let old = Process::beside(&example("messages.py"), &process);
    let beside = messages(&old);
    beside.check().await.unwrap();
    publish(&beside, "from beside").await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(body(&delivery), "from beside");
    delivery.settle.settle(Outcome::Done).await.unwrap();
}

#[tokio::test]
async fn whatever_a_broker_does_wrong_is_an_error_in_bounded_time() {
    let ask = async |program: &Process, ms| {
        let broker = messages(program);
        broker.request("a".to_owned(), Vec::new(), Duration::from_millis(ms)).await.unwrap_err()
    };
    let said = ask(&misbehaving("c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')"), 5000).await;
    assert!(said.to_string().contains("is not wRPC"), "{said}");
    let said = ask(&misbehaving("c.recv(4096); c.sendall(b'\\0\\x0f\\1\\x0dno responders')"), 5000).await;
    assert_eq!(said, MessageError::NoResponder("a".to_owned()));
    let begun = Instant::now();
    assert_eq!(ask(&misbehaving("pass"), 5000).await, MessageError::TimedOut { ms: 5000 });
    assert!(begun.elapsed() < Duration::from_secs(60));
    let app = providers::messaging::conformance::app("any").unwrap();
    let (_, work) = subscriptions(&app).next().unwrap();
    let subscribe = async |program: &Process| messages(program).subscribe(Arc::new(work.clone())).await;
    let Err(said) = subscribe(&misbehaving("c.recv(4096); c.sendall(b'\\0\\4\\1\\2no')")).await else { panic!() };
    assert_eq!(said, MessageError::Refused("no".to_owned()));
    let Ok(mut ended) = subscribe(&misbehaving("c.recv(4096); c.sendall(b'\\0\\2\\0\\0\\1\\0\\1\\0')")).await else {
        panic!()
    };
    let said = ended.next().await.unwrap().err().unwrap();
    assert!(said.to_string().contains("was not stopped"), "{said}");
    let Ok(mut garbage) =
        subscribe(&misbehaving("c.recv(4096); c.sendall(b'\\0\\2\\0\\0\\1\\0\\4\\1\\1a\\xff' + bytes([255]) * 20)"))
            .await
    else {
        panic!()
    };
    assert!(garbage.next().await.unwrap().is_err());
}

fn database(process: &Process) -> Database {
    Database::new("mine".parse().unwrap(), process.connect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_conforms() {
    let process = Process::start(&example("database.py"));
    let database = database(&process);
    database.check().await.unwrap();
    providers::sql::conformance::run(&database).await.unwrap();
    providers::sql::conformance::endless(&database).await.unwrap();
}

#[tokio::test]
async fn whatever_a_database_does_wrong_is_an_error_in_bounded_time() {
    let ask = async |program: &Process| {
        let call = Call::Query(Statement { sql: "SELECT 1".to_owned(), params: Vec::new() });
        database(program).call(call).await.unwrap_err()
    };
    for (answer, what) in [
        ("c.recv(4096); c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')", "is not wRPC"),
        // Two columns and a row of one; a kind of value, and an error, that there is not.
        ("c.recv(4096); c.sendall(b'\\0\\x0a\\0\\2\\1a\\1b\\1\\1\\2\\1')", "another width"),
        ("c.recv(4096); c.sendall(b'\\0\\7\\0\\1\\1a\\1\\1\\x09')", "9 is no value"),
        ("c.recv(4096); c.sendall(b'\\0\\5\\1\\x0b\\2no')", "11 is no error"),
        ("kept.pop().close()", "hung up"),
    ] {
        let said = ask(&misbehaving(answer)).await;
        assert!(matches!(&said, SqlError::Unavailable(why) if why.contains(what)), "{answer}: {said:?}");
    }
    let endless = misbehaving(
        "\n    try:\n        c.sendall(b'\\0\\6\\0\\0\\xff\\xff\\xff\\x7f')\n        while True: c.sendall(b'\\0\\x80\\x80\\4' + bytes(65536))\n    except OSError: pass",
    );
    let said = ask(&endless).await;
    assert!(matches!(said, SqlError::TooLarge(_) | SqlError::Unavailable(_)), "{said:?}");
}

#[tokio::test]
async fn secrets_are_revealed_rotated_refused_and_missed() {
    let process = Process::start(&example("secrets.py"));
    let store = Secrets::new("mine".parse().unwrap(), process.connect());
    store.check().await.unwrap();
    let app = "shop".parse().unwrap();
    let secret = |name: &str, field: Option<&str>| SecretRef {
        field: field.map(|field| field.parse::<SecretField>().unwrap()),
        ..SecretRef::new(name.parse().unwrap())
    };
    let file = |name: &str, value: &[u8]| std::fs::write(process.dir.path().join(name), value).unwrap();
    let gone = store.reveal(&app, &secret("key", None)).await.unwrap_err();
    assert!(matches!(gone, SecretError::NotKept { .. }), "{gone:?}");
    file("key", b"first");
    let first = store.reveal(&app, &secret("key", None)).await.unwrap();
    assert_eq!(first.value.expose(), b"first");
    file("key", b"second");
    let second = store.reveal(&app, &secret("key", None)).await.unwrap();
    assert_eq!(second.value.expose(), b"second");
    assert!(second.version > first.version);
    let largest: Vec<u8> = (0..model::secret::MAX_SECRET).map(|n| n as u8).collect();
    file("key.password", &largest);
    let field = store.reveal(&app, &secret("key", Some("password"))).await.unwrap();
    assert_eq!(field.value.expose(), largest);
    file("key.password", &vec![b'x'; model::secret::MAX_SECRET * 2]);
    let cut = store.reveal(&app, &secret("key", Some("password"))).await;
    assert!(matches!(cut, Err(SecretError::Unusable { .. })), "{cut:?}");
}

#[tokio::test]
async fn whatever_a_keeper_of_secrets_does_wrong_is_an_error_without_a_value() {
    let ask = async |program: &Process| {
        let store = Secrets::new("mine".parse().unwrap(), program.connect());
        store.reveal(&"shop".parse().unwrap(), &SecretRef::new("key".parse().unwrap())).await.unwrap_err()
    };
    let denied = ask(&misbehaving("c.recv(4096); c.sendall(b'\\0\\5\\1\\1\\2no')")).await;
    assert_eq!(denied, SecretError::Denied { secret: "key".to_owned(), cause: "no".to_owned() });
    for (garbage, what) in [
        ("c.recv(4096); c.sendall(b'canary-1f')", "is no secret of wRPC"),
        ("c.recv(4096); c.sendall(b'\\0\\x0a\\0\\7\\x20canary')\n    kept.pop().close()", "hung up"),
        (
            "\n    try:\n        while True: c.sendall(b'\\0\\x80\\1' + bytes([255] * 128))\n    except OSError: pass",
            "is no secret of wRPC",
        ),
    ] {
        let said = ask(&misbehaving(garbage)).await;
        assert!(matches!(said, SecretError::Unavailable { .. }), "{garbage}: {said:?}");
        let said = said.to_string();
        assert!(said.contains(what) && !said.contains("canary"), "{garbage}: {said}");
    }
}
