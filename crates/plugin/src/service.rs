//! Nomad's driver service in terms of [`Driver`]: each call checked, each failure with its retry class.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::contracts::hashicorp::nomad::plugins::drivers::proto::driver_server::Driver as Wire;
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::{
    CapabilitiesResponse, CreateNetworkRequest, CreateNetworkResponse, DestroyNetworkRequest, DestroyTaskRequest,
    DriverTaskEvent, ExecTaskRequest, ExecTaskResponse, ExecTaskStreamingRequest, ExecTaskStreamingResponse,
    FingerprintResponse, InspectTaskResponse, Nothing, RecoverTaskRequest, SignalTaskRequest, StartTaskRequest,
    StartTaskResponse, StopTaskRequest, TaskConfigSchemaResponse, TaskDriverStatus, TaskHandle, TaskRequest, TaskState,
    TaskStatsRequest, TaskStatsResponse, WaitTaskResponse, start_task_response,
};
use crate::driver::{Command, CreatedNetwork, Driver, Inspection};
use crate::error::Failure;
use crate::{exec, said};

/// Where the host names no interval.
const INTERVAL: Duration = Duration::from_secs(1);
/// No sample is taken more often.
const SHORTEST: Duration = Duration::from_millis(100);

/// A driver, and whether it was told that its process ends.
pub(super) struct Told<D> {
    pub(super) driver: Arc<D>,
    told: OnceCell<()>,
}

impl<D: Driver> Told<D> {
    pub(super) fn new(driver: Arc<D>) -> Self {
        Self { driver, told: OnceCell::new() }
    }

    /// Tells it, and waits until it is done. Whoever comes second waits for the same.
    pub(super) async fn end(&self) {
        self.told.get_or_init(|| self.driver.shutdown()).await;
    }
}

pub(super) struct Service<D> {
    pub(super) driver: Arc<D>,
    pub(super) told: Arc<Told<D>>,
    /// Cancelled when the plugin ends: streams end with it.
    pub(super) end: CancellationToken,
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;
type Answer<T> = Result<Response<T>, Status>;

fn nothing() -> Answer<Nothing> {
    Ok(Response::new(Nothing {}))
}

impl<D> Service<D> {
    fn stream<T: Send + 'static>(&self, items: impl futures::Stream<Item = T> + Send + 'static) -> Answer<Stream<T>> {
        Ok(Response::new(items.map(Ok).take_until(self.end.clone().cancelled_owned()).boxed()))
    }
}

#[tonic::async_trait]
impl<D: Driver> Wire for Service<D> {
    type FingerprintStream = Stream<FingerprintResponse>;
    type TaskStatsStream = Stream<TaskStatsResponse>;
    type TaskEventsStream = Stream<DriverTaskEvent>;
    type ExecTaskStreamingStream = Stream<ExecTaskStreamingResponse>;

    async fn task_config_schema(&self, _: Request<Nothing>) -> Answer<TaskConfigSchemaResponse> {
        Ok(Response::new(TaskConfigSchemaResponse { spec: Some(self.driver.task_schema()) }))
    }

    async fn capabilities(&self, _: Request<Nothing>) -> Answer<CapabilitiesResponse> {
        let capabilities = said::capabilities(self.driver.capabilities());
        Ok(Response::new(CapabilitiesResponse { capabilities: Some(capabilities) }))
    }

    async fn fingerprint(&self, _: Request<Nothing>) -> Answer<Self::FingerprintStream> {
        self.stream(self.driver.fingerprint().map(said::fingerprint))
    }

    async fn init(&self, _: Request<Nothing>) -> Answer<Nothing> {
        self.driver.init().await?;
        nothing()
    }

    async fn shutdown(&self, _: Request<Nothing>) -> Answer<Nothing> {
        // What follows is the controller's shutdown, which alone older agents ask for; tasks go on.
        self.told.end().await;
        nothing()
    }

    async fn start_task(&self, request: Request<StartTaskRequest>) -> Answer<StartTaskResponse> {
        let task = request.into_inner().task.filter(|task| !task.id.is_empty());
        let task = task.ok_or_else(|| Failure::unrecoverable("the agent asks to start a task without an id"))?;
        let (driver, config) = (self.driver.clone(), task.clone());
        // A host that hangs up in the middle must not leave half a task: the start goes on to its end.
        let mut asking = Asking { driver: self.driver.clone(), task: Some(task.id.clone()) };
        let started = tokio::spawn(async move { driver.start(task).await }).await;
        asking.task = None;
        let started = started.map_err(|cause| Failure::recoverable(format!("the driver failed: {cause}")))?;
        let started = started.inspect_err(|failure| tracing::warn!(%failure, "a task does not start"))?;
        let handle = TaskHandle {
            version: 1,
            config: Some(config),
            state: TaskState::Running.into(),
            driver_state: started.state,
        };
        Ok(Response::new(StartTaskResponse {
            result: start_task_response::Result::Success.into(),
            driver_error_msg: String::new(),
            handle: Some(handle),
            network_override: started.network,
        }))
    }

