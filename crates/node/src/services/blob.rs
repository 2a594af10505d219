//! Objects of one host's apps, as files of this node. What is being written or read belongs to the connection it was
//! begun on and ends with it, so a host that dies leaves nothing half-written and nothing open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::services::blob::{BlobAnswer, BlobFault, BlobOp, BlobRequest, Chunk, MAX_CHUNK, MAX_NAMES};
use model::{AppName, ProviderName, TenantName};
use store::folder::{Folder, FolderError, Opened, Partial, Scope, Trash};

use super::share::{Room, Share, take};
use crate::tenant::Tenant;

/// The longest name of anything, bytes; a host asks for shorter ones.
const MAX_NAME: usize = 1024;

/// One connection's objects.
#[derive(Default)]
pub(super) struct BlobSession {
    next: AtomicU64,
    uploads: Table<Partial>,
    readings: Table<Opened>,
}

/// What is open, by number.
type Table<T> = Arc<Mutex<HashMap<u64, Slot<T>>>>;

/// One that is open.
struct Slot<T> {
    /// `None` while a call works on it.
    what: Option<T>,
    /// Who opened it: numbers are easily guessed, and what one app may do another may not.
    app: AppName,
    /// Its place among those of the tenant.
    _place: Room,
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose objects a call is about.
#[derive(Clone)]
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
        tenant: &Tenant,
        app: AppName,
        request: BlobRequest,
    ) -> Result<BlobAnswer, BlobFault> {
        check(&request.op)?;
        let whose = Whose { tenant: tenant.name.clone(), app, provider: request.provider };
        let share = &tenant.share;
        let folder = folder.clone();
        match request.op {
            BlobOp::Open { container, object } => {
                let place = place(share)?;
                let opened = work(share, {
                    let whose = whose.clone();
                    move || folder.read(whose.scope(), &container, &object)
                });
                let opened = opened.await?;
                let size = opened.info().size;
                Ok(BlobAnswer::Opened { reading: self.keep(&self.readings, &whose.app, opened, place), size })
            }
            BlobOp::Read { reading, offset, length } => {
                let length = (length as usize).min(MAX_CHUNK);
                let (opened, bytes) =
                    with(share, &self.readings, (reading, &whose.app), move |opened| opened.read(offset, length))
                        .await?;
                put_back(&self.readings, reading, opened);
                Ok(BlobAnswer::Chunk(Chunk(bytes.into())))
            }
            BlobOp::Close { reading } => {
                let closed = close(&self.readings, reading, &whose.app);
                let close = move || {
                    drop(closed);
                    Ok(BlobAnswer::Done)
                };
                work(share, close).await
            }
            BlobOp::Begin { container, object } => {
                let place = place(share)?;
                let partial = work(share, {
                    let whose = whose.clone();
                    move || folder.write(whose.scope(), &container, &object)
                });
                let partial = partial.await?;
                Ok(BlobAnswer::Begun { upload: self.keep(&self.uploads, &whose.app, partial, place) })
            }
            BlobOp::Write { upload, chunk } => {
                let write = move |partial: &mut Partial| partial.write(&chunk.0);
                let (partial, ()) = with(share, &self.uploads, (upload, &whose.app), write).await?;
                put_back(&self.uploads, upload, partial);
                Ok(BlobAnswer::Done)
            }
            BlobOp::Finish { upload } => {
                let partial = take_out(&self.uploads, upload, &whose.app)?;
                lock(&self.uploads).remove(&upload);
                work(share, move || partial.finish()).await?;
                Ok(BlobAnswer::Done)
            }
            BlobOp::Abandon { upload } => {
                let abandoned = close(&self.uploads, upload, &whose.app);
                let close = move || {
                    drop(abandoned);
                    Ok(BlobAnswer::Done)
                };
                work(share, close).await
            }
            other => match work(share, move || simple(&folder, whose.scope(), other)).await? {
                (answer, None) => Ok(answer),
                (answer, Some(trash)) => emptied(share, answer, trash).await,
            },
        }
    }

    fn keep<T>(&self, table: &Table<T>, app: &AppName, what: T, place: Room) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(table).insert(number, Slot { what: Some(what), app: app.clone(), _place: place });
        number
    }
}

/// Does something that may wait for the disk. A thread that has begun has its turn until it ends, also where nobody waits
/// for it any more.
async fn work<T: Send + 'static>(
    share: &Share,
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, BlobFault> {
    let turn = take(&share.disk, 1).await.map_err(|cause| BlobFault::Unavailable(cause.to_string()))?;
    let turned = move || {
        let done = work();
        drop(turn);
        done
    };
    let done = tokio::task::spawn_blocking(turned).await;
    done.map_err(|cause| BlobFault::Unavailable(format!("the node failed: {cause}")))?.map_err(fault)
}

/// A place for one more that is open.
fn place(share: &Share) -> Result<Room, BlobFault> {
    let full = |_| BlobFault::Unavailable("as many objects of this tenant are open as may be; try again".to_owned());
    share.objects.clone().try_acquire_owned().map_err(full)
}

