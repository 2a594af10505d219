//! The key-value data of apps that use the embedded provider: one file, one writer, synced before acknowledged.
//!
//! Writes that arrive while the disk syncs share the next sync, so the rate grows with the number of callers while one
//! caller alone pays one sync per write. Reads see every write that was acknowledged before they began.

mod apply;
mod key;
mod op;

pub use op::{Answer, Fault, MAX_BATCH, MAX_BUCKET, MAX_BYTES, MAX_KEY, MAX_LIST, MAX_VALUE, Op};

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use model::{AppName, ProviderName, TenantName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::StoreError;
use crate::disk::{self, Disk, Fail, Kind};
use crate::room::Room;
use ::redb::ReadTransaction;
use apply::{Budget, DATA, Stop, Write};
use key::Scope;

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

/// Bytes that wait for the writer at once, in KiB; callers above that wait.
const QUEUED_KIB: usize = 64 << 10;
/// Bytes of one transaction, about; what is above goes into the next.
const BATCH_BYTES: usize = 16 << 20;
/// Writes of one transaction; more make each of them wait longer than they save.
const BATCH_WRITES: usize = 1024;

/// The engine. Cheap to clone; the file closes when the last clone is gone.
#[derive(Debug, Clone)]
pub struct DataEngine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<Disk>,
    queue: Option<mpsc::UnboundedSender<Ask>>,
    room: Arc<Semaphore>,
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
        let (queue, jobs) = mpsc::unbounded_channel();
        let owned = disk.clone();
        let writer = std::thread::Builder::new()
            .name("data-writer".into())
            .spawn(move || write_all(&owned, jobs))
            .map_err(|e| Fail::from(e).explain(path.as_ref()))?;
        let room = Arc::new(Semaphore::new(QUEUED_KIB));
        Ok(Self { inner: Arc::new(Inner { disk, queue: Some(queue), room, writer: Some(writer) }) })
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
        if apply::is_read(&op) {
            return self.read(&scope, &op);
        }
        let bytes = apply::weight(&op);
        self.enqueue(tenant, Write::Op(scope, op), bytes).await
    }

    /// From now on what the tenant keeps here takes room of `room`, also what there is already.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn track(&self, tenant: &TenantName, room: &Arc<Room>) -> Result<(), Fault> {
        let closed = || Fault::Unavailable("it is shutting down".into());
        let (reply, answer) = oneshot::channel();
        let queue = self.inner.queue.as_ref().ok_or_else(closed)?;
        queue.send(Ask::Track(tenant.clone(), room.clone(), reply)).map_err(|_| closed())?;
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

    /// Removes all data of an app; answers after that is on disk.
    pub async fn purge(&self, tenant: &TenantName, app: &AppName) -> Result<(), Fault> {
        self.enqueue(tenant, Write::Purge(tenant.clone(), app.clone(), None), 0).await.map(drop)
    }

    /// As [`DataEngine::purge`], of one provider only.
    pub async fn purge_provider(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
    ) -> Result<(), Fault> {
        let write = Write::Purge(tenant.clone(), app.clone(), Some(provider.clone()));
        self.enqueue(tenant, write, 0).await.map(drop)
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

    async fn enqueue(&self, tenant: &TenantName, write: Write, bytes: usize) -> Result<Answer, Fault> {
        let closed = || Fault::Unavailable("it is shutting down".into());
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let room = self.inner.room.clone().acquire_many_owned(kib).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let queue = self.inner.queue.as_ref().ok_or_else(closed)?;
        let job = Job { tenant: tenant.clone(), write, bytes, reply, _room: room };
        queue.send(Ask::Write(job)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends with its queue; the file is free to be opened again when it has.
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write_all(disk: &Disk, mut asked: mpsc::UnboundedReceiver<Ask>) {
    let mut tracked: HashMap<TenantName, Arc<Room>> = HashMap::new();
    let mut next = None;
    loop {
        let first = match next.take().or_else(|| asked.blocking_recv()) {
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
            match asked.try_recv() {
                Ok(Ask::Write(job)) => {
                    bytes += job.bytes;
                    batch.push(job);
                }
                // What is written before it is on disk when it is looked at.
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
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
