//! What a driver says and is asked, beside its configuration: capabilities, the life of a task, signals, networks, events, state
//! of other versions, the plugin's own log.

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    CreateNetworkRequest, DestroyNetworkRequest, DestroyTaskRequest, Nothing, SignalTaskRequest, StopTaskRequest,
    TaskHandle, TaskStatsRequest,
};
use plugin::contracts::hashicorp::nomad::plugins::shared::structs::attribute::Value;
use plugin::contracts::plugin::Empty;
use plugin::error::is_recoverable;
use serde_json::json;
use tonic::Code;

use crate::agent::Agent;
use crate::host::until;

/// What a driver can do it says, and what it cannot is refused as that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capabilities_are_those_of_the_driver() {
    let mut agent = Agent::with(json!({"most": 4})).await;
    let driver = &mut agent.clients.driver;
    let has = driver.capabilities(Nothing {}).await.unwrap().into_inner().capabilities.unwrap();
    assert!(has.send_signals && has.exec && has.must_create_network && has.disable_log_collection);
    assert!(!has.dynamic_workload_users);
    assert_eq!((has.fs_isolation, has.mount_configs, has.network_isolation_modes), (2, 1, vec![0, 1]));
    let mut fingerprints = driver.fingerprint(Nothing {}).await.unwrap().into_inner();
    let first = fingerprints.message().await.unwrap().unwrap();
    let most = &first.attributes["driver.sample.most"];
    assert_eq!((first.health, most.value.clone(), most.unit.as_str()), (2, Some(Value::IntVal(4)), "MHz"));
    // What the client says of itself reaches the driver.
    assert_eq!(first.attributes["driver.sample.ports"].value, Some(Value::IntVal(14000)));
    // It does not measure, and says nothing: agents would ask for a refusal again each second.
    let stats = TaskStatsRequest { task_id: "x".into(), collection_interval: None };
    let mut stats = driver.task_stats(stats).await.unwrap().into_inner();
    agent.clients.controller.shutdown(Empty {}).await.unwrap();
    assert!(stats.message().await.unwrap().is_none(), "it ends with the plugin");
}

/// From start to destruction, with an event, a signal, and where it is reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_started_signalled_and_destroyed() {
    let mut agent = Agent::start().await;
    let mut events = agent.clients.driver.task_events(Nothing {}).await.unwrap().into_inner();
    let task = agent.task("life", &json!({"vcpus": 1})).unwrap();
    let started = agent.start_task(&task).await.unwrap();
    let event = events.message().await.unwrap().unwrap();
    assert_eq!(
        (event.task_id.as_str(), event.alloc_id.as_str(), event.task_name.as_str()),
        ("life", "an-allocation", "clock")
    );
    assert!(event.message.contains("3600 s") && event.timestamp.is_some(), "{event:?}");
    let refused = agent.start_task(&task).await.unwrap_err();
    assert!(refused.message().contains("started already"), "{refused}");

    let seen = agent.inspect("life").await.unwrap();
    assert_eq!(seen.network_override, started.network_override);
    assert_eq!((seen.network_override.unwrap().port_map["http"], seen.task.unwrap().state), (80, 1));
    let driver = agent.clients.driver.clone();
    let signal = async |name: &str| {
        let request = SignalTaskRequest { task_id: "life".into(), signal: name.into() };
        driver.clone().signal_task(request).await.map(drop)
    };
    signal("SIGHUP").await.unwrap();
    assert!(signal("SIGWINCH").await.unwrap_err().message().contains("`SIGWINCH`"));
    let without_force = DestroyTaskRequest { task_id: "life".into(), force: false };
    assert!(agent.clients.driver.destroy_task(without_force.clone()).await.is_err());
    signal("SIGTERM").await.unwrap();
    assert_eq!(agent.wait("life").await.unwrap().signal, 15);
    assert_eq!(agent.inspect("life").await.unwrap().task.unwrap().state, 2);
    agent.clients.driver.destroy_task(without_force).await.unwrap();
    assert_eq!(agent.wait("life").await.unwrap_err().code(), Code::NotFound);
    let stop = StopTaskRequest { task_id: "life".into(), ..StopTaskRequest::default() };
    agent.clients.driver.stop_task(stop).await.unwrap();
}

