//! Requests offered at a rate, whatever becomes of them: each is sent when it is due, over a connection that is free or a
//! new one. What waits holds nothing up, so a platform that stands still is asked as much as one that goes on.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How often is looked for requests that are due.
const TICK: Duration = Duration::from_millis(1);
/// The longest that an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that is made up for at once. When whoever offers stood still for longer, so did the machine: nobody asks for all of
/// that in one moment.
const BEHIND: Duration = Duration::from_millis(500);

/// What is offered.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The ingress.
    pub address: SocketAddr,
    /// The `Host` of each request.
    pub host: String,
    /// Paths that are asked for in turn.
    pub paths: Vec<String>,
    /// Requests a second.
    pub rate: u32,
}

/// An answer of 200.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Which of the paths.
    pub path: usize,
    /// When it was sent.
    pub sent: Instant,
    /// When its answer had come.
    pub ended: Instant,
    /// From when it was due until then.
    pub took: Duration,
    /// Its body, trimmed.
    pub body: String,
}

/// What became of all of it.
#[derive(Debug)]
pub struct Report {
    /// Requests that were sent.
    pub sent: u64,
    /// From the first one to when no more were offered.
    pub lasted: Duration,
    /// The most that one was sent later than it was due at first.
    pub latest: Duration,
    /// The answers of 200, in the order in which they came.
    pub answers: Vec<Answered>,
    /// What went wrong, one line each.
    pub failures: Vec<String>,
}

impl Report {
    /// Requests a second that were sent.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.lasted.as_secs_f64()
    }

    /// How many of the answers were under way at some time from `begin` to `end`.
    pub fn during(&self, begin: Instant, end: Instant) -> usize {
        self.answers.iter().filter(|answer| answer.sent <= end && answer.ended >= begin).count()
    }
}

/// The longest that most requests may take for a rate to be one that is borne.
const PROMPT: Duration = Duration::from_millis(100);
/// How long a rate is tried.
const TRIED: Duration = Duration::from_secs(2);
/// The least that is offered, requests a second.
const LEAST: u32 = 10;

/// The rate of the offer, or where this machine does not answer that promptly, a part of the first that it does: what is
/// slower than what was tried is to bear it as well.
///
/// # Errors
/// When nothing could be offered.
pub fn bearable(offer: &Offer) -> anyhow::Result<u32> {
    let mut rate = offer.rate;
    while rate > LEAST {
        let offered = Offered::start(Offer { rate, ..offer.clone() });
        std::thread::sleep(TRIED);
        let report = offered.stop()?;
        let prompt = report.answers.iter().filter(|answer| answer.took <= PROMPT).count() as u64;
        if prompt * 20 >= report.sent * 19 {
            break;
        }
        rate /= 2;
    }
    Ok(if rate == offer.rate { rate } else { (rate / 4).max(LEAST) })
}

/// Says what was seen at less than is promised: as this machine bore when it was tried, or when it had other things to do.
pub fn at_less(what: &str, promised: u32, borne: u32, was: f64) {
    if borne < promised || was < f64::from(promised) * 0.95 {
        crate::not_run(&format!(
            "{what} under {promised} requests a second: this machine bears {borne}, and sent {was:.0} now"
        ));
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    good: AtomicU64,
    free: Mutex<Vec<TcpStream>>,
    ended: Mutex<(Vec<Answered>, Vec<String>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An offer that goes on until it is stopped.
pub struct Offered {
    shared: Arc<Shared>,
    thread: JoinHandle<anyhow::Result<(Duration, Duration)>>,
}

impl Offered {
    /// Begins.
    pub fn start(offer: Offer) -> Self {
        let shared = Arc::<Shared>::default();
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(Arc::new(offer), of_thread))
        });
        Self { shared, thread }
    }

    /// Good answers so far.
    pub fn good(&self) -> u64 {
        self.shared.good.load(Relaxed)
    }

    /// Waits until `more` further requests were answered.
    ///
    /// # Errors
    /// When they are not within a minute.
    pub fn wait(&self, more: u64) -> anyhow::Result<()> {
        let wanted = self.good() + more;
        let answered = crate::platform::until(PATIENCE, || self.good() >= wanted);
        answered.with_context(|| format!("{} of {wanted} answers; {:?}", self.good(), lock(&self.shared.ended).1))
    }

    /// Offers no more, waits for the answers and reports.
    ///
    /// # Errors
    /// When nothing could be offered.
    pub fn stop(self) -> anyhow::Result<Report> {
        self.shared.stop.store(true, Relaxed);
        let Ok(ended) = self.thread.join() else { bail!("the thread that offers panicked") };
        let (lasted, latest) = ended?;
        let (answers, failures) = std::mem::take(&mut *lock(&self.shared.ended));
        Ok(Report { sent: self.shared.sent.load(Relaxed), lasted, latest, answers, failures })
    }
}

