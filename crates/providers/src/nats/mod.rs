//! A client of NATS over connections that the `Dialer` makes, for every contract that has a NATS provider.
//!
//! It is our own because no client known to us takes a connection that somebody else made (`async-nats` 0.51 connects
//! by itself), and a host has no network of its own. One task ([`driver`](self)) owns the connection; [`Client`] is a
//! handle to it that is cheap to clone.
//!
//! What it promises: every call ends in time; a lost connection is made again, with jitter, and every subscription
//! with it; what was sent and not answered when the connection broke fails at once with [`NatsError::Lost`]; what waits
//! in memory is bounded in both directions, and a subscription whose reader is slow loses messages of its own only,
//! counted, while everybody else's go on.

mod client;
mod connect;
mod credentials;
mod driver;
mod endpoint;
mod error;
mod headers;
pub mod jetstream;
mod message;
pub(crate) mod reader;
pub mod scan;
mod session;
mod subscription;
mod wire;

pub use client::{Client, Options};
pub use connect::ServerInfo;
pub use credentials::{Credentials, CredentialsError, Login};
pub use endpoint::{Endpoint, EndpointError};
pub use error::NatsError;
pub use headers::Headers;
pub use message::{Message, Outgoing};
pub use subscription::{Buffer, Subscription};

use std::time::Duration;

/// Time to connect and to introduce ourselves, and the time of a call that names no other.
pub const TIMEOUT: Duration = Duration::from_secs(5);
