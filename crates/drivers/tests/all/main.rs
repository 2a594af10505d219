//! The drivers against a fake Nomad host: the real plugin program, launched, configured, killed and found again exactly as
//! agents do it, with real task processes behind it.

mod agent;
mod block;
mod handshake;
mod jobs;
mod kit;
mod lifecycle;
mod real;
mod recovery;
mod refusals;
mod wire;
