//! Messages over a real NATS server: the suite of the contract, and what a restart of the server does.

use std::sync::Arc;
use std::time::Duration;

use model::messaging::subscriptions;
use providers::messaging::nats::Nats;
use providers::messaging::{Backend, BackendError, Message, Outcome, conformance};

use crate::nats_server::NatsServer;

fn nats(server: &NatsServer) -> Nats {
    Nats::new(server.client(), "acme".parse().unwrap())
}

fn message(body: &str) -> Message {
    Message { subject: "conf.other".to_owned(), body: body.as_bytes().to_vec(), reply_to: None }
}

#[tokio::test]
async fn nats_conforms() {
    let server = NatsServer::start();
    if let Err(mismatch) = conformance::run(&nats(&server)).await {
        panic!("{mismatch}");
    }
}

/// What hosts say to each other is not a component's to say.
pub(crate) async fn is_not_theirs(broker: &dyn Backend) {
    let subject = "_INBOX.sidereal.given-back.CONF.acme_conformance_work.told";
    let message = Message { subject: subject.to_owned(), body: b"[[1,[1]]]".to_vec(), reply_to: None };
    let said = broker.publish(message).await.unwrap_err();
    assert!(matches!(&said, BackendError::Refused(why) if why.contains("platform's own")), "{said:?}");
    let asked = broker.request(subject.to_owned(), Vec::new(), Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(asked, BackendError::Refused(_)), "{asked:?}");
}

#[tokio::test]
async fn what_hosts_say_to_each_other_no_component_says() {
    is_not_theirs(&nats(&NatsServer::start())).await;
}

#[tokio::test]
async fn groups_of_other_apps_get_their_own_and_put_away_messages_are_sent_on() {
    let server = NatsServer::start();
    let (one, two) = (nats(&server), Nats::new(server.client(), "other".parse().unwrap()));
    let app = conformance::app("bus").unwrap();
    let work = Arc::new(subscriptions(&app).find(|(link, _)| link.label.as_str() == "work").unwrap().1);
    let dead = Arc::new(subscriptions(&app).find(|(link, _)| link.label.as_str() == "dead").unwrap().1);
    let (mut first, mut second) = (one.subscribe(work.clone()).await.unwrap(), two.subscribe(work).await.unwrap());
    let mut letters = one.subscribe(dead).await.unwrap();
    one.publish(message("both")).await.unwrap();
    let next = first.next().await.unwrap().unwrap();
    assert_eq!(second.next().await.unwrap().unwrap().message.body, b"both");
    let subject = "dead-letter.conformance.main.work.conf.other".to_owned();
    next.settle.settle(Outcome::PutAway { to: Some(subject.clone()), why: "no".to_owned() }).await.unwrap();
    let letter = letters.next().await.unwrap().unwrap().message;
    assert_eq!((letter.subject, letter.body), (subject, b"both".to_vec()));
}

#[tokio::test]
async fn subscriptions_outlive_the_server() {
    let server = NatsServer::start();
    let broker = nats(&server);
    let app = conformance::app("bus").unwrap();
    let work = Arc::new(subscriptions(&app).find(|(link, _)| link.label.as_str() == "work").unwrap().1);
    let mut deliveries = broker.subscribe(work).await.unwrap();
    let back = server.kill();
    let gone = async {
        loop {
            // What is sent before the client notices is lost without a word: at most once.
            if let Err(why) = broker.publish(message("lost")).await {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
    assert!(matches!(gone, BackendError::Unavailable(_)), "{gone:?}");
    let _server = back();
    let arrived = async {
        loop {
            // Until the client is back nobody hears it: at most once.
            drop(broker.publish(message("again")).await);
            if let Ok(next) = tokio::time::timeout(Duration::from_millis(100), deliveries.next()).await {
                return next.unwrap().unwrap().message.body;
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), arrived).await.unwrap(), b"again");
}

#[tokio::test]
async fn a_busy_pattern_leaves_the_others_of_its_link_their_turn() {
    let server = NatsServer::start();
    let client = server.client();
    let broker = Nats::new(client.clone(), "acme".parse().unwrap());
    let link = serde_json::json!({"component": "main", "contract": "wasmcloud:messaging", "label": "default",
        "provider": "bus", "config": {"subscriptions": "busy.>, quiet.>"}});
    let app = serde_json::json!({"name": "shop", "components": {}, "links": [link]});
    let app = serde_json::from_value(app).unwrap();
    let both = Arc::new(subscriptions(&app).next().unwrap().1);
    assert_eq!(both.patterns.len(), 2);
    let mut deliveries = broker.subscribe(both).await.unwrap();
    let send = async |subject: &str| {
        broker.publish(Message { subject: subject.to_owned(), ..message("x") }).await.unwrap();
    };
    for n in 0..300 {
        send(&format!("busy.{n}")).await;
        if n % 100 == 0 {
            send("quiet.one").await;
        }
    }
    // Everything before the answer to this has come to here.
    client.flush().await.unwrap();
    let mut quiet = 0;
    for _ in 0..8 {
        quiet += usize::from(deliveries.next().await.unwrap().unwrap().message.subject == "quiet.one");
    }
    assert_eq!(quiet, 3);
}
