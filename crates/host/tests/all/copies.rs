//! Moving data between providers while calls go on: nothing written is lost, no call fails, and whoever directs it can
//! ask for every step twice.

use std::time::Duration;

use api::copy::{CopyEnd, CopyRequest, Cursor, Keys, Round, Step};
use api::{Code, Problem};
use futures::future::join_all;
use http::Method;
use model::{AppName, Link, LockedApp, ProviderKind, ProviderSpec, Revision};

use crate::rig::{Answer, Rig};

fn linked(rig: &Rig, provider: &str) -> LockedApp {
    let mut app = rig.app("counter", "kv-counter");
    app.links.push(Link {
        component: "main".parse().unwrap(),
        contract: "wasi:keyvalue".parse().unwrap(),
        label: "default".parse().unwrap(),
        provider: provider.parse().unwrap(),
        config: Default::default(),
    });
    app
}

fn end(provider: &str, kind: ProviderKind) -> CopyEnd {
    let spec = ProviderSpec { kind, ..rule(kind) };
    CopyEnd { provider: provider.parse().unwrap(), spec, bucket: "default".to_owned() }
}

fn rule(kind: ProviderKind) -> ProviderSpec {
    ProviderSpec::new(kind)
}

fn request() -> CopyRequest {
    CopyRequest {
        from: end("memory", ProviderKind::KeyvalueMemory),
        to: end("embedded", ProviderKind::KeyvalueEmbedded),
        sources: Default::default(),
        all_but: None,
        others: Vec::new(),
    }
}

struct Copying<'a>(&'a Rig);

impl Copying<'_> {
    async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        step: &str,
        what: &Q,
    ) -> Result<A, Problem> {
        let app: AppName = "counter".parse().unwrap();
        self.0.agent.copy(method, &app, "one", step, what).await
    }

    async fn begin(&self, request: &CopyRequest) -> Result<(), Problem> {
        self.ask::<_, serde_json::Value>(Method::PUT, "", request).await.map(drop)
    }

    async fn noted(&self, round: u64) -> Vec<String> {
        self.ask::<_, Keys>(Method::POST, "/noted", &Round { round }).await.unwrap().keys
    }

    async fn keys(&self, keys: &[&str]) -> Step {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.ask(Method::POST, "/keys", &Keys { keys, cursor: None }).await.unwrap()
    }
}

#[tokio::test]
async fn a_counter_moves_with_its_count_under_calls() {
    let rig = Rig::new().await;
    let app: AppName = "counter".parse().unwrap();
    rig.run(&linked(&rig, "memory")).await;
    for _ in 0..3 {
        rig.get("counter/1/main", "/").await;
    }
    let copy = Copying(&rig);
    copy.begin(&request()).await.unwrap();
    let first: Step = copy.ask(Method::POST, "/page", &Cursor::default()).await.unwrap();
    assert_eq!((first.read, first.written, first.cursor), (1, 1, None));
    assert_eq!(copy.noted(1).await, Vec::<String>::new());
    rig.get("counter/1/main", "/").await;
    let noted = copy.noted(2).await;
    assert_eq!(noted.len(), 1);
    assert_eq!(copy.noted(2).await, noted, "asked once more");
    assert_eq!(copy.keys(&[&noted[0]]).await.written, 1);

    rig.start(&linked(&rig, "embedded"), 2, true).await.unwrap();
    assert_eq!(rig.agent.hold(&app, Revision(1), Duration::from_secs(5)).await.unwrap().in_flight, 0);
    assert_eq!(copy.noted(3).await, Vec::<String>::new());
    let waiting = join_all((0..20).map(|_| rig.get("counter/1/main", "/")));
    let released = async {
        // They reach the host before the release does: both go over the same thread, in this order or the other.
        tokio::task::yield_now().await;
        rig.agent.release(&app, Some(Revision(2))).await.unwrap();
    };
    let (answers, ()) = futures::join!(waiting, released);
    let mut counts: Vec<u64> = answers.iter().map(|answer| answer.text.parse().unwrap()).collect();
    counts.sort_unstable();
    assert!(counts.iter().copied().eq(5..=24), "{counts:?}");
    assert_eq!(rig.get("counter/1/main", "/").await, Answer::ok("25"), "a late call goes to the new revision too");
    copy.ask::<_, serde_json::Value>(Method::DELETE, "", &()).await.unwrap();
    assert_eq!(rig.drain("counter", 1, Duration::from_secs(5)).await, 0);
    assert_eq!(rig.get("counter/2/main", "/").await, Answer::ok("26"));
}

