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
mod corpus;
pub mod malformed;
pub mod mutate;
mod targets;

pub use corpus::{committed, corpus, corpus_folder};
pub use targets::{TARGETS, Target};

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
