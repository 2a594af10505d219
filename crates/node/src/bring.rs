//! Brings one revision up: read it, make sure its code is there, start it on the hosts that run it, have one of them
//! load and instantiate it, and ask those of its components that say how whether they are well. Nothing is served from it before all of that is done, and a failure takes back
//! whatever was begun.

use std::sync::Arc;
use std::time::Duration;

use api::{Code, Problem};
use model::observed::{Phase, Reason};
use model::{AppName, Revision};
use store::blobs::BlobError;
use store::keys::RevisionRecord;
use store::{Store, keys};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::artifacts::{ArtifactError, Artifacts, CompileError};
use crate::converge;
use crate::external::Externals;
use crate::front::Front;
use crate::probe;
use crate::recompile::code_for;
use crate::supervisor::{HostRef, HostState};
use crate::tenant::{Prepared, Tenant};

/// How long a deploy waits for a host that is being started.
const HOST_WAIT: Duration = Duration::from_secs(40);

/// What to bring up, and with what.
pub(crate) struct Job {
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) app: AppName,
    pub(crate) revision: Revision,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) externals: Arc<Externals>,
    pub(crate) hosts: Vec<HostRef>,
    pub(crate) front: Arc<Front>,
    pub(crate) shards: u32,
    /// The shard its requests will go to first.
    pub(crate) preferred: Option<u32>,
    pub(crate) tell: mpsc::UnboundedSender<News>,
    pub(crate) cancel: CancellationToken,
}

/// What a job tells.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) app: AppName,
    pub(crate) revision: Revision,
    pub(crate) what: Progress,
}

/// How a job stands.
#[derive(Debug)]
pub(crate) enum Progress {
    /// It has come to this step.
    Phase(Phase),
    /// The revision can be served.
    Up(Arc<Prepared>),
    /// It cannot; whether trying later may help.
    Failed { reason: Reason, again: Again },
    /// It was given up.
    Cancelled,
    /// A revision that no longer serves has left the hosts.
    Drained,
    /// A revision that failed is to be tried once more.
    Retry,
    /// The app is gone, and so is what was kept for it.
    Forgotten,
    /// The app's one shard is another one now, and that one has it.
    Moved,
    /// The hosts have a revision again that was suspended.
    Resumed,
    /// The code of a revision that serves was made again, or cannot be.
    Compiled(Result<(), Problem>),
}

struct Failure {
    reason: Reason,
    again: Again,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { reason: problem.reason(), again: problem.code.may_pass().into() }
    }
}

impl Job {
    pub(crate) async fn run(self) {
        let result = tokio::select! {
            result = self.bring() => Some(result),
            () = self.cancel.cancelled() => None,
        };
        let what = match result {
            Some(Ok(prepared)) => Progress::Up(prepared),
            Some(Err(Failure { reason, again })) => {
                self.take_back().await;
                Progress::Failed { reason, again }
            }
            None => {
                self.take_back().await;
                Progress::Cancelled
            }
        };
        self.tell(what);
    }

    async fn bring(&self) -> Result<Arc<Prepared>, Failure> {
        let prepared = Arc::new(self.read().await?);
        self.tenant.add(prepared.clone());
        prepared.hold(&self.tenant.name, &self.externals);
        let home = converge::home(&self.app, self.shards);
        let hosts: Vec<_> = self.hosts.iter().filter(|host| !prepared.pinned || host.shard == home).collect();
        let first = first_ready(&hosts).await?;
        self.compile(first, &prepared).await?;

        self.tell(Progress::Phase(Phase::Starting));
        // One host loads and instantiates it: the one its requests go to first, if that is up.
        let is_ready = |host: &&&HostRef| *host.state.borrow() == HostState::Ready;
        let preferred = hosts.iter().filter(is_ready).find(|host| Some(host.shard) == self.preferred);
        let loader: &HostRef = preferred.copied().unwrap_or(first);
        self.start(loader, &prepared, true).await?;
        // The others know it before a route points to them. One that is down now gets it when it is back.
        let others = hosts.iter().filter(|host| host.shard != loader.shard);
        let others = others.map(|host| async {
            if wait_ready(host).await.is_ok() { self.start(host, &prepared, false).await } else { Ok(()) }
        });
        futures::future::try_join_all(others).await?;
        if !prepared.health.is_empty() {
            self.tell(Progress::Phase(Phase::Probing));
            let shards = self.front.only(loader.shard);
            // What it is asked may depend on something beside it, and that may come back.
            let unwell = |reason| Failure { reason, again: Again::Yes };
            probe::well(&self.tenant, &prepared, &shards).await.map_err(unwell)?;
        }
        Ok(prepared)
    }

