//! Whole-system scenarios: the real binary, real services, real kills.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod audit;
mod blobstore;
mod brokers;
mod bus;
mod canaries;
mod components;
mod config;
mod contracts;
mod crash;
mod crowd;
mod demo;
mod deploy;
mod doctor;
mod egress;
mod egress_providers;
mod external;
mod external_more;
mod faults;
mod hostile;
mod isolation;
mod kept;
mod keyvalue;
mod logs;
mod messaging;
mod moving;
mod moving_objects;
mod mutants;
mod nameserver;
mod neighbours;
mod observe;
mod oci;
mod quickstart;
mod rechecks;
mod refusals;
mod schedules;
mod secrets;
mod security_page;
mod sql;
mod surface;
mod swap;
mod tenants;
mod traces;
mod vault;
mod watches;
