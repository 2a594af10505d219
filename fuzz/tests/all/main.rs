//! Every target over its corpus and over seeded mutations of it, for a moment each. `SIDEREAL_FUZZ_EXECUTIONS` and
//! `SIDEREAL_FUZZ_SEED` make it longer, and repeat what failed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod targets;
