//! Twin M: bare wasmtime, the limit for a fresh instance per call. `twin-m COMPONENT [CALLS] [DISTINCT]`; prints one line
//! of JSON with microseconds per call.
//!
//! One thread, no sockets, the pool settings that measured best: pages kept resident and found by page-map scan, no
//! concurrency support. With DISTINCT above 1 the component is compiled that often and the copies are called in turn, so
//! that every call finds its slot last used by another one.
#![forbid(unsafe_code)]

use std::time::Instant;

use serde::Serialize;
use sidereal_benches::guest::Guest;
use sidereal_benches::load::percentile;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Result};

#[derive(Serialize)]
struct Report {
    calls: usize,
    distinct: usize,
    p50_us: f64,
    p99_us: f64,
    per_second: f64,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or_else(|| wasmtime::format_err!("usage: twin-m COMPONENT [CALLS] [DISTINCT]"))?;
    let calls: usize = args.next().map_or(Ok(30_000), |calls| calls.parse())?;
    let distinct: usize = args.next().map_or(Ok(1), |distinct| distinct.parse())?.max(1);
    let engine = Engine::new(&config())?;
    let bytes = std::fs::read(path)?;
    let guests = compile(&engine, &bytes, distinct)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Each once more than the pool has slots, so that the measured calls find it as it will stay.
        for guest in guests.iter().cycle().take(calls / 10 + distinct) {
            guest.call().await?;
        }
        let mut latencies_ns = Vec::with_capacity(calls);
        let began = Instant::now();
        for guest in guests.iter().cycle().take(calls) {
            let began = Instant::now();
            guest.call().await?;
            latencies_ns.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        let seconds = began.elapsed().as_secs_f64();
        latencies_ns.sort_unstable();
        let report = Report {
            calls,
            distinct,
            p50_us: percentile(&latencies_ns, 50),
            p99_us: percentile(&latencies_ns, 99),
            per_second: calls as f64 / seconds,
        };
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    })
}

fn config() -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.linear_memory_keep_resident(1024 * 1024)
        .table_keep_resident(64 * 1024)
        .async_stack_keep_resident(64 * 1024)
        .pagemap_scan(if PoolingAllocationConfig::is_pagemap_scan_available() { Enabled::Yes } else { Enabled::No });
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .wasm_component_model_async(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Compiles copies on all cores; each is a component of its own to the engine.
fn compile(engine: &Engine, bytes: &[u8], count: usize) -> Result<Vec<Guest>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let share = count / threads + usize::from(part < count % threads);
                scope.spawn(move || (0..share).map(|_| Guest::new(engine, bytes)).collect::<Result<Vec<_>>>())
            })
            .collect();
        let mut guests = Vec::with_capacity(count);
        for part in parts {
            guests.extend(part.join().map_err(|_| wasmtime::format_err!("a compiling thread panicked"))??);
        }
        Ok(guests)
    })
}
