//! The runtime seen from outside: real components, compiled, loaded, linked and called.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod invoke;
mod limits;
mod link;
mod outbound;
mod p3;
mod peers;
mod reuse;
mod serve;
mod support;
