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
mod beside;
#[path = "../../../plugin/tests/all/block.rs"]
mod block;
mod exchanged;
mod given;
#[path = "../../../plugin/tests/all/host.rs"]
mod host;
mod jobs;
mod leftovers;
mod lifecycle;
mod logmon;
mod lost;
mod many;
#[path = "../../../../tests/src/nameserver.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod nameserver;
mod namespace;
mod operator;
mod points;
#[path = "../../../../tests/src/ports.rs"]
mod ports;
mod reach;
mod real;
mod recovery;
mod refusals;
mod registry;
mod servers;
mod shares;
mod soon;
mod strays;
mod unheard;
mod wire;

/// Says what is not run and why: here, and at the end of `cargo xtask test`.
fn not_run(what: &str) {
    println!("NOT RUN: {what}");
    if let Some(list) = std::env::var_os("SIDEREAL_NOT_RUN") {
        let list = std::fs::OpenOptions::new().create(true).append(true).open(list);
        std::io::Write::write_all(&mut list.unwrap(), format!("{what}\n").as_bytes()).unwrap();
    }
}