/// Offers until it is told to stop. How long that was, and how late the latest was sent.
async fn run(offer: Arc<Offer>, shared: Arc<Shared>) -> anyhow::Result<(Duration, Duration)> {
    let began = Instant::now();
    // From when on what is due is counted: later by what is not made up for.
    let mut first = began;
    let mut latest = Duration::ZERO;
    let mut asked = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    let mut next = 0_u64;
    while !shared.stop.load(Relaxed) {
        ticks.tick().await;
        loop {
            let due = Duration::from_nanos(next.saturating_mul(1_000_000_000) / u64::from(offer.rate));
            let Some(late) = first.elapsed().checked_sub(due) else { break };
            latest = latest.max(late);
            first += late.saturating_sub(BEHIND);
            asked.spawn(ask(offer.clone(), shared.clone(), next, first + due));
            next += 1;
        }
        while asked.try_join_next().is_some() {}
    }
    let lasted = began.elapsed();
    while asked.join_next().await.is_some() {}
    Ok((lasted, latest))
}

async fn ask(offer: Arc<Offer>, shared: Arc<Shared>, n: u64, due: Instant) {
    let path = usize::try_from(n).unwrap_or_default() % offer.paths.len().max(1);
    let target = offer.paths.get(path).map_or("/", String::as_str);
    let request = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", offer.host);
    shared.sent.fetch_add(1, Relaxed);
    let sent = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, answer(&offer, &shared, request.as_bytes())).await;
    let mut ended = lock(&shared.ended);
    match answer {
        Ok(Ok((200, body))) => {
            shared.good.fetch_add(1, Relaxed);
            ended.0.push(Answered { path, sent, ended: Instant::now(), took: due.elapsed(), body });
        }
        Ok(Ok((status, body))) => ended.1.push(format!("{target}: {status} {body}")),
        Ok(Err(cause)) => ended.1.push(format!("{target}: {cause:#}")),
        Err(_) => ended.1.push(format!("{target}: no answer within {PATIENCE:?}")),
    }
}

async fn answer(offer: &Offer, shared: &Shared, request: &[u8]) -> anyhow::Result<(u16, String)> {
    // One that the ingress has ended meanwhile is at its end.
    let open = |stream: &TcpStream| stream.try_read(&mut [0]).is_err_and(|cause| cause.kind() == ErrorKind::WouldBlock);
    let free = std::iter::from_fn(|| lock(&shared.free).pop()).find(open);
    let mut stream = match free {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(offer.address).await.context("cannot connect")?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    stream.write_all(request).await?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            bail!("the connection ended within an answer: `{}`", String::from_utf8_lossy(&buffer));
        }
        let Some(answer) = whole(&buffer) else { continue };
        if answer.keep {
            lock(&shared.free).push(stream);
        }
        return Ok((answer.status, answer.body));
    }
}

struct Whole {
    status: u16,
    keep: bool,
    body: String,
}

/// An answer of the ingress that is here to its end.
fn whole(bytes: &[u8]) -> Option<Whole> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(bytes.get(..end)?).ok()?.to_ascii_lowercase();
    let body = bytes.get(end + 4..)?;
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let text = if field("transfer-encoding").is_some() {
        // One piece and the end: what is asked for here is small.
        let (length, rest) = body.split_at(body.windows(2).position(|two| two == b"\r\n")?);
        let length = usize::from_str_radix(std::str::from_utf8(length).ok()?, 16).ok()?;
        if !body.ends_with(b"0\r\n\r\n") {
            return None;
        }
        rest.get(2..2 + length)?
    } else {
        let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        body.get(..length)?
    };
    Some(Whole {
        status: head.split(' ').nth(1)?.parse().ok()?,
        keep: field("connection") != Some("close"),
        body: String::from_utf8_lossy(text).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_or_not() {
        let read = |text: &str| whole(text.as_bytes()).map(|answer| (answer.status, answer.keep, answer.body));
        let ok = |body: &str| Some((200, true, body.to_owned()));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"), ok("ok"));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"), None);
        assert_eq!(read("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), ok("ok"));
        assert_eq!(read("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"), None);
        let closed = read("HTTP/1.1 503 x\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx");
        assert_eq!(closed, Some((503, false, "x".to_owned())));
    }

    #[test]
    fn what_waits_holds_nothing_up() {
        use std::io::{Read as _, Write as _};
        // Answers no connection before it has ten of them: whoever asks one after the other never gets an answer.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut waiting = Vec::new();
            for stream in listener.incoming() {
                waiting.push(stream.unwrap());
                if waiting.len() < 10 {
                    continue;
                }
                for mut stream in waiting.drain(..) {
                    drop(stream.read(&mut [0; 1024]));
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"));
                }
            }
        });
        let offer = Offer { address, host: "h".to_owned(), paths: vec!["/a".to_owned(), "/b".to_owned()], rate: 200 };
        let offered = Offered::start(offer);
        offered.wait(40).unwrap();
        offered.shared.stop.store(true, Relaxed);
        // Those that came last still wait for others.
        assert_eq!(lock(&offered.shared.ended).1, [""; 0]);
        let answers = lock(&offered.shared.ended).0.clone();
        assert!(answers.iter().any(|a| a.path == 0) && answers.iter().any(|a| a.path == 1 && a.body == "ok"));
    }
}
