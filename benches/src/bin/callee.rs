//! Calls from component to component, without sockets: the smallest call, into another instance with limits and
//! metering, and the same in one composed component. `callee PRICING`; prints one line of JSON.
#![forbid(unsafe_code)]

use std::io::{Seek as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use model::app::Reuse;
use model::unit::Millis;
use model::{Limits, World};
use runtime::trace::CallTrace;
use runtime::{
    Bindings, Callee, CalleeTrace, Fault, Linked, Loading, LogSink, LogStreamKind, Peer, Peers, Runtime,
    RuntimeSettings, Sinks, Workload,
};
use serde::Serialize;

/// Answers `next(n) = n + 1`.
const NEXT: &str = r#"(component $next
  (core module $m (memory (export "memory") 1)
    (func (export "next") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))
  (core instance $i (instantiate $m))
  (func $next (param "n" u32) (result u32) (canon lift (core func $i "next")))
  (instance $quote (export "next" (func $next)))
  (export "acme:pricing/quote@1.0.0" (instance $quote)))"#;

/// Calls `next` as often as it is told.
const LOOP: &str = r#"(component $loop
  (import "acme:pricing/quote@1.0.0" (instance $quote (export "next" (func (param "n" u32) (result u32)))))
  (core func $next (canon lower (func $quote "next")))
  (core module $m
    (import "" "next" (func $next (param i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "go") (param $times i32) (result i32) (local $n i32)
      (loop $again
        (if (i32.lt_u (local.get $n) (local.get $times))
          (then (local.set $n (call $next (local.get $n))) (br $again))))
      (local.get $n)))
  (core instance $i (instantiate $m (with "" (instance (export "next" (func $next))))))
  (func $go (param "times" u32) (result u32) (canon lift (core func $i "go")))
  (instance $out (export "go" (func $go)))
  (export "acme:bench/run@1.0.0" (instance $out)))"#;

const QUOTE: &str = "acme:pricing/quote@1.0.0";
const RUN: &str = "acme:bench/run@1.0.0";

/// A log nobody reads.
struct Nowhere;

impl LogSink for Nowhere {
    fn write(&self, _: u64, _: LogStreamKind, _: &str, _: &[u8]) {}
    fn dropped(&self, _: u64) {}
}

struct Beside(Arc<Workload>);

impl Callee for Beside {
    fn enter(&self) -> Result<Option<Arc<Workload>>, Fault> {
        Ok(Some(self.0.clone()))
    }
    fn load(&self) -> Loading<'_> {
        Box::pin(async { Ok(self.0.clone()) })
    }
    fn leave(&self) {}
    fn begins(&self, _: Option<&CallTrace>, _: &str) -> Option<CalleeTrace> {
        None
    }
    fn ended(&self, _: Instant, _: Option<&Fault>, _: Option<CalleeTrace>) {}
}

/// Microseconds of one call, the loop and its overhead included.
#[derive(Serialize)]
struct Report {
    composed_us: f64,
    warm_us: f64,
    cold_us: f64,
    cold_rust_us: f64,
}

struct Bench {
    runtime: Runtime,
    limits: Limits,
}

impl Bench {
    fn link(&self, wasm: &[u8], forwarded: &[&str]) -> anyhow::Result<Linked> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&runtime::compile(wasm, World::P2)?)?;
        file.rewind()?;
        let forwarded = forwarded.iter().map(|id| id.parse()).collect::<Result<Vec<_>, _>>()?;
        let imports = model::component::inspect(wasm)?.imports;
        Ok(self.runtime.link_with_peers(&self.runtime.load(World::P2, file)?, &imports, &forwarded)?)
    }

    fn workload(&self, linked: Linked, reuse: bool, bindings: Bindings) -> Arc<Workload> {
        let reuse = reuse.then_some(Reuse { requests: 1_000_000, idle: Millis(60_000) });
        let sinks = Sinks { log: Arc::new(Nowhere), outbound: None, sockets: None };
        Workload::new(linked, self.limits, reuse, Arc::new(bindings), sinks)
    }

    /// A caller of `wasm` as it is with `reuse` or without.
    fn pair(&self, wasm: &[u8], reuse: bool) -> anyhow::Result<Arc<Workload>> {
        let caller = self.link(&wat::parse_str(LOOP)?, &[QUOTE])?;
        let callee = self.workload(self.link(wasm, &[])?, reuse, Bindings::new());
        let callee = Arc::new(Beside(callee));
        let peer = Peer { import: QUOTE.into(), export: QUOTE.into(), name: "next".into(), callee };
        Ok(self.workload(caller, true, Bindings::new().with(Arc::new(Peers(vec![peer])))))
    }
}

/// Microseconds of one call: the best of many short rounds, since other programs share the machine.
async fn measure(work: &Arc<Workload>, times: u32) -> anyhow::Result<f64> {
    let component = work.instance_pre().component();
    let run = component.get_export_index(None, RUN).context("the loop is not exported")?;
    let go = component.get_export_index(Some(&run), "go").context("the loop is not exported")?;
    let mut best = f64::INFINITY;
    for _ in 0..300 {
        let began = Instant::now();
        let called = work.invoke(move |store, instance| {
            Box::pin(async move {
                let go = instance.get_typed_func::<(u32,), (u32,)>(&mut *store, go)?;
                Ok(go.call_async(store, (times,)).await?.0)
            })
        });
        anyhow::ensure!(called.await? == times, "it called another number of times");
        best = best.min(began.elapsed().as_secs_f64() * 1e6 / f64::from(times));
    }
    Ok(best)
}

fn main() -> anyhow::Result<()> {
    let pricing = std::fs::read(std::env::args().nth(1).context("usage: callee PRICING")?)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let limits = Limits { cpu: Millis::secs(60), ..Limits::default() };
        let runtime = Runtime::new(RuntimeSettings::default(), vec![Box::new(providers::config::Config)])?;
        let bench = Bench { runtime, limits };
        let composed = format!(
            "(component {NEXT} {LOOP} (instance $n (instantiate $next))
               (instance $l (instantiate $loop (with \"{QUOTE}\" (instance $n \"{QUOTE}\"))))
               (export \"{RUN}\" (instance $l \"{RUN}\")))"
        );
        let composed = bench.workload(bench.link(&wat::parse_str(composed)?, &[])?, true, Bindings::new());
        let small = wat::parse_str(NEXT)?;
        let report = Report {
            composed_us: measure(&composed, 10_000).await?,
            warm_us: measure(&bench.pair(&small, true)?, 500).await?,
            cold_us: measure(&bench.pair(&small, false)?, 100).await?,
            cold_rust_us: measure(&bench.pair(&pricing, false)?, 100).await?,
        };
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    })
}
