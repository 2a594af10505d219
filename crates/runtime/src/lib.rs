//! The wasmtime embedding: compile, load, link and run components with every limit enforced.
//!
//! Invariant: `unsafe` lives in [`load`] alone, and a guest gets nothing it was not given: no files but in folders
//! that were granted, no sockets but those the node connected, no environment but variables that were granted, no instance another
//! revision has used. Listeners, client libraries and API types live elsewhere.
//!
//! ```text
//! wasm ── compile() (separate process) ──▶ code file ── Runtime::load ──▶ Code ── Runtime::link ──▶ Linked
//!                                                                                      │ limits, bindings, sinks
//! http::Request ── Workload::handle ──▶ http::Response<ResponseBody>  ◀── Workload ◀───┘
//! ```
#![deny(unsafe_code)]

mod body;
mod call;
mod clock;
mod compile;
mod config;
mod ctx;
mod drive;
mod engine;
mod error;
mod fault;
mod few;
mod giving;
mod head;
mod idle;
mod instance;
mod limiter;
mod linker;
mod load;
mod log;
mod meter;
mod outbound;
mod peer;
mod pipe;
mod program;
mod sockets;
mod ticker;
pub mod trace;
mod workload;

pub use body::{GoesOn, ResponseBody};
pub use compile::{compile, compile_for};
pub use config::{RuntimeSettings, prepare};
pub use ctx::{Bindings, Capability, Ctx};
pub use engine::{Code, Linked, Runtime, fingerprint};
pub use error::{CompileError, LinkError, LoadError, RuntimeError};
pub use fault::{Fault, FaultKind};
pub use few::Few;
pub use giving::Place;
pub use instance::Invoked;
pub use log::{LogSink, LogStreamKind, MAX_CONTEXT, affordable};
pub use meter::{Meter, MeterSnapshot};
pub use model::app::Reuse;
pub use outbound::{HttpBody, HttpBodyError, Outbound, OutboundError, OutboundOptions, OutboundResponse};
pub use peer::{Callee, CalleeTrace, Loading, MAX_CALL_DEPTH, Peer, Peers, call_component};
pub use pipe::Output;
pub use program::{Environment, Folders, Granted, Program, Written};
pub use sockets::{Connection, Datagrams, Opening, Received, SocketFault, Sockets};
pub use ticker::Queue;
pub use workload::{Sinks, Workload};

/// The engine this build embeds, for code that implements a [`Capability`] or measures a bare twin.
pub use wasmtime;
