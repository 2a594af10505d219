//! Moving an app's data: which of the tenant's hosts does what. The app's home host copies, because a store in memory
//! is there; every host notes what it writes, holds its calls and lets them go.
//!
//! A host that is stopped takes its notes with it, and one that is started has none: where the number of hosts has changed
//! since a copy began, it begins anew, and it does not begin while a host still ends its calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use api::copy::{Keys, Round};
use api::node::{CopyOutcome, CopyStep};
use api::{Code, Problem};
use futures::future::{join_all, try_join_all};
use http::Method;
use model::{AppName, ProviderKind, Revision};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::STOP;
use crate::converge;
use crate::external::Externals;
use crate::services::Lent;
use crate::supervisor::{HostRef, HostState};
use crate::tenant::Tenant;

/// A step that a host does not end in this time has failed. A page of a slow store takes seconds, and one object of the
/// largest size minutes; each call of a step has a limit of its own.
const STEP: Duration = Duration::from_secs(1800);

/// A host answers so much later than it was told to, at most: one that is stopped or stuck does not answer at all, and the
/// calls of the others wait meanwhile.
const LATE: Duration = Duration::from_secs(2);

/// How long a copy waits until hosts that are stopped have ended.
const ENDED: Duration = Duration::from_secs(90);
const _: () = assert!(ENDED.as_secs() > STOP.as_secs());

/// Waits until no host of the tenant ends its last calls; how often the number of its hosts has changed. Those who are asked
/// to take part are looked up after it.
///
/// # Errors
/// [`Code::Unreachable`], where they do not end.
pub(crate) async fn settled(tenant: &Tenant) -> Result<u64, Problem> {
    let mut size = tenant.size.subscribe();
    match tokio::time::timeout(ENDED, size.wait_for(|size| size.stopping == 0)).await {
        Ok(Ok(size)) => Ok(size.changes),
        _ => {
            let what = "hosts of the tenant that were stopped still end their calls";
            Err(Problem::new(Code::Unreachable, what).help("nothing was moved; try again when they have ended"))
        }
    }
}

/// One copy, as the hosts see it.
pub(crate) struct Copying {
    pub(crate) hosts: Vec<HostRef>,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) app: AppName,
    pub(crate) id: String,
    /// From [`settled`], where it begins.
    pub(crate) since: u64,
    pub(crate) lent: Arc<Lent>,
    /// Absent where there are no hosts either.
    pub(crate) externals: Option<Arc<Externals>>,
}

