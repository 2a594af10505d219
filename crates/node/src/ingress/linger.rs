//! Waiting a moment without going to sleep. A core with nothing to do halts, and waking it takes longer than most components
//! take to answer: in a virtual machine 20 to 50 µs. So where one request is under way and the last one's answer came within
//! [`LONGEST`], the worker looks at its sockets again and again for so long before it sleeps. It does so only while it has
//! nothing else to do, and not where another thread wanted its core.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long is waited awake at most.
const LONGEST: Duration = Duration::from_micros(100);
/// Between two looks at the sockets passes less than this, unless the core did something else.
const TURN: Duration = Duration::from_micros(25);

/// What is known of the waits of one kind on one connection.
#[derive(Debug, Default)]
pub(super) struct Habit {
    /// The last one was short.
    short: bool,
}

/// One wait.
#[derive(Debug)]
struct Wait {
    began: Instant,
    /// When the sockets were looked at last.
    looked: Instant,
    awake: bool,
}

impl Habit {
    fn begin(&self, now: Instant) -> Wait {
        Wait { began: now, looked: now, awake: self.short }
    }

    fn ended(&mut self, wait: &Wait, now: Instant) {
        self.short = now.duration_since(wait.began) <= LONGEST;
    }
}

impl Wait {
    /// Whether the sockets are to be looked at again at once.
    fn stays_awake(&mut self, now: Instant) -> bool {
        self.awake &= now.duration_since(self.began) <= LONGEST && now.duration_since(self.looked) <= TURN;
        self.looked = now;
        self.awake
    }
}

/// Waits for `poll`, awake for a moment where that is worth it and nobody else is waited for (`alone`).
pub(super) async fn wait<T>(
    habit: &mut Habit,
    alone: impl Fn() -> bool,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> T {
    let mut wait = None::<Wait>;
    poll_fn(|cx| {
        if let Poll::Ready(ended) = poll(cx) {
            if let Some(wait) = &wait {
                habit.ended(wait, Instant::now());
            }
            return Poll::Ready(ended);
        }
        if alone() {
            let now = Instant::now();
            if wait.get_or_insert_with(|| habit.begin(now)).stays_awake(now) {
                // Polled again as soon as the event loop has looked at its sockets and has run all other tasks.
                let _later = pin!(tokio::task::yield_now()).poll(cx);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn only_after_a_short_wait_the_next_one_is_spent_awake() {
        let start = Instant::now();
        let mut habit = Habit::default();
        for (took, awake_next) in [(LONGEST * 2, false), (LONGEST, true), (US, true), (LONGEST + US, false), (US, true)]
        {
            let wait = habit.begin(start);
            habit.ended(&wait, start + took);
            assert_eq!(habit.begin(start).stays_awake(start), awake_next, "after {took:?}");
        }
    }

    #[test]
    fn it_ends_in_time_and_when_the_core_was_wanted() {
        let start = Instant::now();
        let habit = Habit { short: true };
        let mut wait = habit.begin(start);
        let mut now = start;
        while wait.stays_awake(now) {
            now += TURN / 2;
        }
        assert!(now - start > LONGEST && now - start <= LONGEST + TURN, "{:?}", now - start);
        assert!(!wait.stays_awake(now), "it stays asleep");
        let mut wait = habit.begin(start);
        assert!(wait.stays_awake(start + TURN));
        assert!(!wait.stays_awake(start + TURN * 2 + US));
    }

    #[tokio::test]
    async fn other_tasks_and_sockets_have_their_turn_meanwhile() {
        let mut habit = Habit { short: true };
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        tokio::spawn(async move {
            theirs.writable().await.unwrap();
            theirs.try_write(b"x").unwrap();
            theirs
        });
        let mut readable = pin!(ours.readable());
        wait(&mut habit, || true, |cx| readable.as_mut().poll(cx)).await.unwrap();
        let mut byte = [0];
        assert_eq!(ours.try_read(&mut byte).unwrap(), 1);
    }
}
