//! Starting what is measured: the platform with apps in it, and the twins.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use sidereal_tests::guest;
use sidereal_tests::platform::{Platform, write_app};

/// The platform in a directory of its own.
pub struct Us {
    /// The running platform.
    pub platform: Platform,
    dir: tempfile::TempDir,
}

impl Us {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let platform = Platform::start(&dir.path().join("data"), flags)?;
        Ok(Self { platform, dir })
    }

    /// Starts it in a session of its own.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_apart(flags: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let platform = Platform::start_apart(&dir.path().join("data"), flags)?;
        Ok(Self { platform, dir })
    }

    /// The platform and the directory that must outlive it.
    pub fn into_parts(self) -> (Platform, tempfile::TempDir) {
        (self.platform, self.dir)
    }

    /// Where it keeps its state.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Deploys a guest as `<name>.localhost`.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn deploy(&self, name: &str, program: &str, rest: &str) -> anyhow::Result<()> {
        let folder = self.dir.path().join(name);
        write_app(&folder, name, program, rest)?;
        self.platform.ok(&["deploy", folder.to_str().context("path")?])?;
        Ok(())
    }

    /// The processes that serve: the platform's own and its hosts.
    pub fn pids(&self) -> Vec<u32> {
        std::iter::once(self.platform.pid()).chain(self.platform.hosts()).collect()
    }
}

/// A twin, or a peer: a program that prints the address it listens on.
pub struct Twin {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl Twin {
    /// Starts a twin of this crate, with a guest where it runs one.
    ///
    /// # Errors
    /// When it prints no address.
    pub fn start(program: &Path, component: Option<&str>) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        if let Some(component) = component {
            command.arg(guest(component));
        }
        let mut child = command
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let addr = line.trim().trim_start_matches("http://").trim_end_matches('/');
        let addr = addr.parse().with_context(|| format!("{} printed `{}`", program.display(), line.trim()))?;
        Ok(Self { child, addr })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program of this crate, beside this one.
///
/// # Errors
/// When this program's own place cannot be found.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.parent().context("no folder")?.join(name))
}
