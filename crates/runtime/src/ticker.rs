//! The thread that moves the engines' epochs while guests run, and sleeps while none does. It also says where the thread
//! that runs the guests stands in the queue for a core (`giving.rs`).

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};

use wasmtime::Engine;

use crate::giving::{Giving, LONG, Next, PIECE, Place, Seen};

/// Moves the thread that runs guests in the queue for the cores.
pub trait Queue: Send + Sync {
    /// Called once by the thread that calls [`Queue::stand`], which must not wait behind a guest.
    fn prompt(&self);
    /// Puts the thread that runs guests there; false where that is to be tried again.
    fn stand(&self, place: Place) -> bool;
}

#[derive(Default)]
struct Shared {
    /// Low half: polls under way. High half: polls ever begun.
    polls: AtomicU64,
    /// Polls ever ended that were long.
    long: AtomicU32,
    /// Whether the thread that runs guests gives way.
    gives_way: AtomicBool,
    parked: AtomicBool,
    stop: AtomicBool,
    engines: Mutex<Vec<Engine>>,
    queue: OnceLock<Box<dyn Queue>>,
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

    /// From now on the thread that runs guests is moved in this queue. Only the first one counts.
    pub(crate) fn queue(&self, queue: Box<dyn Queue>) {
        drop(self.shared.queue.set(queue));
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

    /// A poll has ended that used so many nanoseconds of CPU time. After a long one, whoever waits for the core has it.
    pub(crate) fn ran(&self, nanos: u64) {
        let gives_way = self.shared.gives_way.load(Relaxed);
        let long = if gives_way { PIECE } else { LONG };
        if u128::from(nanos) >= long.as_nanos() {
            self.shared.long.fetch_add(1, Relaxed);
            if gives_way {
                rustix::thread::sched_yield();
            }
        }
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
        let mut giving = Giving::new();
        let (mut prompt, mut told) = (false, giving.place());
        let (mut seen, mut long) = (0, 0);
        while !self.stop.load(SeqCst) {
            let polls = self.polls.load(SeqCst);
            let ended = self.long.load(Relaxed);
            let now = Seen {
                begun: ((polls >> 32) as u32).wrapping_sub((seen >> 32) as u32),
                running: !polls.is_multiple_of(BEGUN),
                long: ended.wrapping_sub(long),
            };
            (seen, long) = (polls, ended);
            let next = giving.tick(now);
            let place = giving.place();
            if place != told {
                self.gives_way.store(place == Place::Last, Relaxed);
                let queue = self.queue.get();
                if let Some(queue) = queue.filter(|_| !prompt) {
                    queue.prompt();
                    prompt = true;
                }
                if queue.is_none_or(|queue| queue.stand(place)) {
                    told = place;
                }
            }
            match next {
                Next::Tick(time) => std::thread::sleep(time),
                Next::Park => {
                    // Published before the last look: a poll that begins now either is seen here or sees us parked.
                    self.parked.store(true, SeqCst);
                    if self.polls.load(SeqCst) == seen && !self.stop.load(SeqCst) {
                        std::thread::park();
                    }
                    self.parked.store(false, SeqCst);
                    giving.woken();
                    continue;
                }
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
    use std::time::{Duration, Instant};

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");
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
