//! Fields of every kind on their way from a job to the driver: through the schema, the agent, and MessagePack.

use plugin::contracts::hashicorp::nomad::plugins::base::proto::SetConfigRequest;
use plugin::error::is_recoverable;
use serde_json::json;

use crate::agent::Agent;
use crate::host::set;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_texts_and_blocks_arrive_as_they_were_written() {
    let mut agent = Agent::start().await;
    let config = json!({
        "vcpus": 2, "seconds": "7200", "balloon": 5_000_000_000_u64, "kernel": "ä\n", "cores": [0, 3.0], "limits": {"ops": 100},
        "metadata": {"region": "eu", "${key}": "x"},
        "drive": {"data": {"path": "/a", "size": 1024, "writable": true}, "logs": {"path": "/b"}},
    });
    let task = agent.task("full", &config).unwrap();
    agent.start_task(&task).await.unwrap();
    let facts = agent.inspect("full").await.unwrap().driver.unwrap().attributes;
    for (name, value) in [
        ("vcpus", "2"),
        ("seconds", "7200"),
        ("balloon", "Some(5000000000)"),
        ("kernel", "ä\n"),
        ("cores", "[0, 3]"),
        ("limits", r#"{"ops": 100}"#),
        ("metadata", r#"{"${key}": "x", "region": "eu"}"#),
        ("drive.data", "/a 1024 true"),
        ("drive.logs", "/b 64 false"),
    ] {
        assert_eq!(facts[name], value, "{name}");
    }
    let task = agent.task("short", &json!({"vcpus": 1})).unwrap();
    agent.start_task(&task).await.unwrap();
    let facts = agent.inspect("short").await.unwrap().driver.unwrap().attributes;
    for (name, value) in [
        ("seconds", "3600"),
        ("balloon", "None"),
        ("kernel", "vmlinux-${arch} \"small\""),
        ("cores", "[]"),
        ("limits", "{}"),
        ("metadata", "{}"),
    ] {
        assert_eq!(facts[name], value, "{name}");
    }
}

/// What the schema does not allow an agent refuses; what the driver does not, the driver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused() {
    let mut agent = Agent::with(json!({"most": 4})).await;
    for config in [
        json!({}),
        json!({"vcpus": "two"}),
        json!({"vcpus": 1, "cores": ["x"]}),
        json!({"vcpus": 1, "limits": {"ops": "x"}}),
        json!({"vcpus": 1, "metadata": {"a": []}}),
        json!({"vcpus": 1, "disk": 1}),
    ] {
        assert!(agent.task("refused", &config).is_err(), "{config}");
    }
    for (config, why) in [
        (json!({"vcpus": 5}), "`vcpus` is 5, and this client gives a task 4"),
        (json!({"vcpus": 1.5}), "1.5 is no whole number"),
        (json!({"vcpus": -1}), "-1 is no whole number"),
    ] {
        let task = agent.task("refused", &config).unwrap();
        let refused = agent.start_task(&task).await.unwrap_err();
        assert!(refused.message().contains(why) && !is_recoverable(&refused), "{config}: {refused}");
    }
    let wrong = set(&agent.agent_schema, &json!({"most": 0}), None);
    let refused = agent.clients.base.set_config(wrong).await.unwrap_err();
    assert!(refused.message().contains("`most` is 0"), "{refused}");
    // An agent without a block of it sends nothing at all.
    agent.clients.base.set_config(SetConfigRequest::default()).await.unwrap();
    let task = agent.task("more", &json!({"vcpus": 8})).unwrap();
    agent.start_task(&task).await.unwrap();
}
