//! Steady load from a few threads that counts every answer that is not the expected one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::http::Connection;

/// Load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

/// What became of the load.
#[derive(Debug)]
pub struct Report {
    /// Answers as expected.
    pub good: u64,
    /// What went wrong, one line each.
    pub failures: Vec<String>,
}

impl Load {
    /// Starts `connections` closed loops of `GET path`, each with a pause between its requests.
    pub fn start(addr: SocketAddr, host: &str, path: &str, connections: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let threads = (0..connections)
            .map(|_| {
                let (stop, count) = (stop.clone(), count.clone());
                let (host, path) = (host.to_owned(), path.to_owned());
                std::thread::spawn(move || run(addr, &host, &path, pause, &stop, &count))
            })
            .collect();
        Self { stop, count, threads }
    }

    /// Good answers so far.
    pub fn good(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until `more` further requests were answered.
    ///
    /// # Panics
    /// When they are not within minutes.
    pub fn wait(&self, more: u64) {
        let (from, end) = (self.good(), Instant::now() + Duration::from_secs(300));
        while self.good() < from + more {
            assert!(Instant::now() < end, "the load stalls at {} answers", self.good());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops and reports.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self
            .threads
            .into_iter()
            .flat_map(|t| t.join().unwrap_or_else(|_| vec!["a load thread panicked".into()]))
            .collect();
        Report { good: self.count.load(Ordering::Relaxed), failures }
    }
}

fn run(addr: SocketAddr, host: &str, path: &str, pause: Duration, stop: &AtomicBool, count: &AtomicU64) -> Vec<String> {
    let mut failures = Vec::new();
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) && failures.len() < 100 {
        let open = match connection.take() {
            Some(open) => Ok(open),
            None => Connection::open(addr),
        };
        match open.and_then(|mut open| open.send("GET", host, path, &[]).map(|answer| (open, answer))) {
            Ok((open, answer)) if answer.status == 200 => {
                count.fetch_add(1, Ordering::Relaxed);
                connection = Some(open);
            }
            Ok((_, answer)) => {
                failures.push(format!("{} {:?}: {}", answer.status, answer.header("sidereal-fault"), answer.body))
            }
            Err(cause) => failures.push(format!("{cause:#}")),
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    failures
}
