//! Capability providers by contract: one adapter per contract, one small trait behind it, one suite over every backend.
//!
//! * [`keyvalue`]: `wasi:keyvalue` over memory, Redis, and whatever else implements its `Backend`.
//! * [`blobstore`]: `wasi:blobstore`, the same way, streamed.
//! * [`config`] and [`logging`]: answered in the host itself, no link needed.
//! * [`bus`]: which of several links of a contract a component's next calls go by.
//! * [`http_out`]: outgoing HTTP of one component.
//! * [`http_json`]: the client of providers whose server speaks JSON over HTTP; [`breaker`] keeps a dead one cheap.
//! * [`meter`]: what each link carries; [`per_link`]: what a provider keeps for each.
//! * [`nats`]: the client of NATS that several contracts share.
//! * [`vault`]: logins, tokens and errors of Vault and OpenBao.
//! * [`sql`]: `sidereal:sql`, over Postgres and the SQLite databases of the node.
//! * [`secrets`]: what a provider logs in with, revealed when it connects.
//! * [`external`]: processes beside the platform that answer one of the contracts over wRPC.
//! * `traced`: the trace of a call, for what is asked over HTTP on its behalf.
//! * `exported`: what every contract needs that a component answers in the place of a provider.
//! * [`dial`]: the only way any of them reaches the network.
//!
//! Everything a provider needs arrives as a value: no environment, no files, no sockets of its own.
#![forbid(unsafe_code)]

pub mod blobstore;
pub mod breaker;
pub mod bus;
pub mod config;
pub mod dial;
mod exported;
pub mod external;
pub mod http_json;
pub mod http_out;
pub mod keyvalue;
pub mod logging;
pub mod messaging;
pub mod meter;
pub mod nats;
mod path;
pub mod per_link;
pub mod schedule;
pub mod secrets;
pub mod share;
pub mod sql;
mod traced;
pub mod vault;
