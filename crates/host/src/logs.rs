//! The host's log: every component's lines in one bounded ring, read by whoever follows `/v1/logs`.
//!
//! Two budgets hold a flood back: that of the call, kept by the runtime, and bytes a second per component, kept here.
//! What they drop is counted, and once a second said in a line of the platform's own. A reader that is too slow loses
//! the oldest lines, and is told how many.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::agent::{LogLine, LogStream};
use model::unit::ByteSize;
use model::{AppName, ComponentName, Revision};
use runtime::{LogSink, LogStreamKind};
use tokio::sync::Notify;

use model::escape;

/// The most lines kept for readers.
const MAX_LINES: usize = 8192;
/// The most bytes of text kept for readers.
const MAX_BYTES: usize = 4 << 20;
/// How often dropped bytes are told.
const TELL: Duration = Duration::from_secs(1);
/// Lines of the platform's own about one component within [`TELL`].
const REMARKS: u32 = 20;

/// The ring.
#[derive(Debug)]
pub(crate) struct Logs {
    ring: Mutex<Ring>,
    more: Notify,
    /// Components that have dropped bytes nobody was told of.
    untold: Mutex<Vec<Weak<ComponentLog>>>,
    tell: Notify,
    shard: u32,
    /// Tells this process from earlier ones, whose instances had the same numbers.
    started: u32,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// The number of the first line in `lines`.
    first: u64,
    /// Who follows now.
    readers: u32,
    /// Where the last one who followed went away, once somebody did.
    resume: Option<u64>,
}

#[derive(Debug)]
struct Line {
    time_ms: u64,
    origin: Arc<Origin>,
    /// 0: the platform's own.
    instance: u64,
    stream: LogStream,
    context: Box<str>,
    text: Box<str>,
}

/// Whose lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) app: AppName,
    pub(crate) revision: Revision,
    pub(crate) component: ComponentName,
}

/// The log of one component: what the runtime writes to.
#[derive(Debug)]
pub(crate) struct ComponentLog {
    logs: Arc<Logs>,
    origin: Arc<Origin>,
    this: Weak<Self>,
    budget: Mutex<Budget>,
    dropped: AtomicU64,
    untold: AtomicU64,
    listed: AtomicBool,
}

/// Bytes that may be logged now: refilled every second, never more than a second's worth.
#[derive(Debug)]
struct Budget {
    rate: u64,
    left: u64,
    since: Instant,
    remarks: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Logs {
    pub(crate) fn new(shard: u32) -> Arc<Self> {
        Arc::new(Self {
            ring: Mutex::default(),
            more: Notify::new(),
            untold: Mutex::default(),
            tell: Notify::new(),
            shard,
            // The lower half: a process of the same shard does not start again within the same millisecond.
            started: now_ms() as u32,
        })
    }

    /// The log of one component.
    pub(crate) fn component(self: &Arc<Self>, origin: Origin, rate: ByteSize) -> Arc<ComponentLog> {
        Arc::new_cyclic(|this| ComponentLog {
            logs: self.clone(),
            origin: Arc::new(origin),
            this: this.clone(),
            budget: Mutex::new(Budget { rate: rate.0, left: rate.0, since: Instant::now(), remarks: 0 }),
            dropped: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            listed: AtomicBool::new(false),
        })
    }

    fn push(&self, line: Line) {
        let mut ring = lock(&self.ring);
        ring.bytes += line.cost();
        ring.lines.push_back(Arc::new(line));
        while ring.lines.len() > MAX_LINES || ring.bytes > MAX_BYTES {
            let Some(oldest) = ring.lines.pop_front() else { break };
            ring.bytes -= oldest.cost();
            ring.first += 1;
        }
        drop(ring);
        self.more.notify_waiters();
    }

    /// Tells once a second what was dropped. Never ends.
    pub(crate) async fn tell_dropped(&self) {
        loop {
            self.tell.notified().await;
            tokio::time::sleep(TELL).await;
            let listed = std::mem::take(&mut *lock(&self.untold));
            for log in listed.iter().filter_map(Weak::upgrade) {
                log.listed.store(false, Relaxed);
                let bytes = log.untold.swap(0, Relaxed);
                log.platform(&format!(
                    "{bytes} bytes of this component's log were dropped: it logs more than `limits.log-per-call` or \
                     `limits.log-rate` allow"
                ));
            }
        }
    }

    /// A reader: beside another one from now on; alone from where the last one went away, or from the oldest line that is
    /// kept. So whoever lost the connection and follows again misses nothing that is still kept, and is told of the rest.
    pub(crate) fn reader(self: &Arc<Self>) -> Reader {
        let mut ring = lock(&self.ring);
        let next = match ring.readers {
            0 => ring.resume.unwrap_or(ring.first),
            _ => ring.first + ring.lines.len() as u64,
        };
        ring.readers += 1;
        drop(ring);
        Reader { logs: self.clone(), next, passed_on: next }
    }
}

impl Line {
    fn cost(&self) -> usize {
        128 + self.text.len() + self.context.len()
    }

