//! A closed-loop load generator: each connection sends its next request when the answer to the last one is complete.
//! One thread, no HTTP library: it should cost less than what it measures.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::processes;

/// What to send, how much of it, and whose CPU to watch.
#[derive(Debug, Clone)]
pub struct LoadSpec {
    /// Where the server listens.
    pub address: SocketAddr,
    /// `Host` and path, asked for in turn.
    pub targets: Vec<(String, String)>,
    /// `GET`, or another method without a body.
    pub method: String,
    /// Connections, each kept alive, each with one request at a time.
    pub connections: usize,
    /// How long is measured.
    pub duration: Duration,
    /// How long is asked before, unmeasured.
    pub warm_up: Duration,
    /// Processes whose CPU time is counted.
    pub servers: Vec<u32>,
}

impl LoadSpec {
    /// Five seconds of `GET /` for `host`, after half a second to get warm.
    pub fn new(address: SocketAddr, host: &str, connections: usize) -> Self {
        Self {
            address,
            targets: vec![(host.to_owned(), "/".to_owned())],
            method: "GET".to_owned(),
            connections,
            duration: Duration::from_secs(5),
            warm_up: Duration::from_millis(500),
            servers: Vec::new(),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// Answers of any status.
    pub requests: u64,
    /// Answers other than 200.
    pub not_ok: u64,
    /// Connections that failed or were closed without being announced; each was opened again.
    pub broken: u64,
    /// Requests per second.
    pub per_second: f64,
    /// Half of the answers took at most so long, microseconds.
    pub p50_us: f64,
    /// 99 of 100 did.
    pub p99_us: f64,
    /// All did.
    pub max_us: f64,
    /// CPU time per request of all watched processes together, microseconds.
    pub cpu_us: f64,
    /// The same for each of them, in the order they were given.
    pub cpu_us_each: Vec<f64>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The generator could not start.
    #[error("cannot start the load generator: {0}")]
    Start(#[source] io::Error),
    /// Nothing listens, or it never answered.
    #[error("{address} gave no answer")]
    Silent {
        /// Who was asked.
        address: SocketAddr,
    },
    /// A process whose CPU time was to be counted is gone.
    #[error("process {0} ended during the measurement")]
    Ended(u32),
    /// The spec asks for nothing.
    #[error("a load needs at least one target and one connection")]
    Empty,
}

/// Sends the load and waits for its end. Blocks the calling thread; not for use inside an async runtime.
pub fn run(spec: &LoadSpec) -> Result<LoadReport, LoadError> {
    if spec.targets.is_empty() || spec.connections == 0 {
        return Err(LoadError::Empty);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LoadError::Start)?;
    runtime.block_on(measure(spec))
}

async fn measure(spec: &LoadSpec) -> Result<LoadReport, LoadError> {
    let method = &spec.method;
    let render =
        |(host, path): &(String, String)| format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    let requests: Arc<Vec<Vec<u8>>> = Arc::new(spec.targets.iter().map(render).collect());
    let from = Instant::now() + spec.warm_up;
    let until = from + spec.duration;
    let tasks: Vec<_> = (0..spec.connections)
        .map(|number| {
            let worker = Connection {
                address: spec.address,
                requests: Arc::clone(&requests),
                // Spread over the targets, so that few connections do not all begin with the same ones.
                next: number * requests.len() / spec.connections,
                from,
                until,
                tally: Tally::default(),
            };
            tokio::spawn(worker.run())
        })
        .collect();
    tokio::time::sleep_until(from.into()).await;
    let before = cpu_of(&spec.servers)?;
    let began = Instant::now();
    tokio::time::sleep_until(until.into()).await;
    let after = cpu_of(&spec.servers)?;
    let seconds = began.elapsed().as_secs_f64();
    let mut all = Tally::default();
    for task in tasks {
        let Ok(tally) = task.await else { continue };
        all.not_ok += tally.not_ok;
        all.broken += tally.broken;
        all.latencies_ns.extend(tally.latencies_ns);
    }
    if all.latencies_ns.is_empty() {
        return Err(LoadError::Silent { address: spec.address });
    }
    Ok(all.report(seconds, before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before))))
}

fn cpu_of(pids: &[u32]) -> Result<Vec<u64>, LoadError> {
    pids.iter().map(|&pid| processes::cpu_us(pid).ok_or(LoadError::Ended(pid))).collect()
}

#[derive(Debug, Default)]
struct Tally {
    latencies_ns: Vec<u32>,
    not_ok: u64,
    broken: u64,
}

impl Tally {
    fn report(mut self, seconds: f64, cpu: impl Iterator<Item = u64>) -> LoadReport {
        self.latencies_ns.sort_unstable();
        let requests = self.latencies_ns.len();
        let each: Vec<f64> = cpu.map(|us| us as f64 / requests as f64).collect();
        LoadReport {
            requests: requests as u64,
            not_ok: self.not_ok,
            broken: self.broken,
            per_second: requests as f64 / seconds,
            p50_us: percentile(&self.latencies_ns, 50),
            p99_us: percentile(&self.latencies_ns, 99),
            max_us: percentile(&self.latencies_ns, 100),
            cpu_us: each.iter().sum(),
            cpu_us_each: each,
        }
    }
}

/// The smallest value that so many of 100 values do not exceed, microseconds; 0 for no values.
pub fn percentile(sorted_ns: &[u32], percent: usize) -> f64 {
    let rank = (sorted_ns.len() * percent).div_ceil(100).max(1);
    sorted_ns.get(rank - 1).map_or(0.0, |&ns| f64::from(ns) / 1000.0)
}

/// One connection's life.
struct Connection {
    address: SocketAddr,
    requests: Arc<Vec<Vec<u8>>>,
    next: usize,
    from: Instant,
    until: Instant,
    tally: Tally,
}

impl Connection {
    async fn run(mut self) -> Tally {
        while Instant::now() < self.until {
            let until = self.until;
            match tokio::time::timeout_at(until.into(), self.ask()).await {
                // The time is over.
                Err(_) | Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    self.tally.broken += 1;
                    // A server that is down should not be asked in a tight loop.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        self.tally
    }

    /// Opens a connection and uses it until it ends or the time is over.
    async fn ask(&mut self) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(16 * 1024);
        loop {
            let began = Instant::now();
            if began >= self.until {
                return Ok(());
            }
            let request = self.requests.get(self.next % self.requests.len().max(1)).map_or(&[][..], Vec::as_slice);
            self.next = self.next.wrapping_add(1);
            stream.write_all(request).await?;
            buffer.clear();
            let answer = loop {
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if let Some(answer) = Answer::read(&buffer) {
                    break answer;
                }
            };
            if began >= self.from {
                self.tally.latencies_ns.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
                self.tally.not_ok += u64::from(!answer.ok);
            }
            if answer.close {
                return Ok(());
            }
        }
    }
}

/// A response that is complete.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    ok: bool,
    close: bool,
}

impl Answer {
    /// Reads what servers send that mean well; `None` while something is missing.
    fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let body = bytes.get(end + 4..)?;
        let mut length = 0usize;
        let mut chunked = false;
        let mut close = false;
        for line in head.split("\r\n").skip(1) {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().ok()?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                close = value.eq_ignore_ascii_case("close");
            }
        }
        let complete = if chunked { body.ends_with(b"0\r\n\r\n") } else { body.len() >= length };
        complete.then(|| Self { ok: head.get(9..12) == Some("200"), close })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<u32> = (1..=200).map(|n| n * 1000).collect();
        assert_eq!(percentile(&values, 50), 100.0);
        assert_eq!(percentile(&values, 99), 198.0);
        assert_eq!(percentile(&values, 100), 200.0);
        assert_eq!(percentile(&[7000], 50), 7.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }

