//! `go-between` before a real database, a real broker and a test's secrets: the suites of their contracts, and what it is not
//! believed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use model::messaging::Subscription;
use model::sql::{Answer, Call, MAX_ANSWER, MAX_ROWS, Rows, SqlError, Statement, Value};
use model::{AppName, SecretRef, SecretValue};
use providers::messaging::{
    self, Backend as _, BackendError, Deliveries, Delivers, Message, MessagingLink, MessagingLinks,
};
use providers::secrets::{self, ComponentSecrets, LinkedSecret, Resolver, Revealed, SecretError, SecretLinks};
use providers::share::Sharing;
use providers::sql::{self, Backend as _, ComponentSql, SqlLinks};
use runtime::Bindings;
use tokio::sync::watch;

use crate::behind::Behind;
use crate::nats_server::NatsServer;
use crate::postgres_server::{PASSWORD, Postgres};
use crate::support::{Direct, Guest, Vault};

/// More than a suite has under way at once.
const ROOM: u32 = 64;

fn default_label() -> model::Label {
    model::Label::default_label()
}

/// The component with what it is linked to.
fn between(bindings: Bindings) -> (Guest, Arc<Behind>) {
    let guest = Guest::with_room("go-between", bindings, None, ROOM);
    let behind = Behind::new(&guest);
    (guest, behind)
}

/// The component before `database`.
fn before(database: Arc<dyn sql::Backend>) -> (Guest, Arc<Behind>, ComponentSql) {
    let links = SqlLinks::default().with(&default_label(), database, Arc::default(), Sharing::Alone);
    let (guest, behind) = between(Bindings::new().with(Arc::new(links)));
    let sql = ComponentSql::new(&default_label(), behind.clone());
    (guest, behind, sql)
}

/// The component drops no table. The suite drops its own past it.
struct Tables {
    between: ComponentSql,
    below: Arc<dyn sql::Backend>,
}

