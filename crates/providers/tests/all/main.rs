//! Providers against real servers and real components.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod behind;
mod between;
mod between_postgres;
mod blob_copy;
mod blob_memory;
mod blobstore;
mod blobstore_nats;
mod components;
mod consul;
mod external;
mod external_more;
mod fake_vault;
mod faults;
mod follow;
mod http_out;
mod keyvalue;
mod keyvalue_nats;
mod kv_copy;
mod messaging_jetstream;
mod messaging_nats;
mod nats;
mod nats_links;
mod nats_server;
mod official;
mod old_versions;
mod openbao;
mod per_link;
#[path = "../../../../tests/src/ports.rs"]
mod ports;
#[path = "../../../../tests/src/postgres.rs"]
mod postgres_server;
mod s3;
mod secrets_vault;
mod sql;
mod sql_rest;
mod support;
mod vault;
