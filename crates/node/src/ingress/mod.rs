//! The way in: HTTP/1.1 and HTTP/2 without TLS from clients, one hop over a unix socket to the shard that has the app
//! warm, and back.
#![allow(dead_code, reason = "the parts land one by one")]

mod config;
mod shard;
mod table;
mod target;

pub use config::IngressConfig;
pub use shard::{SPILL, Shard, ShardSet, Target};
pub use table::{Lookup, RouteEntry, RouteTable, Routes};
