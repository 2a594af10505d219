//! The settings of the two engines, and the one function that turns them into a wasmtime `Config`, so that the
//! compile process and the host can never disagree.

use model::World;
use model::unit::ByteSize;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, Strategy};

/// Native stack of guest code. One figure for the whole engine: wasmtime has no setting per component.
pub(crate) const STACK: ByteSize = ByteSize::mib(1);
/// The fiber a guest runs on: its own stack and room for the host calls on top of it.
const FIBER: ByteSize = ByteSize::mib(2);
/// Random bytes one call of `wasi:random` may ask for.
pub(crate) const RANDOM: ByteSize = ByteSize::kib(64);
/// Size of one `wasi:http` fields resource in host memory; the wire form is roughly half of it.
pub(crate) const FIELDS: ByteSize = ByteSize::kib(128);
/// Header fields one response may have (`docs/limits.md`). The ingress takes a head of 100 fields and 64 KiB; the rest is for
/// what the host adds.
pub(crate) const RESPONSE_FIELDS: usize = 96;
/// Bytes of them together, as they are sent.
pub(crate) const RESPONSE_HEAD: ByteSize = ByteSize::kib(60);
/// Core instances one component may have. Components made from dynamic libraries have a few dozen.
pub(crate) const CORE_INSTANCES: usize = 100;
/// Linear memories one component may have.
pub(crate) const MEMORIES: usize = 8;
/// Tables one component may have.
pub(crate) const TABLES: usize = 32;

/// Sizes of the instance pool. Slots reserve address space only; memory is used by slots in use and warm ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeSettings {
    /// Components that can be instantiated at once, per engine. More than one component may run calls at once, so that
    /// no component alone fills the pool.
    pub instances: u32,
    /// The most linear memory one memory may have; the largest ceiling of the tenant.
    pub max_memory: ByteSize,
    /// The most elements one table may have; the largest ceiling of the tenant.
    pub max_table_elements: u32,
    /// Slots kept warm for the component that used them last. Each keeps at most [`Self::keep_memory`] resident.
    pub warm_slots: u32,
    /// Linear memory a returned slot keeps resident.
    pub keep_memory: ByteSize,
    /// Table memory a returned slot keeps resident.
    pub keep_table: ByteSize,
    /// Fiber stack a returned slot keeps resident.
    pub keep_stack: ByteSize,
}

impl Default for RuntimeSettings {
    fn default() -> Self {
        let ceiling = model::Limits::ceiling();
        Self {
            instances: 1000,
            max_memory: ceiling.memory,
            max_table_elements: ceiling.table_elements,
            warm_slots: 100,
            keep_memory: ByteSize::mib(1),
            keep_table: ByteSize::kib(64),
            keep_stack: ByteSize::kib(64),
        }
    }
}

/// What decides the code: the same for the compiler and for the host that loads its output.
pub(crate) fn code(world: World) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .max_wasm_stack(STACK.as_usize())
        .async_stack_size(FIBER.as_usize())
        // Only third-party unwinders read it; wasmtime catches panics of host functions at the border. Registering it
        // makes every captured backtrace search all loaded components.
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16))
        // Off: proposals no accepted language needs. GC, exceptions, threads and stack switching are not even built.
        .wasm_memory64(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false)
        .wasm_relaxed_simd(false)
        // On: what LLVM, componentize-js and componentize-py emit, and what wit-component joins them with. The engine's
        // own adapters between the parts of a composed component need multi-memory: without it such a component would
        // not be refused but make the compiler panic.
        .wasm_simd(true)
        .wasm_bulk_memory(true)
        .wasm_multi_value(true)
        .wasm_multi_memory(true)
        .wasm_tail_call(true)
        .wasm_extended_const(true)
        .wasm_component_model(true);
    let concurrent = world == World::P3;
    config.concurrency_support(concurrent).wasm_component_model_async(concurrent);
    config
}

/// Opens what the pools ask the kernel for, before the process gives its files up: where `false`, or where this was not
/// called in time, an instance is reset more slowly. The engine keeps the file open for as long as the process lives.
pub fn prepare() -> bool {
    PoolingAllocationConfig::is_pagemap_scan_available()
}

/// The host's engine: [`code`] with the instance pool.
pub(crate) fn host(world: World, settings: &RuntimeSettings) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    let instances = settings.instances.max(1);
    pool.total_component_instances(instances)
        .total_stacks(instances)
        // A component from wit-component is a main module, an adapter and two shims; dynamic linking adds more.
        // Never fewer than one component may have of each: a small pool still holds any component that is accepted.
        .total_core_instances(instances.saturating_mul(8).max(CORE_INSTANCES as u32))
        .total_tables(instances.saturating_mul(4).max(TABLES as u32))
        .total_memories(instances.saturating_add(instances / 4).max(MEMORIES as u32))
        // One module may hold all its component's memories and tables; the pool's own default is one of each.
        .max_memories_per_module(MEMORIES as u32)
        .max_tables_per_module(TABLES as u32)
        .max_memory_size(settings.max_memory.as_usize())
        .table_elements(settings.max_table_elements as usize)
        .max_unused_warm_slots(settings.warm_slots)
        .linear_memory_keep_resident(settings.keep_memory.as_usize())
        .table_keep_resident(settings.keep_table.as_usize())
        .async_stack_keep_resident(settings.keep_stack.as_usize())
        .pagemap_scan(if PoolingAllocationConfig::is_pagemap_scan_available() { Enabled::Yes } else { Enabled::No });
    let mut config = code(world);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_component_alone_fills_the_pool() {
        let (pool, one) = (RuntimeSettings::default().instances, model::Limits::ceiling().concurrency);
        assert!(one < pool && pool - one >= pool / 4, "{one} of {pool}");
    }
}
