//! The node's integration tests, one binary: its parts against real files, sockets and processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod artifacts;
mod dialer;
mod egress_table;
mod external;
mod fake_host;
mod ingress;
mod messaging;
mod nameserver;
mod schedules;
mod services;
mod watches;
mod whole;
