//! The control plane over real HTTP and a real store, with a double of the node: what people and nodes rely on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail the test they help"
)]

mod accounts;
mod between;
mod bounds;
mod configs;
mod events;
mod failures;
mod gate;
mod guard;
mod hosts;
mod kept;
mod late;
mod made;
mod many;
mod moves;
mod openapi;
mod purge;
mod restart;
mod revisions;
mod rig;
mod schedules;
mod secrets;
mod sweep;
mod tenants;
mod trust;
mod turn;
