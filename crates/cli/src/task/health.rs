//! Whether the component of a task is up, from what the task's node reports: that it has come up, and that it cannot be kept
//! up. The node itself tries again for ever; a scheduler wants to know. Of a host that answers each time, and ends a little later,
//! the node says that all is well: its ends are counted here.

use std::collections::VecDeque;
use std::time::Duration;

use api::{Code, Problem};
use futures::{Stream, StreamExt as _};
use model::observed::{AppObserved, Phase, Reason};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long what is not waiting for anything but itself may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A component may take so long until it answers, beside its compilation: its host may start twice.
    pub start: Duration,
    /// Its host may end again and again for so long.
    pub down: Duration,
    /// What is well for so long is well.
    pub calm: Duration,
    /// So many ends of a host that had answered,
    pub ends: usize,
    /// within this time, are too many.
    pub window: Duration,
}

/// That of every task.
pub const PATIENCE: Patience = Patience {
    start: Duration::from_secs(90),
    down: Duration::from_secs(15),
    calm: Duration::from_secs(60),
    ends: 10,
    window: Duration::from_secs(600),
};

/// Waits until the component answers.
///
/// # Errors
/// Why it does not.
pub async fn comes_up(mut seen: impl Stream<Item = AppObserved> + Unpin, patience: Patience) -> Result<(), Problem> {
    let (mut until, mut compiles) = (Instant::now() + patience.start, false);
    loop {
        let next = match compiles {
            // For its turn it waits behind other tasks of the machine; from there on it has a bound of its own.
            true => Ok(seen.next().await),
            false => timeout_at(until, seen.next()).await,
        };
        let late = || Problem::new(Code::TimedOut, format!("the component does not answer after {:?}", patience.start));
        match next.map_err(|_| late())?.ok_or_else(store_ended)? {
            AppObserved { phase: Phase::Serving, .. } => return Ok(()),
            AppObserved { phase: Phase::Failed, reason: Some(reason), .. } => return Err(problem(reason)),
            AppObserved { phase, .. } => {
                if compiles && phase != Phase::Compiling {
                    until = Instant::now() + patience.start;
                }
                compiles = phase == Phase::Compiling;
            }
        }
    }
}

/// Waits until a component that answered cannot be kept up; why. `ends` tells how many hosts that answered have ended since it told
/// that last, and why the last of them did.
pub async fn goes_down(
    mut seen: impl Stream<Item = AppObserved> + Unpin,
    mut ends: impl Stream<Item = (u64, Reason)> + Unpin,
    patience: Patience,
) -> Problem {
    let mut lately = Lately::default();
    // Since when its host ends again and again, why, and since when it does not any more.
    let mut ailing: Option<(Instant, Reason, Option<Instant>)> = None;
    loop {
        let at =
            ailing.as_ref().map(|(since, _, calm)| calm.map_or(*since + patience.down, |calm| calm + patience.calm));
        let next = tokio::select! {
            next = seen.next() => next,
            Some((count, reason)) = ends.next() => {
                if lately.are_too_many(count, Instant::now(), patience) {
                    return worn(reason, patience);
                }
                continue;
            }
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                match ailing.take() {
                    Some((_, reason, None)) => return kept_down(reason),
                    _ => continue,
                }
            }
        };
        let Some(next) = next else { return store_ended() };
        ailing = match (next, ailing) {
            (AppObserved { phase: Phase::Failed, reason: Some(reason), .. }, _) => return problem(reason),
            (AppObserved { reason: Some(reason), .. }, earlier) => {
                let since = earlier.map_or_else(Instant::now, |(since, ..)| since);
                Some((since, reason, None))
            }
            (AppObserved { reason: None, .. }, earlier) => {
                earlier.map(|(since, reason, calm)| (since, reason, calm.or_else(|| Some(Instant::now()))))
            }
        };
    }
}

/// When hosts ended, within a time that has not passed yet.
#[derive(Debug, Default)]
struct Lately(VecDeque<Instant>);

impl Lately {
    /// So many more ended now: whether that is the end of our patience.
    fn are_too_many(&mut self, count: u64, now: Instant, patience: Patience) -> bool {
        let count = usize::try_from(count).unwrap_or(patience.ends).min(patience.ends);
        self.0.extend(std::iter::repeat_n(now, count));
        while self.0.front().is_some_and(|first| now.duration_since(*first) > patience.window) {
            self.0.pop_front();
        }
        self.0.len() >= patience.ends
    }
}

/// It answers each time, and that does not last.
fn worn(reason: Reason, patience: Patience) -> Problem {
    let mut problem = problem(reason);
    problem.detail = format!(
        "the process that runs the component cannot be kept up: it answered and ended {} times within {} minutes, the last \
         time because {}",
        patience.ends,
        patience.window.as_secs().div_ceil(60),
        problem.detail
    );
    problem
}

fn kept_down(reason: Reason) -> Problem {
    let mut problem = problem(reason);
    problem.detail = format!("the process that runs the component cannot be kept up: {}", problem.detail);
    problem
}

fn store_ended() -> Problem {
    Problem::new(Code::Internal, "the task's own store ended")
}

