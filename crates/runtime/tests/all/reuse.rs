//! Instance reuse: off unless asked for, bounded by calls and idle time, ended by a trap.

use std::sync::Arc;

use model::World;
use model::app::Reuse;
use model::unit::Millis;

use runtime::{Runtime, RuntimeSettings};

use crate::support::{Extras, Rig, call, until};

fn rig(requests: u32, idle_ms: u64) -> Rig {
    let mut rig = Rig::new();
    rig.reuse = Some(Reuse { requests, idle: Millis(idle_ms) });
    rig
}

#[tokio::test]
async fn instances_are_fresh_by_default() {
    let rig = Rig::new();
    let work = rig.workload("hello");
    for _ in 0..3 {
        call(&work, "/").await.unwrap();
    }
    assert_eq!(work.meter().snapshot().instances, 3);
}

#[tokio::test]
async fn an_instance_serves_as_often_as_it_may() {
    let rig = rig(3, 60_000);
    for (name, world) in [("hello", World::P2), ("hello-p3", World::P3), ("hello", World::P3)] {
        let work = rig.workload_in(name, world);
        for made in [1, 1, 1, 2, 2, 2, 3] {
            assert_eq!(call(&work, "/").await.unwrap(), (200, "hello".to_owned()));
            assert_eq!(work.meter().snapshot().instances, made, "{name}");
        }
    }
}

#[tokio::test]
async fn a_probe_leaves_its_instance_for_the_first_call() {
    let rig = rig(10, 60_000);
    let work = rig.workload("hello");
    work.probe().await.unwrap();
    call(&work, "/").await.unwrap();
    assert_eq!(work.meter().snapshot().instances, 1);
}

#[tokio::test]
async fn a_trap_ends_the_instance() {
    let rig = rig(100, 60_000);
    let work = rig.workload("probe");
    call(&work, "/").await.unwrap();
    call(&work, "/trap").await.unwrap_err();
    call(&work, "/").await.unwrap();
    assert_eq!(work.meter().snapshot().instances, 2);
}

#[tokio::test]
async fn idle_instances_go() {
    let rig = rig(100, 3000);
    let work = rig.workload("hello");
    call(&work, "/").await.unwrap();
    assert_eq!(work.idle_instances(), 1);
    until("the idle instance goes", || work.idle_instances() == 0).await;
    // The reaper starts again for the next one.
    call(&work, "/").await.unwrap();
    until("the next one goes too", || work.idle_instances() == 0).await;
    assert_eq!(work.meter().snapshot().instances, 2);
}

#[tokio::test]
async fn limits_start_anew_with_each_call() {
    const CALL: &str = "/hostcalls?n=300000";
    let mut rig = rig(100, 60_000);
    // What such a call takes on this machine: a budget is several of them, and is used up several times.
    let alone = rig.workload("probe");
    call(&alone, CALL).await.unwrap();
    rig.limits.cpu = Millis(alone.meter().cpu_us() / 1000 * 4 + 1);
    let work = rig.workload("probe");
    while work.meter().cpu_us() < rig.limits.cpu.0 * 1000 * 2 {
        call(&work, CALL).await.unwrap();
    }
    assert_eq!(work.meter().snapshot().instances, 1);
}

#[tokio::test]
async fn workloads_do_not_share_instances() {
    let rig = rig(100, 60_000);
    let (one, two) = (rig.workload("hello"), rig.workload("hello"));
    call(&one, "/").await.unwrap();
    call(&two, "/").await.unwrap();
    assert_eq!((one.meter().snapshot().instances, two.meter().snapshot().instances), (1, 1));
}

/// A rig with a pool of `instances` slots.
fn small(instances: u32, reuse: Option<Reuse>) -> Rig {
    let settings = RuntimeSettings { instances, ..RuntimeSettings::default() };
    Rig { runtime: Runtime::new(settings, vec![Box::new(Extras)]).unwrap(), reuse, ..Rig::new() }
}

#[tokio::test]
async fn a_workload_keeps_only_a_part_of_the_pool() {
    let rig = small(32, Some(Reuse { requests: 100, idle: Millis(60_000) }));
    let work = rig.workload("probe");
    let slow = || call(&work, "/slow?ms=200");
    let (a, b, c, d, e, f) = tokio::join!(slow(), slow(), slow(), slow(), slow(), slow());
    assert!([a, b, c, d, e, f].iter().all(Result::is_ok));
    assert_eq!((work.meter().snapshot().instances, work.idle_instances()), (6, 2));
}

#[tokio::test]
async fn waiting_instances_give_way_when_the_pool_is_full() {
    let mut rig = small(4, Some(Reuse { requests: 100, idle: Millis(60_000) }));
    let mut waiting: Vec<Arc<_>> = Vec::new();
    for _ in 0..4 {
        let work = rig.workload("hello");
        call(&work, "/").await.unwrap();
        waiting.push(work);
    }
    let idle = |works: &[Arc<runtime::Workload>]| works.iter().map(|work| work.idle_instances()).sum::<usize>();
    assert_eq!(idle(&waiting), 4, "every slot is held by an instance that waits");
    rig.reuse = None;
    let other = rig.workload("probe");
    other.probe().await.unwrap();
    assert_eq!(idle(&waiting), 2, "the longest waiting half went");
    assert_eq!(waiting[0].idle_instances(), 0, "the oldest first");
    let slow = || call(&other, "/slow?ms=100");
    let (a, b, c, d) = tokio::join!(slow(), slow(), slow(), slow());
    assert!([a, b, c, d].iter().all(Result::is_ok), "calls take every slot that only waits");
    assert_eq!(idle(&waiting), 0);
    // Those that gave way are made anew.
    assert_eq!(call(&waiting[0], "/").await.unwrap().0, 200);
}
