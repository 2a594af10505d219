//! The owner of schedules over a real store, with a clock and components that the test holds in its hands.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::Called;
use api::{Code, Problem};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::schedule::{Missed, Record, Schedule};
use model::{AppName, LockedApp, Revision, ScheduleName, TenantName};
use node::schedules::{Clock, Planned, Schedules, Setup, Source, planned};
use store::redb::RedbStore;
use store::{Expect, Store, keys};
use tokio::sync::{mpsc, oneshot, watch};

/// 2026-01-01T12:00:00Z.
const NOON: u64 = 1_767_268_800_000;
const MINUTE: u64 = 60_000;

/// A clock that goes when it is told to.
#[derive(Clone)]
struct FakeClock(watch::Sender<u64>);

impl FakeClock {
    fn set(&self, now_ms: u64) {
        self.0.send_replace(now_ms);
    }
}

impl Clock for FakeClock {
    fn now_ms(&self) -> u64 {
        *self.0.borrow()
    }

    fn reach(&self, at_ms: u64) -> BoxFuture<'static, ()> {
        let (mut now, was) = (self.0.subscribe(), *self.0.borrow());
        async move {
            if was < at_ms {
                drop(now.wait_for(|now| *now != was).await);
            }
        }
        .boxed()
    }
}

/// A run that waits for the test to say how it ends.
struct Under {
    schedule: String,
    due_ms: u64,
    end: oneshot::Sender<Result<Called, Problem>>,
}

impl Under {
    fn well(self) {
        self.end.send(Ok(Called { error: None })).unwrap();
    }
}

/// What serves of an app.
type Served = (Revision, Arc<[Planned]>);

/// Apps of which this test says what serves, and whose runs it ends.
struct FakeHosts {
    serving: Mutex<BTreeMap<AppName, Served>>,
    ready: AtomicBool,
    runs: mpsc::UnboundedSender<Under>,
}

impl Source for FakeHosts {
    fn schedules(&self, _: &TenantName, app: &AppName) -> Option<(Revision, Arc<[Planned]>)> {
        self.serving.lock().unwrap().get(app).cloned()
    }

    fn ready(&self, _: &TenantName, _: &AppName) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    fn call(
        &self,
        _: &TenantName,
        _: &AppName,
        planned: &Planned,
        due_ms: u64,
    ) -> BoxFuture<'static, Result<Called, Problem>> {
        let (end, ended) = oneshot::channel();
        self.runs.send(Under { schedule: planned.name.to_string(), due_ms, end }).unwrap();
        async move { ended.await.unwrap_or_else(|_| Err(Problem::new(Code::Unreachable, "the host is gone"))) }.boxed()
    }
}

struct Rig {
    _dir: Option<tempfile::TempDir>,
    store: Arc<dyn Store>,
    clock: FakeClock,
    hosts: Arc<FakeHosts>,
    runs: mpsc::UnboundedReceiver<Under>,
    owner: Arc<Schedules>,
}

fn tenant() -> TenantName {
    "t".parse().unwrap()
}

fn app() -> AppName {
    "a".parse().unwrap()
}

fn named(name: &str) -> ScheduleName {
    name.parse().unwrap()
}

