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
mod counted;
mod crash;
mod crowd;
mod databases;
mod delegated;
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
mod quotas;
mod reach;
mod rechecks;
mod refusals;
mod restore;
mod scarce;
mod schedules;
mod secrets;
mod security_page;
mod servers;
mod sql;
mod surface;
mod swap;
mod ten_lines;
mod tenants;
mod traces;
mod traces_onward;
mod vault;
mod watches;
