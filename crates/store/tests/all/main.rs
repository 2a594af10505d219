//! The store on real files: the suite every backend passes, kills, full disks, and speed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test helpers outside #[test] functions fail the test that calls them"
)]

mod audit;
mod crash;
mod data;
mod disk_full;
mod folder;
mod room;
mod secrets;
mod sql;
mod store;
