//! The services that go-plugin hosts find beside every plugin: shutdown, broker, stdio, and gRPC's health.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::contracts::grpc::health::v1::health_check_response::ServingStatus;
use crate::contracts::grpc::health::v1::health_server::Health;
use crate::contracts::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use crate::contracts::plugin::grpc_broker_server::GrpcBroker;
use crate::contracts::plugin::grpc_controller_server::GrpcController;
use crate::contracts::plugin::grpc_stdio_server::GrpcStdio;
use crate::contracts::plugin::{ConnInfo, Empty, StdioData};

/// The service name that go-plugin hosts ask the health of.
const SERVICE: &str = "plugin";

/// Ends the plugin when the host says so. Tasks go on.
pub(super) struct Controller(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        tracing::debug!("the host ends this plugin");
        self.0.cancel();
        Ok(Response::new(Empty {}))
    }
}

/// Hosts open the stream always; driver plugins open no connections back, so nothing is ever said on it.
pub(super) struct Broker(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcBroker for Broker {
    type StartStreamStream = BoxStream<'static, Result<ConnInfo, Status>>;
    async fn start_stream(
        &self,
        request: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        let mut said = request.into_inner();
        let end = self.0.clone();
        tokio::spawn(async move {
            while let Some(Ok(info)) = said.next().await {
                tracing::debug!(service = info.service_id, "the host announces a connection nobody asked for");
            }
        });
        Ok(Response::new(futures::stream::pending().take_until(end.cancelled_owned()).boxed()))
    }
}

/// A plugin of ours writes nothing to stdout after its first line, and its log to stderr: the stream stays open and silent.
pub(super) struct Stdio(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = BoxStream<'static, Result<StdioData, Status>>;
    async fn stream_stdio(&self, _: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        let end = self.0.clone();
        Ok(Response::new(futures::stream::pending().take_until(end.cancelled_owned()).boxed()))
    }
}

/// Whoever can ask is served.
pub(super) struct Pulse(pub(super) CancellationToken);

#[tonic::async_trait]
impl Health for Pulse {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "" | SERVICE => Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() })),
            other => Err(Status::not_found(format!("this plugin has no service `{other}`"))),
        }
    }
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let status = match request.into_inner().service.as_str() {
            "" | SERVICE => ServingStatus::Serving,
            _ => ServingStatus::ServiceUnknown,
        };
        let first = futures::stream::iter([Ok(HealthCheckResponse { status: status.into() })]);
        let end = self.0.clone();
        Ok(Response::new(first.chain(futures::stream::pending()).take_until(end.cancelled_owned()).boxed()))
    }
}
