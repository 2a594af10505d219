//! The ingress as clients and hosts see it: raw bytes in on one side, what a real HTTP server recorded on the other.

mod beside;
mod faults;
mod floods;
mod forwarding;
mod h2;
mod lines;
mod quotas;
mod rig;
mod starved;
mod timeouts;
mod vectors;
