//! Nomad's base service: who the plugin is, and its agent configuration.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::Driver;
use crate::contracts::hashicorp::nomad::plugins::base::proto::base_plugin_server::BasePlugin;
use crate::contracts::hashicorp::nomad::plugins::base::proto::{
    ConfigSchemaRequest, ConfigSchemaResponse, PluginInfoRequest, PluginInfoResponse, PluginType, SetConfigRequest,
    SetConfigResponse,
};

/// The version of the driver protocol: one since 0.9.
const API: &str = "v0.1.0";

pub(super) struct Base<D>(pub(super) Arc<D>);

#[tonic::async_trait]
impl<D: Driver> BasePlugin for Base<D> {
    async fn plugin_info(&self, _: Request<PluginInfoRequest>) -> Result<Response<PluginInfoResponse>, Status> {
        let info = self.0.info();
        Ok(Response::new(PluginInfoResponse {
            r#type: PluginType::Driver.into(),
            plugin_api_versions: vec![API.to_owned()],
            plugin_version: info.version.to_owned(),
            name: info.name.to_owned(),
        }))
    }

    async fn config_schema(&self, _: Request<ConfigSchemaRequest>) -> Result<Response<ConfigSchemaResponse>, Status> {
        Ok(Response::new(ConfigSchemaResponse { spec: Some(self.0.agent_schema()) }))
    }

    async fn set_config(&self, request: Request<SetConfigRequest>) -> Result<Response<SetConfigResponse>, Status> {
        let SetConfigRequest { msgpack_config, nomad_config, plugin_api_version } = request.into_inner();
        if !plugin_api_version.is_empty() && plugin_api_version.trim_start_matches('v') != API.trim_start_matches('v') {
            return Err(Status::invalid_argument(format!("this plugin speaks {API}, not {plugin_api_version}")));
        }
        self.0.configure(&msgpack_config)?;
        // While it only tries the block, an agent says nothing of itself.
        if let Some(client) = nomad_config.and_then(|nomad| nomad.driver) {
            self.0.client(&client);
        }
        Ok(Response::new(SetConfigResponse {}))
    }
}