fn plan(schedules: &[(&str, &str, Missed)]) -> Arc<[Planned]> {
    let mut locked: LockedApp = serde_json::from_str(
        r#"{"name":"a","components":{"c":{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1,
            "world":"p2","imports":[],"exports":["sidereal:schedule/handler@0.1.0"]}}}"#,
    )
    .unwrap();
    for (name, cron, missed) in schedules {
        let schedule = Schedule {
            component: "c".parse().unwrap(),
            cron: (*cron).to_owned(),
            timezone: "UTC".to_owned(),
            missed: *missed,
            missed_max: 3,
        };
        locked.schedules.insert(named(name), schedule);
    }
    planned(&locked).into()
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let mut rig = Self::over(store, "n", NOON);
        rig._dir = Some(dir);
        rig
    }

    fn over(store: Arc<dyn Store>, node: &str, now_ms: u64) -> Self {
        let clock = FakeClock(watch::Sender::new(now_ms));
        let (runs_in, runs) = mpsc::unbounded_channel();
        let hosts = Arc::new(FakeHosts { serving: Mutex::default(), ready: AtomicBool::new(true), runs: runs_in });
        let owner = Schedules::start(Setup {
            node: node.parse().unwrap(),
            store: store.clone(),
            source: hosts.clone(),
            clock: Arc::new(clock.clone()),
        });
        Self { _dir: None, store, clock, hosts, runs, owner }
    }

    fn serve(&self, revision: u64, schedules: &[(&str, &str, Missed)]) {
        self.hosts.serving.lock().unwrap().insert(app(), (Revision(revision), plan(schedules)));
        self.owner.changed(&tenant(), &app());
    }

    async fn record(&self, name: &str) -> Option<Record> {
        let entry = self.store.get(&keys::schedule(&tenant(), &app(), &named(name))).await.unwrap()?;
        serde_json::from_slice(&entry.value).ok()
    }

    /// Waits until what is remembered is as `wanted` says.
    async fn until(&self, name: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        let started = std::time::Instant::now();
        loop {
            let seen = self.record(name).await;
            if let Some(seen) = seen.clone().filter(|seen| wanted(seen)) {
                return seen;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "it is {seen:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn followed(&self, name: &str) {
        self.until(name, |record| record.decided_ms > 0).await;
    }

    async fn next(&mut self) -> Under {
        tokio::time::timeout(Duration::from_secs(60), self.runs.recv()).await.expect("nothing runs").unwrap()
    }

    /// Lets everything run that is to run, until these have decided on all due times up to `due_ms`; whose due times ran.
    async fn settled(&mut self, names: &[&str], due_ms: u64) -> BTreeMap<String, Vec<u64>> {
        let (started, mut ran) = (std::time::Instant::now(), BTreeMap::<String, Vec<u64>>::new());
        loop {
            while let Ok(run) = self.runs.try_recv() {
                ran.entry(run.schedule.clone()).or_default().push(run.due_ms);
                run.well();
            }
            let mut settled = true;
            for name in names {
                let record = self.record(name).await;
                settled &= record.is_some_and(|record| record.decided_ms >= due_ms && record.running.is_none());
            }
            if settled {
                self.none();
                return ran;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "it is at {ran:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn none(&mut self) {
        assert!(self.runs.try_recv().is_err(), "something runs");
    }
}

#[tokio::test]
async fn a_due_time_is_run_once_and_remembered() {
    let mut rig = Rig::new();
    rig.serve(1, &[("nightly", "* * * * *", Missed::Skip)]);
    rig.followed("nightly").await;
    rig.none();
    rig.clock.set(NOON + MINUTE);
    let run = rig.next().await;
    assert_eq!((run.schedule.as_str(), run.due_ms), ("nightly", NOON + MINUTE));
    // It is written down before it is called.
    let record = rig.record("nightly").await.unwrap();
    assert_eq!(record.decided_ms, NOON + MINUTE);
    assert!(record.running.is_some_and(|run| run.revision == Revision(1) && !run.manual));
    rig.clock.set(NOON + MINUTE + 70);
    run.well();
    let record = rig.until("nightly", |record| record.running.is_none()).await;
    let last = record.last.unwrap();
    assert_eq!((last.due_ms, last.began_ms, last.ended_ms), (NOON + MINUTE, NOON + MINUTE, NOON + MINUTE + 70));
    assert_eq!((record.runs, record.failed, last.error), (1, 0, None));
    // The clock is put back: that minute comes again, and is not run again.
    rig.clock.set(NOON - 10 * MINUTE);
    rig.clock.set(NOON + MINUTE);
    rig.clock.set(NOON + 2 * MINUTE);
    let run = rig.next().await;
    assert_eq!(run.due_ms, NOON + 2 * MINUTE);
    run.well();
    assert_eq!(rig.until("nightly", |record| record.running.is_none()).await.runs, 2);
}

/// An hour forward is an hour of missed due times, each met by the rule of its schedule; ten years back is nothing at all.
#[tokio::test]
async fn a_clock_that_jumps_makes_no_storm() {
    let mut rig = Rig::new();
    let missed = [("skip", Missed::Skip), ("once", Missed::Once), ("all", Missed::All)];
    rig.serve(1, &missed.map(|(name, missed)| (name, "* * * * *", missed)));
    for (name, _) in missed {
        rig.followed(name).await;
    }
    let hour = NOON + 60 * MINUTE;
    rig.clock.set(hour + 100);
    let ran = rig.settled(&["skip", "once", "all"], hour).await;
    // What is due now; with it all of the others in one, or the latest three.
    assert_eq!(ran["skip"], [hour]);
    assert_eq!(ran["once"], [hour]);
    assert_eq!(ran["all"], [hour - 2 * MINUTE, hour - MINUTE, hour]);

    // Ten years back: who asks for a run by hand gets one, and nothing else runs.
    rig.clock.set(NOON - 10 * 365 * 24 * 60 * MINUTE);
    let owner = rig.owner.clone();
    let asked = tokio::spawn(async move {
        loop {
            match owner.run_now(tenant(), app(), named("once")).await {
                // It is being looked at.
                Err(problem) if problem.code == Code::Conflict => tokio::task::yield_now().await,
                ended => return ended.map(drop),
            }
        }
    });
    rig.next().await.well();
    asked.await.unwrap().unwrap();
    rig.none();
    // Where it was, and on: nothing of what was done is done again.
    rig.clock.set(hour + 200);
    rig.clock.set(hour + MINUTE);
    let ran = rig.settled(&["skip", "once", "all"], hour + MINUTE).await;
    assert!(ran.len() == 3 && ran.values().all(|due| *due == [hour + MINUTE]), "{ran:?}");
}

#[tokio::test]
async fn a_failure_is_counted_and_not_repeated() {
    let mut rig = Rig::new();
    rig.serve(1, &[("nightly", "* * * * *", Missed::Once)]);
    rig.followed("nightly").await;
    rig.clock.set(NOON + MINUTE);
    rig.next().await.end.send(Ok(Called { error: Some("no luck".to_owned()) })).unwrap();
    rig.until("nightly", |record| record.failed == 1).await;
    rig.clock.set(NOON + 2 * MINUTE);
    rig.next().await.end.send(Err(Problem::new(Code::Busy, "no place"))).unwrap();
    let record = rig.until("nightly", |record| record.failed == 2).await;
    assert_eq!(record.last.unwrap().error.as_deref(), Some("no place"));
    rig.none();
}

#[tokio::test]
async fn a_run_that_was_not_called_is_still_to_come() {
    let mut rig = Rig::new();
    rig.serve(1, &[("nightly", "* * * * *", Missed::Skip)]);
    rig.followed("nightly").await;
    rig.clock.set(NOON + MINUTE);
    let not_called = || Err(Problem::new(Code::NotFound, "this host is ending"));
    rig.next().await.end.send(not_called()).unwrap();
    let record = rig.until("nightly", |record| record.running.is_none()).await;
    assert_eq!((record.runs, record.failed, record.decided_ms), (0, 0, NOON));
    let mut now_ms = NOON + MINUTE;
    let run = loop {
        // Within its minute, however long this takes: with the next one there is another due time.
        now_ms += if now_ms < NOON + MINUTE + 50_000 { 1500 } else { 1 };
        rig.clock.set(now_ms);
        if let Ok(run) = tokio::time::timeout(Duration::from_millis(200), rig.runs.recv()).await {
            break run.unwrap();
        }
    };
    assert_eq!(run.due_ms, NOON + MINUTE);
    run.well();
    let record = rig.until("nightly", |record| record.last.is_some()).await;
    assert_eq!((record.runs, record.failed, record.decided_ms), (1, 0, NOON + MINUTE));
    // Who asked for a run by hand is told, and nothing is remembered of it.
    let owner = rig.owner.clone();
    let asked = tokio::spawn(async move { owner.run_now(tenant(), app(), named("nightly")).await });
    rig.next().await.end.send(not_called()).unwrap();
    let problem = asked.await.unwrap().unwrap_err();
    assert!(problem.code == Code::Unreachable && problem.detail.contains("not run"), "{problem}");
    assert_eq!(rig.record("nightly").await.unwrap().runs, 1);
}

#[tokio::test]
async fn one_schedule_never_runs_twice_at_a_time() {
    let mut rig = Rig::new();
    rig.serve(1, &[("often", "* * * * *", Missed::Skip), ("other", "* * * * *", Missed::Skip)]);
    rig.followed("often").await;
    rig.followed("other").await;
    rig.clock.set(NOON + MINUTE);
    let (first, second) = (rig.next().await, rig.next().await);
    let (often, other) = if first.schedule == "often" { (first, second) } else { (second, first) };
    // Others do not wait for it.
    other.well();
    rig.until("other", |record| record.running.is_none()).await;
    rig.clock.set(NOON + 3 * MINUTE + 10);
    let other = rig.next().await;
    assert_eq!(other.schedule, "other");
    other.well();
    rig.none();
    // By hand neither.
    let refused = rig.owner.run_now(tenant(), app(), named("often")).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    often.well();
    let record = rig.until("often", |record| record.passed == 2).await;
    assert_eq!((record.runs, record.decided_ms), (1, NOON + 3 * MINUTE));
}

#[tokio::test]
async fn what_a_killed_node_left_is_counted_and_never_repeated() {
    let mut rig = Rig::new();
    rig.serve(1, &[("nightly", "* * * * *", Missed::All)]);
    rig.followed("nightly").await;
    rig.clock.set(NOON + MINUTE);
    let under = rig.next().await;
    // A node of the same name starts while that run is under way: the process before it must be dead.
    let mut again = Rig::over(rig.store.clone(), "n", NOON + 4 * MINUTE + 40_000);
    again.serve(1, &[("nightly", "* * * * *", Missed::All)]);
    for due in 2..=4 {
        let run = again.next().await;
        assert_eq!(run.due_ms, NOON + due * MINUTE, "missed ones are made up for, the lost one is not");
        if due == 2 {
            let record = again.record("nightly").await.unwrap();
            assert!(record.failed == 1 && record.last.unwrap().error.unwrap().contains("not repeated"));
        }
        run.well();
    }
    again.until("nightly", |record| record.runs == 4 && record.running.is_none()).await;
    // The dead one was only slow after all: what it has to say comes too late.
    under.well();
    rig.owner.ended(Duration::from_secs(60)).await;
    let record = again.record("nightly").await.unwrap();
    assert_eq!((record.runs, record.failed, record.passed), (4, 1, 0));
}

#[tokio::test]
async fn two_nodes_share_the_due_times() {
    let mut one = Rig::new();
    let mut two = Rig::over(one.store.clone(), "m", NOON);
    for rig in [&one, &two] {
        rig.serve(1, &[("nightly", "* * * * *", Missed::Skip)]);
        rig.followed("nightly").await;
    }
    let mut seen = Vec::new();
    for minute in 1..=20 {
        one.clock.set(NOON + minute * MINUTE);
        two.clock.set(NOON + minute * MINUTE);
        let run = tokio::select! {
            run = one.next() => run,
            run = two.next() => run,
        };
        seen.push(run.due_ms);
        run.well();
        one.until("nightly", |record| record.runs == minute && record.running.is_none()).await;
    }
    assert_eq!(seen, (1..=20).map(|minute| NOON + minute * MINUTE).collect::<Vec<_>>());
    one.none();
    two.none();
}

#[tokio::test]
async fn the_schedule_follows_the_revision_that_serves() {
    let mut rig = Rig::new();
    rig.serve(1, &[("nightly", "* * * * *", Missed::All), ("gone", "* * * * *", Missed::All)]);
    rig.followed("nightly").await;
    rig.followed("gone").await;
    // Another expression has missed nothing, and what the app has no more is forgotten.
    rig.clock.set(NOON + 30_000);
    rig.serve(2, &[("nightly", "*/30 * * * *", Missed::All)]);
    rig.until("nightly", |record| record.cron == "*/30 * * * *").await;
    let started = std::time::Instant::now();
    while rig.record("gone").await.is_some() {
        assert!(started.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    rig.clock.set(NOON + 30 * MINUTE);
    let run = rig.next().await;
    assert_eq!(run.due_ms, NOON + 30 * MINUTE);
    // It is deployed again while it runs: it ends, and the new one goes on.
    rig.serve(3, &[("nightly", "* * * * *", Missed::Skip)]);
    run.well();
    rig.until("nightly", |record| record.cron == "* * * * *").await;
    rig.clock.set(NOON + 31 * MINUTE);
    let run = rig.next().await;
    assert!(rig.record("nightly").await.unwrap().running.unwrap().revision == Revision(3));
    run.well();
    // Deleted: nothing is due any more, and by hand there is nothing either.
    rig.until("nightly", |record| record.running.is_none()).await;
    rig.hosts.serving.lock().unwrap().clear();
    rig.owner.changed(&tenant(), &app());
    let missing = rig.owner.run_now(tenant(), app(), named("nightly")).await.unwrap_err();
    assert_eq!(missing.code, Code::NotFound);
    rig.clock.set(NOON + 60 * MINUTE);
    rig.none();
}

#[tokio::test]
async fn without_a_host_nothing_is_claimed() {
    let mut rig = Rig::new();
    rig.hosts.ready.store(false, Ordering::SeqCst);
    rig.serve(1, &[("nightly", "* * * * *", Missed::Skip)]);
    rig.followed("nightly").await;
    rig.clock.set(NOON + MINUTE);
    let refused = loop {
        match rig.owner.run_now(tenant(), app(), named("nightly")).await {
            Err(problem) if problem.code == Code::Conflict => tokio::task::yield_now().await,
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(refused.code, Code::Unreachable);
    assert_eq!(rig.record("nightly").await.unwrap().runs, 0);
    rig.hosts.ready.store(true, Ordering::SeqCst);
    rig.clock.set(NOON + MINUTE + 1000);
    let run = rig.next().await;
    assert_eq!(run.due_ms, NOON + MINUTE);
    run.well();
}

#[tokio::test]
async fn a_run_by_hand_is_told_how_it_ended() {
    let mut rig = Rig::new();
    rig.serve(1, &[("nightly", "0 3 * * *", Missed::Skip)]);
    rig.followed("nightly").await;
    let owner = rig.owner.clone();
    let asked = tokio::spawn(async move { owner.run_now(tenant(), app(), named("nightly")).await });
    rig.next().await.end.send(Ok(Called { error: Some("no luck".to_owned()) })).unwrap();
    let ended = asked.await.unwrap().unwrap();
    assert!(ended.manual && ended.due_ms == NOON && ended.error.as_deref() == Some("no luck"));
    // The due time is not touched by it.
    let three = NOON + 15 * 60 * MINUTE;
    rig.clock.set(three);
    let run = rig.next().await;
    assert_eq!(run.due_ms, three);
    // A node that ends waits for the end of what runs, so that it is known.
    let owner = rig.owner.clone();
    let ending = tokio::spawn(async move { owner.ended(Duration::from_secs(60)).await });
    run.well();
    ending.await.unwrap();
    let record = rig.record("nightly").await.unwrap();
    assert!(record.running.is_none() && record.runs == 2);
    let refused = rig.owner.run_now(tenant(), app(), named("nightly")).await.unwrap_err();
    assert_eq!(refused.code, Code::Unreachable);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_begins_anew() {
    let mut rig = Rig::new();
    let key = keys::schedule(&tenant(), &app(), &named("nightly"));
    rig.store.put(&key, "not a record".into(), Expect::Any, None).await.unwrap();
    rig.serve(1, &[("nightly", "* * * * *", Missed::All)]);
    rig.followed("nightly").await;
    rig.clock.set(NOON + MINUTE);
    let run = rig.next().await;
    assert_eq!(run.due_ms, NOON + MINUTE);
    run.well();
}
