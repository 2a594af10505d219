//! What every backend must do: one suite, run over each of them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use model::LockedApp;
use model::messaging::{Subscription, subscriptions};

use super::{Backend, BackendError, Deliveries, Delivers, Delivery, Message, Outcome};

/// Where a backend differs: what was done, what came back, what should have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, got {got}")]
pub struct Mismatch {
    what: String,
    expected: String,
    got: String,
}

/// A message that should come has so long.
const SOON: Duration = Duration::from_secs(10);
/// No message that should not come comes within this.
const NEVER: Duration = Duration::from_millis(300);

fn same<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Result<(), Mismatch> {
    if got == expected {
        return Ok(());
    }
    Err(Mismatch { what: what.to_owned(), expected: format!("{expected:?}"), got: format!("{got:?}") })
}

fn failed(what: &str, cause: impl Debug) -> Mismatch {
    Mismatch { what: what.to_owned(), expected: "an answer".to_owned(), got: format!("{cause:?}") }
}

/// What a backend promises, where backends may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// One link may have several patterns.
    pub patterns: bool,
}

impl Promises {
    /// Everything.
    pub const ALL: Self = Self { patterns: true };

    /// What the group `work` takes, and a subject of it that is not `conf.work.a`.
    fn work(self) -> (&'static str, &'static str) {
        if self.patterns { ("conf.work.*,conf.other", "conf.other") } else { ("conf.work.*", "conf.work.other") }
    }
}

/// The app whose links the suite follows; the backend is the one of its provider.
///
/// # Errors
/// Never, but for a mistake in the suite.
pub fn app(provider: &str) -> Result<LockedApp, Mismatch> {
    app_with(provider, Promises::ALL)
}

/// The same for a backend that promises less.
///
/// # Errors
/// As [`app`].
pub fn app_with(provider: &str, promises: Promises) -> Result<LockedApp, Mismatch> {
    let link = |label: &str, config: serde_json::Value| {
        serde_json::json!({
            "component": "main", "contract": "wasmcloud:messaging", "label": label, "provider": provider, "config": config
        })
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    serde_json::from_value(serde_json::json!({
        "name": "conformance",
        "components": { "main": { "digest": digest, "size": 1, "world": "p2", "imports": [], "exports": [] } },
        "links": [
            link("work", serde_json::json!({ "subscriptions": promises.work().0, "queue-group": "work" })),
            link("audit", serde_json::json!({ "subscriptions": "conf.>", "max-in-flight": "256" })),
            link("dead", serde_json::json!({ "subscriptions": "dead-letter.conformance.>" })),
            link("answers", serde_json::json!({ "subscriptions": "ask.me" })),
        ],
    }))
    .map_err(|cause| failed("the suite's app", cause))
}

struct Suite<'a> {
    backend: &'a dyn Backend,
    subscriptions: BTreeMap<String, Arc<Subscription>>,
    /// Of the group `work`.
    other: &'static str,
}

/// Runs the suite. Nobody else uses the subjects of [`app`].
///
/// # Errors
/// The first [`Mismatch`].
pub async fn run(backend: &dyn Backend) -> Result<(), Mismatch> {
    run_with(backend, Promises::ALL).await
}

/// The same for a backend that promises less.
///
/// # Errors
/// As [`run`].
pub async fn run_with(backend: &dyn Backend, promises: Promises) -> Result<(), Mismatch> {
    let app = app_with("any", promises)?;
    let named = subscriptions(&app).map(|(link, one)| (link.label.to_string(), Arc::new(one)));
    let suite = Suite { backend, subscriptions: named.collect(), other: promises.work().1 };
    suite.groups().await?;
    suite.large().await?;
    suite.requests().await?;
    if backend.delivers() == Delivers::AtLeastOnce {
        suite.failures().await?;
    }
    suite.stopping().await
}

