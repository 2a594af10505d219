//! Old and new agents: what they say that this driver does not know, and what they do not say, changes nothing. That the kit
//! reads their messages is tested with it (`crates/plugin/tests`).

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    AllocatedTaskResources, NetworkPort, NetworkResource, Resources, StartTaskRequest, StartTaskResponse, TaskConfig,
};
use prost::Message as _;

use crate::agent::{Agent, Alloc};
use crate::host::{raw, with_field};

const START: &str = "/hashicorp.nomad.plugins.drivers.proto.Driver/StartTask";

async fn serves(agent: &mut Agent, alloc: &Alloc, request: Vec<u8>) {
    let channel = agent.process.as_ref().unwrap().connect().await;
    let answer = raw(channel, START, request).await.unwrap();
    let handle = StartTaskResponse::decode(&*answer).unwrap().handle.unwrap();
    assert_eq!(handle.config.unwrap().id, alloc.id());
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// 29: an agent of 1.0 names neither the job's id nor the node, has no port mappings, and this one leaves out what bounds a task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_an_old_agent_is_served() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("old", "hello");
    let port = NetworkPort { label: "http".into(), value: alloc.address.port().into() };
    let network = NetworkResource {
        ip: alloc.address.ip().to_string(),
        reserved_ports: vec![port],
        ..NetworkResource::default()
    };
    let allocated = AllocatedTaskResources { networks: vec![network], ..AllocatedTaskResources::default() };
    let task = TaskConfig {
        resources: Some(Resources { allocated_resources: Some(allocated), ..Resources::default() }),
        job_name: String::new(),
        task_group_name: String::new(),
        ..alloc.config.clone()
    };
    assert!(task.job_id.is_empty() && task.node_id.is_empty() && task.dns.is_none());
    serves(&mut agent, &alloc, StartTaskRequest { task: Some(task) }.encode_to_vec()).await;
}

/// 29: an agent of 2.0 says more of the job and the node, and a later one what nobody knows yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_a_new_agent_is_served() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("new", "hello");
    let task = TaskConfig {
        job_id: "job-1".into(),
        namespace: "default".into(),
        node_name: "node".into(),
        node_id: "node-1".into(),
        parent_job_id: "parent".into(),
        ..alloc.config.clone()
    };
    // A message that comes twice is one: the second has a field of the task, and one of its resources.
    let resources = with_field(Vec::new(), 6, &with_field(Vec::new(), 40, b"new"));
    let more = with_field(resources, 99, b"new");
    let bytes = with_field(StartTaskRequest { task: Some(task) }.encode_to_vec(), 1, &more);
    serves(&mut agent, &alloc, with_field(bytes, 98, b"new")).await;
}
