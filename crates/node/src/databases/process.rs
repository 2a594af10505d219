//! One tenant's process: `exe databases --dir DIR --tenant NAME --sandbox …`, calls and answers on its stdin, a socket. It
//! ends with that socket, by itself where a statement does not end in time, and when it is ended.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::databases::{Count, Counted, MAX_FRAME, Order, Word};
use api::services::codec::{FrameReader, FrameWriter, WireError};
use model::sql::{Answer, Call, STATEMENT_MS, SqlError};
use model::{AppName, ProviderName, TenantName};
use rustix::process::{Pid, Signal, kill_process_group};
use sandbox::View;
use store::sql::{Account, MAX_DATABASE};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Starting;
use crate::confine::Who;
use crate::pace::Pace;
use crate::supervisor::describe;

/// A process nobody asks this long is ended. Its databases have closed by themselves by then, one by one.
const IDLE: Duration = Duration::from_secs(90);
/// How long one whose line has ended may take to be gone.
const ENDING: Duration = Duration::from_secs(1);
/// How much of its words is read, bytes.
const MAX_WORDS: u64 = 64 << 10;
/// A process in which a call is older is ended: by itself it lets one wait for 10 s and run for 11, and by then it believes
/// nothing we might want to know.
pub(super) const LATE: Duration = Duration::from_millis(3 * STATEMENT_MS);
/// Answers to what it asked of the node that are on their way to it: one that asks and reads nothing waits.
const MAX_ASKED: usize = 64;
/// What it may ask a second over time, and twice as often at once.
const ASKS: u64 = 20_000;

type Reply = oneshot::Sender<Result<Answer, SqlError>>;

/// The process as calls meet it.
#[derive(Debug)]
pub(super) struct Process {
    orders: mpsc::UnboundedSender<Ordered>,
    calls: Arc<Mutex<Calls>>,
    stop: CancellationToken,
    gone: watch::Receiver<bool>,
}

/// What is ordered, with its place among those that are on their way where it has one. Calls have theirs in [`Waiting`], for
/// longer.
#[derive(Debug)]
struct Ordered {
    order: Order,
    place: Option<OwnedSemaphorePermit>,
}

impl From<Order> for Ordered {
    fn from(order: Order) -> Self {
        Self { order, place: None }
    }
}

/// Calls on their way.
#[derive(Debug)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    used: Instant,
    /// Nothing is sent any more.
    over: bool,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    account: Option<Arc<dyn Account>>,
    reply: Reply,
    /// What the call takes of its tenant's, also when nobody waits for its answer any more.
    _held: Vec<OwnedSemaphorePermit>,
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts it; it is ended where a call is older than `late`. Must run inside a tokio runtime.
    pub(super) fn start(
        starting: &Starting,
        dir: &Path,
        tenant: &TenantName,
        late: Duration,
    ) -> Result<Self, SqlError> {
        let failed = |cause: std::io::Error| SqlError::Unavailable(format!("its process cannot be started: {cause}"));
        let (child, line) = spawn(starting, dir, tenant).map_err(failed)?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let (gone_in, gone) = watch::channel(false);
        let calls = Calls { next: 0, waiting: HashMap::new(), used: Instant::now(), over: false };
        let (calls, stop) = (Arc::new(Mutex::new(calls)), CancellationToken::new());
        let tended = Tended { child, tenant: tenant.clone(), calls: calls.clone(), orders: orders.clone(), late };
        starting.confinement.started(Who::Tenant(tenant));
        let stopped = stop.clone();
        tokio::spawn(async move {
            tended.tend(line, ordered, &stopped).await;
            gone_in.send_replace(true);
        });
        Ok(Self { orders, calls, stop, gone })
    }

    /// Whether it takes no call any more.
    pub(super) fn is_over(&self) -> bool {
        lock(&self.calls).over
    }

    /// When it was asked last, where no call is under way.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let calls = lock(&self.calls);
        calls.waiting.is_empty().then_some(calls.used)
    }

    /// Sends a call; where the process is over its answer is dropped. `held` is given back once it was answered.
    pub(super) fn send(
        &self,
        app: &AppName,
        provider: &ProviderName,
        call: Call,
        account: Option<Arc<dyn Account>>,
        held: Vec<OwnedSemaphorePermit>,
    ) -> oneshot::Receiver<Result<Answer, SqlError>> {
        let (reply, answer) = oneshot::channel();
        let mut calls = lock(&self.calls);
        if calls.over {
            return answer;
        }
        let id = calls.next;
        calls.next += 1;
        calls.used = Instant::now();
        let counted = account.is_some();
        calls.waiting.insert(id, Waiting { since: Instant::now(), account, reply, _held: held });
        // Whoever takes orders says that it is over before it stops.
        let order = Order::Call { id, app: app.clone(), provider: provider.clone(), counted, call };
        drop(self.orders.send(order.into()));
        answer
    }

    /// The files of an app are about to be removed.
    pub(super) fn close(&self, app: &AppName) {
        // Where it is over, nothing is open any more.
        drop(self.orders.send(Order::Close { app: app.clone() }.into()));
    }

    /// Ends it, and returns when it is gone.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        let mut gone = self.gone.clone();
        // The sender is dropped only with the runtime.
        drop(gone.wait_for(|gone| *gone).await);
    }
}

