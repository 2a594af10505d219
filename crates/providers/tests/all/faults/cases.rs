//! The faults, one function each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use providers::meter::{ErrorKind, LinkMeter};

use super::{Call, FAST, Failure, Mode, Proxy, Remote, Rig, SECOND, SLACK, timed};
use crate::support::Direct;

/// Callers at once where many call.
const CALLERS: u32 = 32;
/// Dials that one second of outage may cost, however many call: one for each that was under way, and then the pauses double.
const DIALS: u32 = 60;

fn is_away(failure: &Failure) -> bool {
    matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::TimedOut)
}

/// Nobody listens yet when the first call is made.
pub(super) async fn down_at_start<R: Remote>() {
    let Some(rig) = Rig::<R>::start(Mode::Refuse).await else { return };
    let first = rig.once().await.unwrap_err();
    assert_eq!(first.kind, ErrorKind::Unavailable, "{first:?}");
    let start = Instant::now();
    for _ in 0..500 {
        let again = rig.once().await.unwrap_err();
        assert_eq!(again.kind, ErrorKind::Unavailable, "{again:?}");
    }
    assert!(start.elapsed() < 60 * SECOND, "a server that is not there costs nothing: {:?}", start.elapsed());
    let dials = rig.dialer.dials.load(SeqCst);
    assert!(dials < DIALS, "500 calls dialled {dials} times");
    rig.proxy.set(Mode::Pass).await;
    rig.answers().await;
}

/// Callers that call for as long as `going` says, and what became of their calls.
struct Load {
    going: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    callers: Vec<tokio::task::JoinHandle<Vec<Failure>>>,
}