    async fn recover_task(&self, request: Request<RecoverTaskRequest>) -> Answer<Nothing> {
        let RecoverTaskRequest { handle, .. } = request.into_inner();
        let handle = handle.filter(|handle| handle.config.as_ref().is_some_and(|config| !config.id.is_empty()));
        let handle = handle.ok_or_else(|| Failure::unrecoverable("the agent's handle names no task"))?;
        self.driver.recover(handle).await?;
        nothing()
    }

    async fn wait_task(&self, request: Request<TaskRequest>) -> Answer<WaitTaskResponse> {
        let TaskRequest { task_id } = request.into_inner();
        let ended = tokio::select! {
            ended = self.driver.wait(&task_id) => ended?,
            // The code that tells the host to look for the next process.
            () = self.end.cancelled() => return Err(Status::unavailable("the plugin ends; the task goes on")),
        };
        Ok(Response::new(WaitTaskResponse { result: Some(ended), err: String::new() }))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> Answer<Nothing> {
        let StopTaskRequest { task_id, timeout, signal } = request.into_inner();
        let timeout = timeout.and_then(|timeout| Duration::try_from(timeout).ok()).unwrap_or_default();
        let signal = Some(signal.as_str()).filter(|signal| !signal.is_empty());
        self.driver.stop(&task_id, timeout, signal).await?;
        nothing()
    }

    async fn destroy_task(&self, request: Request<DestroyTaskRequest>) -> Answer<Nothing> {
        let DestroyTaskRequest { task_id, force } = request.into_inner();
        self.driver.destroy(&task_id, force).await?;
        nothing()
    }

    async fn inspect_task(&self, request: Request<TaskRequest>) -> Answer<InspectTaskResponse> {
        let Inspection { status, facts, network } = self.driver.inspect(&request.into_inner().task_id).await?;
        Ok(Response::new(InspectTaskResponse {
            task: Some(status),
            driver: Some(TaskDriverStatus { attributes: facts.into_iter().collect() }),
            network_override: network,
        }))
    }

    async fn task_stats(&self, request: Request<TaskStatsRequest>) -> Answer<Self::TaskStatsStream> {
        let TaskStatsRequest { task_id, collection_interval } = request.into_inner();
        let interval = collection_interval.and_then(|interval| Duration::try_from(interval).ok());
        let interval = interval.filter(|interval| !interval.is_zero()).unwrap_or(INTERVAL).max(SHORTEST);
        let samples = self.driver.stats(&task_id, interval)?;
        let mhz = said::base_mhz();
        self.stream(samples.map(move |usage| TaskStatsResponse { stats: Some(said::stats(&task_id, usage, mhz)) }))
    }

    async fn task_events(&self, _: Request<Nothing>) -> Answer<Self::TaskEventsStream> {
        self.stream(self.driver.events().map(said::event))
    }

    async fn signal_task(&self, request: Request<SignalTaskRequest>) -> Answer<Nothing> {
        let SignalTaskRequest { task_id, signal } = request.into_inner();
        self.driver.signal(&task_id, &signal).await?;
        nothing()
    }

    async fn exec_task(&self, request: Request<ExecTaskRequest>) -> Answer<ExecTaskResponse> {
        let ExecTaskRequest { task_id, command, timeout } = request.into_inner();
        if command.is_empty() {
            return Err(Status::invalid_argument("there is no command to run"));
        }
        let timeout = timeout.and_then(|timeout| Duration::try_from(timeout).ok()).filter(|timeout| !timeout.is_zero());
        let command = Command { task: task_id, line: command, terminal: false };
        Ok(Response::new(self.driver.exec(command, timeout).await?))
    }

    async fn exec_task_streaming(
        &self,
        request: Request<Streaming<ExecTaskStreamingRequest>>,
    ) -> Answer<Self::ExecTaskStreamingStream> {
        let (command, inputs) = exec::asked(request.into_inner()).await?;
        let terminal = command.terminal;
        let answers = exec::answered(self.driver.exec_streaming(command, inputs).await?, terminal);
        Ok(Response::new(answers.take_until(self.end.clone().cancelled_owned()).boxed()))
    }

    async fn create_network(&self, request: Request<CreateNetworkRequest>) -> Answer<CreateNetworkResponse> {
        let CreateNetworkRequest { alloc_id, hostname } = request.into_inner();
        let hostname = Some(hostname.as_str()).filter(|hostname| !hostname.is_empty());
        let CreatedNetwork { network, new } = self.driver.create_network(&alloc_id, hostname).await?;
        Ok(Response::new(CreateNetworkResponse { isolation_spec: Some(network), created: new }))
    }

    async fn destroy_network(&self, request: Request<DestroyNetworkRequest>) -> Answer<Nothing> {
        let DestroyNetworkRequest { alloc_id, isolation_spec } = request.into_inner();
        self.driver.destroy_network(&alloc_id, isolation_spec.unwrap_or_default()).await?;
        nothing()
    }
}

/// Somebody waits for the answer to a start. Where it is dropped with the name of the task, nobody does any more.
struct Asking<D: Driver> {
    driver: Arc<D>,
    task: Option<String>,
}

impl<D: Driver> Drop for Asking<D> {
    fn drop(&mut self) {
        // Where there is no runtime any more, the plugin ends.
        if let Some(task) = self.task.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let driver = self.driver.clone();
            runtime.spawn(async move { driver.unheard(&task).await });
        }
    }
}