fn spawn(starting: &Starting, dir: &Path, tenant: &TenantName) -> std::io::Result<(Child, UnixStream)> {
    let own = dir.join(tenant.as_str());
    std::fs::create_dir_all(&own)?;
    let own = own.canonicalize()?;
    let dir = own.parent().unwrap_or(dir);
    let view = View { write: vec![own.clone()], hide: starting.hide.clone(), ..View::default() };
    let spec = starting.confinement.databases(tenant, view)?;
    let (line, theirs) = UnixStream::pair()?;
    let theirs = theirs.into_std()?;
    theirs.set_nonblocking(false)?;
    let mut child = Command::new(&starting.exe)
        .arg("databases")
        .arg("--dir")
        .arg(dir)
        .args(["--tenant", tenant.as_str(), "--sandbox", &spec.encode()])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(words) = child.stderr.take() {
        let tenant = tenant.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(words.take(MAX_WORDS)).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let line: String = line.chars().filter(|c| !c.is_control()).take(500).collect();
                tracing::warn!(target: "databases", %tenant, "{line}");
            }
        });
    }
    Ok((child, line))
}

/// The process as its task has it.
struct Tended {
    child: Child,
    tenant: TenantName,
    calls: Arc<Mutex<Calls>>,
    orders: mpsc::UnboundedSender<Ordered>,
    late: Duration,
}

