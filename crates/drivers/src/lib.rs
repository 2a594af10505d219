//! Task drivers for Nomad, and the kit they stand on.
//!
//! | Module | Answers |
//! |---|---|
//! | [`plugin`] | how a program becomes a Nomad plugin: handshake, transport, services, schema, errors; knows no driver |
//! | [`wasm`] | `driver = "wasm"`: a task is one `sidereal task` process, found by its socket |
//!
//! A driver links no WebAssembly runtime: it runs as the agent's user, which is usually root.
#![forbid(unsafe_code)]

pub mod plugin;
pub mod wasm;

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
