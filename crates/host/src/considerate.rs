//! A host whose guests compute for long steps behind everybody else's.
//!
//! A call that has run for [`LONG`] is taken for computation. While there is one, the host's thread is scheduled only on
//! time nobody else wants, so a neighbour's short call does not wait for the end of a time slice. It costs the tenant
//! nothing on an idle core. Where the system does not let a process come back from that (no privilege), it is not done.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use telemetry::schedule::{self, Share};

/// Run time after which a call is no longer a short one.
const LONG: Duration = Duration::from_millis(20);

/// How many long calls the host's one thread has.
#[derive(Debug)]
pub(crate) struct Considerate {
    long: AtomicU32,
    possible: bool,
}

impl Considerate {
    /// Finds out whether the thread may step back and come forward again.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { long: AtomicU32::new(0), possible: schedule::may_step_back() })
    }

    /// Watches how long a call runs.
    pub(crate) fn watch<F: Future + Unpin>(self: &Arc<Self>, call: F) -> Watched<F> {
        Watched { call, host: self.clone(), ran: Duration::ZERO, long: false }
    }

    fn begin(&self) {
        if self.long.fetch_add(1, Relaxed) == 0 && self.possible {
            schedule::step_back();
        }
    }

    fn end(&self) {
        if self.long.fetch_sub(1, Relaxed) == 1 && self.possible {
            schedule::batch(Share::Host);
        }
    }
}

/// A call that is watched.
pub(crate) struct Watched<F> {
    call: F,
    host: Arc<Considerate>,
    ran: Duration,
    long: bool,
}

impl<F: Future + Unpin> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let began = Instant::now();
        let polled = Pin::new(&mut self.call).poll(cx);
        if !self.long {
            self.ran += began.elapsed();
            if polled.is_pending() && self.ran >= LONG {
                self.long = true;
                self.host.begin();
            }
        }
        polled
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        if self.long {
            self.host.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_calls_that_run_for_long_count_and_they_are_counted_off() {
        let host = Arc::new(Considerate { long: AtomicU32::new(0), possible: false });
        // Waits for long, runs for no time.
        host.watch(Box::pin(tokio::time::sleep(LONG * 2))).await;
        assert_eq!(host.long.load(Relaxed), 0);
        let mut call = host.watch(Box::pin(async {
            let began = Instant::now();
            while began.elapsed() < LONG {
                std::hint::spin_loop();
            }
            std::future::pending::<()>().await;
        }));
        assert!(futures::poll!(&mut call).is_pending());
        assert_eq!(host.long.load(Relaxed), 1);
        drop(call);
        assert_eq!(host.long.load(Relaxed), 0);
    }
}
