//! Where this machine keeps keys and state, and how a command finds the running platform.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use api::{Code, Problem};
use etcetera::BaseStrategy as _;
use serde::{Deserialize, Serialize};

/// The data directory and the names in it.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
}

/// What a running platform says of itself, in `api.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// `http://127.0.0.1:port`
    pub api: String,
    /// `127.0.0.1:port` of the ingress.
    pub ingress: String,
    /// `http://127.0.0.1:port/metrics`, where monitoring is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// Its process.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub since_ms: u64,
}

/// Who has the lock of the data directory.
#[derive(Debug)]
pub enum Holder {
    /// No platform runs in it, whatever an earlier one left there.
    Nobody,
    /// One that has not said yet where it answers.
    Unsaid,
    /// The platform that says this of itself.
    Platform(Running),
}

/// A token, and the address it is for. No `Debug`: it would be printed one day.
#[derive(Clone, Serialize, Deserialize)]
pub struct Kept {
    /// `http://host:port`
    pub api: String,
    /// The token.
    pub token: String,
}

impl Home {
    /// `--data-dir`, or `sidereal` in the XDG data directory.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn new(flag: Option<&Path>) -> anyhow::Result<Self> {
        let dir = match flag {
            Some(dir) => std::path::absolute(dir)?,
            None => etcetera::choose_base_strategy()
                .context("no home directory; use --data-dir")?
                .data_dir()
                .join("sidereal"),
        };
        Ok(Self { dir })
    }

    /// Whether commands find it without being told where it is.
    pub fn is_usual(&self) -> bool {
        Self::new(None).is_ok_and(|usual| usual.dir == self.dir)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// Signing keys.
    pub fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }
    /// The API's token.
    pub fn token_file(&self) -> PathBuf {
        self.dir.join("token")
    }
    /// Desired state.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store.redb")
    }
    /// Embedded data of the tenants.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data.redb")
    }
    /// Who changed what.
    pub fn audit(&self) -> PathBuf {
        self.dir.join("audit")
    }
    /// Artifacts.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }
    /// Held by the running platform.
    pub fn lock_file(&self) -> PathBuf {
        self.dir.join("lock")
    }
    fn login_file(&self) -> PathBuf {
        self.dir.join("login.json")
    }
    fn running_file(&self) -> PathBuf {
        self.dir.join("api.json")
    }

    /// Makes the directory, for this user only.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self) -> anyhow::Result<()> {
        for dir in [self.dir.clone(), self.keys()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|cause| match cause.kind() {
                ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                    Problem::new(Code::RequestInvalid, format!("{} is no folder: {cause}", dir.display()))
                        .help("name a folder with --data-dir; it is made where there is none")
                        .into()
                }
                _ => unwritable(&dir, cause),
            })?;
        }
        Ok(())
    }

    /// Sockets. Their paths must fit a socket address (107 bytes), so a long data directory gets a short stand-in
    /// under the runtime directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn run_dir(&self) -> anyhow::Result<PathBuf> {
        const ROOM_FOR_NAMES: usize = 107 - "/tenant-name-of-at-most-forty-characters....00/agent.sock".len() - 6;
        let plain = self.dir.join("run");
        let dir = if plain.as_os_str().len() <= ROOM_FOR_NAMES {
            plain
        } else {
            let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
            base.join(format!("sidereal-{}", model::Digest::of(self.dir.as_os_str().as_encoded_bytes()).short()))
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(&dir)?);
        anyhow::ensure!(
            owner == rustix::process::getuid().as_raw() && fs::symlink_metadata(&dir)?.is_dir(),
            "{} belongs to somebody else; use --data-dir with a shorter path",
            dir.display()
        );
        Ok(dir)
    }

    /// The platform that runs in this directory. What an earlier one left there is not believed: another program, of another
    /// user even, may have its port by now, and would be sent the token.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when none does, or it has not said yet where it answers.
    pub fn running(&self) -> anyhow::Result<Running> {
        let nobody = || {
            let text = format!("nothing runs here: {} has no running platform", self.dir.display());
            Problem::new(Code::Unreachable, text)
                .help("start it with `sidereal up`, or name its directory with --data-dir")
        };
        self.announced()?.ok_or_else(nobody)?;
        match self.holder() {
            Holder::Platform(running) => Ok(running),
            Holder::Unsaid => {
                let text = format!("the platform of {} is starting", self.dir.display());
                Err(Problem::new(Code::Unreachable, text).help("wait a moment, then try again").into())
            }
            Holder::Nobody => Err(nobody().into()),
        }
    }

    /// What the last platform said of itself here, whether it still runs or not.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn announced(&self) -> anyhow::Result<Option<Running>> {
        let Ok(text) = fs::read_to_string(self.running_file()) else { return Ok(None) };
        let damaged = || format!("{} is damaged", self.running_file().display());
        serde_json::from_str(&text).map(Some).with_context(damaged)
    }

    /// Who runs in the directory. Its lock tells, which ends with whoever has it: an announcement may be left of a run that is
    /// over, and its number be that of another process by now. The lock is had for a moment where nobody has it.
    pub fn holder(&self) -> Holder {
        let Ok(mut lock) = fs::File::open(self.lock_file()) else { return Holder::Nobody };
        if !matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)) {
            return Holder::Nobody;
        }
        let mut text = String::new();
        let said = lock.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str(&text).ok());
        said.map_or(Holder::Unsaid, Holder::Platform)
    }

    /// The token that `sidereal login` kept.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn login(&self) -> anyhow::Result<Option<Kept>> {
        let file = self.login_file();
        match fs::read_to_string(&file) {
            Ok(text) => {
                let damaged = |_| {
                    Problem::new(Code::Unauthorized, format!("{} is damaged", file.display()))
                        .help("`sidereal logout`, then `sidereal login` again")
                };
                Ok(Some(serde_json::from_str(&text).map_err(damaged)?))
            }
            Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(cause) => Err(cause).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    /// Keeps a token, where only this user can read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_login(&self, kept: &Kept) -> anyhow::Result<()> {
        self.create()?;
        write_private(&self.login_file(), serde_json::to_string(kept)?.as_bytes())
    }

    /// Forgets the kept token.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed.
    pub fn forget_login(&self) -> anyhow::Result<()> {
        fs::remove_file(self.login_file()).map_err(|cause| match cause.kind() {
            ErrorKind::NotFound => Problem::new(Code::NotFound, "no token is kept").into(),
            _ => unwritable(&self.login_file(), cause),
        })
    }

    /// Says where the platform answers.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn announce(&self, running: &Running) -> anyhow::Result<()> {
        write_private(&self.running_file(), serde_json::to_string(running)?.as_bytes())
    }

    /// Takes the announcement back.
    pub fn retract(&self) {
        if let Err(cause) = fs::remove_file(self.running_file()) {
            tracing::debug!(%cause, "no announcement to remove");
        }
    }

    /// The API's token; made on first use.
    ///
    /// # Errors
    /// When it can neither be read nor made.
    pub fn token(&self, create: bool) -> anyhow::Result<String> {
        let file = self.token_file();
        match fs::read_to_string(&file) {
            Ok(token) => Ok(token.trim().to_owned()),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound && create => {
                let bytes: [u8; 32] = rand::random();
                let token: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                write_private(&file, token.as_bytes())?;
                Ok(token)
            }
            Err(cause) => {
                Err(Problem::new(Code::Unauthorized, format!("cannot read the API token {}: {cause}", file.display()))
                    .help("run the command as the user who runs `sidereal up`")
                    .into())
            }
        }
    }
}

