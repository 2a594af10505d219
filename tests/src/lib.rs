//! Drives the real binary as a user would: starts it in an empty directory on free ports, talks to it through its own
//! command line and plain sockets, stops it by pid.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![forbid(unsafe_code)]

pub mod collector;
pub mod consul;
pub mod egress;
pub mod envelope;
pub mod hostile;
pub mod http;
pub mod load;
pub mod nameserver;
pub mod nats;
pub mod offered;
pub mod platform;
pub mod ports;
pub mod postgres;
pub mod redis;
pub mod s3;
pub mod throttle;
pub mod vault;

use std::path::PathBuf;

/// The binary under test: what `cargo xtask test` names, or the release build.
///
/// # Panics
/// When there is none: a whole-system suite without its system is not green.
pub fn binary() -> PathBuf {
    let path =
        std::env::var_os("SIDEREAL_BIN").map_or_else(|| workspace().join("target/release/sidereal"), PathBuf::from);
    assert!(path.is_file(), "no binary at {}: run `cargo xtask test`, or build with --release first", path.display());
    path
}

/// The guests that `cargo xtask guests` builds.
///
/// # Panics
/// When they are not built.
pub fn guest(name: &str) -> PathBuf {
    let dir = std::env::var_os("SIDEREAL_GUESTS").map_or_else(|| workspace().join("target/guests"), PathBuf::from);
    let path = dir.join(format!("{name}.wasm"));
    assert!(path.is_file(), "no guest at {}: run `cargo xtask guests`", path.display());
    path
}

/// The repository.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, PathBuf::from)
}

/// How much longer than usual things may take here: `SIDEREAL_PATIENCE`, for machines that are computed by another one.
pub fn patience() -> u32 {
    std::env::var("SIDEREAL_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Says what was not tested, and what was missing: here, and at the end of `cargo xtask test`.
pub fn not_run(what: &str) {
    println!("NOT RUN: {what}");
    let Some(list) = std::env::var_os("SIDEREAL_NOT_RUN") else { return };
    let list = std::fs::OpenOptions::new().create(true).append(true).open(list);
    std::io::Write::write_all(
        &mut list.expect("the list of what was not run can be written"),
        format!("{what}\n").as_bytes(),
    )
    .expect("the list of what was not run can be written");
}

/// The same of what isolates tenants: where changes are accepted the run has failed then (`xtask/src/must.rs`).
pub fn not_isolated(what: &str) {
    not_run(&format!("isolation: {what}"));
}
