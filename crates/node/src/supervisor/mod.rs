//! One task per host process: it starts the process, gives it everything it is to run, puts it before the ingress,
//! follows its log, and starts it again when it ends, until it is told to stop.

mod backoff;
mod bring_up;
mod follow;
mod handed;
mod host;
mod process;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::agent::{DATA_SOCKET, HostInfo};
use api::agent_client::HostClient;
use api::{Code, Problem};
use arc_swap::ArcSwapOption;
use futures::future::join_all;
use model::observed::Reason;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::confine::{Held, Who};
use crate::tenant::Tenant;
pub(crate) use backoff::Backoff;
use bring_up::READY;
use follow::{Gone, Lines};
use handed::Opened;
pub use host::{Host, HostChange, HostEvent, HostPlan, HostRef, HostState};
use process::Process;
pub(crate) use process::describe;

/// One that was up, and whose starts have come to nothing for so long, does not come back by itself.
const DOWN: Duration = READY;
/// What a host said before it ended is read for so long: it is in the buffers of its connections.
const LAST_WORDS: Duration = Duration::from_millis(500);

struct Supervisor {
    plan: HostPlan,
    shard: u32,
    dir: PathBuf,
    client: Arc<HostClient>,
    info: Arc<ArcSwapOption<HostInfo>>,
    tell: watch::Sender<HostState>,
}

/// How one life of the process ended.
enum End {
    Stopped,
    Ended(Reason),
}

/// Ends a task with the scope that needs it. Ends itself with the task.
struct Scoped(JoinHandle<()>);

