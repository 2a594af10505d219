//! The same points against a real agent, where `NOMAD_BIN` names its program: what the fake host imitates, seen for certain.
//! [`crate::points`] says which test sees which.

mod agents;
mod beside;
mod cluster;
mod ends;
mod job;
mod logs;
mod machine;
mod places;
mod refusals;
mod serving;
mod steps;

use std::path::PathBuf;

/// The program of the agent; where there is none, what is not run is said.
fn nomad(what: &str) -> Option<PathBuf> {
    let program = std::env::var_os("NOMAD_BIN").map(PathBuf::from);
    if program.is_none() {
        crate::not_run(&format!("{what} under a real Nomad agent: NOMAD_BIN names no program"));
    }
    program
}