    fn wire(&self, shard: u32, started: u32) -> LogLine {
        let instance = match self.instance {
            0 => String::new(),
            number => format!("{shard}-{started:08x}-{number}"),
        };
        LogLine {
            time_ms: self.time_ms,
            app: self.origin.app.clone(),
            component: self.origin.component.clone(),
            revision: self.origin.revision,
            shard,
            instance,
            stream: self.stream,
            context: self.context.to_string(),
            text: self.text.to_string(),
        }
    }
}

/// Follows the log.
pub(crate) struct Reader {
    logs: Arc<Logs>,
    next: u64,
    /// Lines before this one were passed on: after those that were taken last, the reader came back for more.
    passed_on: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut ring = lock(&self.logs.ring);
        ring.readers = ring.readers.saturating_sub(1);
        ring.resume = Some(self.passed_on);
    }
}

impl Reader {
    /// The next lines, at least one; waits for it. Lines that are gone already are told as one line of the platform's.
    pub(crate) async fn next(&mut self) -> Vec<LogLine> {
        let logs = self.logs.clone();
        self.passed_on = self.next;
        loop {
            let mut more = std::pin::pin!(logs.more.notified());
            more.as_mut().enable();
            let lines = self.take();
            if !lines.is_empty() {
                return lines;
            }
            more.await;
        }
    }

    fn take(&mut self) -> Vec<LogLine> {
        const AT_ONCE: usize = 256;
        let ring = lock(&self.logs.ring);
        let lost = ring.first.saturating_sub(self.next);
        self.next += lost;
        let skip = usize::try_from(self.next - ring.first).unwrap_or(usize::MAX);
        let (shard, started) = (self.logs.shard, self.logs.started);
        let mut lines: Vec<LogLine> =
            ring.lines.iter().skip(skip).take(AT_ONCE).map(|line| line.wire(shard, started)).collect();
        self.next += lines.len() as u64;
        if lost > 0
            && let Some(first) = lines.first()
        {
            let text = format!("{lost} lines of this host's log were lost here: their reader was too slow");
            let remark = LogLine {
                stream: LogStream::Platform,
                instance: String::new(),
                context: String::new(),
                text,
                ..first.clone()
            };
            lines.insert(0, remark);
        }
        lines
    }
}

impl ComponentLog {
    /// Bytes dropped so far.
    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// A line of the platform's own: a trap, a limit. A flood of them is cut.
    pub(crate) fn remark(&self, text: &str) {
        let mut budget = lock(&self.budget);
        budget.refill(Instant::now());
        budget.remarks += 1;
        let told = budget.remarks;
        drop(budget);
        if told < REMARKS {
            self.platform(text);
        } else if told == REMARKS {
            self.platform("more of these follow within this second and are not shown");
        }
    }

    fn platform(&self, text: &str) {
        self.push(0, LogStream::Platform, "", escape::one_line(text));
    }

    fn push(&self, instance: u64, stream: LogStream, context: &str, text: String) {
        let (context, text) = (context.into(), text.into_boxed_str());
        self.logs.push(Line { time_ms: now_ms(), origin: self.origin.clone(), instance, stream, context, text });
    }
}

impl Budget {
    fn refill(&mut self, now: Instant) {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.left = self.rate;
            self.remarks = 0;
        }
    }

    /// How many of `bytes` may be logged with `context` bytes to each line.
    fn take(&mut self, bytes: &[u8], context: usize, now: Instant) -> usize {
        self.refill(now);
        let (taken, spent) = runtime::affordable(bytes, context, self.left);
        self.left = self.left.saturating_sub(spent);
        taken
    }
}

impl LogSink for ComponentLog {
    fn write(&self, instance: u64, stream: LogStreamKind, context: &str, bytes: &[u8]) {
        // Escaping makes it longer; what is kept is what counts.
        let context = if context.is_empty() { String::new() } else { escape::one_line(context) };
        // An empty line costs its end, so that empty ones are no way around the budget.
        let granted = lock(&self.budget).take(bytes, context.len(), Instant::now());
        if granted < bytes.len() {
            self.dropped((bytes.len() - granted) as u64);
        }
        let Some(bytes) = bytes.get(..granted).filter(|granted| !granted.is_empty()) else { return };
        let stream = match stream {
            LogStreamKind::Stdout => LogStream::Stdout,
            LogStreamKind::Stderr => LogStream::Stderr,
            LogStreamKind::Trace => LogStream::Trace,
            LogStreamKind::Debug => LogStream::Debug,
            LogStreamKind::Info => LogStream::Info,
            LogStreamKind::Warn => LogStream::Warn,
            LogStreamKind::Error => LogStream::Error,
            LogStreamKind::Critical => LogStream::Critical,
        };
        escape::lines(bytes, |text| self.push(instance, stream, &context, text));
    }

