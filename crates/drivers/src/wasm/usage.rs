//! What a task uses: the processes of its session, added up.

use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};

use super::process::{Identity, Seen};
use crate::plugin::driver::Usage;

/// Ticks of the kernel's CPU times in a second, as programs see them on Linux.
const TICKS: f64 = 100.0;

struct Meter {
    leader: Identity,
    interval: Duration,
    last: Option<(Instant, (u64, u64))>,
    max_rss: u64,
}

impl Meter {
    /// Takes a sample; `None` where nothing of the task is left.
    fn sample(&mut self) -> Option<Usage> {
        let seen = Seen::session(self.leader.pid);
        if seen.is_empty() {
            return None;
        }
        let rss = seen.iter().map(Seen::resident).sum::<u64>();
        let ticks = seen.iter().fold((0, 0), |sum, one| (sum.0 + one.ticks.0, sum.1 + one.ticks.1));
        let now = Instant::now();
        let share = |now_ticks: u64, then_ticks: u64, seconds: f64| {
            // A process that ended took its ticks along.
            now_ticks.saturating_sub(then_ticks) as f64 / TICKS / seconds.max(0.001)
        };
        let (user, system) = match self.last {
            None => (0.0, 0.0),
            Some((at, then)) => {
                let seconds = now.duration_since(at).as_secs_f64();
                (share(ticks.0, then.0, seconds), share(ticks.1, then.1, seconds))
            }
        };
        self.last = Some((now, ticks));
        self.max_rss = self.max_rss.max(rss);
        Some(Usage { user, system, rss, max_rss: self.max_rss })
    }
}

/// A sample at once, and one every `interval`, until the task has ended.
pub fn samples(leader: Identity, interval: Duration) -> BoxStream<'static, Usage> {
    stream(Meter { leader, interval, last: None, max_rss: 0 }).boxed()
}

fn stream(meter: Meter) -> impl Stream<Item = Usage> + Send {
    futures::stream::unfold(meter, |mut meter| async move {
        if meter.last.is_some() {
            tokio::time::sleep(meter.interval).await;
        }
        let usage = meter.sample()?;
        Some((usage, meter))
    })
}
