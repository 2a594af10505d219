//! What cannot run: the right sentence, the right retry class, and nothing left behind.

use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::{
    DnsConfig, ExecTaskRequest, Mount, NetworkRequest, Nothing, SignalTaskRequest,
};
use drivers::plugin::error::is_recoverable;
use serde_json::json;
use tonic::Code;

use crate::agent::Agent;
use crate::block::block;

/// 8, 11: jobs that cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_cannot_run_is_told_why_and_not_tried_again() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("refused", "hello");
    std::fs::write(alloc.task_dir().join("local/text.wasm"), "no wasm").unwrap();
    std::fs::copy(crate::agent::guest("wants-unknown"), alloc.task_dir().join("local/unknown.wasm")).unwrap();
    std::fs::copy(crate::agent::guest("command"), alloc.task_dir().join("local/command.wasm")).unwrap();
    std::fs::copy(crate::agent::guest("kv-counter"), alloc.task_dir().join("local/kv.wasm")).unwrap();
    let http = json!({"port": "http"});
    for (config, why) in [
        (json!({"component": "local/none.wasm", "http": http}), "there is no component at"),
        (json!({"component": "../../../etc/passwd", "http": http}), "leads out of the task's directory"),
        (json!({"component": "local/text.wasm", "http": http}), "not WebAssembly"),
        (json!({"component": "local/app.wasm", "http": {"port": "admin"}}), "it has http"),
        (json!({"component": "local/app.wasm"}), "no `http` block"),
        (json!({"component": "local/command.wasm", "http": http}), "it is a program"),
        (json!({"component": "local/unknown.wasm", "http": http}), "import"),
        (json!({"component": "local/kv.wasm", "http": http}), "wasi:keyvalue"),
        (
            json!({"component": "local/kv.wasm", "http": http, "link": {"wasi:keyvalue": {"provider": "mongo"}}}),
            "`mongo` is no provider for wasi:keyvalue",
        ),
        (json!({"component": "local/kv.wasm", "http": http, "link": {"wasi:keyvalue": {"provider": "redis"}}}), "url"),
        (json!({"component": "registry.example/a/b@sha256:12", "http": http}), "digest"),
    ] {
        let mut task = alloc.config.clone();
        task.msgpack_driver_config = block(&agent.schema, &config).unwrap();
        let refused = agent.start_task(&task).await.expect_err(&config.to_string());
        assert!(refused.message().contains(why), "{config}: {refused}");
        assert!(!is_recoverable(&refused), "{config}: {refused}");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(agent.left().is_empty(), "{config}: {:?}", agent.left());
    }
    // What the schema lacks, agents refuse themselves.
    assert!(block(&agent.schema, &json!({"component": "a", "image": "x"})).is_err());
    assert!(block(&agent.schema, &json!({})).is_err());

    let mut task = alloc.config.clone();
    task.mounts = vec![Mount { task_path: "/data".into(), host_path: "/etc/hostname".into(), ..Mount::default() }];
    assert!(agent.start_task(&task).await.unwrap_err().message().contains("is no folder"));
    let mut task = alloc.config.clone();
    task.dns = Some(DnsConfig { servers: vec!["10.0.0.1".into()], ..DnsConfig::default() });
    assert!(agent.start_task(&task).await.unwrap_err().message().contains("dns"));
    let mut task = alloc.config.clone();
    task.id.clear();
    assert!(agent.start_task(&task).await.is_err());
}

/// 11: a port that somebody has may be free the next time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_tried_again() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("taken", "hello");
    let held = std::net::TcpListener::bind(alloc.address).unwrap();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(is_recoverable(&refused), "{refused}");
    assert!(refused.message().contains(&alloc.address.to_string()), "{refused}");
    assert!(agent.left().is_empty());
    drop(held);
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// Signatures: whom the operator trusts decides, not the job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsigned_code_runs_only_where_the_operator_says_so() {
    let mut agent = Agent::with(json!({})).await;
    let alloc = agent.alloc("unsigned", "hello");
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("[artifact-unsigned]") && !is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty());
}

/// 9: agent configurations that cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_configuration_that_cannot_be_is_refused() {
    let agent = Agent::start().await;
    let mut base = agent.clients.base.clone();
    let spec = base
        .config_schema(drivers::contracts::hashicorp::nomad::plugins::base::proto::ConfigSchemaRequest {})
        .await
        .unwrap()
        .into_inner()
        .spec
        .unwrap();
    for (config, why) in [
        (json!({"egress": ["10.0.0.1/8"]}), "egress"),
        (json!({"trust_anchors": ["SAANOTAKEY"]}), "trust_anchors"),
        (json!({"waive": ["seccomp", "everything"]}), "`waive`: `everything` is no layer of the sandbox"),
    ] {
        let refused = base.set_config(crate::agent::set(&spec, &config, None)).await.unwrap_err();
        assert!(refused.message().contains(why) && !refused.message().contains("SAANOT"), "{refused}");
    }
    let mut other = crate::agent::set(&spec, &json!({}), None);
    other.plugin_api_version = "v0.2.0".into();
    assert!(base.set_config(other).await.unwrap_err().message().contains("v0.1.0"));
}

/// 10: without its program the driver is there and not detected; with it, it is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_program_is_said_in_the_fingerprint() {
    let agent = Agent::with(json!({"sidereal": "/nonexistent/sidereal"})).await;
    assert_eq!(agent.first.health, 0);
    assert!(agent.first.health_description.contains("not on this machine"), "{:?}", agent.first);
    let agent = Agent::with(json!({"sidereal": "/bin/false"})).await;
    assert_eq!(agent.first.health, 1, "{:?}", agent.first);
}

/// 20, 21: what the driver does not do it does not say it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_supported_is_said() {
    let mut agent = Agent::start().await;
    let driver = &mut agent.clients.driver;
    let capabilities = driver.capabilities(Nothing {}).await.unwrap().into_inner().capabilities.unwrap();
    assert!(!capabilities.send_signals && !capabilities.exec && !capabilities.must_create_network);
    assert_eq!((capabilities.fs_isolation, capabilities.mount_configs), (2, 0));
    assert_eq!(capabilities.network_isolation_modes, [0, 1, 3]);
    let signal = SignalTaskRequest { task_id: "x".into(), signal: "SIGHUP".into() };
    assert_eq!(driver.signal_task(signal).await.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(driver.exec_task(ExecTaskRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(driver.create_network(NetworkRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
}