impl Future for Scoped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Supervisor {
    async fn run(self, mut stop: oneshot::Receiver<Duration>) {
        let mut backoff = Backoff::default();
        let mut serving = Vec::new();
        // Since when it is not up any more; nothing before it was.
        let mut down: Option<Instant> = None;
        loop {
            let mut was_ready = false;
            let end = match self.open(&mut serving) {
                Ok(handed) => self.live(handed, &mut stop, &mut was_ready).await,
                Err(cause) => End::Ended(self.reason(&format!("cannot be started in {}: {cause}", self.dir.display()))),
            };
            self.info.store(None);
            self.client.reset();
            self.plan.tenant.connections.host_is_gone(self.shard);
            let End::Ended(reason) = end else { break };
            self.plan.front.down(self.shard);
            Tenant::count(&self.plan.tenant.restarts);
            let now = Instant::now();
            if was_ready {
                down = Some(now);
                self.plan.tenant.ends.send_modify(|ends| {
                    ends.count += 1;
                    ends.last = Some(reason.clone());
                });
            }
            // One that takes long to end has few ends to count.
            let lasts = down.is_some_and(|since| now.saturating_duration_since(since) >= DOWN);
            let pause = backoff.after_end(now);
            tracing::warn!(tenant = %self.plan.tenant.name, shard = self.shard, reason = %reason.message, wait = ?pause.wait, "a host ended");
            if pause.degraded || lasts {
                self.tell.send_replace(HostState::Degraded(reason.clone()));
                self.event(HostChange::Degraded(reason));
            } else {
                self.tell.send_replace(HostState::Starting(Some(reason.clone())));
                self.event(HostChange::Ended(reason));
            }
            tokio::select! {
                () = tokio::time::sleep(pause.wait) => {}
                _ = &mut stop => break,
            }
        }
        self.plan.front.gone(self.shard);
        self.tell.send_replace(HostState::Stopped);
        drop(serving);
        if let Err(cause) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %cause, "a host's directory stays behind");
        }
    }

    /// One life of the process, from its start to its end.
    async fn live(&self, opened: Opened, stop: &mut oneshot::Receiver<Duration>, was_ready: &mut bool) -> End {
        let tenant = &self.plan.tenant.name;
        let who = Who::Tenant(tenant);
        let before = self.plan.confinement.held(who);
        let spec = self.plan.confinement.spec(who);
        let process = spec.and_then(|spec| {
            let handed = opened.fds();
            let (plan, shard) = (&self.plan, self.shard);
            Process::start(&plan.exe, &spec, tenant.as_str(), shard, &plan.env, &handed, &plan.folders)
        });
        let mut process = match process {
            Ok(process) => process,
            Err(cause) => {
                let what = format!("cannot be started from {}: {cause}", self.plan.exe.display());
                return End::Ended(self.reason(&what));
            }
        };
        // Only the process has them now: once it is gone, nobody can connect.
        drop(opened);
        let started = Instant::now();
        let ready = tokio::select! {
            ready = self.bring_up(process.pid()) => ready,
            how = process.ended() => return End::Ended(self.ended(&format!("ended before it was ready: it {how}"), before)),
            _ = &mut *stop => {
                process.kill().await;
                return End::Stopped;
            }
        };
        let (change, lines) = match ready {
            Ok(ready) => ready,
            Err(cause) => {
                process.kill().await;
                return End::Ended(self.reason(&cause.detail));
            }
        };
        tracing::info!(%tenant, shard = self.shard, pid = process.pid(), elapsed = ?started.elapsed(), "a host is ready");
        self.plan.confinement.started(who);
        self.plan.front.up(self.shard, self.dir.join(DATA_SOCKET));
        *was_ready = true;
        self.tell.send_replace(HostState::Ready);
        self.event(change);
        let _taking = Scoped(tokio::spawn(self.taking()));
        let gone = Gone::new();
        let following = self.follow(&gone, lines);
        let end = tokio::select! {
            how = process.ended() => {
                self.plan.front.down(self.shard);
                End::Ended(self.ended(&how, before))
            }
            deadline = &mut *stop => {
                self.plan.front.gone(self.shard);
                self.drain(&mut process, deadline.unwrap_or_default()).await;
                End::Stopped
            }
        };
        gone.cancel();
        if tokio::time::timeout(LAST_WORDS, join_all(following)).await.is_err() {
            tracing::warn!(%tenant, shard = self.shard, "what a host said last is lost: it is too much");
        }
        end
    }

    /// Reads what the host says of its calls until all is read that it said before it was gone.
    fn follow(&self, gone: &Gone, lines: Lines) -> Vec<Scoped> {
        let (client, tenant) = (&self.client, &self.plan.tenant);
        let lines = follow::lines(client.clone(), tenant.clone(), self.plan.logs.clone(), gone.clone(), lines);
        let exporter = self.plan.exporter.as_ref().filter(|exporter| exporter.traces());
        let spans = exporter
            .map(|exporter| follow::spans(client.clone(), tenant.clone(), self.shard, exporter.clone(), gone.clone()));
        std::iter::once(tokio::spawn(lines)).chain(spans.map(tokio::spawn)).map(Scoped).collect()
    }

    async fn drain(&self, process: &mut Process, deadline: Duration) {
        // The host ends its calls a little before we end the host, so that they end with an answer.
        let patience = deadline.mul_f64(0.8);
        let asked = async {
            if let Err(cause) = self.client.drain(patience).await {
                tracing::debug!(%cause, "a host did not answer its drain");
            }
            std::future::pending::<()>().await;
        };
        let done = tokio::select! {
            how = process.ended() => Some(how),
            () = asked => None,
            () = tokio::time::sleep(deadline) => None,
        };
        if done.is_none() {
            let (tenant, shard) = (&self.plan.tenant.name, self.shard);
            tracing::warn!(%tenant, shard, ?deadline, "a host did not drain in time and is killed");
            process.kill().await;
        }
    }

    fn reason(&self, what: &str) -> Reason {
        let (tenant, shard) = (&self.plan.tenant.name, self.shard);
        Problem::new(Code::StartFailed, format!("host {shard} of tenant {tenant} {what}")).reason()
    }

    /// Why it ended: the kernel does not tell the process why it was killed, but the group knows.
    fn ended(&self, how: &str, before: Held) -> Reason {
        let now = self.plan.confinement.held(Who::Tenant(&self.plan.tenant.name));
        if now.out_of_memory > before.out_of_memory {
            let text = format!("{how}: its tenant used all the memory of its quota");
            return Reason {
                help: Some("raise `quotas.memory` of the tenant, or lower the limits of its components".to_owned()),
                ..self.reason(&text)
            };
        }
        self.reason(how)
    }

    fn event(&self, what: HostChange) {
        let event = HostEvent { tenant: self.plan.tenant.name.clone(), shard: self.shard, what };
        if self.plan.events.send(event).is_err() {
            tracing::debug!("nobody listens to a host's supervisor any more");
        }
    }
}