    async fn read(&self) -> Result<Prepared, Failure> {
        let (tenant, app, revision) = (&self.tenant.name, &self.app, self.revision);
        let failed = |code, what: String| Problem::new(code, format!("revision {revision} of {tenant}/{app} {what}"));
        let entry = self.store.get(&keys::revision(tenant, app, revision)).await;
        let entry = entry.map_err(|cause| failed(Code::StoreUnavailable, format!("cannot be read: {cause}")))?;
        let entry = entry.ok_or_else(|| failed(Code::NotFound, "is not in the store".into()))?;
        let damaged = |cause: serde_json::Error| failed(Code::Internal, format!("is damaged in the store: {cause}"));
        let record: RevisionRecord = serde_json::from_slice(&entry.value).map_err(damaged)?;
        if record.app.name != *app {
            return Err(failed(Code::Internal, format!("holds the app {}", record.app.name)).into());
        }
        Ok(Prepared::recorded(revision, &record).map_err(damaged)?)
    }

    async fn compile(&self, host: &HostRef, prepared: &Prepared) -> Result<(), Failure> {
        let keys = code_for(prepared, host.info.load_full().as_deref())?;
        if keys.iter().any(|key| !self.artifacts.is_cached(key)) {
            self.tell(Progress::Phase(Phase::Compiling));
        }
        let all = keys.iter().map(|key| self.artifacts.ensure(&self.tenant.name, key));
        futures::future::try_join_all(all).await.map_err(|cause| {
            let (problem, again) = refusal(&cause);
            Failure { reason: problem.reason(), again }
        })?;
        Ok(())
    }

    async fn start(&self, host: &HostRef, prepared: &Prepared, load: bool) -> Result<(), Failure> {
        let put = || host.client.start_encoded(&self.app, self.revision, prepared.start_request(load));
        match put().await {
            // The process ended under it. That may be the revision's fault or not: once more on the next one.
            Err(problem) if problem.code == Code::Unreachable => {
                wait_restart(host).await?;
                put().await.map_err(|problem| match problem.code {
                    Code::Unreachable => {
                        let what = format!("host {} ended twice while it started the revision", host.shard);
                        Problem::new(Code::StartFailed, what).into()
                    }
                    _ => problem.into(),
                })
            }
            other => Ok(other?),
        }
    }

    /// Takes the revision off the hosts again.
    async fn take_back(&self) {
        self.tenant.remove(&self.app, self.revision);
        drain(&self.hosts, &self.app, self.revision, Duration::ZERO).await;
    }

    fn tell(&self, what: Progress) {
        let news = News { tenant: self.tenant.clone(), app: self.app.clone(), revision: self.revision, what };
        if self.tell.send(news).is_err() {
            tracing::debug!("nobody waits for a job any more");
        }
    }
}

/// Ends a revision on the hosts that are up; a host that is down forgets it by itself.
pub(crate) async fn drain(hosts: &[HostRef], app: &AppName, revision: Revision, deadline: Duration) {
    let up = hosts.iter().filter(|host| *host.state.borrow() == HostState::Ready);
    let drains = up.map(|host| async move {
        let slack = Duration::from_secs(5);
        match tokio::time::timeout(deadline + slack, host.client.drain_revision(app, revision, deadline)).await {
            Ok(Ok(drained)) if drained.ended > 0 => {
                tracing::warn!(%app, %revision, shard = host.shard, ended = drained.ended, "calls were ended by a drain");
            }
            Ok(Ok(_)) => {}
            Ok(Err(cause)) => tracing::debug!(%app, %revision, shard = host.shard, %cause, "a drain had nothing to do"),
            Err(_) => tracing::warn!(%app, %revision, shard = host.shard, "a host does not answer a drain"),
        }
    });
    futures::future::join_all(drains).await;
}

async fn first_ready<'a>(hosts: &[&'a HostRef]) -> Result<&'a HostRef, Failure> {
    let waits = hosts.iter().map(|host| Box::pin(async move { wait_ready(host).await.map(|()| *host) }));
    let waits: Vec<_> = waits.collect();
    if waits.is_empty() {
        return Err(Problem::new(Code::Unreachable, "the tenant has no host here").into());
    }
    let (host, _) = futures::future::select_ok(waits).await?;
    Ok(host)
}

/// Waits until a host is ready; a host that is degraded or stopped is not waited for.
async fn wait_ready(host: &HostRef) -> Result<(), Failure> {
    let mut state = host.state.clone();
    let settled = |state: &HostState| !matches!(state, HostState::Starting(_));
    let seen = tokio::time::timeout(HOST_WAIT, state.wait_for(settled)).await;
    let late = || {
        let why = match &*host.state.borrow() {
            HostState::Starting(Some(reason)) => format!(": {}", reason.message),
            _ => String::new(),
        };
        Problem::new(Code::TimedOut, format!("host {} is not ready after {HOST_WAIT:?}{why}", host.shard))
    };
    match seen.map_err(|_| late())?.as_deref() {
        Ok(HostState::Ready) => Ok(()),
        Ok(HostState::Degraded(reason)) => Err(Failure { reason: reason.clone(), again: Again::Yes }),
        Ok(HostState::Starting(_) | HostState::Stopped) | Err(_) => {
            Err(Problem::new(Code::Unreachable, format!("host {} was stopped", host.shard)).into())
        }
    }
}

