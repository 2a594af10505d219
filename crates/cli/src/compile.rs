//! `sidereal compile`: one compilation in a process of its own that may crash, spin or swell without harm.

use std::io::{Read as _, Write as _};

use anyhow::Context as _;
use model::World;
use rustix::process::{Resource, Rlimit, setrlimit};

/// CPU seconds of one compilation.
const CPU_SECONDS: u64 = 30;
/// Writable memory of one compilation, bytes: 1 GiB, and the 1 GiB that the allocator reserves at once and need not use.
const MEMORY: u64 = 2 << 30;
/// The largest artifact, bytes.
const ARTIFACT: u64 = 50 << 20;

/// Reads a component from stdin, writes compiled code to stdout.
///
/// # Errors
/// When the component does not compile within the limits.
pub fn run(world: &str) -> anyhow::Result<()> {
    let world = match world {
        "p2" => World::P2,
        "p3" => World::P3,
        other => anyhow::bail!("unknown world `{other}`: p2 or p3"),
    };
    limit(Resource::Cpu, CPU_SECONDS)?;
    limit(Resource::Data, MEMORY)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 16)?;
    let mut wasm = Vec::new();
    std::io::stdin().lock().take(ARTIFACT + 1).read_to_end(&mut wasm).context("cannot read the component")?;
    anyhow::ensure!(wasm.len() as u64 <= ARTIFACT, "the component is larger than {} MiB", ARTIFACT >> 20);
    let code = runtime::compile(&wasm, world)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&code).and_then(|()| out.flush()).context("cannot write the compiled code")
}

fn limit(what: Resource, value: u64) -> anyhow::Result<()> {
    setrlimit(what, Rlimit { current: Some(value), maximum: Some(value) })
        .with_context(|| format!("cannot limit {what:?} to {value}"))
}
