//! Where this machine keeps keys and state, and how a command finds the running platform.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
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
    /// Its process.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub since_ms: u64,
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
    /// Artifacts.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }
    /// Held by the running platform.
    pub fn lock_file(&self) -> PathBuf {
        self.dir.join("lock")
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
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| format!("cannot create {}", dir.display()))?;
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

    /// The platform that runs on this machine.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when none does.
    pub fn running(&self) -> anyhow::Result<Running> {
        let text = fs::read_to_string(self.running_file()).map_err(|_| {
            Problem::new(
                Code::Unreachable,
                format!("nothing runs here: {} has no running platform", self.dir.display()),
            )
            .help("start it with `sidereal up`, or name its directory with --data-dir")
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", self.running_file().display()))
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
    write_whole(path, bytes, 0o600)
}

/// Writes a file, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        if let Err(cause) = fs::remove_file(&temporary)
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            return Err(cause);
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
