//! Messages: while their app is held they wait as calls do, one that its hosts ended of is put away, and what a host cannot have
//! handled goes back to its broker, or where that keeps none to the node.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::services::messaging::{Handed, Settled, WireMessage};
use model::{Link, LockedApp, ProviderKind, ProviderSpec, Revision};

use crate::rig::{Rig, until};

fn app(rig: &Rig) -> LockedApp {
    let mut app = rig.app("mail", "messages");
    for (contract, provider, config) in [
        ("wasi:keyvalue", "embedded", vec![]),
        ("wasmcloud:messaging", "local", vec![("subscriptions", "orders.>"), ("max-tries", "2")]),
    ] {
        app.links.push(Link {
            component: "main".parse().unwrap(),
            contract: contract.parse().unwrap(),
            label: "default".parse().unwrap(),
            provider: provider.parse().unwrap(),
            config: config.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        });
    }
    app
}

fn handed(delivery: u64, tries: u32) -> Handed {
    let message = WireMessage { subject: "orders.new".into(), body: b"hat".to_vec(), reply_to: None, trace: None };
    Handed { delivery, id: delivery.to_string(), tries, message }
}

async fn settled(rig: &Rig, count: usize) -> Vec<(u64, Settled)> {
    until("they are settled", || async { rig.node.settled.lock().unwrap().len() >= count }).await;
    let mut settled = rig.node.settled.lock().unwrap().clone();
    settled.sort_unstable_by_key(|(delivery, _)| *delivery);
    settled
}