impl Copying {
    pub(crate) async fn step(&self, step: CopyStep) -> Result<CopyOutcome, Problem> {
        match step {
            CopyStep::End => {
                self.end().await;
                return Ok(CopyOutcome::Done);
            }
            CopyStep::Release(to) => {
                self.release(to).await;
                return Ok(CopyOutcome::Done);
            }
            _ => {}
        }
        // One that is not up notes nothing and holds nothing: better to wait until it is back.
        if let Some(down) = self.hosts.iter().find(|host| *host.state.borrow() != HostState::Ready) {
            let what = format!("host {} of the tenant is not ready", down.shard);
            return Err(Problem::new(Code::Unreachable, what));
        }
        match step {
            CopyStep::Begin(request) => {
                // No revision names the new provider yet, and its client has to log in.
                let specs = request.sources.values().chain([&request.to.spec]);
                let named = specs.flat_map(|spec| spec.secrets.values()).filter(|secret| secret.is_own());
                let named = named.map(|secret| secret.secret.clone());
                self.lent.lend(&self.tenant.name, &self.app, named.collect());
                let ends = [&request.from, &request.to].map(|end| (&end.provider, &end.spec));
                self.tenant.lend(&self.app, request.sources.iter().chain(ends));
                if let Some(externals) = &self.externals {
                    let sources = request.sources.iter();
                    let wanted = sources.chain([(&request.to.provider, &request.to.spec)]);
                    let wanted = wanted.filter(|(_, spec)| spec.kind == ProviderKind::External);
                    externals.lend(&self.tenant.name, &self.app, wanted);
                }
                self.all(Method::PUT, "", &*request).await?;
                self.noted().insert(self.app.clone(), (self.id.clone(), self.since));
                Ok(CopyOutcome::Done)
            }
            CopyStep::Page(cursor) => self.home("/page", &cursor).await.map(CopyOutcome::Step),
            CopyStep::Extra(cursor) => self.home("/extra", &cursor).await.map(CopyOutcome::Keys),
            CopyStep::Keys(keys) => self.home("/keys", &Keys { keys, cursor: None }).await.map(CopyOutcome::Step),
            CopyStep::Noted(round) => {
                self.by_all()?;
                let asked =
                    self.hosts.iter().map(|host| self.ask::<_, Keys>(host, Method::POST, "/noted", Round { round }));
                let keys: BTreeSet<String> =
                    try_join_all(asked).await?.into_iter().flat_map(|keys| keys.keys).collect();
                Ok(CopyOutcome::Keys(Keys { keys: keys.into_iter().collect(), cursor: None }))
            }
            CopyStep::Hold(revision, ms) => {
                self.by_all()?;
                self.hold(revision, ms).await.map(|()| CopyOutcome::Done)
            }
            CopyStep::Release(_) | CopyStep::End => Ok(CopyOutcome::Done),
        }
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<AppName, (String, u64)>> {
        self.tenant.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every host that has had calls since the copy began has noted what they wrote.
    fn by_all(&self) -> Result<(), Problem> {
        let size = *self.tenant.size.borrow();
        if self.noted().get(&self.app).is_some_and(|noted| *noted == (self.id.clone(), size.changes)) {
            return Ok(());
        }
        let what = "the tenant has other hosts than when the copy began, and what some have written was not noted";
        Err(Problem::new(Code::NotFound, what).help("the copy begins anew"))
    }

    async fn hold(&self, revision: Revision, ms: u64) -> Result<(), Problem> {
        self.tenant.held.lock().await.insert(self.app.clone(), revision);
        let within = Duration::from_millis(ms);
        let held = try_join_all(self.hosts.iter().map(|host| async move {
            let held = tokio::time::timeout(within + LATE, host.client.hold(&self.app, revision, within)).await;
            held.unwrap_or_else(|_| Err(late(host)))
        }));
        let held = held.await;
        let left = held.map(|held| held.iter().map(|held| held.in_flight).sum::<u64>());
        if left == Ok(0) {
            return Ok(());
        }
        self.release(None).await;
        let what = format!("{} calls of the app did not end within {ms} ms, so its data cannot be moved", left?);
        Err(Problem::new(Code::Busy, what).help("nothing was changed; try again when there are no long calls"))
    }

    /// Tells every host, ready or not: one that does not hear it has ended, or ends the wait of its calls itself.
    async fn release(&self, to: Option<Revision>) {
        self.tenant.held.lock().await.remove(&self.app);
        let told = self.hosts.iter().map(|host| async move {
            let told = tokio::time::timeout(LATE, host.client.release(&self.app, to)).await;
            if let Err(cause) = told.unwrap_or_else(|_| Err(late(host))) {
                let (tenant, app, shard) = (&self.tenant.name, &self.app, host.shard);
                tracing::warn!(%tenant, %app, shard, %cause, "a host was not told to let waiting calls go on");
            }
        });
        join_all(told).await;
    }

    /// A host that does not hear it has ended, and its part of the copy with it.
    async fn end(&self) {
        self.noted().remove(&self.app);
        self.lent.take_back(&self.tenant.name, &self.app);
        self.tenant.take_back(&self.app);
        if let Some(externals) = &self.externals {
            externals.take_back(&self.tenant.name, &self.app);
        }
        let ended = self.hosts.iter().map(|host| async move {
            if let Err(cause) = self.ask::<_, serde_json::Value>(host, Method::DELETE, "", &()).await {
                tracing::debug!(shard = host.shard, %cause, "a copy was not ended in a host");
            }
        });
        join_all(ended).await;
    }

    async fn all<Q: Serialize + Sync>(&self, method: Method, step: &str, what: &Q) -> Result<(), Problem> {
        let asked = self.hosts.iter().map(|host| self.ask::<_, serde_json::Value>(host, method.clone(), step, what));
        try_join_all(asked).await.map(drop)
    }

    async fn home<A: DeserializeOwned>(&self, step: &str, what: &(impl Serialize + Sync)) -> Result<A, Problem> {
        let home = converge::home(&self.app, u32::try_from(self.hosts.len()).unwrap_or(u32::MAX));
        let host = self.hosts.iter().find(|host| host.shard == home);
        let host = host.ok_or_else(|| Problem::new(Code::Unreachable, "the app's home host is not there"))?;
        self.ask(host, Method::POST, step, what).await
    }

    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        host: &HostRef,
        method: Method,
        step: &str,
        what: Q,
    ) -> Result<A, Problem> {
        let asked = host.client.copy(method, &self.app, &self.id, step, &what);
        tokio::time::timeout(STEP, asked).await.unwrap_or_else(|_| {
            Err(Problem::new(Code::TimedOut, format!("a step of the copy took longer than {} s", STEP.as_secs())))
        })
    }
}

fn late(host: &HostRef) -> Problem {
    let what = format!("host {} of the tenant does not answer", host.shard);
    Problem::new(Code::Unreachable, what).help("nothing was moved; try again when the host is well")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use api::agent_client::HostClient;
    use api::copy::Cursor;

    #[tokio::test]
    async fn a_host_that_does_not_answer_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        // The kernel takes the connection, and nobody reads what is sent.
        let stuck = tokio::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let (_ready, state) = tokio::sync::watch::channel(HostState::Ready);
        let client = Arc::new(HostClient::new(dir.path().join("s")));
        let app: AppName = "a".parse().unwrap();
        let copy = Copying {
            hosts: vec![HostRef { shard: 0, client, info: Arc::default(), state }],
            tenant: Tenant::new("t".parse().unwrap()),
            app: app.clone(),
            id: "1".into(),
            since: 0,
            lent: Arc::default(),
            externals: None,
        };
        copy.noted().insert(app.clone(), ("1".into(), 0));
        let began = Instant::now();
        let refused = copy.step(CopyStep::Hold(Revision(1), 100)).await.unwrap_err();
        assert_eq!(refused.code, Code::Unreachable);
        assert!(!copy.tenant.held.lock().await.contains_key(&app), "it is released again");
        assert_eq!(copy.step(CopyStep::Release(Some(Revision(2)))).await.map(drop), Ok(()));
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        drop(stuck);
    }

