//! Instance reuse: off unless asked for, bounded by calls and idle time, ended by a trap.

use std::time::Duration;

use model::World;
use model::app::Reuse;
use model::unit::Millis;

use crate::support::{Rig, call, until};

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
    let rig = rig(100, 30);
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
    let mut rig = rig(100, 60_000);
    rig.limits.cpu = Millis(100);
    let work = rig.workload("probe");
    for _ in 0..5 {
        // About half a budget each.
        call(&work, "/hostcalls?n=300000").await.unwrap();
    }
    assert_eq!(work.meter().snapshot().instances, 1);
    assert!(Duration::from_micros(work.meter().cpu_us()) > Duration::ZERO);
}

#[tokio::test]
async fn workloads_do_not_share_instances() {
    let rig = rig(100, 60_000);
    let (one, two) = (rig.workload("hello"), rig.workload("hello"));
    call(&one, "/").await.unwrap();
    call(&two, "/").await.unwrap();
    assert_eq!((one.meter().snapshot().instances, two.meter().snapshot().instances), (1, 1));
}
