//! Calls of exports other than the HTTP handler: the same limits, faults, counters and reuse.

use std::sync::Arc;

use model::World;
use model::app::Reuse;
use model::unit::{ByteSize, Millis};
use runtime::wasmtime::component::ComponentExportIndex;
use runtime::{Fault, Sinks, Workload};

use crate::support::{Rig, call, file, get};

/// Exports `acme:math/ops@1.0.0`: `add` answers how often the instance was asked in the high half, the sum in the low.
const MATH: &str = r#"(component
  (core module $m
    (memory (export "memory") 1)
    (global $asked (mut i32) (i32.const 0))
    (func (export "add") (param i32 i32) (result i64)
      (global.set $asked (i32.add (global.get $asked) (i32.const 1)))
      (i64.or
        (i64.shl (i64.extend_i32_u (global.get $asked)) (i64.const 32))
        (i64.extend_i32_u (i32.add (local.get 0) (local.get 1)))))
    (func (export "trap") unreachable)
    (func (export "spin") (loop br 0))
    (func (export "grow") (result i32) (if (i32.eq (memory.grow (i32.const 1024)) (i32.const -1)) (then unreachable)) i32.const 1))
  (core instance $i (instantiate $m))
  (func $add (param "a" u32) (param "b" u32) (result u64) (canon lift (core func $i "add")))
  (func $trap (canon lift (core func $i "trap")))
  (func $spin (canon lift (core func $i "spin")))
  (func $grow (result u32) (canon lift (core func $i "grow")))
  (instance $ops (export "add" (func $add)) (export "trap" (func $trap)) (export "spin" (func $spin)) (export "grow" (func $grow)))
  (export "acme:math/ops@1.0.0" (instance $ops)))"#;

/// Exports an asynchronous function.
const LATER: &str = r#"(component
  (core func $return (canon task.return (result u32)))
  (core module $m
    (import "" "return" (func $return (param i32)))
    (func (export "double") (param i32) (result i32)
      (call $return (i32.mul (local.get 0) (i32.const 2)))
      i32.const 0)
    (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
  (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
  (func $double async (param "n" u32) (result u32)
    (canon lift (core func $i "double") async (callback (core func $i "callback"))))
  (instance $ops (export "double" (func $double)))
  (export "acme:math/later@1.0.0" (instance $ops)))"#;

fn workload(rig: &Rig, text: &str, world: World) -> Arc<Workload> {
    let code =
        rig.runtime.load(world, file(&runtime::compile(&wat::parse_str(text).unwrap(), world).unwrap())).unwrap();
    let linked = rig.runtime.link(&code, &[]).unwrap();
    let sinks = Sinks { log: rig.log.clone(), outbound: None, sockets: None };
    Workload::new(linked, rig.limits, rig.reuse, Arc::new(rig.bindings.clone()), sinks)
}

fn export(work: &Workload, interface: &str, name: &str) -> ComponentExportIndex {
    let component = work.instance_pre().component();
    let interface = component.get_export_index(None, interface).unwrap();
    component.get_export_index(Some(&interface), name).unwrap()
}

/// How often the instance was asked, and the sum.
async fn add(work: &Arc<Workload>, a: u32, b: u32) -> Result<(u32, u32), Fault> {
    let index = export(work, "acme:math/ops@1.0.0", "add");
    let sum = work
        .invoke(move |store, instance| {
            Box::pin(async move {
                let add = instance.get_typed_func::<(u32, u32), (u64,)>(&mut *store, index)?;
                Ok(add.call_async(store, (a, b)).await?.0)
            })
        })
        .await?;
    Ok(((sum >> 32) as u32, sum as u32))
}

async fn unit(work: &Arc<Workload>, name: &str) -> Fault {
    let index = export(work, "acme:math/ops@1.0.0", name);
    let some = usize::from(name == "grow");
    work.invoke(move |store, instance| {
        Box::pin(async move {
            let func = instance.get_func(&mut *store, index).unwrap();
            let mut results = [runtime::wasmtime::component::Val::Bool(false)];
            func.call_async(store, &[], &mut results[..some]).await
        })
    })
    .await
    .unwrap_err()
}

#[tokio::test]
async fn an_export_is_called_on_a_fresh_instance_or_a_kept_one() {
    for world in [World::P2, World::P3] {
        let mut rig = Rig::new();
        let work = workload(&rig, MATH, world);
        work.probe().await.unwrap();
        assert_eq!(add(&work, 1, 2).await.unwrap(), (1, 3));
        assert_eq!(add(&work, 3, 4).await.unwrap(), (1, 7));
        rig.reuse = Some(Reuse { requests: 2, idle: Millis(60_000) });
        let work = workload(&rig, MATH, world);
        for asked in [1, 2, 1] {
            assert_eq!(add(&work, 1, 1).await.unwrap(), (asked, 2));
        }
        assert_eq!((work.meter().calls(), work.meter().failed(), work.meter().snapshot().instances), (3, 0, 2));
    }
}

#[tokio::test]
async fn an_asynchronous_export_is_called() {
    let rig = Rig::new();
    let work = workload(&rig, LATER, World::P3);
    let index = export(&work, "acme:math/later@1.0.0", "double");
    let double = work.invoke(move |store, instance| {
        Box::pin(async move {
            let double = instance.get_typed_func::<(u32,), (u32,)>(&mut *store, index)?;
            store.run_concurrent(async |accessor| Ok(double.call_concurrent(accessor, (21,)).await?.0)).await?
        })
    });
    assert_eq!(double.await.unwrap(), 42);
}

#[tokio::test]
async fn faults_are_those_of_a_request() {
    let mut rig = Rig::new();
    rig.reuse = Some(Reuse { requests: 100, idle: Millis(60_000) });
    rig.limits.cpu = Millis(30);
    rig.limits.memory = ByteSize::mib(2);
    rig.limits.wall = Millis(5000);
    let work = workload(&rig, MATH, World::P2);
    assert!(matches!(unit(&work, "trap").await, Fault::Trap { .. }));
    assert_eq!(unit(&work, "spin").await, Fault::CpuTime { limit: Millis(30) });
    assert_eq!(unit(&work, "grow").await, Fault::Memory { limit: ByteSize::mib(2) });
    let waits = work.invoke(|_, _| Box::pin(std::future::pending::<runtime::wasmtime::Result<()>>())).await;
    assert_eq!(waits.unwrap_err(), Fault::WallTime { limit: Millis(5000) });
    assert_eq!((work.meter().calls(), work.meter().failed()), (4, 4));
    assert_eq!(work.idle_instances(), 0, "none that failed is used again");
    assert_eq!(work.handle(get("/")).await.unwrap_err(), Fault::NoHandler);
}

#[tokio::test]
async fn a_component_with_a_handler_is_called_both_ways() {
    let mut rig = Rig::new();
    rig.reuse = Some(Reuse { requests: 100, idle: Millis(60_000) });
    let work = rig.workload("hello");
    let found = work.invoke(|store, instance| {
        Box::pin(
            async move { Ok(instance.get_export_index(store, None, "wasi:http/incoming-handler@0.2.0").is_some()) },
        )
    });
    found.await.unwrap();
    assert_eq!(call(&work, "/").await.unwrap(), (200, "hello".to_owned()));
    assert_eq!(work.meter().snapshot().instances, 1);
}