impl Tended {
    async fn tend(mut self, line: UnixStream, ordered: mpsc::UnboundedReceiver<Ordered>, stop: &CancellationToken) {
        let (read, write) = line.into_split();
        let why = tokio::select! {
            () = stop.cancelled() => None,
            () = self.idle() => None,
            () = self.late() => Some("a call was not answered in time".to_owned()),
            ended = self.listen(FrameReader::new(read).limited(MAX_FRAME)) => ended.err().map(|cause| cause.to_string()),
            ended = tell(FrameWriter::new(write), ordered) => ended.err().map(|cause| cause.to_string()),
        };
        let left: Vec<Waiting> = {
            let mut calls = lock(&self.calls);
            calls.over = true;
            calls.waiting.drain().map(|(_, waiting)| waiting).collect()
        };
        // One that ended says how; the last byte of its line may come before its end.
        let ended = match &why {
            None => "was ended".to_owned(),
            Some(cause) => match tokio::time::timeout(ENDING, self.child.wait()).await {
                Ok(Ok(status)) => describe(status),
                _ => cause.clone(),
            },
        };
        // Its second stage, and what runs in it, ends with the first.
        let group = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(group) = group
            && let Err(cause) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%cause, "the process of databases cannot be killed");
        }
        if let Err(cause) = self.child.kill().await {
            tracing::debug!(%cause, "the process of databases ended before it was killed");
        }
        if why.is_some() || !left.is_empty() {
            tracing::warn!(tenant = %self.tenant, calls = left.len(), ended, "the process of a tenant's databases is gone");
        }
        for waiting in left {
            let result = match waiting.since.elapsed() >= Duration::from_millis(STATEMENT_MS) {
                true => SqlError::TimedOut { ms: STATEMENT_MS },
                false => SqlError::Unavailable("the process of the tenant's databases ended; try again".to_owned()),
            };
            // Whoever asked may be gone by now.
            drop(waiting.reply.send(Err(result)));
        }
    }

    /// Returns, with nothing under way any more, where nobody has asked for a while.
    async fn idle(&self) {
        loop {
            let next = {
                let mut calls = lock(&self.calls);
                match calls.waiting.is_empty() {
                    true if calls.used.elapsed() >= IDLE => {
                        // From here on nobody sends to it.
                        calls.over = true;
                        return;
                    }
                    true => calls.used + IDLE,
                    false => Instant::now() + IDLE,
                }
            };
            tokio::time::sleep_until(next.into()).await;
        }
    }

    /// Returns where a call is not answered. The process ends itself where a statement does not end; but what runs in it are
    /// its tenant's statements, and it may be theirs.
    async fn late(&self) {
        loop {
            let oldest = lock(&self.calls).waiting.values().map(|waiting| waiting.since).min();
            let next = match oldest {
                Some(since) if since.elapsed() >= self.late => return,
                Some(since) => since + self.late,
                None => Instant::now() + self.late,
            };
            tokio::time::sleep_until(next.into()).await;
        }
    }

    async fn listen(&self, mut words: FrameReader<OwnedReadHalf>) -> Result<(), WireError> {
        let asked = Arc::new(Semaphore::new(MAX_ASKED));
        let mut pace = Pace::new(ASKS, 2 * ASKS);
        loop {
            match words.next::<Word>().await?.ok_or(WireError::Closed)? {
                Word::Answer { id, result } => {
                    let waiting = {
                        let mut calls = lock(&self.calls);
                        calls.used = Instant::now();
                        calls.waiting.remove(&id)
                    };
                    let Some(waiting) = waiting else {
                        return Err(WireError::Malformed("it answers what it was not asked".to_owned()));
                    };
                    // Whoever asked may be gone by now.
                    drop(waiting.reply.send(result));
                }
                Word::Count { id, count } => {
                    pace.pay(1).await;
                    let account = lock(&self.calls).waiting.get(&id).and_then(|waiting| waiting.account.clone());
                    let Some(account) = account else {
                        return Err(WireError::Malformed("it counts for a call that is not counted".to_owned()));
                    };
                    if let Some(answer) = count_in(account.as_ref(), count) {
                        let place = asked.clone().acquire_owned().await.map_err(|_| WireError::Closed)?;
                        let order = Order::Counted { id, answer };
                        drop(self.orders.send(Ordered { order, place: Some(place) }));
                    }
                }
            }
        }
    }
}

/// What is larger than a database can be is none.
fn count_in(account: &dyn Account, count: Count) -> Option<Counted> {
    Some(match count {
        Count::Begin(bytes) => Counted::Left(account.begin(bytes.min(MAX_DATABASE))),
        Count::Grow(bytes) => match account.grow(bytes.min(MAX_DATABASE)) {
            Ok(before) => Counted::Before(before),
            Err(full) => Counted::Full(full),
        },
        Count::Is(bytes) => {
            account.is(bytes.min(MAX_DATABASE));
            return None;
        }
        Count::Full(beyond) => Counted::Full(account.full(beyond.min(MAX_DATABASE))),
    })
}

