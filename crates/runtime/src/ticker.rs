//! The thread that moves the engines' epochs while guests run, and sleeps while none does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// Time between two ticks: a guest over its CPU budget is ended at most this much later.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// Ticks without a guest after which the thread parks. Not at once: waking it costs more than a tick.
const LINGER: u32 = 20;

#[derive(Default)]
struct Shared {
    /// Low half: polls under way. High half: polls ever begun.
    polls: AtomicU64,
    parked: AtomicBool,
    stop: AtomicBool,
    engines: Mutex<Vec<Engine>>,
}

const BEGUN: u64 = 1 << 32;

/// Owner of the thread.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
    join: Mutex<Option<JoinHandle<()>>>,
}

/// A guest runs while this lives.
pub(crate) struct Running<'a>(&'a Shared);

impl Ticker {
    /// Starts the thread; it parks until the first guest runs.
    pub(crate) fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        let join = std::thread::Builder::new().name("epoch".to_owned()).spawn(move || for_thread.run())?;
        Ok(Self { shared, thread: join.thread().clone(), join: Mutex::new(Some(join)) })
    }

    /// Adds an engine to those that are ticked.
    pub(crate) fn add(&self, engine: Engine) {
        self.shared.engines.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
    }

    /// Keeps the ticks coming until the guard is dropped. Held around each poll of a guest, so that one that waits
    /// for something costs no ticks.
    pub(crate) fn running(&self) -> Running<'_> {
        self.shared.polls.fetch_add(BEGUN + 1, SeqCst);
        if self.shared.parked.load(SeqCst) {
            self.thread.unpark();
        }
        Running(&self.shared)
    }

    #[cfg(test)]
    fn is_parked(&self) -> bool {
        self.shared.parked.load(SeqCst)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.polls.fetch_sub(1, SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.thread.unpark();
        if let Some(join) = self.join.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The thread cannot fail; were it to panic, there is nothing left to tick.
            let _ = join.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut seen = 0;
        let mut quiet = 0;
        while !self.stop.load(SeqCst) {
            let polls = self.polls.load(SeqCst);
            let idle = polls == seen && polls.is_multiple_of(BEGUN);
            quiet = if idle { quiet + 1 } else { 0 };
            seen = polls;
            if quiet < LINGER {
                std::thread::sleep(TICK);
            } else {
                // Published before the last look: a poll that begins now either is seen here or sees us parked.
                self.parked.store(true, SeqCst);
                if self.polls.load(SeqCst) == seen && !self.stop.load(SeqCst) {
                    std::thread::park();
                }
                self.parked.store(false, SeqCst);
                quiet = 0;
                continue;
            }
            for engine in self.engines.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                engine.increment_epoch();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn parks_when_idle_and_wakes_for_a_guest() {
        let ticker = Ticker::start().unwrap();
        until("parks", || ticker.is_parked());
        let running = ticker.running();
        until("wakes", || !ticker.is_parked());
        drop(running);
        until("parks again", || ticker.is_parked());
    }
}
