//! A whole host on its own thread, against a node made by the test: real sockets, real compiled code, real components.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod callees;
mod calls;
mod copies;
mod lifecycle;
mod lines;
mod links;
mod logs;
mod messages;
mod node;
#[path = "../../../../tests/src/ports.rs"]
mod ports;
mod programs;
mod rig;
mod scheduled;
