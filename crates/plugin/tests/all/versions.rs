//! Agents from 1.0 to 2.0 on the wire: what an old one leaves out and what a new one adds changes nothing.

use plugin::contracts::hashicorp::nomad::plugins::base::proto::{NomadConfig, NomadDriverConfig, SetConfigRequest};
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    Mount, NetworkIsolationSpec, StartTaskRequest, StartTaskResponse,
};
use prost::Message as _;
use serde_json::json;

use crate::agent::Agent;
use crate::block::block;
use crate::host::{raw, with_field};

const START: &str = "/hashicorp.nomad.plugins.drivers.proto.Driver/StartTask";

/// An agent of 1.0: no ids of the job and the node, no resources, no network, no version of the protocol, no hosts of a network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_agent_s_task_runs() {
    let agent = Agent::start().await;
    let channel = agent.process.connect().await;
    let config =
        SetConfigRequest { msgpack_config: block(&agent.agent_schema, &json!({})).unwrap(), ..Default::default() };
    raw(channel.clone(), "/hashicorp.nomad.plugins.base.proto.BasePlugin/SetConfig", config.encode_to_vec())
        .await
        .unwrap();
    let task = agent.task("old", &json!({"vcpus": 1})).unwrap();
    assert!(task.job_id.is_empty() && task.resources.is_none() && task.network_isolation_spec.is_none());
    let answer = raw(channel, START, StartTaskRequest { task: Some(task.clone()) }.encode_to_vec()).await.unwrap();
    let answer = StartTaskResponse::decode(&*answer).unwrap();
    assert_eq!(answer.handle.unwrap().config, Some(task));
}

/// An agent of 2.0 or later: the topology of the machine, who asked for a mount, a network of a kind that is new, and fields in
/// every message that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_s_task_runs() {
    let agent = Agent::start().await;
    let channel = agent.process.connect().await;
    let ports = NomadDriverConfig { client_min_port: 14000, client_max_port: 14512 };
    let nomad = NomadConfig { driver: Some(ports) };
    let config = SetConfigRequest {
        msgpack_config: block(&agent.agent_schema, &json!({})).unwrap(),
        nomad_config: Some(nomad),
        plugin_api_version: "v0.1.0".into(),
    };
    // A message that comes twice is one: here the topology comes into `driver` of `nomad_config`.
    let topology = with_field(Vec::new(), 3, &with_field(Vec::new(), 1, b"nodes"));
    let config = with_field(config.encode_to_vec(), 2, &with_field(Vec::new(), 1, &topology));
    raw(channel.clone(), "/hashicorp.nomad.plugins.base.proto.BasePlugin/SetConfig", config).await.unwrap();

    let mut task = agent.task("new", &json!({"vcpus": 1})).unwrap();
    task.parent_job_id = "parent".into();
    task.network_isolation_spec = Some(NetworkIsolationSpec { mode: 77, ..NetworkIsolationSpec::default() });
    task.mounts = vec![Mount { task_path: "/data".into(), ..Mount::default() }];
    let mount = with_field(with_field(Vec::new(), 5, b"label"), 6, b"volume");
    let more =
        with_field(with_field(with_field(Vec::new(), 7, &mount), 99, b"new"), 16, &with_field(Vec::new(), 50, b"x"));
    let bytes = with_field(StartTaskRequest { task: Some(task) }.encode_to_vec(), 1, &more);
    let answer = raw(channel.clone(), START, with_field(bytes, 98, b"new")).await.unwrap();
    let config = StartTaskResponse::decode(&*answer).unwrap().handle.unwrap().config.unwrap();
    assert_eq!((config.id.as_str(), config.parent_job_id.as_str(), config.mounts.len()), ("new", "parent", 2));
    // A method that only a later agent knows is one that this plugin does not have.
    let unknown = "/hashicorp.nomad.plugins.drivers.proto.Driver/Levitate";
    assert_eq!(raw(channel, unknown, Vec::new()).await.unwrap_err().code(), tonic::Code::Unimplemented);
}
