//! Compiled code: made in a limited child process, kept on disk by digest and engine, and handed to a host only after
//! its MAC under this machine's own key was checked. A file that fails the check is never loaded; it is made anew.

pub(crate) use cache::make_dir;

mod cache;
mod compile;
mod machine;
mod pulled;
mod thin;
mod turns;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use model::{Digest, TenantName, World};
use store::blobs::{BlobError, Blobs};

use crate::NodeError;
use crate::confine::Confinement;
use cache::{Cache, Found};
pub use compile::CompileError;
use machine::MachineTurns;
pub use pulled::Pulled;
use turns::Turns;

/// After a failed compilation, a host that asks for the code again gets the same answer for this long.
const REMEMBER_FAILURE: Duration = Duration::from_secs(30);
/// Failures remembered at once.
const MAX_REMEMBERED: usize = 1024;

/// Why there is no compiled code.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ArtifactError {
    /// The artifact is not on this machine, or damaged.
    #[error("the artifact {digest} cannot be used: {cause}")]
    Blob {
        /// Which.
        digest: Digest,
        /// Why.
        cause: Arc<BlobError>,
    },
    /// Whoever read it did not come to an end.
    #[error("the artifact {digest} was not read to its end: this process is short of something, or ends")]
    Unread {
        /// Which.
        digest: Digest,
    },
    /// It does not compile.
    #[error("the artifact {digest} does not compile: {cause}")]
    Compile {
        /// Which.
        digest: Digest,
        /// Why.
        cause: CompileError,
    },
    /// The cache cannot be written or read.
    #[error("compiled code cannot be kept in {path}: {cause}", path = .path.display())]
    Cache {
        /// Where.
        path: PathBuf,
        /// Why.
        cause: Arc<std::io::Error>,
    },
    /// The engine's fingerprint is no file name.
    #[error("the host reports an unusable engine fingerprint `{0}`")]
    Fingerprint(String),
}

/// One piece of compiled code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CodeKey {
    /// Of the artifact.
    pub digest: Digest,
    /// The engine's kind.
    pub world: World,
    /// The engine's exact version and settings: hexadecimal, from the host that will load it.
    pub fingerprint: String,
}

/// Code, and for whom it is made: each tenant waits for its own turn, and finds what was made meanwhile.
type Wanted = (TenantName, CodeKey);

type Making = Shared<BoxFuture<'static, Result<(), ArtifactError>>>;

/// The compiled code of this machine. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Artifacts {
    inner: Arc<Inner>,
    work: Arc<Work>,
}

/// What is being made, and what came of it otherwise. What failed is noted before it is not made any more.
#[derive(Debug, Default)]
struct Work {
    making: Mutex<HashMap<Wanted, Making>>,
    failed: Mutex<HashMap<CodeKey, (ArtifactError, Instant)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    /// Somebody's work is over.
    fn ended(&self, wanted: &Wanted, result: &Result<(), ArtifactError>) {
        let mut failed = lock(&self.failed);
        match result {
            Ok(()) => {
                failed.remove(&wanted.1);
            }
            Err(cause) => {
                if failed.len() >= MAX_REMEMBERED {
                    failed.retain(|_, (_, when)| when.elapsed() < REMEMBER_FAILURE);
                }
                if failed.len() < MAX_REMEMBERED {
                    failed.insert(wanted.1.clone(), (cause.clone(), Instant::now()));
                }
            }
        }
        drop(failed);
        lock(&self.making).remove(wanted);
    }

    /// Why there is no such code, where that was found out of late.
    fn failed_of_late(&self, key: &CodeKey) -> Option<ArtifactError> {
        let (cause, when) = lock(&self.failed).get(key).cloned()?;
        (when.elapsed() < REMEMBER_FAILURE).then_some(cause)
    }
}

#[derive(Debug)]
struct Inner {
    cache: Cache,
    blobs: Blobs,
    compiler: compile::Compiler,
    turns: Arc<Turns>,
    /// Where other nodes of the machine have the same code.
    machine: Option<MachineTurns>,
}

impl Artifacts {
    /// Opens the cache and reads the MAC key, or makes it. `exe` is run as `exe compile --world …`.
    ///
    /// # Errors
    /// When the cache or the key cannot be made or read.
    pub fn open(
        cache: PathBuf,
        keys: PathBuf,
        exe: PathBuf,
        confinement: Arc<Confinement>,
        blobs: Blobs,
    ) -> Result<Self, NodeError> {
        let compiler = compile::Compiler::new(exe, confinement);
        let inner = Inner { cache: Cache::open(cache, &keys)?, blobs, compiler, turns: Arc::default(), machine: None };
        Ok(Self { inner: Arc::new(inner), work: Arc::default() })
    }

    /// As [`Artifacts::open`], in a folder that other nodes of the machine use as well: they take turns in compiling, and keep
    /// it small together.
    ///
    /// # Errors
    /// As there.
    pub fn open_shared(dir: &Path, exe: PathBuf, with: Arc<Confinement>, blobs: Blobs) -> Result<Self, NodeError> {
        let (cache, compiler) = (cache_of(dir), compile::Compiler::new(exe, with));
        let opened = Cache::open(cache.clone(), &keys_of(dir))?;
        std::thread::spawn(move || thin::thin(&cache));
        let machine = Some(MachineTurns::of(dir.join("turns")));
        let inner = Inner { cache: opened, blobs, compiler, turns: Arc::default(), machine };
        Ok(Self { inner: Arc::new(inner), work: Arc::default() })
    }

