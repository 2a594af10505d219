//! Moving an app's data: which of the tenant's hosts does what. The app's home host copies, because a store in memory
//! is there; every host notes what it writes, holds its calls and lets them go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::copy::{Held, Keys, Round};
use api::node::{CopyOutcome, CopyStep};
use api::{Code, Problem};
use futures::future::try_join_all;
use http::Method;
use model::{AppName, TenantName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::converge;
use crate::services::Lent;
use crate::supervisor::{HostRef, HostState};

/// A step that a host does not end in this time has failed. A page of a slow store takes seconds, and one object of the
/// largest size minutes; each call of a step has a limit of its own.
const STEP: Duration = Duration::from_secs(1800);

/// One copy, as the hosts see it.
pub(crate) struct Copying {
    pub(crate) hosts: Vec<HostRef>,
    pub(crate) tenant: TenantName,
    pub(crate) app: AppName,
    pub(crate) id: String,
    pub(crate) lent: Arc<Lent>,
}

impl Copying {
    pub(crate) async fn step(&self, step: CopyStep) -> Result<CopyOutcome, Problem> {
        if matches!(step, CopyStep::End) {
            self.lent.take_back(&self.tenant, &self.app);
        }
        // One that is not up notes nothing and holds nothing: better to wait until it is back.
        if let Some(down) = self.hosts.iter().find(|host| *host.state.borrow() != HostState::Ready) {
            let what = format!("host {} of the tenant is not ready", down.shard);
            return Err(Problem::new(Code::Unreachable, what));
        }
        match step {
            CopyStep::Begin(request) => {
                // No revision names the new provider yet, and its client has to log in.
                let named = request.to.spec.secrets.values().map(|named| named.secret.clone());
                self.lent.lend(&self.tenant, &self.app, named.collect());
                self.all(Method::PUT, "", &*request).await.map(|()| CopyOutcome::Done)
            }
            CopyStep::End => self.all(Method::DELETE, "", &()).await.map(|()| CopyOutcome::Done),
            CopyStep::Page(cursor) => self.home("/page", &cursor).await.map(CopyOutcome::Step),
            CopyStep::Extra(cursor) => self.home("/extra", &cursor).await.map(CopyOutcome::Keys),
            CopyStep::Keys(keys) => self.home("/keys", &Keys { keys, cursor: None }).await.map(CopyOutcome::Step),
            CopyStep::Noted(round) => {
                let asked =
                    self.hosts.iter().map(|host| self.ask::<_, Keys>(host, Method::POST, "/noted", Round { round }));
                let keys: BTreeSet<String> =
                    try_join_all(asked).await?.into_iter().flat_map(|keys| keys.keys).collect();
                Ok(CopyOutcome::Keys(Keys { keys: keys.into_iter().collect(), cursor: None }))
            }
            CopyStep::Hold(revision, ms) => {
                let holds = self.hosts.iter().map(|host| async move {
                    match host.client.hold(&self.app, revision, Duration::from_millis(ms)).await {
                        // An app that runs on one host: there is nothing to hold on the others.
                        Err(problem) if problem.code == Code::NotFound => Ok(Held { in_flight: 0 }),
                        other => other,
                    }
                });
                let held = try_join_all(holds).await;
                let left: u64 = match &held {
                    Ok(held) => held.iter().map(|held| held.in_flight).sum(),
                    Err(_) => 0,
                };
                if left == 0 && held.is_ok() {
                    return Ok(CopyOutcome::Done);
                }
                self.release(revision, None).await?;
                held?;
                let what = format!("{left} calls of the app did not end within {ms} ms, so its data cannot be moved");
                Err(Problem::new(Code::Busy, what).help("nothing was changed; try again when there are no long calls"))
            }
            CopyStep::Release(revision, to) => self.release(revision, to).await.map(|()| CopyOutcome::Done),
        }
    }

    async fn release(&self, revision: model::Revision, to: Option<model::Revision>) -> Result<(), Problem> {
        try_join_all(self.hosts.iter().map(|host| host.client.release(&self.app, revision, to))).await.map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;
    use api::copy::Cursor;

    #[tokio::test]
    async fn without_hosts_nothing_is_copied() {
        let copy = Copying {
            hosts: Vec::new(),
            tenant: "t".parse().unwrap(),
            app: "a".parse().unwrap(),
            id: "1".into(),
            lent: Arc::default(),
        };
        let refused = copy.step(CopyStep::Page(Cursor::default())).await.unwrap_err();
        assert_eq!(refused.code, Code::Unreachable);
    }
}
