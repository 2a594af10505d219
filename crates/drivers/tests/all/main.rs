//! The drivers against a fake Nomad host: the real plugin program, launched, configured, killed and found again exactly as
//! agents do it, with real task processes behind it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what is wrong by panicking"
)]

mod agent;
mod block;
mod handshake;
mod jobs;
mod kit;
mod lifecycle;
mod real;
mod recovery;
mod refusals;
mod wire;
