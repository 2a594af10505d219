//! Turns a component into code. Pure: bytes in, bytes out; it runs in a process of its own, with its own limits.

use std::hash::{DefaultHasher, Hash, Hasher};

use model::World;
use wasmtime::Engine;

use crate::config;
use crate::error::CompileError;

/// Compiles a component for one engine.
///
/// # Errors
/// [`CompileError::Invalid`] where the bytes are not a component, or use a proposal that is off.
pub fn compile(wasm: &[u8], world: World) -> Result<Vec<u8>, CompileError> {
    compile_for(wasm, world, None)
}

/// As [`compile`], where the engine of this program has the fingerprint `wanted`: whoever keeps the code keeps it under that
/// name, and a host may say any.
///
/// # Errors
/// As there, and [`CompileError::Other`].
pub fn compile_for(wasm: &[u8], world: World, wanted: Option<&str>) -> Result<Vec<u8>, CompileError> {
    let engine = bare(world).map_err(|e| CompileError::Engine { world, message: format!("{e:#}") })?;
    let own = fingerprint(&engine, world);
    if wanted.is_some_and(|wanted| wanted != own) {
        return Err(CompileError::Other { world, own });
    }
    engine.precompile_component(wasm).map_err(|e| CompileError::Invalid(format!("{e:#}")))
}

/// An engine without an instance pool: enough to compile and to be asked for its fingerprint.
pub(crate) fn bare(world: World) -> wasmtime::Result<Engine> {
    Engine::new(&config::code(world))
}

/// Names everything that decides whether code of one engine loads in another: 128 bits, hex.
pub(crate) fn fingerprint(engine: &Engine, world: World) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        world.as_str().hash(&mut hasher);
        engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(1), half(2))
}