/// A network that the driver makes is told of once as new, with what the agent asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_is_made_once_and_removed() {
    let mut agent = Agent::start().await;
    let driver = &mut agent.clients.driver;
    let ask = |hostname: &str| CreateNetworkRequest { alloc_id: "a1".into(), hostname: hostname.into() };
    let made = driver.create_network(ask("web")).await.unwrap().into_inner();
    let network = made.isolation_spec.unwrap();
    assert_eq!((made.created, network.mode, network.path.as_str()), (true, 1, "/run/sample/a1"));
    assert_eq!(
        (network.labels["made-by"].as_str(), network.hosts_config.clone().unwrap().hostname.as_str()),
        ("sample", "web")
    );
    // Agents before 1.1.5 name no host.
    let again = driver.create_network(ask("")).await.unwrap().into_inner();
    assert!(!again.created && again.isolation_spec.unwrap().hosts_config.is_none());
    let remove = DestroyNetworkRequest { alloc_id: "a1".into(), isolation_spec: Some(network) };
    driver.destroy_network(remove).await.unwrap();
    assert!(driver.create_network(ask("web")).await.unwrap().into_inner().created);
}

/// The next plugin takes tasks over, also those of the version before; of a later one it says what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_this_version_and_the_one_before_are_found_again() {
    let mut agent = Agent::start().await;
    let task = agent.task("kept", &json!({"vcpus": 3})).unwrap();
    let handle = agent.start_task(&task).await.unwrap().handle.unwrap();
    let mut agent = agent.relaunch().await;
    assert_eq!(agent.wait("kept").await.unwrap_err().code(), Code::NotFound);
    // Agents keep a task without its block.
    let of = |id: &str, state: &str| {
        let mut handle = handle.clone();
        let config = handle.config.as_mut().unwrap();
        config.msgpack_driver_config.clear();
        config.id = id.to_owned();
        TaskHandle { driver_state: if state.is_empty() { handle.driver_state } else { state.into() }, ..handle }
    };
    for _ in 0..2 {
        agent.recover(&of("kept", "")).await.unwrap();
    }
    assert_eq!(agent.inspect("kept").await.unwrap().driver.unwrap().attributes["kept.vcpus"], "3");
    // Its time was over before anybody looked.
    agent.recover(&of("older", r#"{"version":1,"state":{"ends":1}}"#)).await.unwrap();
    assert_eq!(agent.inspect("older").await.unwrap().driver.unwrap().attributes["kept.vcpus"], "1");
    assert_eq!(agent.wait("older").await.unwrap().exit_code, 0);
    for (state, why) in [
        (r#"{"version":3,"state":{}}"#, "version 3 of its state, and this one writes version 2"),
        (r#"{"version":0,"state":{}}"#, "it takes over version 1"),
        ("x", "cannot be read"),
    ] {
        let refused = agent.recover(&of("other", state)).await.unwrap_err();
        assert!(refused.message().contains(why) && !is_recoverable(&refused), "{refused}");
    }
}

/// A driver hears of its process's end once, whether the host is one that says so twice or one that does not know how; and
/// every line the plugin writes is one that agents make a structured entry of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_is_told_of_the_end_and_the_log_is_structured() {
    for new in [true, false] {
        let mut agent = Agent::start().await;
        if new {
            agent.clients.driver.init(Nothing {}).await.unwrap();
            agent.clients.driver.shutdown(Nothing {}).await.unwrap();
        }
        let task = agent.task("refused", &json!({"vcpus": 1000})).unwrap();
        agent.start_task(&task).await.unwrap_err();
        agent.clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(agent.process.ended().success());
        let log = agent.process.log.clone();
        until("the last line", || log.lock().unwrap().contains("the driver is done")).await;
        let log = log.lock().unwrap();
        let messages: Vec<String> = log
            .lines()
            .map(|line| {
                let entry: serde_json::Value =
                    serde_json::from_str(line).unwrap_or_else(|cause| panic!("{cause}: {line}"));
                for key in ["@level", "@message", "@timestamp", "@module"] {
                    assert!(entry[key].is_string(), "{key}: {line}");
                }
                entry["@message"].as_str().unwrap().to_owned()
            })
            .collect();
        let count = |message: &str| messages.iter().filter(|said| *said == message).count();
        assert_eq!(count("an agent begins"), usize::from(new), "{messages:?}");
        assert_eq!((count("a task does not start"), count("the driver is done")), (1, 1), "{messages:?}");
    }
}