#[tokio::test]
async fn a_message_waits_while_its_app_is_held_and_goes_on_with_the_next_revision() {
    let rig = Rig::new().await;
    let app = app(&rig);
    rig.start(&app, 1, true).await.unwrap();
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    rig.node.queue.lock().unwrap().push_back(handed(1, 1));
    assert_eq!(settled(&rig, 1).await, [(1, Settled::Done)]);
    rig.start(&app, 2, true).await.unwrap();
    assert_eq!(rig.agent.hold(&app.name, Revision(2), Duration::from_secs(5)).await.unwrap().in_flight, 0);
    rig.node.queue.lock().unwrap().extend((2..20).map(|n| handed(n, 1)));
    until("some are taken", || async { rig.node.queue.lock().unwrap().len() < 18 }).await;
    tokio::time::timeout(Duration::from_millis(500), std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(rig.node.settled.lock().unwrap().len(), 1, "none was given back, and none handled");
    assert!(rig.node.queue.lock().unwrap().len() >= 10, "the others stay with their broker");
    rig.agent.release(&app.name, Some(Revision(2))).await.unwrap();
    let all = settled(&rig, 19).await;
    assert!(all.iter().map(|(delivery, _)| *delivery).eq(1..20), "{all:?}");
    assert!(all.iter().all(|(_, outcome)| *outcome == Settled::Done), "{all:?}");
    let done = rig.get("mail/2/main", "/number?key=done").await.text;
    assert_eq!(done, "19");
}

#[tokio::test]
async fn no_more_messages_are_fetched_than_can_be_handled_at_once() {
    let rig = Rig::new().await;
    let mut app = app(&rig);
    let messages = app.links.iter_mut().find(|link| link.contract.to_string() == "wasmcloud:messaging").unwrap();
    messages.config.insert("max-in-flight".to_owned(), "2".to_owned());
    rig.run(&app).await;
    let slow = |n: u64| {
        let mut handed = handed(n, 1);
        // They do not end together.
        handed.message.body = format!("slow-{}", 100 + 90 * (n % 2)).into_bytes();
        handed
    };
    rig.node.queue.lock().unwrap().extend((1..=9).map(slow));
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    let all = settled(&rig, 9).await;
    assert!(all.iter().all(|(_, outcome)| *outcome == Settled::Done), "{all:?}");
    assert_eq!(*rig.node.taken.lock().unwrap(), (9, 2), "those that wait in the host would be out while they wait");
}

#[tokio::test]
async fn what_its_hosts_ended_of_is_put_away_untried() {
    let rig = Rig::new().await;
    let app = app(&rig);
    rig.run(&app).await;
    // Twice it may be tried; five more, its host was never heard of again.
    rig.node.queue.lock().unwrap().extend([handed(1, 7), handed(2, 8)]);
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    let subject = Some("dead-letter.mail.main.default.orders.new".to_owned());
    assert_eq!(settled(&rig, 2).await, [(1, Settled::Done), (2, Settled::PutAway { subject })]);
    assert_eq!(rig.get("mail/1/main", "/number?key=tried:hat").await.text, "1");
}

/// A NATS of the test's own.
struct Nats(Child, SocketAddr);

impl Nats {
    async fn start() -> Self {
        let address = crate::ports::free();
        let child = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &address.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start nats-server; install the package nats-server");
        let nats = Self(child, address);
        until("nats-server answers", || async { TcpStream::connect(address).is_ok() }).await;
        nats
    }

    fn publish(&self, subject: &str, bodies: &[&str]) {
        let mut stream = TcpStream::connect(self.1).unwrap();
        let mut said = b"CONNECT {\"verbose\":false}\r\n".to_vec();
        for body in bodies {
            write!(said, "PUB {subject} {}\r\n{body}\r\n", body.len()).unwrap();
        }
        said.extend(b"PING\r\n");
        stream.write_all(&said).unwrap();
        let mut heard = Vec::new();
        while !heard.windows(4).any(|part| part == b"PONG") {
            let mut piece = [0; 1024];
            let count = std::io::Read::read(&mut stream, &mut piece).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&heard));
            heard.extend(&piece[..count]);
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn a_message_of_a_broker_that_keeps_none_is_left_with_the_node_where_its_revision_is_elsewhere() {
    let (rig, nats) = (Rig::new().await, Nats::start().await);
    *rig.node.dial_to.lock().unwrap() = Some(nats.1);
    let mut app = app(&rig);
    let mut bus = ProviderSpec::new(ProviderKind::MessagingNats);
    bus.config.insert("url".to_owned(), format!("nats://{}", nats.1));
    app.providers.insert("bus".parse().unwrap(), bus);
    app.links[1].provider = "bus".parse().unwrap();
    rig.start(&app, 1, true).await.unwrap();
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    nats.publish("orders.new", &["first"]);
    let done = |revision: u64, count: &'static str| {
        let (rig, route) = (&rig, format!("mail/{revision}/main"));
        async move { rig.get(&route, "/number?key=done").await.text == count }
    };
    until("one is handled", || done(1, "1")).await;
    // They wait here; the revision that calls go on with does not come to this host.
    assert_eq!(rig.agent.hold(&app.name, Revision(1), Duration::from_secs(5)).await.unwrap().in_flight, 0);
    let bodies: Vec<String> = (0..40).map(|n| format!("n{n}")).collect();
    nats.publish("orders.new", &bodies.iter().map(String::as_str).collect::<Vec<_>>());
    rig.agent.release(&app.name, Some(Revision(2))).await.unwrap();
    rig.agent.set_taking(&app.name, Revision(1), false).await.unwrap();
    until("the node has them", || async { rig.node.untried.lock().unwrap().len() == 40 }).await;
    rig.start(&app, 2, true).await.unwrap();
    rig.agent.set_taking(&app.name, Revision(2), true).await.unwrap();
    until("all are handled", || done(2, "41")).await;
    for body in &bodies {
        let tried = rig.get("mail/2/main", &format!("/number?key=tried:{body}")).await.text;
        assert_eq!(tried, "1", "{body} comes once");
    }
    // A host may have tried it and ended.
    let message = WireMessage { subject: "orders.new".into(), body: b"late".to_vec(), reply_to: None, trace: None };
    let again = |tries, body: &[u8]| Handed {
        delivery: (1 << 40) + u64::from(tries),
        id: "1".into(),
        tries,
        message: WireMessage { body: body.to_vec(), ..message.clone() },
    };
    rig.node.untried.lock().unwrap().extend([again(2, b"twice"), again(1, b"once")]);
    until("the other one is handled", || done(2, "42")).await;
    assert_eq!(rig.get("mail/2/main", "/number?key=tried:twice").await.text, "0");
}

/// The app with its messages by way of a NATS, at most so many at once.
fn by_nats(rig: &Rig, nats: &Nats, in_flight: &str) -> LockedApp {
    *rig.node.dial_to.lock().unwrap() = Some(nats.1);
    let mut app = app(rig);
    let mut bus = ProviderSpec::new(ProviderKind::MessagingNats);
    bus.config.insert("url".to_owned(), format!("nats://{}", nats.1));
    app.providers.insert("bus".parse().unwrap(), bus);
    app.links[1].provider = "bus".parse().unwrap();
    app.links[1].config.insert("max-in-flight".to_owned(), in_flight.to_owned());
    app
}

#[tokio::test]
async fn a_host_that_ends_leaves_what_it_has_no_room_for_before_its_handlers_end() {
    let (rig, nats) = (Rig::new().await, Nats::start().await);
    let app = by_nats(&rig, &nats, "1");
    rig.run(&app).await;
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    nats.publish("orders.new", &["slow-20000"]);
    let tried = || async { rig.get("mail/1/main", "/number?key=tried:slow-20000").await.text == "1" };
    until("it is handled", tried).await;
    nats.publish("orders.new", &["a", "b", "c", "d", "e"]);
    let mut drained = Box::pin(rig.agent.drain(Duration::from_secs(8)));
    let left = until("the node has them", || async { rig.node.untried.lock().unwrap().len() == 5 });
    tokio::select! {
        biased;
        () = left => {}
        drained = &mut drained => panic!("{drained:?}: they waited for the handler"),
    }
    assert_eq!(drained.await.unwrap().ended, 1);
}

#[tokio::test]
async fn no_more_are_handled_at_once_than_are_asked_for_wherever_they_come_from() {
    let (rig, nats) = (Rig::new().await, Nats::start().await);
    let app = by_nats(&rig, &nats, "1");
    rig.run(&app).await;
    let message = WireMessage { body: b"slow-700".to_vec(), ..handed(1, 1).message };
    rig.node.untried.lock().unwrap().push_back(Handed { delivery: 1 << 40, id: "1".into(), tries: 1, message });
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    nats.publish("orders.new", &["slow-800"]);
    let most = std::cell::Cell::new(0);
    until("both are handled", || async {
        most.set(rig.agent.status(1 << 20).await.unwrap().in_flight.max(most.get()));
        rig.get("mail/1/main", "/number?key=done").await.text == "2"
    })
    .await;
    assert_eq!(most.get(), 1);
}

#[tokio::test]
async fn a_host_that_ends_leaves_what_waits_with_the_node() {
    let (mut rig, nats) = (Rig::new().await, Nats::start().await);
    let app = by_nats(&rig, &nats, "16");
    rig.start(&app, 1, true).await.unwrap();
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    assert_eq!(rig.agent.hold(&app.name, Revision(1), Duration::from_secs(5)).await.unwrap().in_flight, 0);
    nats.publish("orders.new", &["a", "b", "c"]);
    rig.agent.drain(Duration::from_secs(10)).await.unwrap();
    assert_eq!(rig.node.untried.lock().unwrap().len(), 3);
    rig.ended().await.unwrap();
}

#[tokio::test]
async fn what_was_left_for_another_broker_follows_the_link() {
    let rig = Rig::new().await;
    let app = app(&rig);
    rig.run(&app).await;
    let message = |body: &[u8]| WireMessage { body: body.to_vec(), ..handed(1, 1).message };
    let left = |delivery: u64, tries, body: &[u8]| Handed {
        delivery: (1 << 40) + delivery,
        id: delivery.to_string(),
        tries,
        message: message(body),
    };
    // A host may have tried the second one.
    rig.node.untried.lock().unwrap().extend([left(1, 1, b"once"), left(2, 2, b"twice"), left(3, 1, b"last")]);
    rig.agent.set_taking(&app.name, Revision(1), true).await.unwrap();
    until("they are handled", || async { rig.get("mail/1/main", "/number?key=done").await.text == "2" }).await;
    for (body, times) in [("once", "1"), ("twice", "0"), ("last", "1")] {
        assert_eq!(rig.get("mail/1/main", &format!("/number?key=tried:{body}")).await.text, times, "{body}");
    }
}
