//! What a task uses: the processes of its session, added up. The kernel tells of sessions only by way of every process there
//! is, so one look at all of them serves every task that is asked for at about that time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::process::{Identity, Seen};
use plugin::driver::Usage;

/// Ticks of the kernel's CPU times in a second, as programs see them on Linux.
const TICKS: f64 = 100.0;
/// This part of a task's interval a look may be old.
const FRESH: u32 = 4;

/// The last look at all processes, for every task of the plugin.
#[derive(Debug, Default)]
pub struct Sampler(Mutex<Option<Arc<Look>>>);

#[derive(Debug)]
struct Look {
    at: Instant,
    sessions: HashMap<i32, Vec<Seen>>,
}

impl Sampler {
    /// A look that is younger than this and later than that.
    fn look(&self, age: Duration, after: Option<Instant>) -> Arc<Look> {
        // Whoever comes while somebody looks gets what that one sees.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_ref().filter(|look| look.at.elapsed() < age && after.is_none_or(|after| look.at > after)) {
            Some(look) => look.clone(),
            None => last.insert(Arc::new(Look::now())).clone(),
        }
    }
}

impl Look {
    fn now() -> Self {
        let at = Instant::now();
        let mut sessions: HashMap<i32, Vec<Seen>> = HashMap::new();
        let all = Seen::all().unwrap_or_else(|cause| {
            tracing::warn!(%cause, "what tasks use is not known for the moment");
            Vec::new()
        });
        for seen in all {
            sessions.entry(seen.session).or_default().push(seen);
        }
        Self { at, sessions }
    }
}

struct Meter {
    sampler: Arc<Sampler>,
    leader: Identity,
    interval: Duration,
    last: Option<(Instant, (u64, u64))>,
    max_rss: u64,
}

impl Meter {
    /// Takes a sample; `None` where nothing of the task is left.
    fn sample(&mut self) -> Option<Usage> {
        let look = self.sampler.look(self.interval / FRESH, self.last.map(|(at, _)| at));
        let seen = look.sessions.get(&self.leader.pid)?;
        let rss = seen.iter().map(Seen::resident).sum::<u64>();
        let ticks = seen.iter().fold((0, 0), |sum, one| (sum.0 + one.ticks.0, sum.1 + one.ticks.1));
        let share = |now_ticks: u64, then_ticks: u64, seconds: f64| {
            // A process that ended took its ticks along.
            now_ticks.saturating_sub(then_ticks) as f64 / TICKS / seconds.max(0.001)
        };
        let (user, system) = match self.last {
            None => (0.0, 0.0),
            Some((at, then)) => {
                let seconds = look.at.duration_since(at).as_secs_f64();
                (share(ticks.0, then.0, seconds), share(ticks.1, then.1, seconds))
            }
        };
        self.last = Some((look.at, ticks));
        self.max_rss = self.max_rss.max(rss);
        Some(Usage { user, system, rss, max_rss: self.max_rss })
    }
}

/// A sample at once, and one every `interval`, until the task has ended.
pub fn samples(sampler: Arc<Sampler>, leader: Identity, interval: Duration) -> BoxStream<'static, Usage> {
    let meter = Meter { sampler, leader, interval, last: None, max_rss: 0 };
    futures::stream::unfold(meter, |mut meter| async move {
        if meter.last.is_some() {
            tokio::time::sleep(meter.interval).await;
        }
        // Reads of hundreds of files hold up nobody who is asked for something else.
        let sampled = tokio::task::spawn_blocking(move || meter.sample().map(|usage| (usage, meter))).await;
        sampled.ok().flatten()
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_serves_all_that_ask_at_about_that_time() {
        let sampler = Sampler::default();
        let first = sampler.look(Duration::from_secs(600), None);
        assert!(Arc::ptr_eq(&first, &sampler.look(Duration::from_secs(600), None)));
        let later = sampler.look(Duration::from_secs(600), Some(first.at));
        assert!(later.at > first.at, "nobody is told the same twice");
        assert!(!Arc::ptr_eq(&later, &sampler.look(Duration::ZERO, None)), "it is not too old");
        let own = Seen::of(i32::try_from(std::process::id()).unwrap()).unwrap().unwrap();
        assert!(first.sessions[&own.session].iter().any(|seen| seen.identity == own.identity));
    }
}
