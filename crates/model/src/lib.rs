//! The vocabulary every other crate shares, and the decisions that need nothing but data.
//!
//! Invariant: no I/O, no clock, no tokio, no wasmtime. Ids and times arrive as parameters, so everything here is
//! a unit test away.
#![forbid(unsafe_code)]

pub mod access;
pub mod admission;
pub mod app;
pub mod claims;
pub mod component;
pub mod config;
pub mod diff;
pub mod digest;
pub mod egress;
pub mod escape;
pub mod hosts;
pub mod interface;
pub mod limits;
pub mod listed;
pub mod lock;
pub mod manifest;
pub mod messaging;
pub mod name;
pub mod number;
pub mod observed;
pub mod offers;
pub mod plan;
pub mod promises;
pub mod rules;
pub mod schedule;
mod schema;
pub mod secret;
pub mod sql;
pub mod stream;
pub mod tenant;
pub mod trace;
pub mod unit;
pub mod vouched;
pub mod watch;

pub use app::{Link, LockedApp, LockedComponent, ProviderKind, ProviderSpec, Revision, Route, World};
pub use digest::Digest;
pub use interface::{ContractId, InterfaceId};
pub use limits::Limits;
pub use name::{
    AppName, ComponentName, ConfigName, Label, NodeName, ProviderName, ScheduleName, SecretName, TenantName,
};
pub use secret::{SecretRef, SecretValue};
