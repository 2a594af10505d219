//! An agent with the sample driver: three launches, and what agents ask at their start.

use plugin::contracts::hashicorp::nomad::plugins::base::proto::{
    ConfigSchemaRequest, NomadConfig, NomadDriverConfig, PluginInfoRequest,
};
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    ExitResult, InspectTaskResponse, Nothing, RecoverTaskRequest, StartTaskRequest, StartTaskResponse, TaskConfig,
    TaskHandle, TaskRequest,
};
use plugin::contracts::hashicorp::nomad::plugins::shared::hclspec::Spec;
use plugin::contracts::plugin::Empty;
use serde_json::{Value, json};
use tonic::Status;

use crate::block::block;
use crate::host::{Clients, Process, set};

/// The plugin.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sample-driver");

/// An agent with its live plugin.
pub struct Agent {
    pub process: Process,
    pub clients: Clients,
    /// Of the agent's block.
    pub agent_schema: Spec,
    /// Of a task's block.
    pub schema: Spec,
    config: Value,
}

impl Agent {
    /// Starts as an agent does.
    pub async fn start() -> Self {
        Self::with(json!({})).await
    }

    /// As [`Agent::start`], with this configuration.
    pub async fn with(config: Value) -> Self {
        // What is it?
        let mut process = Process::launch(PROGRAM, &[]);
        let mut clients = Clients::new(process.connect().await);
        let info = clients.base.plugin_info(PluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.name.as_str(), info.r#type), ("sample", 2));
        let schema = clients.base.config_schema(ConfigSchemaRequest {}).await.unwrap().into_inner().spec.unwrap();
        clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(process.ended().success());
        // Does it take its configuration?
        let mut process = Process::launch(PROGRAM, &[]);
        let mut clients = Clients::new(process.connect().await);
        for _ in 0..2 {
            clients.base.set_config(set(&schema, &config, None)).await.unwrap();
        }
        clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(process.ended().success());
        // The one that stays.
        Self::live(schema, config).await
    }

    async fn live(agent_schema: Spec, config: Value) -> Self {
        let process = Process::launch(PROGRAM, &[]);
        let mut clients = Clients::new(process.connect().await);
        let ports = NomadDriverConfig { client_min_port: 14000, client_max_port: 14512 };
        let nomad = NomadConfig { driver: Some(ports) };
        clients.base.set_config(set(&agent_schema, &config, Some(nomad))).await.unwrap();
        let schema = clients.driver.task_config_schema(Nothing {}).await.unwrap().into_inner().spec.unwrap();
        Self { process, clients, agent_schema, schema, config }
    }

    /// The plugin is killed, and launched again.
    pub async fn relaunch(self) -> Self {
        let Self { process, agent_schema, config, .. } = self;
        drop(process);
        Self::live(agent_schema, config).await
    }

    /// A task with this block, or why the agent refuses the block.
    pub fn task(&self, id: &str, config: &Value) -> Result<TaskConfig, String> {
        Ok(TaskConfig {
            id: id.to_owned(),
            name: "clock".into(),
            alloc_id: "an-allocation".into(),
            msgpack_driver_config: block(&self.schema, config)?,
            ..TaskConfig::default()
        })
    }

    pub async fn start_task(&mut self, task: &TaskConfig) -> Result<StartTaskResponse, Status> {
        Ok(self.clients.driver.start_task(StartTaskRequest { task: Some(task.clone()) }).await?.into_inner())
    }

    pub async fn recover(&mut self, handle: &TaskHandle) -> Result<(), Status> {
        let request = RecoverTaskRequest { task_id: String::new(), handle: Some(handle.clone()) };
        self.clients.driver.recover_task(request).await.map(drop)
    }

    pub async fn inspect(&mut self, id: &str) -> Result<InspectTaskResponse, Status> {
        Ok(self.clients.driver.inspect_task(TaskRequest { task_id: id.to_owned() }).await?.into_inner())
    }

    pub async fn wait(&mut self, id: &str) -> Result<ExitResult, Status> {
        let answer = self.clients.driver.wait_task(TaskRequest { task_id: id.to_owned() }).await?.into_inner();
        Ok(answer.result.unwrap())
    }
}
