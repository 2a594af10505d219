//! `sidereal databases`: the SQL databases of one tenant, in a process of their own that may spin or swell without harm to
//! others. It answers its node over the socket that is its stdin, and ends with it.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as answers};
use std::time::Duration;

use anyhow::Context as _;
use api::databases::{Count, Counted, Order, Word};
use api::services::codec::{FrameReader, FrameWriter, WireError};
use model::TenantName;
use model::sql::SqlError;
use sandbox::SandboxError;
use store::sql::{Account, Databases};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// How often it is looked whether a statement sits in one step of SQLite.
const LOOK: Duration = Duration::from_millis(100);
/// The exit code where one did.
const STUCK: i32 = 3;
/// Where the kernel has to choose whom to end for the memory of a tenant's group: this before a host.
const OOM_SCORE: &str = "500";

/// Answers on stdin until it is closed; confined before it reads.
///
/// # Errors
/// When it is not confined, or the node does not speak as it should.
pub fn run(dir: &Path, tenant: TenantName, confine: impl FnOnce() -> Result<(), SandboxError>) -> anyhow::Result<()> {
    if let Err(cause) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::debug!(%cause, "the kernel may choose another process first");
    }
    confine()?;
    let databases = Databases::new(dir);
    let watched = databases.clone();
    std::thread::Builder::new().name("watch".to_owned()).spawn(move || watch(&watched))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let line = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        line.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(line)?.into_split();
        let (words, said) = mpsc::unbounded_channel();
        let served = Served { databases, tenant, words, asked: Arc::default() };
        tokio::select! {
            ended = served.listen(FrameReader::new(read)) => ended,
            ended = tell(FrameWriter::new(write), said) => ended,
        }
    });
    served.context("the node is gone")
}

/// A thread inside of SQLite ends with the process, and not before.
fn watch(databases: &Databases) {
    loop {
        std::thread::sleep(LOOK);
        if databases.is_stuck() {
            eprintln!("a statement does not end in time, and the process with it");
            std::process::exit(STUCK);
        }
    }
}

/// Databases that wait for what they asked the node, by the number of their call.
type Asked = Mutex<HashMap<u64, answers::Sender<Counted>>>;

struct Served {
    databases: Databases,
    tenant: TenantName,
    words: mpsc::UnboundedSender<Word>,
    asked: Arc<Asked>,
}

fn lock(asked: &Asked) -> MutexGuard<'_, HashMap<u64, answers::Sender<Counted>>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Served {
    async fn listen(&self, mut orders: FrameReader<OwnedReadHalf>) -> Result<(), WireError> {
        while let Some(order) = orders.next().await? {
            match order {
                Order::Call { id, app, provider, counted, call } => {
                    let (databases, tenant, words) = (self.databases.clone(), self.tenant.clone(), self.words.clone());
                    let account = counted.then(|| self.account(id));
                    // The calls of one database are in line before the next order is read.
                    let answer = databases.send(&tenant, &app, &provider, call, account);
                    tokio::spawn(async move {
                        let result = match answer {
                            Ok(answer) => answer.await.unwrap_or_else(|_| Err(closed())),
                            Err(refused) => Err(refused),
                        };
                        // Where nobody takes words any more the process ends.
                        drop(words.send(Word::Answer { id, result }));
                    });
                }
                Order::Counted { id, answer } => {
                    if let Some(asked) = lock(&self.asked).remove(&id) {
                        drop(asked.send(answer));
                    }
                }
                Order::Close { app } => self.databases.close(&self.tenant, &app),
            }
        }
        Ok(())
    }

    fn account(&self, id: u64) -> Arc<dyn Account> {
        Arc::new(AtNode { id, words: self.words.clone(), asked: self.asked.clone() })
    }
}

fn closed() -> SqlError {
    SqlError::Unavailable("the database was closed".to_owned())
}

async fn tell(
    mut writer: FrameWriter<OwnedWriteHalf>,
    mut said: mpsc::UnboundedReceiver<Word>,
) -> Result<(), WireError> {
    while let Some(word) = said.recv().await {
        writer.push(&word)?;
        writer.flush().await?;
    }
    Ok(())
}

/// Asks the node to count what the database of one call takes. The thread of a database waits in here.
#[derive(Debug)]
struct AtNode {
    id: u64,
    words: mpsc::UnboundedSender<Word>,
    asked: Arc<Asked>,
}

impl AtNode {
    fn ask(&self, count: Count) -> Option<Counted> {
        let (sender, answer) = answers::channel();
        lock(&self.asked).insert(self.id, sender);
        self.words.send(Word::Count { id: self.id, count }).ok()?;
        answer.recv().ok()
    }
}

/// Where the node does not answer nothing grows: the process is about to end.
impl Account for AtNode {
    fn begin(&self, bytes: u64) -> u64 {
        match self.ask(Count::Begin(bytes)) {
            Some(Counted::Left(left)) => left,
            _ => 0,
        }
    }

    fn grow(&self, bytes: u64) -> Result<u64, String> {
        match self.ask(Count::Grow(bytes)) {
            Some(Counted::Before(before)) => Ok(before),
            Some(Counted::Full(full)) => Err(full),
            _ => Err("the node does not say whether there is room".to_owned()),
        }
    }

    fn is(&self, bytes: u64) {
        drop(self.words.send(Word::Count { id: self.id, count: Count::Is(bytes) }));
    }

    fn full(&self, beyond: u64) -> String {
        match self.ask(Count::Full(beyond)) {
            Some(Counted::Full(full)) => full,
            _ => "the node does not say how much room there is".to_owned(),
        }
    }
}