    fn dropped(&self, bytes: u64) {
        self.dropped.fetch_add(bytes, Relaxed);
        self.untold.fetch_add(bytes, Relaxed);
        if !self.listed.swap(true, Relaxed) {
            lock(&self.logs.untold).push(self.this.clone());
            self.logs.tell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(logs: &Arc<Logs>, rate: u64) -> Arc<ComponentLog> {
        let origin = Origin { app: "a".parse().unwrap(), revision: Revision(1), component: "c".parse().unwrap() };
        logs.component(origin, ByteSize(rate))
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[tokio::test]
    async fn the_first_reader_sees_what_came_before_it_and_the_next_does_not() {
        let logs = Logs::new(3);
        let component = log(&logs, 1000);
        component.write(7, LogStreamKind::Stdout, "", b"early\n");
        let mut first = logs.reader();
        let mut second = logs.reader();
        component.write(7, LogStreamKind::Warn, "ctx\n", b"late");
        assert_eq!(texts(&first.next().await), ["early", "late"]);
        let lines = second.next().await;
        assert_eq!(texts(&lines), ["late"]);
        assert_eq!((lines[0].stream, lines[0].context.as_str(), lines[0].shard), (LogStream::Warn, "ctx\\n", 3));
        let instance = &lines[0].instance;
        assert!(instance.starts_with("3-") && instance.ends_with("-7") && instance.len() == 12, "{instance}");
        component.remark("trap");
        assert_eq!(second.next().await[0].instance, "", "the platform's own line is of no instance");
    }

    #[tokio::test]
    async fn whoever_follows_again_goes_on_where_the_connection_ended() {
        let logs = Logs::new(3);
        let component = log(&logs, 1 << 20);
        component.platform("one");
        let mut reader = logs.reader();
        assert_eq!(texts(&reader.next().await), ["one"]);
        // It came back for more and waits; then its connection ends.
        assert!(futures::FutureExt::now_or_never(reader.next()).is_none());
        drop(reader);
        component.platform("two");
        let mut reader = logs.reader();
        assert_eq!(texts(&reader.next().await), ["two"]);
        // This one did not come back: whether its lines arrived is not known, so they come again.
        drop(reader);
        component.platform("three");
        assert_eq!(texts(&logs.reader().next().await), ["two", "three"]);
        // What is not kept any more is told.
        for _ in 0..MAX_LINES {
            component.platform("more");
        }
        let lines = logs.reader().next().await;
        assert_eq!(lines[0].text, "2 lines of this host's log were lost here: their reader was too slow");
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_how_much_it_lost_and_memory_stays_bounded() {
        let logs = Logs::new(0);
        let component = log(&logs, u64::MAX);
        let mut reader = logs.reader();
        for n in 0..MAX_LINES + 10 {
            component.write(7, LogStreamKind::Stdout, "", format!("{n}\n").as_bytes());
        }
        let lines = reader.next().await;
        assert_eq!(lines[0].stream, LogStream::Platform);
        assert!(lines[0].text.starts_with("10 lines"), "{}", lines[0].text);
        assert_eq!(lines[1].text, "10");
        for _ in 0..1000 {
            component.write(7, LogStreamKind::Stdout, "", &[b'x'; 15_000]);
        }
        let ring = lock(&logs.ring);
        assert!(ring.bytes <= MAX_BYTES && ring.lines.len() <= MAX_LINES);
    }

    #[tokio::test]
    async fn every_line_pays_for_its_context() {
        let logs = Logs::new(0);
        let component = log(&logs, 1000);
        let mut reader = logs.reader();
        component.write(7, LogStreamKind::Info, &"c".repeat(99), &[b'\n'; 100]);
        let lines = reader.next().await;
        assert_eq!(lines.len(), 10);
        assert_eq!(component.dropped_bytes(), 90);
    }

    #[tokio::test]
    async fn a_flood_is_cut_counted_and_told() {
        let logs = Logs::new(0);
        let component = log(&logs, 100);
        let mut reader = logs.reader();
        for _ in 0..5 {
            component.write(7, LogStreamKind::Stdout, "", &[b'x'; 60]);
        }
        assert_eq!(component.dropped_bytes(), 200);
        for _ in 0..1000 {
            component.write(7, LogStreamKind::Stdout, "", b"\n");
        }
        assert_eq!(component.dropped_bytes(), 1200, "empty lines cost as well");
        assert_eq!(texts(&reader.next().await).iter().map(|text| text.len()).sum::<usize>(), 100);
        let telling = logs.clone();
        tokio::select! {
            () = telling.tell_dropped() => {}
            lines = reader.next() => assert!(lines[0].text.starts_with("1200 bytes"), "{}", lines[0].text),
        }
        for _ in 0..1000 {
            component.remark("trap");
        }
        assert_eq!(reader.next().await.len(), REMARKS as usize);
    }
}
