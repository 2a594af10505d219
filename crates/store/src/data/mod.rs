//! The key-value data of apps that use the embedded provider: one file, one writer, synced before acknowledged.
//!
//! Writes that arrive while the disk syncs share the next sync, so the rate grows with the number of callers while one
//! caller alone pays one sync per write. Reads see every write that was acknowledged before they began.

mod apply;
mod key;
mod line;
mod op;
mod reads;

pub use op::{Answer, Fault, MAX_BATCH, MAX_BUCKET, MAX_BYTES, MAX_KEY, MAX_LIST, MAX_VALUE, Op};
pub use reads::Reads;

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use model::{AppName, ProviderName, TenantName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::StoreError;
use crate::disk::{self, Disk, Fail, Kind};
use crate::room::Room;
use ::redb::ReadTransaction;
use apply::{Budget, DATA, Stop, Write};
use key::Scope;
use line::Line;

const KIND: Kind = Kind {
    // "sdrldt" and the version.
    format: 0x7364_726c_6474_0001,
    cache: 64 << 20,
    verify_up_to: 256 << 20,
    prepare: |txn| {
        txn.open_table(DATA)?;
        Ok(())
    },
    check: |txn| {
        txn.open_table(DATA)?;
        Ok(())
    },
};

/// Looks whether the file can be used, without changing it; fine where there never was one.
///
/// # Errors
/// [`StoreError::Damaged`] as opening it would say, also where the file is gone; [`StoreError::CannotWrite`] where it
/// cannot be written; [`StoreError::InUse`] where a process has it open.
pub fn check(path: impl AsRef<Path>) -> Result<(), StoreError> {
    disk::check(path.as_ref(), KIND)
}

/// Bytes of one tenant that wait for the writer at once, in KiB; its callers above that wait.
const QUEUED_KIB: usize = 32 << 10;
/// Bytes of one transaction, about; what is above goes into the next.
const BATCH_BYTES: usize = 16 << 20;
/// Writes of one transaction; more make each of them wait longer than they save.
const BATCH_WRITES: usize = 1024;
/// What a piece of a purge counts for among the bytes of a transaction.
const PIECE_BYTES: usize = BATCH_BYTES / 4;

/// The engine. Cheap to clone; the file closes when the last clone is gone.
#[derive(Debug, Clone)]
pub struct DataEngine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<Disk>,
    line: Arc<Line<Ask>>,
    /// Of each tenant that has something in the line, or did lately.
    rooms: Mutex<HashMap<TenantName, Arc<Semaphore>>>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer is asked.
#[derive(Debug)]
enum Ask {
    Write(Job),
    /// From here on the tenant's writes take room; answers with what there was before them.
    Track(TenantName, Arc<Room>, oneshot::Sender<Result<ReadTransaction, Fault>>),
}

#[derive(Debug)]
struct Job {
    tenant: TenantName,
    write: Write,
    bytes: usize,
    reply: oneshot::Sender<Result<Answer, Fault>>,
    _room: OwnedSemaphorePermit,
}

impl DataEngine {
    /// Opens the file or makes it. A file that is damaged, of another version or in use is refused and not touched.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let disk = Arc::new(Disk::open(path.as_ref(), KIND)?);
        let line = Arc::new(Line::default());
        let (owned, asked) = (disk.clone(), line.clone());
        let writer = std::thread::Builder::new()
            .name("data-writer".into())
            .spawn(move || write_all(&owned, &asked))
            .map_err(|e| Fail::from(e).explain(path.as_ref()))?;
        Ok(Self { inner: Arc::new(Inner { disk, line, rooms: Mutex::default(), writer: Some(writer) }) })
    }

    /// One operation on one bucket. A write is answered after it is on disk; once started it happens even if the
    /// caller stops waiting. A read may wait for the disk on the calling thread.
    pub async fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        bucket: &str,
        op: Op,
    ) -> Result<Answer, Fault> {
        let scope = Scope::new(tenant, app, provider, bucket)?;
        apply::check(&scope, &op)?;
        match apply::is_read(&op) {
            true if reads::has_many(&op) => self.read_elsewhere(scope, op, None).await,
            true => self.read(&scope, &op),
            false => self.write(tenant, scope, op).await,
        }
    }

    /// As [`DataEngine::call`], for one who may ask for the most there can be again and again: `reads` says which reads
    /// the calling thread makes, and how many others are made at once.
    pub async fn call_within(
        &self,
        reads: &Reads,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        bucket: &str,
        op: Op,
    ) -> Result<Answer, Fault> {
        let scope = Scope::new(tenant, app, provider, bucket)?;
        apply::check(&scope, &op)?;
        if !apply::is_read(&op) {
            return self.write(tenant, scope, op).await;
        }
        if reads.may_be_here(&op) {
            let answer = self.read(&scope, &op)?;
            reads.was_here(&answer);
            return Ok(answer);
        }
        let thread = reads.threads().acquire_owned().await.map_err(|_| closed())?;
        self.read_elsewhere(scope, op, Some(thread)).await
    }

    async fn write(&self, tenant: &TenantName, scope: Scope, op: Op) -> Result<Answer, Fault> {
        let bytes = apply::weight(&op);
        self.enqueue(tenant, Write::Op(scope, op), bytes).await
    }

    /// On a thread that may wait. It has the permit until it is done, also where nobody waits for the answer.
    async fn read_elsewhere(
        &self,
        scope: Scope,
        op: Op,
        thread: Option<OwnedSemaphorePermit>,
    ) -> Result<Answer, Fault> {
        let this = self.clone();
        let reading = move || {
            let _thread = thread;
            this.read(&scope, &op)
        };
        let read = tokio::task::spawn_blocking(reading).await;
        read.map_err(|cause| Fault::Unavailable(cause.to_string()))?
    }

    /// From now on what the tenant keeps here takes room of `room`, also what there is already.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn track(&self, tenant: &TenantName, room: &Arc<Room>) -> Result<(), Fault> {
        let (reply, answer) = oneshot::channel();
        if !self.inner.line.push(tenant, Ask::Track(tenant.clone(), room.clone(), reply)) {
            return Err(closed());
        }
        let before = answer.await.map_err(|_| closed())??;
        let (disk, tenant) = (self.inner.disk.clone(), tenant.clone());
        let counting = move || {
            let size = || apply::size(&before.open_table(DATA)?, &tenant);
            size().map_err(|fail| unavailable(&disk, fail))
        };
        let counted = tokio::task::spawn_blocking(counting).await;
        room.found(counted.map_err(|cause| Fault::Unavailable(cause.to_string()))??);
        Ok(())
    }

    /// Removes all data of an app, in pieces between which others write; answers after that is on disk. Where it fails, or
    /// nobody waits for the answer any more, a part is gone.
    pub async fn purge(&self, tenant: &TenantName, app: &AppName) -> Result<(), Fault> {
        self.purge_range(tenant, key::of_app(tenant, app, None)).await
    }

    /// As [`DataEngine::purge`], of one provider only.
    pub async fn purge_provider(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
    ) -> Result<(), Fault> {
        self.purge_range(tenant, key::of_app(tenant, app, Some(provider))).await
    }

    /// As [`DataEngine::purge`], of one bucket of a provider only.
    pub async fn purge_bucket(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        bucket: &str,
    ) -> Result<(), Fault> {
        self.purge_range(tenant, Scope::new(tenant, app, provider, bucket)?.all()).await
    }

    /// Every bucket of a provider that has a key.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn buckets(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
    ) -> Result<Vec<String>, Fault> {
        let (disk, range) = (self.inner.disk.clone(), key::of_app(tenant, app, Some(provider)));
        let looking = move || {
            let once = || apply::buckets(&disk.read()?.open_table(DATA)?, &range);
            once().map_err(|fail: Fail| unavailable(&disk, fail))
        };
        let found = tokio::task::spawn_blocking(looking).await;
        found.map_err(|cause| Fault::Unavailable(cause.to_string()))?
    }

    async fn purge_range(&self, tenant: &TenantName, mut range: key::Range) -> Result<(), Fault> {
        while let Answer::Value(Some(last)) = self.enqueue(tenant, Write::Purge(range.clone()), PIECE_BYTES).await? {
            range.0 = Bound::Excluded(last);
        }
        Ok(())
    }

    fn read(&self, scope: &Scope, op: &Op) -> Result<Answer, Fault> {
        let disk = &self.inner.disk;
        let once = || -> Result<Answer, Stop> { apply::read(&disk.read()?.open_table(DATA)?, scope, op) };
        // The file may have been opened again between the snapshot and its use.
        let answer = match once() {
            Err(Stop::Disk(Fail::Disk(_))) => once(),
            other => other,
        };
        answer.map_err(|stop| match stop {
            Stop::Fault(fault) => fault,
            Stop::Disk(fail) => unavailable(disk, fail),
        })
    }

    fn room(&self, tenant: &TenantName) -> Arc<Semaphore> {
        let mut rooms = self.inner.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = rooms.get(tenant) {
            return room.clone();
        }
        // One that nobody holds anything of is as a new one.
        rooms.retain(|_, room| Arc::strong_count(room) > 1);
        rooms.entry(tenant.clone()).or_insert_with(|| Arc::new(Semaphore::new(QUEUED_KIB))).clone()
    }

    async fn enqueue(&self, tenant: &TenantName, write: Write, bytes: usize) -> Result<Answer, Fault> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let room = self.room(tenant).acquire_many_owned(kib).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let job = Job { tenant: tenant.clone(), write, bytes, reply, _room: room };
        if !self.inner.line.push(tenant, Ask::Write(job)) {
            return Err(closed());
        }
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends with its line; the file is free to be opened again when it has.
        self.line.close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn closed() -> Fault {
    Fault::Unavailable("it is shutting down".into())
}