/// Writes a file only this user can read, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = |from: &Path| fs::rename(from, path);
    unfinished(path, bytes, Mode::New(0o600), name).map_err(|cause| unwritable(path, cause))
}

/// Writes a file only this user can read, unless there is one of that name; whether it did. Of several writers at once
/// one does.
///
/// # Errors
/// When it cannot be written.
pub fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    let name = |from: &Path| fs::hard_link(from, path).and_then(|()| fs::remove_file(from));
    match unfinished(path, bytes, Mode::New(0o600), name) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(unwritable(path, cause)),
    }
}

/// Replaces the file that `path` leads to, whole or not at all. It keeps its permissions; a new one gets the usual.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(cause) if cause.kind() == ErrorKind::NotFound => path.to_owned(),
        Err(cause) => return Err(unwritable(path, cause)),
    };
    let mode = match fs::metadata(&real) {
        Ok(meta) => Mode::Exactly(meta.mode() & 0o777),
        Err(_) => Mode::New(0o644),
    };
    unfinished(&real, bytes, mode, |from| fs::rename(from, &real)).map_err(|cause| unwritable(path, cause))
}

/// Permissions of a file that is written.
#[derive(Debug, Clone, Copy)]
enum Mode {
    /// These, less what the user's mask takes.
    New(u32),
    /// These.
    Exactly(u32),
}

/// Writes a file of its own beside `path` and has `name` give it its name. What was not named is removed.
fn unfinished(
    path: &Path,
    bytes: &[u8],
    mode: Mode,
    name: impl FnOnce(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let stem: String = path.file_name().map(|n| n.to_string_lossy().chars().take(40).collect()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{stem}.{}.{:016x}.tmp", std::process::id(), rand::random::<u64>()));
    let (Mode::New(bits) | Mode::Exactly(bits)) = mode;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(bits).open(&temporary)?;
    let done = (|| {
        if let Mode::Exactly(bits) = mode {
            file.set_permissions(fs::Permissions::from_mode(bits))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        name(&temporary)
    })();
    if done.is_err()
        && let Err(cause) = fs::remove_file(&temporary)
    {
        tracing::debug!(%cause, path = %temporary.display(), "an unfinished file stays");
    }
    done
}

/// Why a file or folder could not be written, as people can mend it.
fn unwritable(path: &Path, cause: std::io::Error) -> anyhow::Error {
    let detail = format!("cannot write {}: {cause}", path.display());
    let (code, help) = match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            (Code::StoreUnavailable, "free some space, then try again")
        }
        ErrorKind::ReadOnlyFilesystem => {
            (Code::StoreUnavailable, "the file system is read-only; choose a path on another one")
        }
        ErrorKind::PermissionDenied => (Code::Forbidden, "check the permissions of the folder, or choose another"),
        ErrorKind::NotFound => (Code::NotFound, "create the folder first"),
        ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            (Code::RequestInvalid, "a file lies where a folder is needed, or the other way round; choose another path")
        }
        _ => return anyhow::Error::new(cause).context(format!("cannot write {}", path.display())),
    };
    Problem::new(code, detail).help(help).into()
}
