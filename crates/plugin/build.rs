//! The contracts of `proto/` as Rust, compiled by a compiler that is part of the build: no `protoc` is needed.

use std::error::Error;
use std::path::Path;

/// Every contract, relative to `proto/`.
const CONTRACTS: [&str; 5] =
    ["nomad/base.proto", "nomad/driver.proto", "go-plugin/plugin.proto", "grpc/health.proto", "grpc/status.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", proto.display());
    let contracts = protox::compile(CONTRACTS, [&proto])?;
    tonic_prost_build::configure().include_file("contracts.rs").compile_fds(contracts)?;
    Ok(())
}
