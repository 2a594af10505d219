//! What reads bytes that strangers send, and what must hold of each reader whatever the bytes are.
//!
//! A target is a function over bytes that panics where something does not hold: not only "no panic" but round trips,
//! agreement with another reader of the same format, and rules written down a second time. The same targets run in two
//! ways: from the ordinary tests over the corpus and seeded mutations of it (a few seconds, no C++), and under LLVM's
//! fuzzer by `cargo xtask fuzz` (coverage of our crates, for as long as one likes).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target says what it found by panicking"
)]
#![forbid(unsafe_code)]

pub mod components;
pub mod malformed;
pub mod mutate;
mod targets;

use std::path::{Path, PathBuf};

pub use targets::{TARGETS, Target};

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Where the committed inputs of a target are.
pub fn corpus_folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The inputs a run begins with: those written into the target and those committed beside it, in a fixed order.
///
/// # Panics
/// When the committed ones cannot be read.
pub fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut inputs = (target.seeds)();
    let Ok(folder) = std::fs::read_dir(corpus_folder(target)) else { return inputs };
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.expect("the corpus can be listed").path()).collect();
    files.sort();
    inputs.extend(files.iter().map(|file| std::fs::read(file).expect("the corpus can be read")));
    inputs
}
