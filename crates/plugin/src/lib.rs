//! The plugin kit: what it takes to be a task driver that a Nomad agent launches, whatever the driver does.
//!
//! A driver is a type that implements [`Driver`]; its `main` calls [`run`]. The kit answers everything an agent expects of
//! a plugin, as agents from 1.0 to 2.0 behave:
//!
//! `docs/plugin-kit.md` says how to write one; `tests/sample` is a whole one. No driver is known here.
//!
//! | Module | Answers |
//! |---|---|
//! | [`handshake`] | the cookie, what the host asks for by environment, the one line it reads |
//! | [`listen`] | the socket: bound before the line is printed, unix or tcp, removed at the end |
//! | [`tls`] | auto-mTLS where the host asks for it |
//! | `controller` | shutdown, broker, stdio, health |
//! | `base` | name, versions, agent configuration |
//! | `service`, `said` | Nomad's driver service in terms of [`Driver`] |
//! | [`driver`] | what a driver implements, in types that cannot be wrong |
//! | [`hcl`] | builds the schema of configuration blocks |
//! | [`config`] | decodes what Nomad sends for such a block |
//! | [`error`] | failures with their retry class, as Nomad reads them |
//! | [`tasks`] | the tasks a driver tracks, and their state on disk |
//! | [`exec`] | commands inside a task, as streams |
//! | [`files`] | how many files the plugin, and what it starts, may have open |
//! | [`log`] | the plugin's own log, as agents read it from stderr |
//!
//! # What an agent does
//! It launches the program three times at its start: asks for name and schema and ends it; configures it twice with an
//! empty agent configuration and ends it; and keeps the third. So [`Driver::configure`] must change nothing but the
//! driver's mind. An agent that is killed leaves the plugin running; the next agent finds it and does not configure it
//! again. A plugin that is killed is launched again, and is told of its tasks by [`Driver::recover`].

#![forbid(unsafe_code)]

mod base;
pub mod config;
mod controller;
pub mod driver;
pub mod error;
pub mod exec;
pub mod files;
pub mod handshake;
pub mod hcl;
pub mod listen;
pub mod log;
mod said;
mod serve;
mod service;
pub mod tasks;
pub mod tls;

pub use driver::Driver;
pub use error::{Class, Failure};
pub use serve::run;

/// The wire: `proto/` as Rust.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    rustdoc::all,
    reason = "generated from proto/, whose files say what each message is"
)]
pub mod contracts {
    include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
}
