//! Nomad's driver service in terms of [`Driver`]: each call checked, each failure with its retry class.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::driver::{Driver, Event, Fact, Files, Fingerprint, Health, Usage};
use super::error::Failure;
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::driver_capabilities::{FsIsolation, MountConfigs};
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::driver_server::Driver as Wire;
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::fingerprint_response::HealthState;
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::network_isolation_spec::Mode;
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::{
    CapabilitiesResponse, CpuUsage, CreateNetworkResponse, DestroyTaskRequest, DriverCapabilities, DriverTaskEvent,
    ExecTaskRequest, ExecTaskResponse, ExecTaskStreamingRequest, ExecTaskStreamingResponse, FingerprintResponse,
    InspectTaskResponse, MemoryUsage, NetworkRequest, Nothing, RecoverTaskRequest, SignalTaskRequest, StartTaskRequest,
    StartTaskResponse, StopTaskRequest, TaskConfigSchemaResponse, TaskDriverStatus, TaskHandle, TaskRequest,
    TaskResourceUsage, TaskState, TaskStats, TaskStatsRequest, TaskStatsResponse, WaitTaskResponse, cpu_usage,
    memory_usage, start_task_response,
};
use crate::contracts::hashicorp::nomad::plugins::shared::structs::{Attribute, attribute};

/// Where the host names no interval.
const INTERVAL: Duration = Duration::from_secs(1);
/// No sample is taken more often.
const SHORTEST: Duration = Duration::from_millis(100);

pub(super) struct Service<D> {
    pub(super) driver: Arc<D>,
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
        let has = self.driver.capabilities();
        let mut networks = vec![Mode::Host.into()];
        if has.group_network {
            networks.extend([i32::from(Mode::Group), Mode::None.into()]);
        }
        let capabilities = DriverCapabilities {
            send_signals: has.signals,
            exec: false,
            fs_isolation: match has.files {
                Files::Machine => FsIsolation::None.into(),
                Files::Own => FsIsolation::Image.into(),
            },
            network_isolation_modes: networks,
            must_create_network: false,
            mount_configs: if has.mounts { MountConfigs::AnyMounts.into() } else { MountConfigs::NoMounts.into() },
            disable_log_collection: false,
            dynamic_workload_users: false,
        };
        Ok(Response::new(CapabilitiesResponse { capabilities: Some(capabilities) }))
    }

    async fn fingerprint(&self, _: Request<Nothing>) -> Answer<Self::FingerprintStream> {
        self.stream(self.driver.fingerprint().map(fingerprint))
    }

    async fn init(&self, _: Request<Nothing>) -> Answer<Nothing> {
        nothing()
    }

    async fn shutdown(&self, _: Request<Nothing>) -> Answer<Nothing> {
        // What follows is the controller's shutdown; tasks go on.
        nothing()
    }

    async fn start_task(&self, request: Request<StartTaskRequest>) -> Answer<StartTaskResponse> {
        let task = request.into_inner().task.filter(|task| !task.id.is_empty());
        let task = task.ok_or_else(|| Failure::unrecoverable("the agent asks to start a task without an id"))?;
        let (driver, config) = (self.driver.clone(), task.clone());
        // A host that hangs up in the middle must not leave half a task: the start goes on to its end.
        let started = tokio::spawn(async move { driver.start(task).await }).await;
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
        let (status, facts) = self.driver.inspect(&request.into_inner().task_id).await?;
        Ok(Response::new(InspectTaskResponse {
            task: Some(status),
            driver: Some(TaskDriverStatus { attributes: facts.into_iter().collect() }),
            network_override: None,
        }))
    }

    async fn task_stats(&self, request: Request<TaskStatsRequest>) -> Answer<Self::TaskStatsStream> {
        let TaskStatsRequest { task_id, collection_interval } = request.into_inner();
        let interval = collection_interval.and_then(|interval| Duration::try_from(interval).ok());
        let interval = interval.filter(|interval| !interval.is_zero()).unwrap_or(INTERVAL).max(SHORTEST);
        let samples = self.driver.stats(&task_id, interval)?;
        let mhz = base_mhz();
        self.stream(samples.map(move |usage| TaskStatsResponse { stats: Some(stats(&task_id, usage, mhz)) }))
    }

    async fn task_events(&self, _: Request<Nothing>) -> Answer<Self::TaskEventsStream> {
        self.stream(self.driver.events().map(|Event { task, alloc, name, message }| DriverTaskEvent {
            task_id: task,
            alloc_id: alloc,
            task_name: name,
            timestamp: Some(SystemTime::now().into()),
            message,
            annotations: HashMap::new(),
        }))
    }

    async fn signal_task(&self, request: Request<SignalTaskRequest>) -> Answer<Nothing> {
        let SignalTaskRequest { task_id, signal } = request.into_inner();
        self.driver.signal(&task_id, &signal).await?;
        nothing()
    }

    async fn exec_task(&self, _: Request<ExecTaskRequest>) -> Answer<ExecTaskResponse> {
        Err(Failure::unsupported("commands inside a task").into())
    }

    async fn exec_task_streaming(
        &self,
        _: Request<Streaming<ExecTaskStreamingRequest>>,
    ) -> Answer<Self::ExecTaskStreamingStream> {
        Err(Failure::unsupported("commands inside a task").into())
    }

    async fn create_network(&self, _: Request<NetworkRequest>) -> Answer<CreateNetworkResponse> {
        Err(Failure::unsupported("networks of its own making").into())
    }

    async fn destroy_network(&self, _: Request<NetworkRequest>) -> Answer<Nothing> {
        Err(Failure::unsupported("networks of its own making").into())
    }
}

