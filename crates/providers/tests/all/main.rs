//! Providers against real servers and real components.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod blob_copy;
mod blob_memory;
mod blobstore;
mod components;
mod consul;
mod fake_vault;
mod faults;
mod http_out;
mod keyvalue;
mod keyvalue_nats;
mod messaging_nats;
mod nats;
mod nats_server;
mod s3;
mod support;
mod vault;
