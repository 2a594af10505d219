//! Objects of one host's apps, as files of this node. What is being written or read belongs to the connection it was
//! begun on and ends with it, so a host that dies leaves nothing half-written and nothing open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::services::blob::{BlobAnswer, BlobFault, BlobOp, BlobRequest, Chunk, MAX_CHUNK, MAX_NAMES};
use model::{AppName, ProviderName, TenantName};
use store::folder::{Folder, FolderError, Opened, Partial, Scope, Trash};
use tokio::sync::Semaphore;

/// Objects one host may have open, read and written together.
const MAX_OPEN: usize = 512;
/// Calls of one host that use the disk at once.
const MAX_AT_ONCE: usize = 16;
/// The longest name of anything, bytes; a host asks for shorter ones.
const MAX_NAME: usize = 1024;

/// One connection's objects.
pub(super) struct BlobSession {
    next: AtomicU64,
    uploads: Table<Partial>,
    readings: Table<Opened>,
    disk: Semaphore,
}

/// What is open, by number. `None` while a call works on it.
type Table<T> = Arc<Mutex<HashMap<u64, Option<T>>>>;

impl Default for BlobSession {
    fn default() -> Self {
        let next = AtomicU64::new(1);
        Self { next, uploads: Table::default(), readings: Table::default(), disk: Semaphore::new(MAX_AT_ONCE) }
    }
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose objects a call is about.
struct Whose {
    tenant: TenantName,
    app: AppName,
    provider: ProviderName,
}

impl Whose {
    fn scope(&self) -> Scope<'_> {
        Scope { tenant: &self.tenant, app: &self.app, provider: &self.provider }
    }
}

impl BlobSession {
    /// Answers one call.
    pub(super) async fn answer(
        &self,
        folder: &Folder,
        tenant: &TenantName,
        app: AppName,
        request: BlobRequest,
    ) -> Result<BlobAnswer, BlobFault> {
        check(&request.op)?;
        let whose = Whose { tenant: tenant.clone(), app, provider: request.provider };
        let folder = folder.clone();
        match request.op {
            BlobOp::Open { container, object } => {
                self.room()?;
                let opened = self.work(move || folder.read(whose.scope(), &container, &object)).await?;
                let size = opened.info().size;
                Ok(BlobAnswer::Opened { reading: self.keep(&self.readings, opened), size })
            }
            BlobOp::Read { reading, offset, length } => {
                let length = (length as usize).min(MAX_CHUNK);
                let (opened, bytes) =
                    self.with(&self.readings, reading, move |opened| opened.read(offset, length)).await?;
                put_back(&self.readings, reading, opened);
                Ok(BlobAnswer::Chunk(Chunk(bytes.into())))
            }
            BlobOp::Close { reading } => {
                let closed = lock(&self.readings).remove(&reading);
                let close = move || {
                    drop(closed);
                    Ok(BlobAnswer::Done)
                };
                self.work(close).await
            }
            BlobOp::Begin { container, object } => {
                self.room()?;
                let partial = self.work(move || folder.write(whose.scope(), &container, &object)).await?;
                Ok(BlobAnswer::Begun { upload: self.keep(&self.uploads, partial) })
            }
            BlobOp::Write { upload, chunk } => {
                let (partial, ()) = self.with(&self.uploads, upload, move |partial| partial.write(&chunk.0)).await?;
                put_back(&self.uploads, upload, partial);
                Ok(BlobAnswer::Done)
            }
            BlobOp::Finish { upload } => {
                let partial = take(&self.uploads, upload)?;
                lock(&self.uploads).remove(&upload);
                self.work(move || partial.finish()).await?;
                Ok(BlobAnswer::Done)
            }
            BlobOp::Abandon { upload } => {
                let abandoned = lock(&self.uploads).remove(&upload);
                let close = move || {
                    drop(abandoned);
                    Ok(BlobAnswer::Done)
                };
                self.work(close).await
            }
            other => self.work(move || simple(&folder, whose.scope(), other)).await,
        }
    }

    /// Does something that may wait for the disk.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, BlobFault> {
        let _turn = self.disk.acquire().await.map_err(|cause| BlobFault::Unavailable(cause.to_string()))?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|cause| BlobFault::Unavailable(format!("the node failed: {cause}")))?.map_err(fault)
    }

    fn room(&self) -> Result<(), BlobFault> {
        if lock(&self.uploads).len() + lock(&self.readings).len() < MAX_OPEN {
            return Ok(());
        }
        Err(BlobFault::Unavailable(format!("{MAX_OPEN} objects of this tenant's host are open already; try again")))
    }

    fn keep<T>(&self, table: &Table<T>, what: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(table).insert(number, Some(what));
        number
    }

    /// Works on something that is open and gives it back for [`put_back`]; it is closed where that failed.
    async fn with<T: Send + 'static, A: Send + 'static>(
        &self,
        table: &Table<T>,
        number: u64,
        work: impl FnOnce(&mut T) -> Result<A, FolderError> + Send + 'static,
    ) -> Result<(T, A), BlobFault> {
        let mut taken = take(table, number)?;
        let done = self.work(move || work(&mut taken).map(|answer| (taken, answer))).await;
        if done.is_err() {
            lock(table).remove(&number);
        }
        done
    }
}

