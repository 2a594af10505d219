//! How long to wait before a host is started again. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Ends within this time count together.
const WINDOW: Duration = Duration::from_secs(60);
/// Restarts within the window that are prompt; with more the host is degraded.
const BUDGET: usize = 6;
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// The recent ends of one host.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    ends: VecDeque<Instant>,
}

/// What to do after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    /// Wait this long.
    pub(crate) wait: Duration,
    /// The budget is used up: say so.
    pub(crate) degraded: bool,
}

impl Backoff {
    /// The host ended at `now`: the first restart is immediate, the next ones soon, then ever later.
    pub(crate) fn after_end(&mut self, now: Instant) -> Pause {
        self.ends.push_back(now);
        while self.ends.front().is_some_and(|first| now.saturating_duration_since(*first) > WINDOW) {
            self.ends.pop_front();
        }
        // More than the window can hold at the longest wait says nothing new.
        self.ends.truncate(BUDGET * 4);
        let ends = self.ends.len();
        let doubled =
            |first: u64, times: usize| Duration::from_millis(first.saturating_mul(1 << times.min(16))).min(LONGEST);
        match ends {
            0 | 1 => Pause { wait: Duration::ZERO, degraded: false },
            2..=BUDGET => Pause { wait: doubled(25, ends - 2), degraded: false },
            _ => Pause { wait: doubled(1000, ends - BUDGET - 1), degraded: true },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_at_first_then_later_and_degraded() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let pauses: Vec<_> = (0..9).map(|n| backoff.after_end(start + Duration::from_secs(n))).collect();
        let waits: Vec<_> = pauses.iter().map(|pause| pause.wait.as_millis()).collect();
        assert_eq!(waits, [0, 25, 50, 100, 200, 400, 1000, 2000, 4000]);
        assert!(pauses.iter().enumerate().all(|(n, pause)| pause.degraded == (n >= 6)));
        // Within the budget something is started again within 1 s: of that the last words of what ended may take 200 ms.
        assert!(waits[..BUDGET].iter().all(|wait| wait + 200 < 1000), "{waits:?}");
        let calm = backoff.after_end(start + Duration::from_secs(3600));
        assert_eq!(calm, Pause { wait: Duration::ZERO, degraded: false });
        let worst = (0..100).map(|_| backoff.after_end(start + Duration::from_secs(3600)).wait).max();
        assert_eq!(worst, Some(LONGEST));
    }
}
