//! Tenants that are deleted. First it is written down that the name is gone for ever; the settings go last. A crash in
//! between leaves both, and the next start goes on from there.

use api::client::Require;
use api::problem::Code;
use axum::http::StatusCode;
use model::TenantName;
use model::plan::AppId;
use serde::{Deserialize, Serialize};
use store::keys::{self, Head};
use store::{Expect, StoreError};

use super::{Writer, decode, encode};
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
        let _turn = self.turn.lock().await;
        let etag = self.tenant(name).await?.etag;
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
        self.erase(name).await
    }

    /// What a crash kept [`Writer::delete_tenant`] from doing.
    pub(crate) async fn finish_gone(&self) -> Answer<()> {
        for entry in self.store.list(keys::GONE).await?.entries {
            let Some(Ok(name)) = keys::parts(&entry.key).next().map(str::parse::<TenantName>) else { continue };
            if self.store.get(&keys::tenant(&name)).await?.is_some() {
                let _turn = self.turn.lock().await;
                self.erase(&name).await?;
            }
        }
        Ok(())
    }

    async fn erase(&self, name: &TenantName) -> Answer<()> {
        // Its people first: nothing new comes in.
        for prefix in [keys::tokens_of(name), keys::token_uses_of(name)] {
            self.remove_all(&prefix).await?;
        }
        for entry in self.store.list(&keys::apps_of(name)).await?.entries {
            let Some(id) = keys::parts(&entry.key).nth(1).and_then(|app| app.parse().ok()) else { continue };
            let id = AppId { tenant: name.clone(), app: id };
            let head: Head = decode(&entry)?;
            if !head.deleted {
                let head = Head { deleted: true, keyed: Vec::new(), ..head };
                let at = self.store.put(&entry.key, encode(&head)?, Expect::Revision(entry.revision), None).await?;
                self.state.lock().forget(&id, at);
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
