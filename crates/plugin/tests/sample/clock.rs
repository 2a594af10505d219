//! A task: a clock that runs out at a time of the wall, so that whoever knows that time has the task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plugin::driver::{ExitResult, Inspection, NetworkOverride, TaskState, TaskStatus};
use plugin::tasks::State;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::TaskOptions;

/// Where a task is reached.
pub const ADDRESS: &str = "192.0.2.7";

/// What the agent keeps of a task. Version 1 had whole seconds, and the clocks of it had one processor.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Kept {
    /// When it runs out, milliseconds since 1970.
    ends_ms: u64,
    vcpus: u64,
}

impl State for Kept {
    const VERSION: u32 = 2;

    fn migrate(version: u32, state: serde_json::Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct First {
            ends: u64,
        }
        if version != 1 {
            return Err("it takes over version 1".to_owned());
        }
        let First { ends } = serde_json::from_value(state).map_err(|cause| cause.to_string())?;
        Ok(Self { ends_ms: ends.saturating_mul(1000), vcpus: 1 })
    }
}

impl Kept {
    /// From now on.
    pub fn begin(options: &TaskOptions) -> Self {
        let ends_ms = now_ms().saturating_add(options.seconds.saturating_mul(1000));
        Self { ends_ms, vcpus: options.vcpus }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A clock that runs, or did.
pub struct Clock {
    kept: Kept,
    name: String,
    facts: BTreeMap<String, String>,
    since: SystemTime,
    ended: watch::Sender<Option<(ExitResult, SystemTime)>>,
}

impl Clock {
    /// Runs until its time.
    pub fn new(kept: Kept, name: &str, facts: BTreeMap<String, String>) -> Arc<Self> {
        let ended = watch::Sender::new(None);
        let clock = Self { kept, name: name.to_owned(), facts, since: SystemTime::now(), ended };
        let clock = Arc::new(clock);
        let running = clock.clone();
        tokio::spawn(async move {
            let out = tokio::time::sleep(Duration::from_millis(kept.ends_ms.saturating_sub(now_ms())));
            tokio::select! {
                () = out => running.end(ExitResult::default()),
                _ = running.ended() => {}
            }
        });
        clock
    }

    /// Ends it, where it has not ended.
    pub fn end(&self, result: ExitResult) {
        self.ended.send_if_modified(|ended| {
            let ends = ended.is_none();
            ended.get_or_insert((result, SystemTime::now()));
            ends
        });
    }

    /// How it ended, once it has.
    pub async fn ended(&self) -> ExitResult {
        let mut ended = self.ended.subscribe();
        let seen = ended.wait_for(Option::is_some).await.ok().and_then(|seen| *seen);
        seen.map(|(result, _)| result).unwrap_or_default()
    }

    pub fn runs(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Where it is reached.
    pub fn network(&self) -> Option<NetworkOverride> {
        let ports = [("http".to_owned(), 80)].into();
        Some(NetworkOverride { port_map: ports, addr: ADDRESS.to_owned(), auto_advertise: true })
    }

    pub fn inspect(&self, id: &str) -> Inspection {
        let ended = *self.ended.borrow();
        let state = if ended.is_some() { TaskState::Exited } else { TaskState::Running };
        let status = TaskStatus {
            id: id.to_owned(),
            name: self.name.clone(),
            state: state.into(),
            started_at: Some(self.since.into()),
            completed_at: ended.map(|(_, at)| at.into()),
            result: ended.map(|(result, _)| result),
        };
        let mut facts = self.facts.clone();
        facts.insert("kept.vcpus".to_owned(), self.kept.vcpus.to_string());
        Inspection { status, facts, network: self.network() }
    }
}
