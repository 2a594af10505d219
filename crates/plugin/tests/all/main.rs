//! The kit against a fake Nomad host: `tests/sample`, a driver on nothing but the kit, is launched, configured, killed and found
//! again as agents do it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what is wrong by panicking"
)]

mod agent;
mod block;
mod commands;
mod fields;
mod files;
mod handshake;
mod host;
mod life;
mod page;
#[path = "../../../../tests/src/ports.rs"]
mod ports;
mod real;
mod versions;

/// Says what is not run and why: here, and at the end of `cargo xtask test`.
fn not_run(what: &str) {
    println!("NOT RUN: {what}");
    if let Some(list) = std::env::var_os("SIDEREAL_NOT_RUN") {
        let list = std::fs::OpenOptions::new().create(true).append(true).open(list);
        std::io::Write::write_all(&mut list.unwrap(), format!("{what}\n").as_bytes()).unwrap();
    }
}