/// Works on something that is open and gives it back for [`put_back`]; it is closed where that failed.
async fn with<T: Send + 'static, A: Send + 'static>(
    share: &Share,
    table: &Table<T>,
    (number, app): (u64, &AppName),
    act: impl FnOnce(&mut T) -> Result<A, FolderError> + Send + 'static,
) -> Result<(T, A), BlobFault> {
    let mut taken = take_out(table, number, app)?;
    let done = work(share, move || act(&mut taken).map(|answer| (taken, answer))).await;
    if done.is_err() {
        lock(table).remove(&number);
    }
    done
}

/// Takes what an app has open out of its place.
fn take_out<T>(table: &Table<T>, number: u64, app: &AppName) -> Result<T, BlobFault> {
    match lock(table).get_mut(&number).filter(|slot| slot.app == *app) {
        Some(slot) => slot.what.take().ok_or_else(|| BlobFault::Refused(format!("{number} is at work already"))),
        None => Err(BlobFault::Refused(format!("nothing with the number {number} is open on this connection"))),
    }
}

/// Closes what an app has open, and nothing else.
fn close<T>(table: &Table<T>, number: u64, app: &AppName) -> Option<Slot<T>> {
    let mut table = lock(table);
    table.get(&number).filter(|slot| slot.app == *app)?;
    table.remove(&number)
}

/// One that was closed meanwhile is dropped.
fn put_back<T>(table: &Table<T>, number: u64, what: T) {
    if let Some(slot) = lock(table).get_mut(&number) {
        slot.what = Some(what);
    }
}

/// What is done in one step, and what of it is left to be emptied.
fn simple(folder: &Folder, scope: Scope<'_>, op: BlobOp) -> Result<(BlobAnswer, Option<Trash>), FolderError> {
    let answer = match op {
        BlobOp::Create { container } => {
            folder.create(scope, &container)?;
            BlobAnswer::Done
        }
        BlobOp::Container { container } => BlobAnswer::Container(folder.container(scope, &container)?),
        BlobOp::Delete { container } => return Ok((BlobAnswer::Done, Some(folder.delete(scope, &container)?))),
        BlobOp::Clear { container } => return Ok((BlobAnswer::Done, Some(folder.clear(scope, &container)?))),
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
    };
    Ok((answer, None))
}

/// What was removed is out of sight; its room is given back while nobody waits, but for a turn at the disk.
async fn emptied(share: &Share, answer: BlobAnswer, trash: Trash) -> Result<BlobAnswer, BlobFault> {
    let turn = take(&share.disk, 1).await.map_err(|cause| BlobFault::Unavailable(cause.to_string()))?;
    let empty = move || {
        trash.empty();
        drop(turn);
    };
    drop(tokio::task::spawn_blocking(empty));
    Ok(answer)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_has_its_turn_until_it_ends_whoever_waits_for_it() {
        let share = Share::default();
        let turns = share.disk.available_permits();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let slow = work(&share, move || {
            assert!(begun.send(()).is_ok());
            assert!(wait.recv().is_err());
            Ok(())
        });
        tokio::select! {
            biased;
            _ = slow => panic!("it waits"),
            told = has_begun => told.unwrap(),
        }
        // The host hung up.
        assert_eq!(share.disk.available_permits(), turns - 1);
        drop(go);
        drop(take(&share.disk, turns as u32).await.unwrap());
    }

    #[tokio::test]
    async fn what_is_open_takes_a_place_of_the_tenant_until_it_is_closed() {
        let share = Share::default();
        let (one, two) = (BlobSession::default(), BlobSession::default());
        let places = share.objects.available_permits();
        let numbers: Vec<_> = (0..places)
            .map(|n| {
                let session = if n % 2 == 0 { &one } else { &two };
                let table: Table<()> = Table::default();
                (session.keep(&table, &"a".parse().unwrap(), (), place(&share).unwrap()), table)
            })
            .collect();
        assert!(matches!(place(&share), Err(BlobFault::Unavailable(_))), "also over another connection");
        drop(numbers);
        assert!(place(&share).is_ok());
    }

    #[tokio::test]
    async fn what_one_app_has_open_no_other_uses_or_ends() {
        let (share, session, table) = (Share::default(), BlobSession::default(), Table::<u8>::default());
        let (own, other): (AppName, AppName) = ("own".parse().unwrap(), "other".parse().unwrap());
        let number = session.keep(&table, &own, 7, place(&share).unwrap());
        assert!(matches!(take_out(&table, number, &other), Err(BlobFault::Refused(_))));
        assert!(close(&table, number, &other).is_none());
        let (held, ()) = with(&share, &table, (number, &own), |_| Ok(())).await.unwrap();
        put_back(&table, number, held);
        assert!(matches!(with(&share, &table, (number, &other), |_| Ok(())).await, Err(BlobFault::Refused(_))));
        assert_eq!(take_out(&table, number, &own).unwrap(), 7);
        assert!(close(&table, number, &own).is_some());
    }
}
