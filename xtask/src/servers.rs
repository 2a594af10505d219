//! Servers that tests talk to and today's Debian does not have: Consul from the last suite that had it. Nothing of it
//! is installed: its package is unpacked below `target/servers`, fetched and verified by apt in directories of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The last suite of Debian with a Consul.
const SUITE: &str = "bullseye";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Unpacks what is not there yet. A server that cannot be had is said here, and again by the tests that miss it.
pub fn ensure(root: &Path) {
    let place = root.join("target/servers/consul");
    if place.join("usr/bin/consul").is_file() {
        return;
    }
    if let Err(cause) = consul(&place) {
        eprintln!("NOT AVAILABLE: a Consul to test against: {cause:#}");
        eprintln!("set CONSUL_BIN to a program, or CONSUL_HTTP_ADDR and CONSUL_HTTP_TOKEN to a server");
    }
}

fn consul(place: &Path) -> anyhow::Result<()> {
    let work = place.with_extension("apt");
    for dir in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(work.join(dir))?;
    }
    let work = work.canonicalize()?;
    let sources = work.join("sources.list");
    std::fs::write(&sources, format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian {SUITE} main\n"))?;
    let settings = work.join("apt.conf");
    let shown = work.display();
    std::fs::write(
        &settings,
        format!(
            "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"-\";\nDir::State::lists \"{shown}/lists\";\nDir::Cache \"{shown}/cache\";\n",
            sources.display()
        ),
    )?;
    eprintln!("fetching consul from Debian's {SUITE}");
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        run(apt.args(args).env("APT_CONFIG", &settings).current_dir(&work))
    };
    apt(&["-q", "update"])?;
    apt(&["-q", "download", "consul"])?;
    let package = std::fs::read_dir(&work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt downloaded nothing")?;
    run(Command::new("dpkg-deb").arg("-x").arg(package).arg(place))?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed with {status}");
    }
    Ok(())
}