    #[test]
    fn answers_are_complete_or_not() {
        let whole = Some(Answer { ok: true, close: false });
        assert_eq!(Answer::read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), whole);
        assert_eq!(Answer::read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"), None);
        assert_eq!(Answer::read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), whole);
        assert_eq!(Answer::read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"), None);
        let refused = Some(Answer { ok: false, close: true });
        assert_eq!(Answer::read(b"HTTP/1.1 503 x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"), refused);
    }

    #[test]
    fn counts_what_a_server_did() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Two connections: one good, one that answers once and hangs up.
        std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            for (n, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).unwrap_or(0) > 0 {
                        let status = if n == 0 { "200 OK" } else { "500 x" };
                        stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).unwrap();
                        if n == 1 {
                            return;
                        }
                    }
                });
            }
        });
        let mut spec = LoadSpec::new(address, "h", 2);
        spec.duration = Duration::from_millis(300);
        spec.warm_up = Duration::ZERO;
        spec.servers = vec![std::process::id()];
        let report = run(&spec).unwrap();
        assert!(report.requests > 10, "{report:?}");
        assert!((1..report.requests).contains(&report.not_ok), "{report:?}");
        assert_eq!(report.broken, 1);
        assert!(report.p50_us > 0.0 && report.p50_us <= report.p99_us && report.p99_us <= report.max_us);
        assert_eq!(report.cpu_us_each.len(), 1);
    }

    #[test]
    fn silence_is_an_error() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut spec = LoadSpec::new(closed, "h", 1);
        spec.duration = Duration::from_millis(50);
        spec.warm_up = Duration::ZERO;
        assert!(matches!(run(&spec), Err(LoadError::Silent { .. })));
        spec.connections = 0;
        assert!(matches!(run(&spec), Err(LoadError::Empty)));
    }
}
