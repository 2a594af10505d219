//! Tenants that are deleted. First it is written down that the name is gone for ever: from then on the tenant is not there for
//! any other change. The settings go last. A crash in between leaves both, and the next start goes on from there.

use api::client::Require;
use api::problem::Code;
use axum::http::StatusCode;
use model::TenantName;
use model::plan::AppId;
use serde::{Deserialize, Serialize};
use store::keys::{self, Head};
use store::{Expect, StoreError};

use super::{Writer, encode};
use crate::clock;
use crate::http::{Answer, Refusal};

/// What is kept of a tenant that was deleted.
#[derive(Serialize, Deserialize)]
struct Gone {
    /// Milliseconds since 1970.
    at_ms: u64,
}

impl Writer {
    /// Deletes a tenant and everything it has. Its data on the nodes goes once the last calls have ended.
    pub(crate) async fn delete_tenant(&self, name: &TenantName, require: Require) -> Answer<()> {
        let turn = self.next(None).await?;
        let etag = self.last_settings(name).await?.etag;
        match require {
            Require::Exists => {}
            Require::At(wanted) if wanted == etag => {}
            Require::At(_) => {
                return Err(Refusal::new(Code::Conflict, format!("tenant `{name}` was changed meanwhile"))
                    .help("look at it again, then decide anew"));
            }
            Require::Any | Require::Absent => {
                return Err(Refusal::new(Code::RequestInvalid, "deleting a tenant needs `If-Match`")
                    .status(StatusCode::PRECONDITION_REQUIRED)
                    .help("send If-Match: <etag>"));
            }
        }
        self.store.put(&keys::gone(name), encode(&Gone { at_ms: clock::millis() })?, Expect::Any, None).await?;
        drop(turn);
        self.erase(name).await
    }

    /// What a crash kept [`Writer::delete_tenant`] from doing.
    pub(crate) async fn finish_gone(&self) -> Answer<()> {
        for entry in self.store.list(keys::GONE).await?.entries {
            let Some(Ok(name)) = keys::parts(&entry.key).next().map(str::parse::<TenantName>) else { continue };
            if self.store.get(&keys::tenant(&name)).await?.is_some() {
                self.erase(&name).await?;
            }
        }
        Ok(())
    }

    /// Takes the turn anew for each app: a tenant of thousands does not keep the others waiting.
    async fn erase(&self, name: &TenantName) -> Answer<()> {
        // Its people first: nothing new comes in.
        for prefix in [keys::tokens_of(name), keys::token_uses_of(name)] {
            self.remove_all(&prefix).await?;
        }
        for entry in self.store.list(&keys::apps_of(name)).await?.entries {
            let Some(id) = keys::parts(&entry.key).nth(1).and_then(|app| app.parse().ok()) else { continue };
            let id = AppId { tenant: name.clone(), app: id };
            let _turn = self.turn(None, name).await?;
            // It may have been deleted since it was listed.
            if let Some((head, at)) = self.head(&id).await?.filter(|(head, _)| !head.deleted) {
                self.give_up_hosts(&id, None).await?;
                let head = Head { deleted: true, keyed: Vec::new(), ..head };
                let at = self.store.put(&entry.key, encode(&head)?, Expect::Revision(at), None).await?;
                let mut state = self.state.lock();
                state.forget(&id, at);
                state.moves.remove(&id);
            }
            self.store.put(&keys::purge(name, &id.app), encode(&())?, Expect::Any, None).await?;
        }
        for prefix in [keys::secrets_of(name), keys::configs_of(name), keys::artifacts_of(name), keys::copies_of(name)]
        {
            self.remove_all(&prefix).await?;
        }
        // Without its key, what a backup of the store still has of its secrets is noise.
        self.remove(&keys::secret_key(name)).await?;
        self.remove(&keys::tenant(name)).await
    }

    async fn remove_all(&self, prefix: &str) -> Answer<()> {
        for (key, _) in self.store.sizes(prefix).await? {
            self.remove(&key).await?;
        }
        Ok(())
    }

    pub(super) async fn remove(&self, key: &str) -> Answer<()> {
        match self.let_go(key, Expect::Any).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;
    use model::app::Revision;
    use model::tenant::TenantSettings;
    use store::Store as _;
    use store::blobs::Blobs;
    use store::redb::RedbStore;
    use store::secrets::Secrets;

    use super::*;
    use crate::trust::Vetter;
    use crate::turns::Turns;

    #[tokio::test]
    async fn the_deletion_of_a_tenant_takes_turns_with_other_changes_and_nothing_comes_between() {
        const APPS: usize = 3;
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        let secrets = Secrets::open(store.clone(), &dir.path().join("keys")).await.unwrap();
        let (turns, looks) = (Turns::new(1, 1), Turns::new(1, 1));
        let writer = Writer::new(store.clone(), Vetter::new(blobs), secrets, Arc::default(), turns, looks);
        let tenant: TenantName = "t".parse().unwrap();
        let settings = encode(&TenantSettings::default()).unwrap();
        store.put(&keys::tenant(&tenant), settings, Expect::Absent, None).await.unwrap();
        for n in 0..APPS {
            let head = encode(&Head { revision: Revision(1), deleted: false, keyed: vec![], since: None }).unwrap();
            let key = keys::app(&tenant, &format!("a{n}").parse().unwrap());
            store.put(&key, head, Expect::Absent, None).await.unwrap();
        }
        let left = async || {
            let heads = store.list(&keys::apps_of(&tenant)).await.unwrap().entries;
            heads.iter().filter(|entry| !serde_json::from_slice::<Head>(&entry.value).unwrap().deleted).count()
        };

        // The operator's turns are given in the order of who asks: the deletion first. What it then does for the tenant takes
        // turns with what the operator asks for.
        let held = writer.next(None).await.unwrap();
        let mut deleting = writer.delete_tenant(&tenant, Require::Exists).boxed();
        assert!((&mut deleting).now_or_never().is_none());
        let mut next = Box::pin(writer.next(None));
        assert!((&mut next).now_or_never().is_none());
        drop(held);
        let mut seen = Vec::new();
        loop {
            tokio::select! {
                done = &mut deleting => {
                    done.unwrap();
                    break;
                }
                turn = &mut next => {
                    seen.push(left().await);
                    let refusal = writer.tenant(&tenant).await.err().unwrap();
                    assert_eq!(refusal.problem.code, Code::NotFound, "what has the turn now finds no tenant");
                    // Again in the row, behind the deletion where that waits.
                    let mut again = Box::pin(writer.next(None));
                    assert!((&mut again).now_or_never().is_none());
                    drop(turn);
                    next = again;
                }
            }
        }
        assert!(seen.contains(&APPS) && seen.contains(&1), "{seen:?} apps were left when others had the turn");
        assert_eq!(left().await, 0);
        assert!(store.get(&keys::tenant(&tenant)).await.unwrap().is_none());
        drop(next);
        let refusal = writer.delete_tenant(&tenant, Require::Exists).await.err().unwrap();
        assert_eq!(refusal.problem.code, Code::NotFound);
    }
}
