//! The lints of a machine that builds everything anyway, as CI does: each crate is looked at while it is compiled, with the
//! dependencies that were compiled for it. `cargo clippy` has the same lints, and needs all dependencies once more, in a form that
//! nothing else can use: minutes.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::check::step;
use crate::test;

/// Set where the lints look at what is compiled; names the folder for what they write.
const LINTS: &str = "SIDEREAL_LINTS";

/// Builds what `cargo xtask test` builds, and every other program of the workspace, and has all of it looked at.
///
/// # Errors
/// When something does not build, or a lint finds something.
pub fn run(root: &Path) -> anyhow::Result<()> {
    // What is there already would not be compiled, and not be looked at.
    let mut clean = Command::new("cargo");
    clean.args(["clean", "--quiet", "--release", "--locked"]);
    for member in members(root)? {
        clean.args(["--package", &member]);
    }
    step("clean", &mut clean, root)?;
    let written = root.join("target/lints");
    std::fs::create_dir_all(&written).context("cannot make target/lints")?;
    let looked = step("lints and build", test::build()?.arg("--bins").env(LINTS, &written), root);
    // What they write is for nobody.
    std::fs::remove_dir_all(&written).context("cannot remove target/lints")?;
    looked
}

/// The packages of the workspace.
fn members(root: &Path) -> anyhow::Result<Vec<String>> {
    let asked = ["metadata", "--format-version=1", "--no-deps", "--locked"];
    let out = Command::new("cargo").args(asked).current_dir(root).output().context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&out.stdout).context("cargo metadata")?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata has no packages")?;
    Ok(packages.iter().filter_map(|package| package.get("name")?.as_str().map(str::to_owned)).collect())
}

/// A look at one crate that is under way.
pub struct Look(Child);

impl Look {
    /// Waits for it, and says what was found.
    pub fn finds_nothing(self) -> bool {
        match self.0.wait_with_output() {
            Ok(Output { status, stderr, .. }) => {
                eprint!("{}", String::from_utf8_lossy(&stderr));
                status.success()
            }
            Err(cause) => {
                eprintln!("cannot wait for clippy: {cause}");
                false
            }
        }
    }
}

/// Has the lints look at what the compiler is called for, where they are to, and it is called for a crate.
///
/// # Errors
/// When they cannot be started.
pub fn beside(rustc: &OsStr, arguments: &[OsString]) -> anyhow::Result<Option<Look>> {
    let Some(written) = std::env::var_os(LINTS) else { return Ok(None) };
    let Some(arguments) = looking(arguments, &written) else { return Ok(None) };
    let rustc = driven(rustc)?;
    let driver = rustc.with_file_name("clippy-driver");
    ensure!(driver.is_file(), "{} is not there: `rustup component add clippy`", driver.display());
    let mut look = Command::new(driver);
    look.arg(rustc).args(arguments).env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    let look = look.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot run clippy")?;
    Ok(Some(Look(look)))
}

/// The compiler itself: clippy is beside it. Cargo may know it as a proxy.
fn driven(rustc: &OsStr) -> anyhow::Result<PathBuf> {
    let out = Command::new(rustc).args(["--print", "sysroot"]).output().context("cannot run the compiler")?;
    Ok(Path::new(String::from_utf8(out.stdout)?.trim()).join("bin/rustc"))
}

/// A call of the compiler, made one that writes nothing but what it takes to look at everything; `None` where it is for no crate.
fn looking(arguments: &[OsString], written: &OsStr) -> Option<Vec<OsString>> {
    let named = |pair: &[OsString]| matches!(pair, [flag, name] if flag == "--crate-name" && name != "___");
    if !arguments.windows(2).any(named) {
        return None;
    }
    let mut looking = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if argument == "--out-dir" {
            rest.next();
            looking.extend([argument.clone(), written.to_owned()]);
        } else if text.starts_with("--emit=") {
            looking.push("--emit=metadata".into());
        } else if text.starts_with("--error-format=") || text.starts_with("--json=") {
            // Cargo would take what is said of files for what the compiler says.
        } else {
            looking.push(argument.clone());
        }
    }
    Some(looking)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_is_compiled_is_looked_at_and_nothing_is_written_where_it_goes() {
        let call = "--crate-name node --edition=2024 src/lib.rs --error-format=json --json=artifacts --crate-type lib \
            --emit=dep-info,metadata,link -C opt-level=3 --test --out-dir target/deps --extern a=b.rmeta";
        let call = words(&call.split_whitespace().collect::<Vec<_>>().join(" "));
        let looking = looking(&call, OsStr::new("lints")).unwrap();
        let wanted = "--crate-name node --edition=2024 src/lib.rs --crate-type lib --emit=metadata -C opt-level=3 --test \
            --out-dir lints --extern a=b.rmeta";
        assert_eq!(looking, words(&wanted.split_whitespace().collect::<Vec<_>>().join(" ")));
        assert_eq!(super::looking(&words("- --crate-name ___ --print=file-names"), OsStr::new("lints")), None);
        assert_eq!(super::looking(&words("-vV"), OsStr::new("lints")), None);
    }
}
