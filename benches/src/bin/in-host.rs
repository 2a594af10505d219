//! The in-host path without sockets: a request for a linked workload to the end of its answer, with limits, metering and
//! log. `in-host COMPONENT [CALLS] [DISTINCT] [REUSE]`; prints one line of JSON, as `twin-m` does for bare wasmtime. With
//! DISTINCT above 1 the code is mapped that often and the copies are called in turn. REUSE is how many requests an instance
//! serves; 1, an instance for each, if absent.
#![forbid(unsafe_code)]

use std::io::{Seek as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use model::Limits;
use model::app::Reuse;
use model::unit::Millis;
use runtime::{Bindings, LogSink, LogStreamKind, Runtime, RuntimeSettings, Sinks, Workload};
use serde::Serialize;
use sidereal_benches::load::percentile;

/// A log nobody reads.
struct Nowhere;

impl LogSink for Nowhere {
    fn write(&self, _: u64, _: LogStreamKind, _: &str, _: &[u8]) {}
    fn dropped(&self, _: u64) {}
}

#[derive(Serialize)]
struct Report {
    calls: usize,
    p50_us: f64,
    p99_us: f64,
    distinct: usize,
    load_us: f64,
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("usage: in-host COMPONENT [CALLS] [DISTINCT] [REUSE]")?;
    let calls: usize = args.next().map_or(Ok(30_000), |calls| calls.parse())?;
    let distinct: usize = args.next().map_or(Ok(1), |distinct| distinct.parse())?.max(1);
    let requests: u32 = args.next().map_or(Ok(1), |reuse| reuse.parse())?;
    let reuse = (requests > 1).then_some(Reuse { requests, idle: Millis(10_000) });
    let wasm = std::fs::read(&path)?;
    let info = model::component::inspect(&wasm)?;
    let mut file = tempfile::tempfile()?;
    file.write_all(&runtime::compile(&wasm, info.world)?)?;
    file.rewind()?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let runtime = Runtime::new(RuntimeSettings::default(), Vec::new())?;
        let began = Instant::now();
        let mut workloads = Vec::with_capacity(distinct);
        for _ in 0..distinct {
            let linked = runtime.link(&runtime.load(info.world, file.try_clone()?)?, &info.imports)?;
            let sinks = Sinks { log: Arc::new(Nowhere), outbound: None, sockets: None };
            workloads.push(Workload::new(linked, Limits::default(), reuse, Arc::new(Bindings::new()), sinks));
        }
        let load_us = began.elapsed().as_secs_f64() * 1e6 / distinct as f64;
        let warm_up = calls / 10 + distinct;
        let mut latencies_ns = Vec::with_capacity(calls);
        for (call, workload) in workloads.iter().cycle().take(calls + warm_up).enumerate() {
            let began = Instant::now();
            let request =
                http::Request::get("http://localhost/").header("host", "localhost").body(Full::<Bytes>::default())?;
            let answer = workload.handle(request).await?;
            let body = answer.into_body().collect().await?.to_bytes();
            anyhow::ensure!(!body.is_empty(), "no answer");
            if call >= warm_up {
                latencies_ns.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
        }
        latencies_ns.sort_unstable();
        let (p50_us, p99_us) = (percentile(&latencies_ns, 50), percentile(&latencies_ns, 99));
        println!("{}", serde_json::to_string(&Report { calls, distinct, p50_us, p99_us, load_us })?);
        Ok(())
    })
}
