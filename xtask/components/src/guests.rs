//! Which components do tests and benches run, and how do they come to be? Built from `guests/examples/*.rs`, and from
//! `guests/hostile`, with a rustup wasm target or Debian's packages; built again only when a source changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::toolchain::{DEBIAN_CARGO, DEBIAN_PACKAGES, DEBIAN_RUSTC, DEBIAN_SOURCE};

const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";
const LINKERS: [&str; 2] = ["/usr/bin/wasm-ld-22", "/usr/bin/wasm-ld"];

/// Builds every guest into `out` as `<name>.wasm` and returns the paths, sorted. Does nothing when nothing changed.
/// Callers in several processes wait for one another.
///
/// # Errors
/// When no toolchain for wasm is installed (says what to install), a guest does not compile or is no component.
pub(crate) fn build(root: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let lock = fs::File::create(out.join(".lock"))?;
    lock.lock()?;
    let guests = root.join("guests");
    let digest = sources(root, &["guests", "wit"])?;
    let mut names = names(&guests.join("examples"), "rs")?;
    names.extend(HOSTILE.map(str::to_owned));
    let texts = guests.join("hostile/components");
    let written = self::names(&texts, "wat")?;
    let mut paths: Vec<PathBuf> = names.iter().map(|name| out.join(format!("{name}.wasm"))).collect();
    paths.extend(written.iter().map(|name| out.join(format!("hostile-{name}.wasm"))));
    let stamp = out.join(".sources");
    let fresh = fs::read_to_string(&stamp).is_ok_and(|old| old == digest) && paths.iter().all(|path| path.is_file());
    if fresh {
        return Ok(paths);
    }
    let target = root.join("target/wasm");
    let modules = Toolchain::find(&guests)?.cargo(root, &guests, &target, &["--examples"])?.join("examples");
    for (name, path) in names.iter().zip(&paths) {
        let module = modules.join(format!("{}.wasm", name.replace('-', "_")));
        let component = component(&module).with_context(|| format!("guest {name}"))?;
        write(path, &component)?;
    }
    for (name, path) in written.iter().zip(paths.iter().skip(names.len())) {
        // Not checked: some are to be refused by whoever reads them.
        let text = texts.join(format!("{}.wat", name.replace('-', "_")));
        write(path, &wat::parse_file(&text).with_context(|| format!("guest {}", text.display()))?)?;
    }
    write(&stamp, digest.as_bytes())?;
    Ok(paths)
}

/// The programs that are not in `guests/examples`.
const HOSTILE: [&str; 2] = ["hostile", "hostile-p3"];

/// The names of the files in `folder` that end in `kind`, sorted: `kv_counter.rs` is `kv-counter`.
fn names(folder: &Path, kind: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if let Some(stem) = path.file_stem().and_then(|s| s.to_str())
            && path.extension().is_some_and(|extension| extension == kind)
        {
            names.push(stem.replace('_', "-"));
        }
    }
    names.sort();
    Ok(names)
}

/// Turns the core module cargo made into a component.
pub(crate) fn component(module: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(module).with_context(|| format!("reading {}", module.display()))?;
    wit_component::ComponentEncoder::default().module(&bytes)?.validate(true).encode()
}

/// SHA-256 over the relative names and contents of the source files at and below `paths`, hex. Build output is left out.
pub(crate) fn sources(root: &Path, paths: &[&str]) -> Result<String> {
    let mut files = BTreeMap::new();
    for path in paths {
        collect(root, &root.join(path), &mut files)?;
    }
    let mut hash = Sha256::new();
    for (name, contents) in files {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update((contents.len() as u64).to_le_bytes());
        hash.update(contents);
    }
    Ok(data_encoding::HEXLOWER.encode(&hash.finalize()))
}

const SOURCE_KINDS: [&str; 5] = ["rs", "toml", "lock", "wit", "wat"];

fn collect(root: &Path, at: &Path, into: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    if at.is_dir() {
        if at.file_name().is_some_and(|name| name == "target") {
            return Ok(());
        }
        for entry in fs::read_dir(at).with_context(|| format!("reading {}", at.display()))? {
            collect(root, &entry?.path(), into)?;
        }
    } else if at.extension().and_then(|e| e.to_str()).is_some_and(|kind| SOURCE_KINDS.contains(&kind)) {
        let name = at.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        into.insert(name, fs::read(at).with_context(|| format!("reading {}", at.display()))?);
    }
    Ok(())
}

/// Writes a file so that nobody ever reads half of it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("partial");
    fs::write(&temporary, bytes).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("writing {}", path.display()))
}

/// What compiles Rust to wasm on this machine.
pub(crate) enum Toolchain {
    /// The toolchain in use has the target installed.
    Rustup,
    /// Debian's compiler, which builds the standard library from source; with the linker's path.
    Debian(&'static str),
}

impl Toolchain {
    /// Looks for one, rustup first.
    ///
    /// # Errors
    /// When there is none: says both ways to get one, naming only the packages that are missing.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        let libraries =
            Command::new("rustc").current_dir(folder).args(["--print", "target-libdir", "--target", TARGET]).output();
        if let Ok(libraries) = libraries
            && libraries.status.success()
            && Path::new(String::from_utf8_lossy(&libraries.stdout).trim()).is_dir()
        {
            return Ok(Self::Rustup);
        }
        let linker = LINKERS.into_iter().find(|path| Path::new(path).exists());
        let parts = [DEBIAN_CARGO, DEBIAN_RUSTC, DEBIAN_SOURCE].iter().all(|path| Path::new(path).exists());
        if let (Some(linker), true) = (linker, parts) {
            return Ok(Self::Debian(linker));
        }
        let missing: Vec<_> = DEBIAN_PACKAGES
            .into_iter()
            .filter(|(file, _)| !Path::new(file).exists())
            .map(|(_, package)| package)
            .collect();
        bail!(
            "no Rust toolchain for wasm on this machine; either\n  rustup target add {TARGET}\nor, on Debian,\n  apt-get install {}",
            missing.join(" ")
        )
    }

    /// Builds the package in `folder` in release mode into `target`; returns the folder with its modules.
    pub(crate) fn cargo(&self, root: &Path, folder: &Path, target: &Path, arguments: &[&str]) -> Result<PathBuf> {
        let mut command = match self {
            Self::Rustup => Command::new("cargo"),
            Self::Debian(linker) => {
                let mut command = Command::new(DEBIAN_CARGO);
                command.env("RUSTC", DEBIAN_RUSTC).env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
                // Debian ships no compiled standard library for wasm32, and building it is an unstable option.
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        command.current_dir(folder).args(["build", "--locked", "--release", "--target", TARGET]);
        command.arg("--target-dir").arg(target).args(arguments);
        if matches!(self, Self::Debian(_)) {
            command.arg("-Zbuild-std=std,panic_abort");
        }
        // Panic messages carry paths; those of this machine do not belong into an artifact.
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let mut flags = vec![
            format!("--remap-path-prefix={}=.", root.display()),
            format!("--remap-path-prefix={DEBIAN_LIBRARY}=rust"),
        ];
        flags.extend(home.map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        for name in ["RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"]
        {
            command.env_remove(name);
        }
        let status = command.status().context("starting cargo for wasm")?;
        ensure!(status.success(), "building {} for wasm failed ({status})", folder.display());
        Ok(target.join(TARGET).join("release"))
    }
}
