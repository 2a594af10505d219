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

/// Where the pseudo-random numbers of a test of mutations begin: the same for every submission, so that none is refused for
/// what another one would have met as well, and the clock's in a long run. `SIDEREAL_FUZZ_SEED` says another one. Printed.
pub fn seed(long: bool) -> u64 {
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = match std::env::var("SIDEREAL_FUZZ_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("SIDEREAL_FUZZ_SEED is `{text}`, not a number")),
        Err(_) if long => clock(),
        Err(_) => 0x51de_4ea1,
    };
    println!("seed {seed}: SIDEREAL_FUZZ_SEED={seed} repeats this run");
    seed
}
