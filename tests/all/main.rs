//! Whole-system scenarios: the real binary, real services, real kills.

mod crash;
mod demo;
mod deploy;
mod doctor;
mod embedded;
mod hostile;
mod oci;
mod quickstart;
mod refusals;
mod surface;
mod swap;