fn fingerprint(seen: Fingerprint) -> FingerprintResponse {
    let value = |fact| match fact {
        Fact::Text(text) => attribute::Value::StringVal(text),
        Fact::Number(number) => attribute::Value::IntVal(number),
        Fact::Flag(flag) => attribute::Value::BoolVal(flag),
    };
    let attribute = |(name, fact)| (name, Attribute { value: Some(value(fact)), unit: String::new() });
    FingerprintResponse {
        attributes: seen.attributes.into_iter().map(attribute).collect(),
        health: match seen.health {
            Health::Undetected => HealthState::Undetected.into(),
            Health::Unhealthy => HealthState::Unhealthy.into(),
            Health::Healthy => HealthState::Healthy.into(),
        },
        health_description: seen.description,
        err: String::new(),
    }
}

fn stats(id: &str, usage: Usage, mhz: f64) -> TaskStats {
    use cpu_usage::Fields as Cpu;
    use memory_usage::Fields as Memory;
    let percent = |share: f64| share * 100.0;
    let cpu = CpuUsage {
        system_mode: percent(usage.system),
        user_mode: percent(usage.user),
        total_ticks: (usage.user + usage.system) * mhz,
        percent: percent(usage.user + usage.system),
        measured_fields: [Cpu::SystemMode, Cpu::UserMode, Cpu::TotalTicks, Cpu::Percent].map(Into::into).to_vec(),
        ..CpuUsage::default()
    };
    let memory = MemoryUsage {
        rss: usage.rss,
        usage: usage.rss,
        max_usage: usage.max_rss,
        measured_fields: [Memory::Rss, Memory::Usage, Memory::MaxUsage].map(Into::into).to_vec(),
        ..MemoryUsage::default()
    };
    let used = TaskResourceUsage { cpu: Some(cpu), memory: Some(memory) };
    TaskStats {
        id: id.to_owned(),
        timestamp: Some(SystemTime::now().into()),
        agg_resource_usage: Some(used),
        resource_usage_by_pid: HashMap::new(),
    }
}

/// What one core does, MHz: what agents show CPU use against. 1000 where the kernel does not say.
fn base_mhz() -> f64 {
    let most = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency").ok();
    let khz = most.and_then(|text| text.trim().parse::<f64>().ok());
    let now = || {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
        line.split(':').nth(1)?.trim().parse::<f64>().ok()
    };
    khz.map(|khz| khz / 1000.0).or_else(now).unwrap_or(1000.0)
}
