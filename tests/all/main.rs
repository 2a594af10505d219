//! Whole-system scenarios: the real binary, real services, real kills.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod blobstore;
mod brokers;
mod components;
mod crash;
mod demo;
mod deploy;
mod doctor;
mod faults;
mod hostile;
mod keyvalue;
mod messaging;
mod moving;
mod moving_objects;
mod observe;
mod oci;
mod quickstart;
mod refusals;
mod secrets;
mod surface;
mod swap;
mod traces;
