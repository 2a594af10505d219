//! What no compiler checks: the map of the rooms is true, every file says why it exists, every error has its line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

/// Runs every tidy check and reports all findings at once.
///
/// # Errors
/// When something is untidy, or git or cargo cannot be asked.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let files = tracked(root)?;
    let mut findings = Vec::new();
    layers(root, &mut findings)?;
    map(root, &mut findings)?;
    sources(root, &files, &mut findings)?;
    error_codes(root, &mut findings)?;
    if findings.is_empty() {
        eprintln!("tidy: {} files", files.len());
        return Ok(());
    }
    bail!("untidy:\n  {}", findings.join("\n  "));
}

/// Every file of the repository, as git has it.
///
/// # Errors
/// When git cannot be asked.
pub fn tracked(root: &Path) -> anyhow::Result<Vec<String>> {
    let out = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().context("cannot run git")?;
    if !out.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8(out.stdout)?.split('\0').filter(|f| !f.is_empty()).map(str::to_owned).collect())
}

/// Words of ARCHITECTURE.md: two pages.
const MAP: usize = 1000;

/// What the layer table says of a crate.
#[derive(Debug, Clone)]
struct Row {
    /// The crates of ours that it may depend on.
    uses: BTreeSet<String>,
    /// What it is deliberately without, names of libraries among them.
    without: BTreeSet<String>,
}

impl Row {
    /// Whether it is without this library, itself or a part of it: `wasmtime-wasi` is of `wasmtime`.
    fn refuses(&self, library: &str) -> bool {
        let of = |name: &String| {
            library.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        self.without.iter().any(of)
    }
}

/// The layer table: a row of each crate.
fn rows(text: &str) -> BTreeMap<String, Row> {
    let list = |cell: &str| -> BTreeSet<String> {
        cell.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let line = line.trim_start_matches('|').trim_end_matches('|');
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [layer, names, uses, without] = cells.as_slice() else { continue };
        if !layer.chars().all(|c| c.is_ascii_digit()) {
            continue;
        }
        let row = Row { uses: list(uses), without: list(without) };
        rows.extend(list(names).into_iter().map(|name| (name, row.clone())));
    }
    rows
}

/// The layer table of ARCHITECTURE.md against `cargo metadata`.
fn layers(root: &Path, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let words = text.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
    if words > MAP {
        findings.push(format!(
            "ARCHITECTURE.md: has {words} words; {MAP} fit two pages: move what is of one part into docs/"
        ));
    }
    let rows = rows(&text);
    let out = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).context("cargo metadata")?;
    let packages = metadata.get("packages").and_then(|p| p.as_array()).context("cargo metadata has no packages")?;
    let rooms: BTreeMap<&str, &serde_json::Value> = packages
        .iter()
        .filter(|p| p.get("manifest_path").and_then(|m| m.as_str()).is_some_and(|m| m.contains("/crates/")))
        .filter_map(|p| Some((p.get("name")?.as_str()?, p)))
        .collect();
    for (name, package) in &rooms {
        let Some(row) = rows.get(*name) else {
            findings.push(format!("ARCHITECTURE.md: the layer table has no row for crate `{name}`"));
            continue;
        };
        for dependency in package.get("dependencies").and_then(|d| d.as_array()).into_iter().flatten() {
            let to = dependency.get("name").and_then(|n| n.as_str()).unwrap_or_default();
            let normal = dependency.get("kind").is_none_or(serde_json::Value::is_null);
            if normal && rooms.contains_key(to) && !row.uses.contains(to) {
                findings.push(format!("crates/{name}: depends on `{to}`, which the layer table does not allow"));
            }
            if normal && row.refuses(to) {
                findings.push(format!("crates/{name}: depends on `{to}`, which it is deliberately without"));
            }
        }
    }
    for name in rows.keys().filter(|name| !rooms.contains_key(name.as_str())) {
        findings.push(format!("ARCHITECTURE.md: the layer table names `{name}`, which is no crate"));
    }
    Ok(())
}