fn problem(reason: Reason) -> Problem {
    let code = Code::ALL.iter().copied().find(|code| code.as_str() == reason.code).unwrap_or(Code::StartFailed);
    Problem { help: reason.help, ..Problem::new(code, reason.message) }
}

#[cfg(test)]
mod tests {
    use futures::stream::BoxStream;
    use model::Revision;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const PATIENCE: Patience =
        Patience { start: SHORT, down: SHORT, calm: SHORT, ends: 4, window: Duration::from_secs(600) };

    fn reason(why: &str) -> Reason {
        Reason { code: "start-failed".into(), message: why.into(), help: None }
    }

    fn seen(phase: Phase, why: Option<&str>) -> AppObserved {
        AppObserved { revision: Revision(1), phase, serving: None, reason: why.map(reason) }
    }

    /// Each of these so long after the one before it, and then nothing more.
    fn reports(all: Vec<(Duration, AppObserved)>) -> BoxStream<'static, AppObserved> {
        let one = |(pause, seen): (Duration, AppObserved)| async move {
            tokio::time::sleep(pause).await;
            seen
        };
        futures::stream::iter(all).then(one).chain(futures::stream::pending()).boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_waits_for_its_turn_to_compile_is_not_late() {
        let now = Duration::ZERO;
        let (compiling, starting) = (seen(Phase::Compiling, None), seen(Phase::Starting, None));
        let patient =
            [(now, compiling.clone()), (SHORT * 3, starting.clone()), (SHORT / 2, seen(Phase::Serving, None))];
        comes_up(reports(patient.into()), PATIENCE).await.unwrap();
        let late = comes_up(reports(vec![(now, compiling), (now, starting)]), PATIENCE).await.unwrap_err();
        assert_eq!(late.code, Code::TimedOut);
        let failed = comes_up(reports(vec![(now, seen(Phase::Failed, Some("no port")))]), PATIENCE).await.unwrap_err();
        assert_eq!((failed.code, failed.detail.as_str()), (Code::StartFailed, "no port"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_for_long_is_up_and_what_ends_again_and_again_is_not() {
        let (now, well, ill) = (Duration::ZERO, seen(Phase::Serving, None), seen(Phase::Serving, Some("it ended")));
        let down = |all: Vec<(Duration, AppObserved)>| {
            let none = futures::stream::pending();
            tokio::time::timeout(SHORT * 10, goes_down(reports(all), none, PATIENCE))
        };
        assert!(down(vec![(now, well.clone())]).await.is_err(), "it is well");
        assert!(down(vec![(now, ill.clone()), (SHORT / 4, well.clone())]).await.is_err(), "it came back");
        let long =
            vec![(now, ill.clone()), (SHORT / 4, well.clone()), (SHORT * 2, ill.clone()), (SHORT / 4, well.clone())];
        assert!(down(long).await.is_err(), "it was well in between");
        let again = vec![(now, ill.clone()), (SHORT / 4, well.clone()), (SHORT / 2, ill.clone()), (SHORT / 2, well)];
        for never in [vec![(now, ill)], again] {
            let why = down(never).await.unwrap();
            assert!(why.detail.contains("cannot be kept up: it ended"), "{why}");
        }
        let failed = down(vec![(now, seen(Phase::Failed, Some("refused")))]).await.unwrap();
        assert_eq!(failed.detail, "refused");
    }

    /// It answers for a while each time, so the node says that it is well; whoever calls it finds it away again and again.
    #[tokio::test]
    async fn what_answers_each_time_and_ends_each_time_is_not_up() {
        let well = || reports(vec![(Duration::ZERO, seen(Phase::Serving, None))]);
        let ends = |counts: &[u64]| {
            let all: Vec<_> = counts.iter().map(|count| (*count, reason("it fell over"))).collect();
            futures::stream::iter(all).chain(futures::stream::pending())
        };
        let down = |counts: &[u64]| tokio::time::timeout(SHORT, goes_down(well(), ends(counts), PATIENCE));
        assert!(down(&[1, 1, 1]).await.is_err(), "that may happen");
        // Of two that end before anybody looks there is one report.
        for counts in [&[1, 1, 1, 1][..], &[2, 2], &[1, 100]] {
            let why = tokio::time::timeout(SHORT * 100, goes_down(well(), ends(counts), PATIENCE)).await.unwrap();
            let said = "cannot be kept up: it answered and ended 4 times within 10 minutes, the last time because it fell over";
            assert!(why.detail.contains(said) && why.code == Code::StartFailed, "{why}");
        }
    }

    #[test]
    fn ends_that_are_far_apart_are_not_too_many() {
        let (mut lately, begun) = (Lately::default(), Instant::now());
        let apart = PATIENCE.window / 3 + Duration::from_secs(1);
        assert!((0..100).all(|at| !lately.are_too_many(1, begun + apart * at, PATIENCE)), "{lately:?}");
        // So is one that is gone each time somebody has come to rely on it.
        assert!(lately.are_too_many(1, begun + apart * 99 + Duration::from_secs(9), PATIENCE));
    }
}
