//! What components write, and what the platform says about them, as a node reads it.

use api::agent::LogStream;
use model::unit::{ByteSize, Millis};

use crate::rig::{Rig, line};

#[tokio::test]
async fn lines_come_with_their_origin_also_those_from_before_anybody_read() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    rig.get("probe/1/main", "/log?text=early").await;
    let mut logs = rig.logs().await;
    let early = line(&mut logs, |line| line.text == "out early").await;
    assert_eq!((early.app.as_str(), early.component.as_str(), early.revision.0, early.shard), ("probe", "main", 1, 1));
    assert_eq!(early.stream, LogStream::Stdout);
    assert!(early.instance.starts_with("1-"), "{}", early.instance);
    assert!(early.time_ms > 1_600_000_000_000);
    rig.get("probe/1/main", "/log?text=%1b[31m%0aforged").await;
    let out = line(&mut logs, |line| line.stream == LogStream::Stdout).await;
    assert_eq!(out.text, "out \\u{1b}[31m");
    assert_eq!(line(&mut logs, |line| line.stream == LogStream::Stdout).await.text, "forged");
    let warned = line(&mut logs, |line| line.stream == LogStream::Warn).await;
    assert_eq!(warned.context, "probe");
    assert_eq!(warned.instance, out.instance, "one call, one instance");
    assert_ne!(early.instance, out.instance, "another call, another instance");
}

#[tokio::test]
async fn a_flood_is_bounded_and_counted() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    let limits = &mut app.components.values_mut().next().unwrap().limits;
    limits.log_per_call = ByteSize::kib(64);
    limits.log_rate = ByteSize::kib(96);
    limits.cpu = Millis::secs(20);
    rig.run(&app).await;
    let mut logs = rig.logs().await;
    for _ in 0..2 {
        assert_eq!(rig.get("probe/1/main", "/logflood?bytes=4000000").await.status, 200);
    }
    let told = line(&mut logs, |line| line.stream == LogStream::Platform).await;
    assert!(told.text.contains("bytes of this component's log were dropped"), "{}", told.text);
    let dropped = rig.status("probe").await.log_dropped;
    assert!((7_800_000..8_000_000).contains(&dropped), "{dropped}");
}

#[tokio::test]
async fn a_failed_call_is_in_the_log_of_its_component() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    app.components.values_mut().next().unwrap().limits.cpu = Millis(50);
    rig.run(&app).await;
    let mut logs = rig.logs().await;
    rig.get("probe/1/main", "/spin").await;
    let said = line(&mut logs, |line| line.stream == LogStream::Platform).await;
    assert!(said.text.contains("50ms") && said.text.contains("limits.cpu"), "{}", said.text);
    assert_eq!(rig.status("probe").await.last_fault, Some(said.text));
    rig.get("probe/1/main", "/trap").await;
    let said = line(&mut logs, |line| line.stream == LogStream::Platform).await;
    assert!(said.text.contains("unreachable"), "{}", said.text);
}
