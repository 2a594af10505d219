//! Integration tests of `model`: what a person writes and what comes back, and what the control plane takes.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail the test that calls them"
)]

mod admission;
mod docs;
mod facts;
mod golden;
mod good;
mod mistakes;
mod properties;
