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
mod apart;
mod batch;
mod block;
mod handshake;
mod jobs;
mod kit;
mod lifecycle;
mod many;
mod points;
mod reach;
mod real;
mod recovery;
mod refusals;
mod servers;
mod wire;

/// Says what is not run and why: here, and at the end of `cargo xtask test`.
fn not_run(what: &str) {
    println!("NOT RUN: {what}");
    if let Some(list) = std::env::var_os("SIDEREAL_NOT_RUN") {
        let list = std::fs::OpenOptions::new().create(true).append(true).open(list);
        std::io::Write::write_all(&mut list.unwrap(), format!("{what}\n").as_bytes()).unwrap();
    }
}
