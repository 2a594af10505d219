//! One machine's agent: it watches what the control plane assigned, keeps one host process per tenant and shard alive,
//! brings artifacts and compiled code to them, and sends requests to the revisions that serve.
//!
//! | Module | Answers |
//! |---|---|
//! | [`converge`] | what has to happen next, from what is wanted and what is there; pure |
//! | `agent` | one task that owns the state and carries the steps out |
//! | `supervisor` | one task per host process: start, restore, restart, stop |
//! | [`artifacts`] | compiled code: compiled in a limited child process, loaded only if its MAC is ours |
//! | [`recompile`] | code of what served, for an engine that has none of it |
//! | [`confine`] | layers, user ids and control groups of what it starts |
//! | [`services`] | what a host may ask over the connections it was handed |
//! | [`dialer`] | every outgoing connection: resolve once, decide on the address, connect, hand over |
//! | [`asks`] | which connections the components and providers of an app may ask for |
//! | `connections` | the connections hosts have open, and how they end |
//! | `flows` | what was decided about the last connections of each tenant |
//! | [`messaging`] | the brokers of messages, and who takes from them |
//! | [`schedules`] | which schedules are due, and that no due time is run twice |
//! | `taking` | which revision takes messages |
//! | [`external`] | processes of external providers: start, health, restart, hand over connections |
//! | [`databases`] | the process that runs a tenant's SQL |
//! | `logs` | the last lines of every app |
//! | `pace` | how fast what others write is taken |
//! | [`otlp`] | spans and lines to a collector |
//! | `admin` | the listener for monitoring |
//! | `metrics` | what hosts counted, over shards and restarts |
//! | [`ingress`] | requests from outside |
#![forbid(unsafe_code)]

mod admin;
mod agent;
pub mod artifacts;
pub mod asks;
mod bring;
pub mod confine;
mod connections;
mod converge;
mod copying;
pub mod databases;
pub mod dialer;
mod error;
pub mod external;
mod flows;
mod front;
pub mod ingress;
pub mod logs;
mod lookups;
pub mod messaging;
mod metrics;
mod named;
mod node;
pub mod otlp;
mod pace;
mod probe;
mod publisher;
pub mod recompile;
pub mod schedules;
pub mod services;
mod serving;
pub mod supervisor;
mod taking;
pub mod tenant;
mod watch;

pub use admin::AdminConfig;
pub use error::NodeError;
pub use node::{Node, NodeConfig, Storage};
