//! The kit beyond one driver: its log as agents read it.

use std::time::Duration;

use crate::agent::{Agent, until};

/// Every line the plugin writes is one that agents make a structured entry of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_structured() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("log", "hello");
    alloc.config.msgpack_driver_config = crate::block::block(
        &agent.schema,
        &serde_json::json!({"component": "local/none.wasm", "http": {"port": "http"}}),
    )
    .unwrap();
    agent.start_task(&alloc.config).await.unwrap_err();
    let log = agent.process.as_ref().unwrap().log.clone();
    until("a line", || log.lock().unwrap().contains("a task does not start")).await;
    for line in log.lock().unwrap().lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|cause| panic!("{cause}: {line}"));
        for key in ["@level", "@message", "@timestamp", "@module"] {
            assert!(entry[key].is_string(), "{key}: {line}");
        }
    }
    assert!(agent.process.as_ref().unwrap().took < Duration::from_secs(5));
}