impl Suite<'_> {
    async fn follow(&self, label: &str) -> Result<Box<dyn Deliveries>, Mismatch> {
        let subscription = self.subscriptions.get(label).ok_or_else(|| failed("a subscription of the suite", label))?;
        self.backend.subscribe(subscription.clone()).await.map_err(|cause| failed("subscribe", cause))
    }

    async fn send(&self, subject: &str, body: &str) -> Result<(), Mismatch> {
        let message = Message { subject: subject.to_owned(), body: body.as_bytes().to_vec(), reply_to: None };
        same("publish", self.backend.publish(message).await, Ok(()))
    }

    /// Each group gets each message once, whichever of its members; nobody gets what it does not take.
    async fn groups(&self) -> Result<(), Mismatch> {
        let (mut one, mut two) = (self.follow("work").await?, self.follow("work").await?);
        let mut audit = self.follow("audit").await?;
        self.send("conf", "nobody's").await?;
        self.send("conf.work.a.b", "the audit's alone").await?;
        for n in 0..40 {
            self.send(if n % 2 == 0 { "conf.work.a" } else { self.other }, &n.to_string()).await?;
        }
        let mut worked = BTreeMap::new();
        while worked.len() < 40 {
            let next = tokio::select! {
                next = soon("a message of the group", &mut *one) => next?,
                next = soon("a message of the group", &mut *two) => next?,
            };
            let (body, id) = (text(&next), next.id.clone());
            same("the first try", next.tries, 1)?;
            settle(next, Outcome::Done).await?;
            same(&format!("message {body} comes to the group once"), worked.insert(body, id), None)?;
        }
        let mut ids: Vec<_> = worked.values().collect();
        ids.sort_unstable();
        ids.dedup();
        same("every message has an id of its own", ids.len(), 40)?;
        let mut audited = Vec::new();
        for _ in 0..41 {
            let next = soon("a message of the other group", &mut *audit).await?;
            audited.push(text(&next));
            settle(next, Outcome::Done).await?;
        }
        audited.sort_unstable();
        audited.dedup();
        same("the other group gets them all", audited.len(), 41)?;
        for deliveries in [&mut one, &mut two, &mut audit] {
            nothing("after all were handled", &mut **deliveries).await?;
        }
        Ok(())
    }

    async fn large(&self) -> Result<(), Mismatch> {
        let mut work = self.follow("work").await?;
        let body: Vec<u8> = (0..model::messaging::MAX_BODY).map(|n| (n % 251) as u8).collect();
        let message = Message { subject: self.other.to_owned(), body: body.clone(), reply_to: None };
        same("publish of a large body", self.backend.publish(message).await, Ok(()))?;
        let next = soon("a large message", &mut *work).await?;
        same("the body is whole", next.message.body == body, true)?;
        settle(next, Outcome::Done).await?;
        self.clear("audit", 1).await
    }

    /// Takes what another part of the suite sent to a group that it did not follow.
    async fn clear(&self, label: &str, at_most: usize) -> Result<(), Mismatch> {
        let mut deliveries = self.follow(label).await?;
        for _ in 0..at_most {
            if let Ok(Some(Ok(next))) = tokio::time::timeout(NEVER, deliveries.next()).await {
                settle(next, Outcome::Done).await?;
            }
        }
        Ok(())
    }

    async fn requests(&self) -> Result<(), Mismatch> {
        let ask = |subject: &str, limit| self.backend.request(subject.to_owned(), b"hat".to_vec(), limit);
        let nobody = ask("conf-nobody.there", SOON).await;
        same("a request nobody takes", nobody, Err(BackendError::NoResponder("conf-nobody.there".to_owned())))?;
        let mut answers = self.follow("answers").await?;
        let answering = async {
            let next = soon("a request", &mut *answers).await?;
            let subject = next.message.reply_to.clone().ok_or_else(|| failed("a request says where to answer", ""))?;
            self.send(&subject, &format!("re: {}", text(&next))).await?;
            settle(next, Outcome::Done).await
        };
        let (answer, answered) = tokio::join!(ask("ask.me", SOON), answering);
        answered?;
        same("the answer", answer.map(|answer| answer.body), Ok(b"re: hat".to_vec()))?;
        let (late, _) = tokio::join!(ask("ask.me", Duration::from_millis(200)), async {
            let next = soon("a request", &mut *answers).await?;
            settle(next, Outcome::Done).await
        });
        same("a request that is not answered", late, Err(BackendError::TimedOut { ms: 200 }))
    }

    async fn failures(&self) -> Result<(), Mismatch> {
        let (mut work, mut dead) = (self.follow("work").await?, self.follow("dead").await?);
        self.send(self.other, "again").await?;
        let first = soon("a message", &mut *work).await?;
        let id = first.id.clone();
        settle(first, Outcome::Again(Duration::from_millis(50))).await?;
        let second = soon("what failed", &mut *work).await?;
        same("it is the same one", (second.id.clone(), second.tries, text(&second)), (id.clone(), 2, "again".into()))?;
        settle(second, Outcome::GivenBack).await?;
        let third = soon("what was given back", &mut *work).await?;
        same("it is the same one", (&third.id, text(&third)), (&id, "again".into()))?;
        let dead_letter = format!("dead-letter.conformance.main.work.{}", self.other);
        let why = "it is to be put away".to_owned();
        settle(third, Outcome::PutAway { to: Some(dead_letter.clone()), why }).await?;
        let put_away = soon("what was put away", &mut *dead).await?;
        let found = (put_away.message.subject.clone(), text(&put_away));
        same("a dead letter", found, (dead_letter, "again".into()))?;
        settle(put_away, Outcome::PutAway { to: None, why: String::new() }).await?;
        nothing("after it was put away", &mut *work).await?;
        nothing("after it was dropped", &mut *dead).await?;
        self.clear("audit", 1).await
    }

    /// Who stops gets no more, and what it did not take goes to others.
    async fn stopping(&self) -> Result<(), Mismatch> {
        let (mut one, mut two) = (self.follow("work").await?, self.follow("work").await?);
        nothing("before anything is sent", &mut *one).await?;
        one.stop();
        for n in 0..10 {
            self.send("conf.work.a", &n.to_string()).await?;
        }
        for _ in 0..10 {
            settle(soon("a message for who is left", &mut *two).await?, Outcome::Done).await?;
        }
        same("the end of who has stopped", one.next().await.is_none(), true)?;
        self.clear("audit", 10).await
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

async fn soon(what: &str, deliveries: &mut dyn Deliveries) -> Result<Delivery, Mismatch> {
    match tokio::time::timeout(SOON, deliveries.next()).await {
        Ok(Some(Ok(delivery))) => Ok(delivery),
        Ok(Some(Err(cause))) => Err(failed(what, cause)),
        Ok(None) => Err(failed(what, "the end")),
        Err(_) => Err(failed(what, "nothing")),
    }
}

async fn nothing(when: &str, deliveries: &mut dyn Deliveries) -> Result<(), Mismatch> {
    match tokio::time::timeout(NEVER, deliveries.next()).await {
        Err(_) => Ok(()),
        Ok(Some(Ok(delivery))) => Err(failed(&format!("nothing comes {when}"), text(&delivery))),
        Ok(Some(Err(cause))) => Err(failed(when, cause)),
        Ok(None) => Err(failed(when, "the end")),
    }
}

async fn settle(delivery: Delivery, outcome: Outcome) -> Result<(), Mismatch> {
    let what = format!("settle with {outcome:?}");
    same(&what, delivery.settle.settle(outcome).await, Ok(()))
}
