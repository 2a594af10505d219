//! The streams of HTTP/2 connections: each is a task, and one whose client does not take its answer is ended with all it
//! holds. hyper asks a body for more only where its client made room, so without this a client that never does would keep
//! its places for as long as it likes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

tokio::task_local! {
    static DEADLINE: Arc<Deadline>;
}

/// Starts the streams of one connection.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    /// How long a client may take nothing.
    pub(super) stall: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (deadline, stall) = (Arc::new(Deadline::default()), self.stall);
        let watched = deadline.clone();
        let stream = async move {
            tokio::select! {
                biased;
                _ = stream => {}
                // What is dropped unfinished is reset.
                () = watched.passed(stall) => {}
            }
        };
        tokio::spawn(DEADLINE.scope(deadline, stream));
    }
}

/// When the stream ends unless its client takes something before. There is none until its answer begins.
#[derive(Debug, Default)]
pub(super) struct Deadline(Mutex<Option<Instant>>);

impl Deadline {
    /// That of the stream this is called in.
    pub(super) fn here() -> Arc<Self> {
        DEADLINE.try_with(Arc::clone).unwrap_or_default()
    }

    pub(super) fn set(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Resolves after the deadline, and less than `stall` after it: moving one wakes nobody.
    async fn passed(&self, stall: Duration) {
        loop {
            let now = Instant::now();
            let soon = now + stall;
            let next = match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(at) if at <= now => return,
                Some(at) => at.min(soon),
                None => soon,
            };
            sleep_until(next).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor as _;
    use tokio::sync::oneshot;

    /// Starts a stream that does `what` and then waits for ever; what is received ends with it.
    fn start(what: impl FnOnce() + Send + 'static) -> oneshot::Receiver<()> {
        let (held, ended) = oneshot::channel();
        Streams { stall: Duration::from_secs(30) }.execute(async move {
            what();
            std::future::pending::<()>().await;
            drop(held);
        });
        ended
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_after_its_deadline_and_not_before_its_answer() {
        let began = Instant::now();
        let ended = start(|| Deadline::here().set(Instant::now() + Duration::from_secs(40)));
        let asking = start(|| {});
        ended.await.unwrap_err();
        assert!((40..70).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        tokio::time::timeout(Duration::from_secs(3600), asking).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_on_is_not_reached() {
        let (tell, told) = std::sync::mpsc::channel();
        let mut ended = start(move || tell.send(Deadline::here()).unwrap());
        tokio::task::yield_now().await;
        let deadline = told.recv().unwrap();
        for _ in 0..20 {
            deadline.set(Instant::now() + Duration::from_secs(30));
            tokio::time::timeout(Duration::from_secs(20), &mut ended).await.unwrap_err();
        }
        tokio::time::timeout(Duration::from_secs(61), ended).await.unwrap().unwrap_err();
    }
}