#[tokio::test]
async fn a_hold_that_a_call_outlasts_is_none() {
    let rig = Rig::new().await;
    let probe = rig.app("slow", "probe");
    rig.run(&probe).await;
    let slow = rig.get("slow/1/main", "/slow?ms=9000");
    let held = async {
        crate::rig::until("the call runs", || async { rig.status("slow").await.in_flight == 1 }).await;
        let held = rig.agent.hold(&probe.name, Revision(1), Duration::from_millis(50)).await.unwrap();
        assert_eq!(held.in_flight, 1);
        assert_eq!(rig.get("slow/1/main", "/").await.status, 200, "new calls do not wait");
    };
    let (answer, ()) = futures::join!(slow, held);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_hold_waits_for_calls_of_earlier_revisions_too() {
    let rig = Rig::new().await;
    let probe = rig.app("slow", "probe");
    rig.start(&probe, 1, true).await.unwrap();
    let slow = rig.get("slow/1/main", "/slow?ms=9000");
    let held = async {
        crate::rig::until("the call runs", || async { rig.status("slow").await.in_flight == 1 }).await;
        rig.start(&probe, 2, true).await.unwrap();
        let held = rig.agent.hold(&probe.name, Revision(2), Duration::from_millis(50)).await.unwrap();
        assert_eq!(held.in_flight, 1, "it may still write where the held revision does");
        let held = rig.agent.hold(&probe.name, Revision(2), Duration::from_secs(30)).await.unwrap();
        assert_eq!(held.in_flight, 0);
    };
    let (answer, ()) = futures::join!(slow, held);
    assert_eq!(answer.status, 200);
    rig.agent.release(&probe.name, None).await.unwrap();
    assert_eq!(rig.get("slow/2/main", "/slow?ms=1").await.status, 200);
}

#[tokio::test]
async fn a_hold_is_of_earlier_revisions_too_whether_the_named_one_is_here_or_not() {
    let rig = Rig::new().await;
    let probe = rig.app("slow", "probe");
    rig.start(&probe, 1, true).await.unwrap();
    assert_eq!(rig.agent.hold(&probe.name, Revision(2), Duration::from_secs(5)).await.unwrap().in_flight, 0);
    let call = rig.get("slow/1/main", "/slow?ms=1");
    let released = async {
        tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(rig.status("slow").await.in_flight, 0, "it would write to the provider that is left");
        rig.start(&probe, 2, true).await.unwrap();
        // Its waiting call is not lost with it.
        assert_eq!(rig.drain("slow", 1, Duration::from_secs(5)).await, 0);
        rig.agent.release(&probe.name, Some(Revision(2))).await.unwrap();
    };
    let (answer, ()) = futures::join!(call, released);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_revision_that_comes_while_the_app_is_held_answers_when_it_is_released() {
    let rig = Rig::new().await;
    let probe = rig.app("slow", "probe");
    // As after a restart of the host: the hold is there before the revision.
    assert_eq!(rig.agent.hold(&probe.name, Revision(1), Duration::ZERO).await.unwrap().in_flight, 0);
    rig.start(&probe, 1, true).await.unwrap();
    rig.start(&probe, 2, true).await.unwrap();
    let calls = join_all([rig.get("slow/1/main", "/slow?ms=1"), rig.get("slow/2/main", "/slow?ms=1")]);
    let released = async {
        tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(rig.status("slow").await.in_flight, 0, "both wait");
        rig.agent.release(&probe.name, Some(Revision(2))).await.unwrap();
    };
    let (answers, ()) = futures::join!(calls, released);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
}

#[tokio::test]
async fn what_cannot_be_copied_is_refused() {
    let rig = Rig::new().await;
    rig.run(&linked(&rig, "memory")).await;
    let copy = Copying(&rig);
    let itself = CopyRequest { to: request().from, ..request() };
    assert_eq!(copy.begin(&itself).await.unwrap_err().code, Code::RequestInvalid);
    let unknown = copy.ask::<_, Step>(Method::POST, "/page", &Cursor::default()).await;
    assert_eq!(unknown.unwrap_err().code, Code::NotFound);
    let mut down = request();
    down.to.spec.kind = ProviderKind::KeyvalueRedis;
    down.to.spec.config.insert("url".into(), "redis://127.0.0.1:1".into());
    assert_eq!(copy.begin(&down).await.unwrap_err().code, Code::ProviderUnavailable);
}

#[tokio::test]
async fn a_move_that_begins_ends_what_is_left_of_earlier_ones() {
    let rig = Rig::new().await;
    let app: AppName = "counter".parse().unwrap();
    rig.run(&linked(&rig, "memory")).await;
    for id in 0..40 {
        let begun = rig.agent.copy::<_, serde_json::Value>(Method::PUT, &app, &format!("m{id}"), "", &request()).await;
        begun.unwrap_or_else(|refused| panic!("move {id}: {refused}"));
    }
    let round = Round { round: 1 };
    let gone = rig.agent.copy::<_, Keys>(Method::POST, &app, "m38", "/noted", &round).await.unwrap_err();
    assert_eq!(gone.code, Code::NotFound);
    rig.get("counter/1/main", "/").await;
    let noted = rig.agent.copy::<_, Keys>(Method::POST, &app, "m39", "/noted", &round).await.unwrap();
    assert_eq!(noted.keys.len(), 1, "the newest one notes");
}

#[tokio::test]
async fn what_an_earlier_revision_writes_with_other_settings_of_the_provider_is_noted_too() {
    let rig = Rig::new().await;
    let with = |setting: &str| {
        let mut spec = rule(ProviderKind::KeyvalueEmbedded);
        spec.config.insert("note".to_owned(), setting.to_owned());
        let mut app = linked(&rig, "store");
        app.providers.insert("store".parse().unwrap(), spec.clone());
        (app, spec)
    };
    let (before, _) = with("before");
    let (now, spec) = with("now");
    rig.start(&before, 1, true).await.unwrap();
    rig.start(&now, 2, true).await.unwrap();
    let copy = Copying(&rig);
    let from = CopyEnd { provider: "store".parse().unwrap(), spec, bucket: "default".to_owned() };
    let to = end("memory", ProviderKind::KeyvalueMemory);
    copy.begin(&CopyRequest { from, to, ..request() }).await.unwrap();
    assert_eq!(rig.get("counter/2/main", "/").await, Answer::ok("1"));
    assert_eq!(copy.noted(1).await.len(), 1);
    assert_eq!(rig.get("counter/1/main", "/").await, Answer::ok("2"), "the same keys");
    assert_eq!(copy.noted(2).await.len(), 1);
    assert_eq!(copy.noted(3).await, Vec::<String>::new());
    copy.ask::<_, serde_json::Value>(Method::DELETE, "", &()).await.unwrap();
}

#[tokio::test]
async fn a_copy_from_a_provider_to_another_name_of_its_data_is_refused() {
    let rig = Rig::new().await;
    rig.run(&linked(&rig, "memory")).await;
    rig.get("counter/1/main", "/").await;
    let copy = Copying(&rig);
    // The test's node keeps them by the names of app and provider: here both are one.
    let from = end("embedded", ProviderKind::KeyvalueEmbedded);
    let to = CopyEnd {
        spec: ProviderSpec { config: [("a".to_owned(), "b".to_owned())].into(), ..from.spec.clone() },
        ..from.clone()
    };
    copy.begin(&CopyRequest { from, to, ..request() }).await.unwrap();
    for step in ["/page", "/extra"] {
        let refused = copy.ask::<_, serde_json::Value>(Method::POST, step, &Cursor::default()).await.unwrap_err();
        assert_eq!(refused.code, Code::RequestInvalid, "{refused}");
        assert!(refused.detail.contains("reach the same data"), "{refused}");
    }
    copy.ask::<_, serde_json::Value>(Method::DELETE, "", &()).await.unwrap();
}

#[tokio::test]
async fn a_copy_to_where_another_link_is_by_another_name_is_refused() {
    let rig = Rig::new().await;
    rig.run(&linked(&rig, "memory")).await;
    rig.get("counter/1/main", "/").await;
    let copy = Copying(&rig);
    // The test's node keeps them by the names of app and provider: with other settings it is the target all the same.
    let embedded = end("embedded", ProviderKind::KeyvalueEmbedded);
    let spec = ProviderSpec { config: [("a".to_owned(), "b".to_owned())].into(), ..embedded.spec.clone() };
    let other = |bucket: &str| CopyEnd { bucket: bucket.to_owned(), spec: spec.clone(), ..embedded.clone() };
    copy.begin(&CopyRequest { others: vec![other("own")], ..request() }).await.unwrap();
    copy.ask::<_, Step>(Method::POST, "/page", &Cursor::default()).await.expect("another bucket is another place");
    copy.begin(&CopyRequest { others: vec![other("own"), other("default")], ..request() }).await.unwrap();
    let refused = copy.ask::<_, Step>(Method::POST, "/page", &Cursor::default()).await.unwrap_err();
    assert_eq!(refused.code, Code::RequestInvalid, "{refused}");
    assert!(refused.detail.contains("another link of the app"), "{refused}");
    copy.ask::<_, serde_json::Value>(Method::DELETE, "", &()).await.unwrap();
}

#[tokio::test]
async fn a_copy_from_where_another_link_stays_by_another_name_is_refused() {
    let rig = Rig::new().await;
    rig.run(&linked(&rig, "embedded")).await;
    rig.get("counter/1/main", "/").await;
    let copy = Copying(&rig);
    let embedded = end("embedded", ProviderKind::KeyvalueEmbedded);
    let spec = ProviderSpec { config: [("a".to_owned(), "b".to_owned())].into(), ..embedded.spec.clone() };
    let other = |bucket: &str| CopyEnd { bucket: bucket.to_owned(), spec: spec.clone(), ..embedded.clone() };
    let (from, to) = (embedded.clone(), end("memory", ProviderKind::KeyvalueMemory));
    let from_embedded = CopyRequest { from, to, ..request() };
    copy.begin(&CopyRequest { others: vec![other("own")], ..from_embedded.clone() }).await.unwrap();
    let copied: Step =
        copy.ask(Method::POST, "/page", &Cursor::default()).await.expect("another bucket is another place");
    assert_eq!((copied.read, copied.written), (1, 1), "no marker is left in what is copied");
    copy.begin(&CopyRequest { others: vec![other("own"), other("default")], ..from_embedded }).await.unwrap();
    let refused = copy.ask::<_, Step>(Method::POST, "/page", &Cursor::default()).await.unwrap_err();
    assert_eq!(refused.code, Code::RequestInvalid, "{refused}");
    assert!(refused.detail.contains("would go on there with what is moved"), "{refused}");
    copy.ask::<_, serde_json::Value>(Method::DELETE, "", &()).await.unwrap();
}

#[tokio::test]
async fn calls_that_come_after_a_hold_queue_behind_those_that_waited() {
    let rig = Rig::new().await;
    let mut probe = rig.app("slow", "probe");
    probe.components.values_mut().next().unwrap().limits.concurrency = 2;
    rig.run(&probe).await;
    let app = &probe.name;
    assert_eq!(rig.agent.hold(app, Revision(1), Duration::from_secs(5)).await.unwrap().in_flight, 0);
    let ended = std::sync::Mutex::new(Vec::new());
    let call = async |who: String| {
        let answer = rig.get("slow/1/main", "/slow?ms=50").await;
        ended.lock().unwrap().push(who);
        answer.status
    };
    let held = join_all((0..12).map(|n| call(format!("held {n}"))));
    let fresh = async {
        tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(rig.status("slow").await.in_flight, 0, "all wait");
        rig.agent.release(app, None).await.unwrap();
        crate::rig::until("they go on", || async { rig.status("slow").await.in_flight == 2 }).await;
        join_all((0..6).map(|n| call(format!("fresh {n}")))).await
    };
    let (held, fresh) = futures::join!(held, fresh);
    assert!(held.iter().chain(&fresh).all(|status| *status == 200), "{held:?} {fresh:?}");
    let ended = ended.into_inner().unwrap();
    let first = ended.iter().position(|who| who.starts_with("fresh")).unwrap();
    assert!(first >= 10, "a fresh one overtook those that waited: {ended:?}");
    assert_eq!(rig.status("slow").await.refused, 0);
}