fn take<T>(table: &Table<T>, number: u64) -> Result<T, BlobFault> {
    match lock(table).get_mut(&number) {
        Some(slot) => slot.take().ok_or_else(|| BlobFault::Refused(format!("{number} is at work already"))),
        None => Err(BlobFault::Refused(format!("nothing with the number {number} is open on this connection"))),
    }
}

/// One that was closed meanwhile is dropped.
fn put_back<T>(table: &Table<T>, number: u64, what: T) {
    if let Some(slot) = lock(table).get_mut(&number) {
        *slot = Some(what);
    }
}

/// What is done in one step.
fn simple(folder: &Folder, scope: Scope<'_>, op: BlobOp) -> Result<BlobAnswer, FolderError> {
    Ok(match op {
        BlobOp::Create { container } => {
            folder.create(scope, &container)?;
            BlobAnswer::Done
        }
        BlobOp::Container { container } => BlobAnswer::Container(folder.container(scope, &container)?),
        BlobOp::Delete { container } => emptied(folder.delete(scope, &container)?),
        BlobOp::Clear { container } => emptied(folder.clear(scope, &container)?),
        BlobOp::Object { container, object } => {
            let found = folder.object(scope, &container, &object)?;
            BlobAnswer::Object(found.map(|info| (info.created_at, info.size)))
        }
        BlobOp::List { container, cursor } => {
            let page = folder.list(scope, &container, cursor.as_deref())?;
            BlobAnswer::Names { names: page.names, cursor: page.cursor }
        }
        BlobOp::Remove { container, objects } => {
            folder.remove(scope, &container, &objects)?;
            BlobAnswer::Done
        }
        BlobOp::Containers => BlobAnswer::Names { names: folder.names(scope)?, cursor: None },
        // The other operations are the session's.
        _ => return Err(FolderError::CannotRead("the node mixed up a call".to_owned())),
    })
}

/// What was removed is out of sight; its room is given back while nobody waits.
fn emptied(trash: Trash) -> BlobAnswer {
    drop(tokio::task::spawn_blocking(move || trash.empty()));
    BlobAnswer::Done
}

/// Refuses what no host of ours asks for.
fn check(op: &BlobOp) -> Result<(), BlobFault> {
    let (container, objects) = match op {
        BlobOp::Create { container }
        | BlobOp::Container { container }
        | BlobOp::Delete { container }
        | BlobOp::Clear { container }
        | BlobOp::List { container, .. } => (container, &[][..]),
        BlobOp::Object { container, object }
        | BlobOp::Open { container, object }
        | BlobOp::Begin { container, object } => (container, std::slice::from_ref(object)),
        BlobOp::Remove { container, objects } => (container, &objects[..]),
        BlobOp::Write { chunk, .. } if chunk.0.len() > MAX_CHUNK => {
            return Err(BlobFault::TooLarge(format!("a chunk has at most {MAX_CHUNK} bytes")));
        }
        BlobOp::Read { .. } | BlobOp::Close { .. } | BlobOp::Write { .. } => return Ok(()),
        BlobOp::Finish { .. } | BlobOp::Abandon { .. } | BlobOp::Containers => return Ok(()),
    };
    if objects.len() > MAX_NAMES || container.len() > MAX_NAME || objects.iter().any(|name| name.len() > MAX_NAME) {
        return Err(BlobFault::TooLarge(format!("at most {MAX_NAMES} names of {MAX_NAME} bytes each")));
    }
    Ok(())
}

fn fault(error: FolderError) -> BlobFault {
    match error {
        FolderError::NoContainer(container) => BlobFault::NoContainer(container),
        FolderError::ContainerExists(container) => BlobFault::ContainerExists(container),
        FolderError::NoObject { container, object } => BlobFault::NoObject { container, object },
        FolderError::Damaged { object, why } => BlobFault::Damaged { object, why },
        FolderError::TooLarge => BlobFault::TooLarge(FolderError::TooLarge.to_string()),
        FolderError::OverQuota(full) => BlobFault::OverQuota(full.to_string()),
        FolderError::CannotWrite(_) | FolderError::CannotRead(_) => BlobFault::Unavailable(error.to_string()),
    }
}
