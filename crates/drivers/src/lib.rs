//! Task drivers for Nomad, on the plugin kit ([`plugin`]).
//!
//! | Module | Answers |
//! |---|---|
//! | [`wasm`] | `driver = "wasm"`: a task is one `sidereal task` process, found by its socket |
//!
//! A driver links no WebAssembly runtime: it runs as the agent's user, which is usually root.
#![forbid(unsafe_code)]

pub mod wasm;
