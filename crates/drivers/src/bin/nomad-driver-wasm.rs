//! `driver = "wasm"`: the plugin that a Nomad agent launches.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    plugin::run(drivers::wasm::WasmDriver::new)
}