impl sql::Backend for Tables {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, SqlError>> {
        match call.statements().iter().any(|one| one.sql.starts_with("DROP")) {
            true => self.below.call(call),
            false => self.between.call(call),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_before_a_database_keeps_the_contract() {
    let server = Postgres::start();
    let below: Arc<dyn sql::Backend> =
        Arc::new(crate::sql::postgres_of("postgres", PASSWORD, server.addr, Direct::to(server.addr)));
    let (_guest, behind, between) = before(below.clone());
    let tables = Tables { between, below };
    sql::conformance::run(&tables).await.unwrap();
    sql::conformance::endless(&tables).await.unwrap();
    assert!(behind.faults().is_empty(), "{:?}", behind.faults());
}

/// Answers what it is told to, whatever it is asked: a component may.
struct Says(Mutex<Answer>);

impl sql::Backend for Says {
    fn call(&self, _: Call) -> BoxFuture<'_, Result<Answer, SqlError>> {
        ready(Ok(self.0.lock().unwrap().clone())).boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_component_answers_in_the_place_of_a_database_has_the_limits_and_the_shape_of_an_answer() {
    let says = Arc::new(Says(Mutex::new(Answer::Changed(0))));
    let (_guest, _behind, between) = before(says.clone());
    let told = async |answer: Answer, call: Call| {
        *says.0.lock().unwrap() = answer;
        between.call(call).await
    };
    let one = || Statement { sql: "SELECT 1".to_owned(), params: Vec::new() };
    let query = || Call::Query(one());
    let rows = |columns: &[&str], rows: Vec<Vec<Value>>| {
        Answer::Rows(Rows { columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows })
    };
    let numbers = |count: usize| rows(&["n"], vec![vec![Value::Int64(7)]; count]);
    assert!(told(numbers(MAX_ROWS), query()).await.unwrap() == numbers(MAX_ROWS), "as many as there may be");
    let more = told(numbers(MAX_ROWS + 1), query()).await.unwrap_err();
    assert!(matches!(&more, SqlError::TooLarge(words) if words.contains("ask for fewer")), "{more:?}");
    let large = vec![Value::Text("x".repeat(1 << 20))];
    let bytes = told(rows(&["t"], vec![large; (MAX_ANSWER >> 20) + 1]), query()).await.unwrap_err();
    assert!(matches!(&bytes, SqlError::TooLarge(_)), "{bytes:?}");
    let narrow = told(rows(&["a", "b"], vec![vec![Value::Null]]), query()).await.unwrap_err();
    assert!(matches!(&narrow, SqlError::Unavailable(words) if words.contains("another width")), "{narrow:?}");
    let fewer = told(Answer::Each(vec![1]), Call::Batch(vec![one(), one()])).await.unwrap_err();
    assert!(matches!(&fewer, SqlError::Unavailable(words) if words.contains("other statements")), "{fewer:?}");
}

/// Sends by way of the component, which brings nothing: what comes is taken past it. The contract has sentences for errors,
/// which are told apart here by what they say.
struct Sender {
    between: messaging::ComponentSender,
    below: Arc<dyn messaging::Backend>,
}

impl messaging::Backend for Sender {
    fn delivers(&self) -> Delivers {
        self.below.delivers()
    }
    fn publish(&self, message: Message) -> messaging::Answer<'_, ()> {
        self.between.publish(message)
    }
    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> messaging::Answer<'_, Message> {
        let ms = u64::try_from(timeout.as_millis()).unwrap();
        let errors = [BackendError::NoResponder(subject.clone()), BackendError::TimedOut { ms }];
        let asked = self.between.request(subject, body, timeout);
        let meant = |said: BackendError| match &said {
            BackendError::Refused(words) => {
                errors.into_iter().find(|one| one.to_string() == *words).unwrap_or_else(|| said.clone())
            }
            _ => said,
        };
        async move { asked.await.map_err(meant) }.boxed()
    }
    fn subscribe(&self, subscription: Arc<Subscription>) -> messaging::Answer<'_, Box<dyn Deliveries>> {
        self.below.subscribe(subscription)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_before_a_broker_keeps_what_the_contract_says_of_sending() {
    let server = NatsServer::start();
    let below: Arc<dyn messaging::Backend> =
        Arc::new(messaging::nats::Nats::new(server.client(), "acme".parse().unwrap()));
    let link = MessagingLink::new(below.clone(), Arc::default());
    let links = MessagingLinks::default().with(default_label(), link);
    let (_guest, behind) = between(Bindings::new().with(Arc::new(links)));
    let sender = Sender { between: messaging::ComponentSender::new(behind), below };
    if let Err(mismatch) = messaging::conformance::run(&sender).await {
        panic!("{mismatch}");
    }
    let refused = sender.request("private.x".to_owned(), Vec::new(), Duration::from_secs(10)).await;
    assert!(matches!(&refused, Err(BackendError::Refused(words)) if words.contains("does not pass on")), "{refused:?}");
}

/// The secrets of two apps, of which each has a component of its own. What it says of a text that was seen is taken away
/// again. Versions and changes come of no component: those are the store's.
struct Seen {
    apps: [(AppName, ComponentSecrets); 2],
    vault: Arc<Vault>,
}

impl Resolver for Seen {
    fn reveal<'a>(&'a self, app: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        let (_, between) = self.apps.iter().find(|(of, _)| of == app).unwrap();
        async move {
            let revealed = between.reveal(app, secret).await?;
            let bytes = revealed.value.expose();
            let value = match revealed.value.expose_text() {
                Some(text) => text.strip_prefix("seen:").unwrap().as_bytes(),
                None => bytes,
            };
            Ok(Revealed { value: SecretValue::new(value.to_vec()), version: *self.vault.changes().borrow() })
        }
        .boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.vault.changes()
    }
}

struct Keeper(Arc<Vault>);

impl secrets::conformance::Keeper for Keeper {
    fn set<'a>(&'a self, name: &'a str, value: &'a [u8]) -> BoxFuture<'a, ()> {
        self.0.set_bytes(name, value.to_vec());
        ready(()).boxed()
    }
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.0.remove(name);
        ready(()).boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_before_secrets_keeps_the_contract() {
    let vault = Vault::new();
    let (shop, stranger): (AppName, AppName) = ("shop".parse().unwrap(), "stranger".parse().unwrap());
    let linked = |name: &str| {
        let secret = SecretRef::new(name.parse().unwrap());
        LinkedSecret::new(shop.clone(), secret, vault.clone(), Arc::default())
    };
    let own =
        secrets::conformance::NAMES.iter().fold(SecretLinks::default(), |links, name| links.with(name, linked(name)));
    let (_theirs, of_shop) = between(Bindings::new().with(Arc::new(own)));
    let (_nobodys, of_stranger) = between(Bindings::new());
    let of = |behind: Arc<Behind>| ComponentSecrets::new("between".to_owned(), behind);
    let seen = Seen { apps: [(shop.clone(), of(of_shop)), (stranger.clone(), of(of_stranger))], vault: vault.clone() };
    secrets::conformance::run(&seen, &Keeper(vault), &shop, &stranger).await.unwrap();
}