impl Load {
    fn start<R: Remote>(call: &Call) -> Self {
        let (going, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
        let one = |_| {
            let (call, going, answered) = (call.clone(), going.clone(), answered.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while going.load(SeqCst) {
                    match timed::<R>(&call).await.0 {
                        Ok(()) => drop(answered.fetch_add(1, SeqCst)),
                        Err(failure) => {
                            if failures.len() < 100 {
                                failures.push(failure);
                            }
                            // As a component that is asked by somebody would: not at once, and not never.
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                }
                failures
            })
        };
        let callers = (0..CALLERS).map(one).collect();
        Self { going, answered, callers }
    }

    /// Until so many more were answered.
    async fn answers(&self, more: u32) {
        let (from, start) = (self.answered.load(SeqCst), Instant::now());
        while self.answered.load(SeqCst) < from + more {
            assert!(start.elapsed() < 60 * SECOND, "{} answers", self.answered.load(SeqCst) - from);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> Vec<Failure> {
        self.going.store(false, SeqCst);
        let mut all = Vec::new();
        for caller in self.callers {
            all.extend(caller.await.unwrap());
        }
        all
    }
}

/// The server is gone from one moment to the next while many call, and comes back.
pub(super) async fn dies_under_load<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    let load = Load::start::<R>(&rig.call);
    load.answers(200).await;
    let before = rig.dialer.dials.load(SeqCst);
    rig.proxy.set(Mode::Refuse).await;
    tokio::time::sleep(SECOND).await;
    let during = rig.dialer.dials.load(SeqCst) - before;
    assert!(during < DIALS, "{CALLERS} callers dialled {during} times within a second");
    // As long as one that waited for the server would take, nearly: it would every time.
    let mut tries = Vec::new();
    while !tries.iter().any(|took| *took < R::BOUND / 2) {
        assert!(tries.len() < 4, "{tries:?}");
        let start = Instant::now();
        assert!(rig.once().await.is_err());
        tries.push(start.elapsed());
    }
    let accepted = rig.proxy.accepted();
    rig.proxy.set(Mode::Pass).await;
    load.answers(500).await;
    // One finds out; the others follow, each with no more than a connection of its own.
    let stormed = rig.proxy.accepted() - accepted;
    assert!(stormed <= 2 * CALLERS, "{CALLERS} callers came back with {stormed} connections");
    let failures = load.end().await;
    assert!(R::BRIDGES || !failures.is_empty(), "somebody called meanwhile");
    assert!(failures.iter().all(is_away), "{:?}", failures.iter().find(|f| !is_away(f)));
}

/// The server takes what is sent and says nothing any more.
pub(super) async fn hangs<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    rig.proxy.set(Mode::Hang).await;
    let calls = futures::future::join_all((0..CALLERS).map(|_| rig.once())).await;
    for call in calls {
        let failure = call.unwrap_err();
        assert!(is_away(&failure), "{failure:?}");
    }
    // A slow answer or two are no dead server; but soon nobody waits any more.
    let start = Instant::now();
    loop {
        let (answer, took) = timed::<R>(&rig.call).await;
        assert!(answer.is_err());
        if took < FAST {
            break;
        }
        assert!(start.elapsed() < 3 * R::BOUND, "every call waits for a server that hangs");
    }
    let (start, dials) = (Instant::now(), rig.dialer.dials.load(SeqCst));
    let (mut waited, mut calls) = (0, 0);
    while start.elapsed() < R::BOUND {
        let together = futures::future::join_all((0..CALLERS).map(|_| timed::<R>(&rig.call)));
        // Whoever finds out may take its time: it is not waited for here, as it would be by nobody.
        let Ok(together) = tokio::time::timeout(FAST, together).await else {
            waited += 1;
            continue;
        };
        calls += together.len();
        assert!(together.iter().all(|(answer, _)| answer.as_ref().is_err_and(is_away)));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(calls > 0 && waited * 750 < 2 * R::BOUND.as_millis(), "{waited} groups of calls had one that waited");
    let dials = rig.dialer.dials.load(SeqCst) - dials;
    assert!(dials < DIALS, "{dials} dials to a server that hangs");
    // What was sent long ago arrives now, and its answers: nobody may take them for their own.
    rig.proxy.set(Mode::Pass).await;
    rig.answers().await;
}

/// The server hangs, or a partition begins, and every caller has less time than a call: it gives up before the call would say
/// anything. As a component does at its own limit, and whoever waits for it.
pub(super) async fn hangs_and_callers_give_up<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    rig.proxy.set(Mode::Hang).await;
    let start = Instant::now();
    loop {
        let calls = (0..CALLERS).map(|_| tokio::time::timeout(FAST, (rig.call)()));
        let calls = futures::future::join_all(calls).await;
        assert!(!calls.iter().any(|call| matches!(call, Ok(Ok(())))), "nobody can be answered");
        // One may be finding out whether it is back.
        if calls.iter().filter(|call| call.is_err()).count() <= 1 {
            break;
        }
        assert!(
            start.elapsed() < 60 * SECOND,
            "every call waits for a server that hangs, as long as its caller lets it"
        );
    }
    rig.proxy.set(Mode::Pass).await;
    rig.answers().await;
    rig.proxy.lose();
    let start = Instant::now();
    // Still sooner than a call says that it is late; and with time for one on a new connection.
    while !matches!(tokio::time::timeout(R::BOUND / 3, (rig.call)()).await, Ok(Ok(()))) {
        assert!(start.elapsed() < 60 * SECOND, "connections that are lost are not left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A partition while nobody calls: every open connection is lost, and neither side is told.
pub(super) async fn partition_is_healed<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    rig.proxy.lose();
    let start = Instant::now();
    rig.answers().await;
    assert!(start.elapsed() < 2 * R::BOUND + 2 * SLACK, "{:?}", start.elapsed());
    for answer in futures::future::join_all((0..16).map(|_| rig.once())).await {
        answer.unwrap();
    }
}

/// Something else is at the address of the server.
pub(super) async fn answers_garbage<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    rig.proxy.set(Mode::Garbage).await;
    let start = Instant::now();
    for _ in 0..20 {
        let failure = rig.once().await.unwrap_err();
        assert!(is_away(&failure), "{failure:?}");
        assert!(start.elapsed() < 60 * SECOND, "garbage is told from an answer that is late");
    }
    rig.proxy.set(Mode::Pass).await;
    rig.answers().await;
}

/// Everything takes ten times as long and more: many calls at once wait for the server, not for each other. In one line they
/// would take as long as each of them one after the other, in every try.
pub(super) async fn is_slow<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    rig.proxy.set(Mode::Slow(Duration::from_millis(30))).await;
    let mut tries = Vec::new();
    while !tries.iter().any(|(alone, all): &(Duration, Duration)| *all < *alone * CALLERS / 2) {
        assert!(tries.len() < 5, "one alone, and {CALLERS} at once: {tries:?}");
        let (answer, alone) = timed::<R>(&rig.call).await;
        answer.unwrap();
        let start = Instant::now();
        let calls = futures::future::join_all((0..CALLERS).map(|_| rig.once())).await;
        for call in calls {
            call.unwrap();
        }
        tries.push((alone, start.elapsed()));
    }
}

/// The server is started again, again and again.
pub(super) async fn restarts<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    for _ in 0..3 {
        rig.proxy.cut();
        rig.answers().await;
    }
    for _ in 0..3 {
        rig.proxy.set(Mode::Refuse).await;
        let failure = rig.once().await.unwrap_err();
        assert!(is_away(&failure), "{failure:?}");
        rig.proxy.set(Mode::Pass).await;
        rig.answers().await;
    }
}

/// What logged in is worth nothing any more.
pub(super) async fn credentials_are_revoked<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    if !rig.remote.revoke().await {
        return;
    }
    let start = Instant::now();
    let denied = loop {
        match rig.once().await {
            // The server closes what is open, and some clients know that before they know why.
            Err(failure) if failure.kind == ErrorKind::Denied => break failure,
            other => assert!(start.elapsed() < 60 * SECOND, "not denied: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(!denied.said.contains(super::remotes::SECRET), "{}", denied.said);
    let (start, accepted) = (Instant::now(), rig.proxy.accepted());
    while start.elapsed() < SECOND {
        let failure = rig.once().await.unwrap_err();
        assert!(failure.kind == ErrorKind::Denied || is_away(&failure), "{failure:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stormed = rig.proxy.accepted() - accepted;
    assert!(stormed < DIALS, "{stormed} logins within a second that cannot succeed");
}

/// Two links of one host, which has one thread: the server of one hangs, and the other goes on.
pub(super) async fn neighbours_do_not_wait<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    let well = Proxy::start(rig.remote.address(), Mode::Pass).await;
    let hanging = Proxy::start(rig.remote.address(), Mode::Pass).await;
    let (neighbour, hung) = (
        rig.remote.open(well.address, Direct::to(well.address)),
        rig.remote.open(hanging.address, Direct::to(hanging.address)),
    );
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let (hang, hangs) = tokio::sync::oneshot::channel();
    let host = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            timed::<R>(&neighbour).await.0.unwrap();
            timed::<R>(&hung).await.0.unwrap();
            ready.send(()).unwrap();
            hangs.await.unwrap();
            let waiting: Vec<_> = (0..CALLERS).map(|_| tokio::spawn(hung())).collect();
            // They are answered while those that hang are still waited for: none is that waits for those. A machine that is very
            // slow does not come to all of them.
            let mut answered = 0;
            for _ in 0..30 {
                timed::<R>(&neighbour).await.0.unwrap();
                if waiting.iter().any(tokio::task::JoinHandle::is_finished) {
                    break;
                }
                answered += 1;
            }
            assert!(answered >= 5, "a call waited for a server that is not its own: {answered} did not");
        })
    });
    is_ready.await.unwrap();
    hanging.set(Mode::Hang).await;
    hang.send(()).unwrap();
    tokio::task::spawn_blocking(move || host.join()).await.unwrap().unwrap();
}

/// The calls of one link failed until a moment ago; those of another link to the same provider find out for themselves.
pub(super) async fn other_links_are_not_held_back<R: Remote>() {
    let Some(rig) = Rig::<R>::warm().await else { return };
    for round in 0.. {
        rig.proxy.set(Mode::Refuse).await;
        let start = Instant::now();
        // Long pauses by now, and the last one began just now.
        let mut dials = rig.dialer.dials.load(SeqCst);
        loop {
            rig.once().await.unwrap_err();
            let now = rig.dialer.dials.load(SeqCst);
            if now > dials && start.elapsed() > SECOND {
                break;
            }
            dials = now;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rig.proxy.set(Mode::Pass).await;
        if rig.once().await.is_err() {
            break;
        }
        // The pause was over before this machine came to ask.
        assert!(round < 5, "its own link is not held back");
    }
    let other = LinkMeter::default();
    other.observe(async { timed::<R>(&rig.any).await.0 }).await.unwrap();
    rig.answers().await;
}
