//! The control plane over real HTTP and a real store, with a double of the node: what people and nodes rely on.

mod events;
mod guard;
mod openapi;
mod restart;
mod revisions;
mod rig;
mod tenants;
mod trust;
