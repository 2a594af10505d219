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
    let gone = tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
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
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), arrived).await.unwrap(), b"again");
}
