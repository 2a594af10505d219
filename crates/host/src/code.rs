//! Compiled code in this process: brought from the node on the first call, shared by every component that has the same
//! artifact, mapped only for as long as somebody holds it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use api::services::client::{FileError, FilesClient};
use api::services::{FileFault, FileRequest};
use model::{ComponentName, Digest, InterfaceId, World};
use runtime::{Linked, Runtime};

use crate::error::StartError;

/// For a node that does not answer at all.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Before code that the node still has made is asked for again. Nothing is held meanwhile: code that is there comes past it.
const AGAIN: Duration = Duration::from_millis(200);

/// Code that is mapped and linked. Unmapped with its last holder.
pub(crate) struct Loaded {
    pub(crate) linked: Linked,
    /// Of the compiled code, as its file.
    size: u64,
    count: Arc<AtomicUsize>,
    bytes: Arc<AtomicU64>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(self.size, Relaxed);
    }
}

/// Which code is wanted, and how it is linked.
pub(crate) struct Wanted<'a> {
    /// Whose: for those who are told why it cannot be had.
    pub(crate) component: &'a ComponentName,
    pub(crate) digest: Digest,
    pub(crate) world: World,
    pub(crate) imports: &'a [InterfaceId],
    /// The imports that other components of the app answer.
    pub(crate) forwarded: &'a Arc<[InterfaceId]>,
}

/// Code that asks other components for imports is linked otherwise.
type Key = (Digest, World, Arc<[InterfaceId]>);
/// Held while the code is brought: whoever else wants it waits for the one that does.
type Slot = Arc<tokio::sync::Mutex<Weak<Loaded>>>;

/// What is loaded, and how to load more.
pub(crate) struct CodeStore {
    runtime: Runtime,
    files: Arc<FilesClient>,
    slots: Mutex<HashMap<Key, Slot>>,
    count: Arc<AtomicUsize>,
    bytes: Arc<AtomicU64>,
    imports: Mutex<HashSet<Arc<[InterfaceId]>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CodeStore {
    pub(crate) fn new(runtime: Runtime, files: Arc<FilesClient>) -> Self {
        Self {
            runtime,
            files,
            slots: Mutex::default(),
            count: Arc::default(),
            bytes: Arc::default(),
            imports: Mutex::default(),
        }
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// How many artifacts are mapped.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// How many bytes of code are mapped.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Equal lists of imports share their memory: thousands of components import the same few things.
    pub(crate) fn share_imports(&self, imports: &[InterfaceId]) -> Arc<[InterfaceId]> {
        let mut known = lock(&self.imports);
        if let Some(found) = known.get(imports) {
            return found.clone();
        }
        let fresh: Arc<[InterfaceId]> = imports.into();
        known.insert(fresh.clone());
        fresh
    }

    /// Forgets what nobody holds any more.
    pub(crate) fn prune(&self) {
        lock(&self.imports).retain(|imports| Arc::strong_count(imports) > 1);
        lock(&self.slots).retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|loaded| loaded.strong_count() > 0)
        });
    }

    /// The code of an artifact, linked: from memory, or by way of the node. Called many times at once for one
    /// artifact, it is brought once. The node may have to have it made: a caller waits as long as its call may take, `wall`.
    pub(crate) async fn load(&self, wanted: &Wanted<'_>, wall: Duration) -> Result<Arc<Loaded>, StartError> {
        // To load takes a moment also where a call may take less.
        let patience = wall.max(TIMEOUT);
        let late = || StartError::Late { component: wanted.component.clone(), waited: patience };
        tokio::time::timeout(patience, self.bring(wanted)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn bring(&self, wanted: &Wanted<'_>) -> Result<Arc<Loaded>, StartError> {
        let Wanted { component, digest, world, imports, forwarded } = *wanted;
        let slot = lock(&self.slots).entry((digest, world, forwarded.clone())).or_default().clone();
        let mut loaded = slot.lock().await;
        if let Some(loaded) = loaded.upgrade() {
            return Ok(loaded);
        }
        let component = || component.clone();
        let unavailable = |cause: String| StartError::Code { component: component(), cause };
        let file = self.ask(&FileRequest::Compiled { digest, world }).await.map_err(unavailable)?;
        let size = file.metadata().map_err(|cause| unavailable(cause.to_string()))?.len();
        let code =
            self.runtime.load(world, file).map_err(|cause| StartError::Load { component: component(), cause })?;
        let linked = self.runtime.link_with_peers(&code, imports, forwarded);
        let linked = linked.map_err(|cause| StartError::Link { component: component(), cause })?;
        self.count.fetch_add(1, Relaxed);
        self.bytes.fetch_add(size, Relaxed);
        let (count, bytes) = (self.count.clone(), self.bytes.clone());
        let fresh = Arc::new(Loaded { linked, size, count, bytes });
        *loaded = Arc::downgrade(&fresh);
        Ok(fresh)
    }

    /// Asks the node for code until it is there, or will not be.
    async fn ask(&self, request: &FileRequest) -> Result<File, String> {
        loop {
            let answer = tokio::time::timeout(TIMEOUT, self.files.request(request)).await;
            match answer.map_err(|_| format!("the node did not answer within {TIMEOUT:?}"))? {
                Ok((fd, _)) => return Ok(File::from(fd)),
                Err(FileError::Fault(FileFault::NotReady { soon: true, .. })) => tokio::time::sleep(AGAIN).await,
                Err(cause) => return Err(cause.to_string()),
            }
        }
    }
}
