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
use std::sync::{Arc, Mutex, PoisonError};
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
    making: Arc<Mutex<HashMap<Wanted, Making>>>,
    failed: Mutex<HashMap<CodeKey, (ArtifactError, Instant)>>,
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
        Ok(Self { inner: Arc::new(inner), making: Arc::default(), failed: Mutex::default() })
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
        Ok(Self { inner: Arc::new(inner), making: Arc::default(), failed: Mutex::default() })
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
        let result = self.make(tenant, key).await;
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(()) => {
                failed.remove(key);
            }
            Err(cause) => {
                if failed.len() >= MAX_REMEMBERED {
                    failed.retain(|_, (_, when)| when.elapsed() < REMEMBER_FAILURE);
                }
                if failed.len() < MAX_REMEMBERED {
                    failed.insert(key.clone(), (cause.clone(), Instant::now()));
                }
            }
        }
        result
    }

    /// The code, checked, as a file open for reading at its start; compiled first where that is needed. The check
    /// holds for the file that is handed out: it is never written again, only replaced under its name.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open_code(&self, tenant: &TenantName, key: &CodeKey) -> Result<File, ArtifactError> {
        if let Found::Ours(file) = self.inner.look(key.clone()).await? {
            return Ok(file);
        }
        let remembered = self.failed.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        if let Some((cause, when)) = remembered
            && when.elapsed() < REMEMBER_FAILURE
        {
            return Err(cause);
        }
        self.ensure(tenant, key).await?;
        match self.inner.look(key.clone()).await? {
            Found::Ours(file) => Ok(file),
            Found::Missing | Found::Foreign => Err(self.inner.cache.error(key, "it changed while it was made")),
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

    async fn make(&self, tenant: &TenantName, key: &CodeKey) -> Result<(), ArtifactError> {
        let making = {
            let wanted = (tenant.clone(), key.clone());
            let mut all = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            match all.get(&wanted) {
                Some(making) => making.clone(),
                None => {
                    let (inner, making) = (self.inner.clone(), self.making.clone());
                    let lost = inner.cache.error(key, "the task that compiles it ended early");
                    let mine = wanted.clone();
                    let task = tokio::spawn(async move {
                        let result = inner.make(&mine.0, &mine.1).await;
                        making.lock().unwrap_or_else(PoisonError::into_inner).remove(&mine);
                        result
                    });
                    let shared = async move { task.await.unwrap_or(Err(lost)) }.boxed().shared();
                    all.insert(wanted, shared.clone());
                    shared
                }
            }
        };
        making.await
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
        let wasm = wasm.unwrap_or(Err(BlobError::Missing(digest))).map_err(blob)?;
        let code = self.compiler.compile(wasm, key.world).await;
        let code = code.map_err(|cause| ArtifactError::Compile { digest: key.digest, cause })?;
        let (inner, mine) = (self.clone(), key.clone());
        let lost = self.cache.error(key, "writing it was interrupted");
        tokio::task::spawn_blocking(move || inner.cache.keep(&mine, &code)).await.unwrap_or(Err(lost))
    }
}
