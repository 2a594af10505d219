//! The wire between Sidereal's processes: types, error codes and typed clients. No rules live here.
//!
//! * [`control`]: HTTP and JSON between people (cli, canvas) and the control plane.
//! * [`client`]: the typed client of [`control`], for the cli.
//! * [`agent`]: HTTP and JSON over a unix socket, the only way into a host.
//! * [`data_line`]: the frames of many requests at once from the ingress to a host.
//! * [`flows`]: what was decided about outgoing connections.
//! * [`metrics`]: what is counted of components and links.
//! * [`run`]: the frames of one run of a program.
//! * [`services`]: what a host asks of its node (dial, key-value, compiled code), framed postcard over a unix socket.
//! * [`task`]: one task of a scheduler: its files, and its API over a unix socket.
//! * [`problem`]: the one shape of a refusal and the closed list of its codes.
#![forbid(unsafe_code)]

pub mod agent;
pub mod agent_client;
mod agent_document;
pub mod client;
pub mod control;
pub mod copy;
pub mod data_line;
pub mod databases;
pub mod flows;
pub mod metrics;
pub mod ndjson;
pub mod node;
pub mod problem;
pub mod run;
pub mod services;
pub mod shares;
pub mod task;

pub use problem::{Code, Problem};