    /// The folder of all code, as a name to be given away: nothing in it can be opened by it without the right to.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn folder(&self) -> std::io::Result<OwnedFd> {
        self.inner.cache.folder()
    }

    /// Whether a file of this code is there; [`Artifacts::open_code`] says whether it is ours.
    pub fn is_cached(&self, key: &CodeKey) -> bool {
        self.inner.cache.has(key)
    }

    /// Makes sure the code is there and ours. Callers of one tenant who ask for the same code share one compilation, which goes
    /// on when they give up.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn ensure(&self, tenant: &TenantName, key: &CodeKey) -> Result<(), ArtifactError> {
        if matches!(self.inner.look(key.clone()).await?, Found::Ours(_)) {
            return Ok(());
        }
        self.make(tenant, key, true)?.await
    }

    /// The code, checked, as a file open for reading at its start. The check holds for the file that is handed out: it is
    /// never written again, only replaced under its name. `None` where it is being made, from now on or already: that takes
    /// minutes where many want it, and whoever asks again holds nothing up meanwhile.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open_code(&self, tenant: &TenantName, key: &CodeKey) -> Result<Option<File>, ArtifactError> {
        // Nor is it looked at until then: one that is not ours would be read to its end each time.
        if lock(&self.work.making).contains_key(&(tenant.clone(), key.clone())) {
            return Ok(None);
        }
        match self.inner.look(key.clone()).await? {
            Found::Ours(file) => Ok(Some(file)),
            // It is made by a task of its own.
            Found::Missing | Found::Foreign => self.make(tenant, key, false).map(|_making| None),
        }
    }

    /// Keeps that all code which was handed out is used now: whoever has it asks for it once, and again when it starts anew. Blocks
    /// on the disk.
    pub fn still_used(&self) {
        self.inner.cache.still_used();
    }

    /// Removes the code of these artifacts, and all code of engines that are none of `engines`; where those are not
    /// known, of none. Blocks on the disk. What cannot be removed is looked at again the next time.
    pub fn tidy(&self, unnamed: &[Digest], engines: &BTreeSet<String>) {
        self.inner.cache.tidy(unnamed, engines);
    }

    /// Has it made, where it is not being made. What failed of late is tried again only where somebody insists.
    fn make(&self, tenant: &TenantName, key: &CodeKey, insist: bool) -> Result<Making, ArtifactError> {
        let wanted = (tenant.clone(), key.clone());
        let mut all = lock(&self.work.making);
        if let Some(making) = all.get(&wanted) {
            return Ok(making.clone());
        }
        if !insist && let Some(cause) = self.work.failed_of_late(key) {
            return Err(cause);
        }
        let (inner, work, mine) = (self.inner.clone(), self.work.clone(), wanted.clone());
        let lost = inner.cache.error(key, "the task that compiles it ended early");
        let task = tokio::spawn(async move {
            let result = inner.make(&mine.0, &mine.1).await;
            work.ended(&mine, &result);
            result
        });
        let making = async move { task.await.unwrap_or(Err(lost)) }.boxed().shared();
        all.insert(wanted, making.clone());
        Ok(making)
    }
}

/// Where a shared folder of code has the code.
fn cache_of(dir: &Path) -> PathBuf {
    dir.join("cache")
}

/// Where it has its keys: nothing that is handed to anybody is below that.
fn keys_of(dir: &Path) -> PathBuf {
    dir.join("keys")
}

impl Inner {
    /// Looks for the code in the cache, away from the event loop: large code takes milliseconds to check.
    async fn look(self: &Arc<Self>, key: CodeKey) -> Result<Found, ArtifactError> {
        let inner = self.clone();
        let missing = self.cache.error(&key, "the check was interrupted");
        tokio::task::spawn_blocking(move || inner.cache.open_checked(&key)).await.unwrap_or(Err(missing))
    }

    async fn make(self: &Arc<Self>, tenant: &TenantName, key: &CodeKey) -> Result<(), ArtifactError> {
        // The bytes of the artifact are read when it is its turn: a long row holds none.
        let _turn = self.turns.take(tenant).await;
        let turn = match &self.machine {
            Some(machine) => machine.take().await.map(Some),
            None => Ok(None),
        };
        let _machine_turn = turn.map_err(|cause| self.cache.error(key, &format!("there is no turn: {cause}")))?;
        // Somebody may have finished meanwhile.
        if matches!(self.look(key.clone()).await?, Found::Ours(_)) {
            return Ok(());
        }
        let blob = |cause| ArtifactError::Blob { digest: key.digest, cause: Arc::new(cause) };
        let (blobs, digest) = (self.blobs.clone(), key.digest);
        let wasm = tokio::task::spawn_blocking(move || blobs.get(&digest)).await;
        let wasm = wasm.map_err(|_lost| ArtifactError::Unread { digest })?.map_err(blob)?;
        let code = self.compiler.compile(wasm, key.world, &key.fingerprint).await;
        let code = code.map_err(|cause| ArtifactError::Compile { digest: key.digest, cause })?;
        let (inner, mine) = (self.clone(), key.clone());
        let lost = self.cache.error(key, "writing it was interrupted");
        tokio::task::spawn_blocking(move || inner.cache.keep(&mine, &code)).await.unwrap_or(Err(lost))
    }
}