/// Waits for the next life of a host whose connection broke just now. Its end may not have been noticed yet.
async fn wait_restart(host: &HostRef) -> Result<(), Failure> {
    let mut state = host.state.clone();
    let noticed = state.wait_for(|state| *state != HostState::Ready);
    // Where the end is not noticed in this time, the process is alive and only the connection was lost.
    if tokio::time::timeout(Duration::from_secs(1), noticed).await.is_err() {
        tracing::debug!(shard = host.shard, "a host that broke a connection is still there");
    }
    wait_ready(host).await
}

/// Whether what failed is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It is the revision's own.
    No,
    /// It may be, and may as well be the machine's: so often, [`TRIES`].
    Few,
    /// Something beside it is away: for as long as the revision is wanted.
    Yes,
}

/// How often what may be the component's own fault, and may as well be the machine's, is tried.
pub(crate) const TRIES: u32 = 5;

impl From<bool> for Again {
    fn from(may_pass: bool) -> Self {
        if may_pass { Self::Yes } else { Self::No }
    }
}

/// What is told of the last of [`TRIES`]: nobody waits for another one.
pub(crate) fn given_up(reason: Reason) -> Reason {
    let message = format!("{}; that was the last of {TRIES} tries", reason.message);
    Reason { code: Code::CompileFailed.as_str().to_owned(), message, ..reason }
}

/// Why there is no code, and whether that may pass.
pub(crate) fn refusal(cause: &ArtifactError) -> (Problem, Again) {
    let (code, again) = match cause {
        ArtifactError::Blob { cause, .. } => match &**cause {
            BlobError::CannotRead { .. } | BlobError::CannotWrite { .. } => (Code::StoreUnavailable, Again::Yes),
            BlobError::Missing(_) | BlobError::Damaged { .. } | BlobError::Mismatch { .. } => {
                (Code::ArtifactMissing, Again::No)
            }
        },
        ArtifactError::Unread { .. } => (Code::Busy, Again::Yes),
        ArtifactError::Compile { cause, .. } => match cause {
            CompileError::Spawn(_) | CompileError::NotReady(_) => (Code::Busy, Again::Yes),
            // A component that takes all memory, or all time, does so each time.
            CompileError::Killed | CompileError::TimedOut(_) => (Code::Busy, Again::Few),
            CompileError::Refused(_) | CompileError::Crashed { .. } | CompileError::TooLarge(_) => {
                (Code::CompileFailed, Again::No)
            }
        },
        ArtifactError::Cache { .. } => (Code::StoreUnavailable, Again::Yes),
        ArtifactError::Fingerprint(_) => (Code::Internal, Again::No),
    };
    (Problem::new(code, cause.to_string()), again)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_is_the_revisions_own_is_not() {
        let again = |code| Failure::from(Problem::new(code, "x")).again;
        for code in [Code::ProviderUnavailable, Code::TimedOut, Code::Unreachable, Code::StoreUnavailable, Code::Busy] {
            assert_eq!(again(code), Again::Yes, "{code:?}");
        }
        for code in [Code::ProbeFailed, Code::LinkMissing, Code::StartFailed, Code::CompileFailed, Code::NotFound] {
            assert_eq!(again(code), Again::No, "{code:?}");
        }
    }

    /// What the machine is short of for the moment is no fault of a component, and fails no task of a scheduler for good.
    #[test]
    fn a_compilation_that_the_machine_did_not_let_run_is_not_the_components_fault() {
        let digest = model::Digest::of(b"x");
        let compile = |cause| refusal(&ArtifactError::Compile { digest, cause });
        let told = |(problem, again): (Problem, Again)| (problem.code, again);
        assert_eq!(told(compile(CompileError::Spawn("x".into()))), (Code::Busy, Again::Yes));
        assert_eq!(told(compile(CompileError::NotReady("x".into()))), (Code::Busy, Again::Yes));
        for cause in [CompileError::Killed, CompileError::TimedOut(Duration::from_secs(600))] {
            assert_eq!(told(compile(cause)), (Code::Busy, Again::Few), "not for ever");
        }
        let crashed = CompileError::Crashed { signal: 6, words: String::new() };
        for cause in [CompileError::Refused("x".into()), crashed, CompileError::TooLarge(1)] {
            assert_eq!(told(compile(cause)), (Code::CompileFailed, Again::No));
        }
        let blob = |cause| told(refusal(&ArtifactError::Blob { digest, cause: Arc::new(cause) }));
        let (path, cause) = ("x".to_owned(), "too many open files".to_owned());
        let unread = BlobError::CannotRead { path: path.clone(), cause: cause.clone() };
        assert_eq!(blob(unread), (Code::StoreUnavailable, Again::Yes));
        assert_eq!(blob(BlobError::CannotWrite { path: path.clone(), cause }), (Code::StoreUnavailable, Again::Yes));
        assert_eq!(blob(BlobError::Missing(digest)), (Code::ArtifactMissing, Again::No));
        assert_eq!(blob(BlobError::Damaged { path, actual: digest }), (Code::ArtifactMissing, Again::No));
        assert_eq!(told(refusal(&ArtifactError::Unread { digest })), (Code::Busy, Again::Yes));
    }
}