/// Every path in backticks in ARCHITECTURE.md exists.
fn map(root: &Path, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    for (index, path) in text.split('`').enumerate().filter(|(i, _)| i % 2 == 1) {
        let plain = path.contains('/') && path.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
        let ours = [
            "crates/",
            "docs/",
            "wit/",
            "proto/",
            "guests/",
            "examples/",
            "sdk/",
            "tests/",
            "benches/",
            "xtask/",
            "openapi/",
            "schemas/",
        ];
        if plain && ours.iter().any(|dir| path.starts_with(dir)) && !root.join(path).exists() {
            findings.push(format!("ARCHITECTURE.md: `{path}` does not exist (backtick {index})"));
        }
    }
    Ok(())
}

/// Rust files open with their reason; nothing names this machine; `unsafe` is forbidden outside `runtime`.
fn sources(root: &Path, files: &[String], findings: &mut Vec<String>) -> anyhow::Result<()> {
    let machine = ["/wor\u{6b}/", "/roo\u{74}/", "/hom\u{65}/"];
    for file in files {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        if let Some(path) = machine.iter().find(|path| text.contains(**path)) {
            findings.push(format!("{file}: names a path of one machine ({path})"));
        }
        if !file.ends_with(".rs") {
            continue;
        }
        if !text.starts_with("//!") && !text.starts_with("#!") {
            findings.push(format!("{file}: does not open with `//!` and why it exists"));
        }
        if let Some(line) = example(&text) {
            findings.push(format!("{file}:{line}: an example that nobody runs: mark it `text`, or make it a test"));
        }
        let library = file.starts_with("crates/") && file.ends_with("src/lib.rs");
        if library && !file.starts_with("crates/runtime/") && !text.contains("#![forbid(unsafe_code)]") {
            findings.push(format!("{file}: lacks #![forbid(unsafe_code)]"));
        }
    }
    Ok(())
}

/// The line of the first example in documentation that is code: `cargo xtask test` does not run those.
fn example(text: &str) -> Option<usize> {
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        let Some(kind) = ["//! ```", "/// ```"].iter().find_map(|fence| line.strip_prefix(fence)) else { continue };
        if !open && ["", "rust", "no_run", "should_panic", "ignore"].contains(&kind.trim()) {
            return Some(number);
        }
        open = !open;
    }
    None
}

/// Every error code has its line in docs/errors.md.
fn error_codes(root: &Path, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let source = std::fs::read_to_string(root.join("crates/api/src/problem.rs"))?;
    let docs = std::fs::read_to_string(root.join("docs/errors.md")).unwrap_or_default();
    for line in source.lines() {
        let Some((_, rest)) = line.split_once(" = \"") else { continue };
        let Some((code, tail)) = rest.split_once('"') else { continue };
        if tail.starts_with(',') && !docs.contains(&format!("`{code}`")) {
            findings.push(format!("docs/errors.md: has no line for `{code}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crate_is_without_is_read_from_the_table() {
        let text = "| Layer | Crate | May | Without |\n|---|---|---|---|\n| 0 | one, two | none | |\n\
            | 1 | three | one, two | wasmtime, API types |\n";
        let rows = rows(text);
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["one", "three", "two"]);
        let three = &rows["three"];
        assert!(three.uses.contains("two") && three.refuses("wasmtime") && three.refuses("wasmtime-wasi"));
        assert!(!three.refuses("wasmtimes") && !three.refuses("one") && !rows["one"].refuses("tokio"));
    }

    #[test]
    fn code_in_documentation_is_found_and_text_is_not() {
        let text = "/// ```text\n/// a picture\n/// ```\nfn f() {}\n";
        assert_eq!(example(text), None);
        assert_eq!(example(&format!("{text}    /// ```\n    /// f();\n    /// ```\n")), Some(5));
        assert_eq!(example("//! ```rust\n//! f();\n//! ```\n"), Some(1));
    }
}