    #[tokio::test]
    async fn without_hosts_nothing_is_copied() {
        let copy = Copying {
            hosts: Vec::new(),
            tenant: Tenant::new("t".parse().unwrap()),
            app: "a".parse().unwrap(),
            id: "1".into(),
            since: 0,
            lent: Arc::default(),
            externals: None,
        };
        let refused = copy.step(CopyStep::Page(Cursor::default())).await.unwrap_err();
        assert_eq!(refused.code, Code::Unreachable);
    }

    #[tokio::test]
    async fn hosts_that_come_or_go_are_no_part_of_a_copy_that_has_begun() {
        let copy = |since| Copying {
            hosts: Vec::new(),
            tenant: Tenant::new("t".parse().unwrap()),
            app: "a".parse().unwrap(),
            id: "1".into(),
            since,
            lent: Arc::default(),
            externals: None,
        };
        let begun = copy(0);
        let refused = async |copy: &Copying, step| copy.step(step).await.map(drop).map_err(|problem| problem.code);
        assert_eq!(refused(&begun, CopyStep::Noted(1)).await, Err(Code::NotFound), "nothing has begun");
        begun.noted().insert(begun.app.clone(), ("1".into(), 0));
        assert_eq!(refused(&begun, CopyStep::Noted(1)).await, Ok(()));
        assert_eq!(refused(&begun, CopyStep::Hold(Revision(1), 100)).await, Ok(()));
        begun.tenant.size.send_modify(|size| size.changes += 1);
        assert_eq!(refused(&begun, CopyStep::Noted(2)).await, Err(Code::NotFound));
        assert_eq!(refused(&begun, CopyStep::Hold(Revision(1), 100)).await, Err(Code::NotFound));
        let other = Copying { id: "2".into(), tenant: begun.tenant.clone(), ..copy(1) };
        assert_eq!(refused(&other, CopyStep::Noted(1)).await, Err(Code::NotFound), "that of another move");
    }

    #[tokio::test]
    async fn a_copy_begins_when_hosts_that_are_stopped_have_ended() {
        let tenant = Tenant::new("t".parse().unwrap());
        assert_eq!(settled(&tenant).await, Ok(0));
        tenant.size.send_modify(|size| (size.changes, size.stopping) = (1, 1));
        let mut waits = Box::pin(settled(&tenant));
        assert!(futures::poll!(&mut waits).is_pending());
        tenant.size.send_modify(|size| size.stopping = 0);
        assert_eq!(waits.await, Ok(1));
    }
}
