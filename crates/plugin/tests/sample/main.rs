//! `driver = "sample"`: a whole task driver that stands on the kit alone, to begin one's own from and to test the kit with. Its
//! task is a clock that runs out: no process, and yet it starts, waits, is signalled, and is found again by the next plugin.
#![forbid(unsafe_code)]

mod clock;
mod config;
mod echo;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use plugin::driver::{
    Capabilities, Client, Command, CreatedNetwork, Driver, Event, ExitResult, Fact, Fingerprint, Health, HostsConfig,
    Info, Inputs, Inspection, Mode, NetworkIsolationSpec, Outputs, Spec, Started, TaskConfig, TaskHandle,
};
use plugin::tasks::{Tasks, decode, encode};
use plugin::{Failure, config as block};
use tokio::sync::broadcast::{self, error::RecvError};

use clock::{Clock, Kept};
use config::{AgentConfig, TaskOptions};

struct Sample {
    agent: Mutex<AgentConfig>,
    /// The first of the ports that are the plugins' on this client.
    ports: Mutex<u32>,
    tasks: Tasks<Clock>,
    networks: Mutex<BTreeSet<String>>,
    events: broadcast::Sender<Event>,
}

impl Sample {
    fn new() -> Self {
        let events = broadcast::channel(16).0;
        Self {
            agent: Mutex::default(),
            ports: Mutex::default(),
            tasks: Tasks::default(),
            networks: Mutex::default(),
            events,
        }
    }
}

impl Driver for Sample {
    fn info(&self) -> Info {
        Info { name: "sample", version: env!("CARGO_PKG_VERSION") }
    }

    fn agent_schema(&self) -> Spec {
        AgentConfig::schema()
    }

    fn configure(&self, text: &[u8]) -> Result<(), Failure> {
        let config: AgentConfig = block::decode(text)?;
        if config.most == 0 {
            return Err(Failure::unrecoverable("`most` is 0: no task could have a processor"));
        }
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn client(&self, client: &Client) {
        tracing::info!(first = client.client_min_port, last = client.client_max_port, "ports of the client");
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner) = client.client_min_port;
    }

    fn task_schema(&self) -> Spec {
        TaskOptions::schema()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            signals: true,
            exec: true,
            networks: &[Mode::Host, Mode::Group],
            creates_networks: true,
            own_logs: true,
            ..Capabilities::default()
        }
    }

    async fn init(&self) -> Result<(), Failure> {
        tracing::info!("an agent begins");
        Ok(())
    }

    async fn shutdown(&self) {
        tracing::info!("the driver is done");
    }

    fn fingerprint(&self) -> BoxStream<'static, Fingerprint> {
        let most = self.agent.lock().unwrap_or_else(PoisonError::into_inner).most;
        let ports = *self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let fact = Fact::Measure(i64::try_from(most).unwrap_or(i64::MAX), "MHz");
        let seen = Fingerprint {
            health: Health::Healthy,
            description: "Healthy".to_owned(),
            attributes: vec![
                ("driver.sample.most".to_owned(), fact),
                ("driver.sample.ports".to_owned(), Fact::Number(ports.into())),
            ],
        };
        futures::stream::iter([seen]).chain(futures::stream::pending()).boxed()
    }

    async fn start(&self, task: TaskConfig) -> Result<Started, Failure> {
        let options: TaskOptions = block::decode(&task.msgpack_driver_config)?;
        let most = self.agent.lock().unwrap_or_else(PoisonError::into_inner).most;
        if options.vcpus > most {
            let text = format!("`vcpus` is {}, and this client gives a task {most}", options.vcpus);
            return Err(Failure::unrecoverable(text));
        }
        let kept = Kept::begin(&options);
        let state = encode(&kept)?;
        let clock = Clock::new(kept, &task.name, options.facts());
        if self.tasks.add(&task.id, clock.clone()).is_err() {
            return Err(Failure::unrecoverable(format!("the task `{}` was started already", task.id)));
        }
        // Nobody listens before the first agent does.
        drop(self.events.send(Event::of(&task, format!("The clock runs for {} s", options.seconds))));
        Ok(Started { state, network: clock.network() })
    }

    async fn recover(&self, handle: TaskHandle) -> Result<(), Failure> {
        let config = handle.config.unwrap_or_default();
        let kept: Kept = decode(&handle.driver_state)?;
        // One that is tracked already stays as it is.
        drop(self.tasks.add(&config.id, Clock::new(kept, &config.name, Default::default())));
        Ok(())
    }

    async fn wait(&self, task: &str) -> Result<ExitResult, Failure> {
        Ok(self.tasks.get(task)?.ended().await)
    }

    async fn stop(&self, task: &str, _: Duration, _: Option<&str>) -> Result<(), Failure> {
        if let Ok(clock) = self.tasks.get(task) {
            clock.end(ExitResult::default());
        }
        Ok(())
    }

    async fn destroy(&self, task: &str, force: bool) -> Result<(), Failure> {
        if self.tasks.get(task).is_ok_and(|clock| clock.runs()) && !force {
            return Err(Failure::unrecoverable("the task still runs"));
        }
        if let Some(clock) = self.tasks.remove(task) {
            clock.end(ExitResult { exit_code: 137, signal: 9, oom_killed: false });
        }
        Ok(())
    }

    async fn inspect(&self, task: &str) -> Result<Inspection, Failure> {
        Ok(self.tasks.get(task)?.inspect(task))
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let events = self.events.subscribe();
        let next = |mut events: broadcast::Receiver<Event>| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    Err(RecvError::Lagged(lost)) => tracing::warn!(lost, "events of tasks were lost"),
                    Err(RecvError::Closed) => return None,
                }
            }
        };
        futures::stream::unfold(events, next).boxed()
    }

    async fn signal(&self, task: &str, signal: &str) -> Result<(), Failure> {
        let clock = self.tasks.get(task)?;
        match signal {
            "SIGHUP" => tracing::info!(task, "a clock is told to go on"),
            "SIGTERM" => clock.end(ExitResult { exit_code: 143, signal: 15, oom_killed: false }),
            other => return Err(Failure::unrecoverable(format!("a clock does not know the signal `{other}`"))),
        }
        Ok(())
    }

    async fn exec_streaming(&self, command: Command, inputs: Inputs) -> Result<Outputs, Failure> {
        self.tasks.get(&command.task)?;
        echo::run(command, inputs)
    }

    async fn create_network(&self, alloc: &str, hostname: Option<&str>) -> Result<CreatedNetwork, Failure> {
        let new = self.networks.lock().unwrap_or_else(PoisonError::into_inner).insert(alloc.to_owned());
        let hosts =
            hostname.map(|hostname| HostsConfig { hostname: hostname.to_owned(), address: clock::ADDRESS.to_owned() });
        let network = NetworkIsolationSpec {
            mode: Mode::Group.into(),
            path: format!("/run/sample/{alloc}"),
            labels: [("made-by".to_owned(), "sample".to_owned())].into(),
            hosts_config: hosts,
        };
        Ok(CreatedNetwork { network, new })
    }

    async fn destroy_network(&self, alloc: &str, _: NetworkIsolationSpec) -> Result<(), Failure> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).remove(alloc);
        Ok(())
    }
}

fn main() -> ExitCode {
    plugin::run(Sample::new)
}