/// Sends what is ordered; what came meanwhile in one write.
async fn tell(
    mut writer: FrameWriter<OwnedWriteHalf>,
    mut orders: mpsc::UnboundedReceiver<Ordered>,
) -> Result<(), WireError> {
    while let Some(Ordered { order, place }) = orders.recv().await {
        let mut places = vec![place];
        writer.push(&order)?;
        while writer.waiting() < MAX_FRAME
            && let Ok(Ordered { order, place }) = orders.try_recv()
        {
            writer.push(&order)?;
            places.push(place);
        }
        writer.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use model::sql::Statement;

    use super::*;
    use crate::confine::Confinement;

    /// How often it was asked.
    #[derive(Debug, Default)]
    struct Asked(AtomicU64);

    impl Account for Asked {
        fn begin(&self, _bytes: u64) -> u64 {
            self.0.fetch_add(1, Relaxed)
        }
        fn grow(&self, bytes: u64) -> Result<u64, String> {
            Ok(bytes)
        }
        fn is(&self, _bytes: u64) {}
        fn full(&self, _beyond: u64) -> String {
            String::new()
        }
    }

    /// A process that runs this script in the place of ours.
    fn run(dir: &Path, script: &str, late: Duration) -> Process {
        let exe = dir.join("exe");
        std::fs::write(&exe, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o700)).unwrap();
        let starting = Starting { exe, confinement: Confinement::bare(), hide: Vec::new() };
        Process::start(&starting, dir, &"t".parse().unwrap(), late).unwrap()
    }

    fn send(
        process: &Process,
        account: Arc<Asked>,
        held: Vec<OwnedSemaphorePermit>,
    ) -> oneshot::Receiver<Result<Answer, SqlError>> {
        let call = Call::Execute(Statement { sql: "SELECT 1".to_owned(), params: Vec::new() });
        process.send(&"a".parse().unwrap(), &"sqlite".parse().unwrap(), call, Some(account), held)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_process_that_answers_nothing_is_ended_and_its_calls_keep_their_places_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let process = run(dir.path(), "exec sleep 600", Duration::from_secs(8));
        let places = Arc::new(Semaphore::new(2));
        let place = || vec![places.clone().try_acquire_owned().unwrap()];
        let answer = send(&process, Arc::default(), place());
        // Whoever asked hangs up.
        drop(send(&process, Arc::default(), place()));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(places.available_permits(), 0, "both are under way");
        let answer = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("it is ended").unwrap();
        assert!(matches!(answer, Err(SqlError::Unavailable(_))), "{answer:?}");
        assert!(process.is_over());
        let all = tokio::time::timeout(Duration::from_secs(60), places.acquire_many(2)).await;
        assert!(all.is_ok(), "they are free again");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_process_that_asks_and_reads_no_answer_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut words = bytes::BytesMut::new();
        let word = Word::Count { id: 0, count: Count::Begin(1) };
        (0..100_000).for_each(|_| api::services::codec::encode(&word, &mut words).unwrap());
        std::fs::write(dir.path().join("words"), &words).unwrap();
        let flood = format!("head -c 1 >/dev/null; while cat {}/words >&0; do :; done", dir.path().display());
        let process = run(dir.path(), &flood, Duration::from_secs(6));
        let asked = Arc::<Asked>::default();
        let answer = send(&process, asked.clone(), Vec::new());
        let answer = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("it is ended").unwrap();
        assert!(answer.is_err(), "{answer:?}");
        let asked = asked.0.load(Relaxed);
        assert!((64..200_000).contains(&asked), "{asked}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_process_that_answers_what_it_was_not_asked_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut words = bytes::BytesMut::new();
        let result = Err(SqlError::Unavailable(String::new()));
        api::services::codec::encode(&Word::Answer { id: 7, result }, &mut words).unwrap();
        std::fs::write(dir.path().join("words"), &words).unwrap();
        let script = format!("head -c 1 >/dev/null; cat {}/words >&0; exec sleep 600", dir.path().display());
        let process = run(dir.path(), &script, Duration::from_secs(600));
        let answer = send(&process, Arc::default(), Vec::new());
        let answer = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("it is ended").unwrap();
        assert!(answer.is_err() && process.is_over(), "{answer:?}");
    }
}