fn write_all(disk: &Disk, asked: &Line<Ask>) {
    let mut tracked: HashMap<TenantName, Arc<Room>> = HashMap::new();
    let mut next = None;
    loop {
        let first = match next.take().or_else(|| asked.wait()) {
            None => return,
            Some(Ask::Write(job)) => job,
            Some(Ask::Track(tenant, room, reply)) => {
                let before = disk.read().map_err(|fail| unavailable(disk, fail));
                if before.is_ok() {
                    tracked.insert(tenant, room);
                }
                // Whoever asked may be gone; the next one asks again.
                drop(reply.send(before));
                continue;
            }
        };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while bytes < BATCH_BYTES && batch.len() < BATCH_WRITES {
            match asked.next() {
                Some(Ask::Write(job)) => {
                    bytes += job.bytes;
                    batch.push(job);
                }
                // What is written before it is on disk when it is looked at.
                Some(other) => {
                    next = Some(other);
                    break;
                }
                None => break,
            }
        }
        let mut taken: Vec<(Arc<Room>, i64)> = Vec::new();
        let answers = disk.commit(|txn| {
            let mut table = txn.open_table(DATA)?;
            let mut answers = Vec::with_capacity(batch.len());
            for job in &batch {
                let room = if tracked.is_empty() { None } else { tracked.get(&job.tenant) };
                let mut budget = Budget::new(room.map(Arc::as_ref));
                let answer = apply::write(&mut table, &job.write, &mut budget);
                if let Some(room) = room.filter(|_| budget.net != 0) {
                    taken.push((room.clone(), budget.net));
                }
                answers.push(match answer {
                    Ok(answer) => Ok(answer),
                    Err(Stop::Fault(fault)) => Err(fault),
                    Err(Stop::Disk(fail)) => return Err(fail),
                });
            }
            Ok(answers)
        });
        match answers {
            Ok(answers) => batch.into_iter().zip(answers).for_each(|(job, answer)| {
                // Nobody waits any more: the write counts all the same.
                let _ = job.reply.send(answer);
            }),
            Err(fail) => {
                for (room, net) in taken {
                    match net {
                        0.. => room.give(net.unsigned_abs()),
                        _ => room.found(net.unsigned_abs()),
                    }
                }
                for job in batch {
                    let _ = job.reply.send(Err(unavailable(disk, fail.clone())));
                }
            }
        }
    }
}

fn unavailable(disk: &Disk, fail: Fail) -> Fault {
    Fault::Unavailable(fail.explain(disk.path()).to_string())
}
