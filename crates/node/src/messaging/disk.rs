//! What the durable broker keeps on disk: one key of the embedded data per group and message, written before the message
//! is acknowledged and removed when it is settled. Writes of many senders share one sync.
//!
//! The keys lie under the app of the group and the provider `durable`, a built-in name that no key-value provider can
//! have: they go when the app goes, and no bucket of a component is among them.

use std::sync::Arc;

use api::services::messaging::WireMessage;
use model::messaging::Group;
use model::{AppName, ProviderName, TenantName};
use store::data::{Answer, DataEngine, Fault, Op};

use super::queue::Held;

/// Keys of one page.
const PAGE: u32 = 500;

/// The built-in name under which messages are kept.
fn provider() -> Result<ProviderName, Fault> {
    "durable".parse().map_err(|cause: model::name::NameError| Fault::Unavailable(cause.to_string()))
}

pub(super) async fn write(
    data: &DataEngine,
    tenant: &TenantName,
    group: &Group,
    id: &str,
    message: &WireMessage,
) -> Result<(), Fault> {
    let value = postcard::to_allocvec(message).map_err(|cause| Fault::Unavailable(cause.to_string()))?;
    let op = Op::Set { key: id.to_owned(), value };
    data.call(tenant, &group.app, &provider()?, &group.name, op).await.map(drop)
}

pub(super) async fn remove(data: &DataEngine, tenant: &TenantName, group: &Group, id: &str) -> Result<(), Fault> {
    let op = Op::Delete { key: id.to_owned() };
    data.call(tenant, &group.app, &provider()?, &group.name, op).await.map(drop)
}

/// Removes every message of every group of an app.
pub(super) async fn clear(data: &DataEngine, tenant: &TenantName, app: &AppName) -> Result<(), Fault> {
    data.purge_provider(tenant, app, &provider()?).await
}

/// Every message of a group, oldest first.
pub(super) async fn read(data: &DataEngine, tenant: &TenantName, group: &Group) -> Result<Vec<Held>, Fault> {
    let provider = provider()?;
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let op = Op::ListKeys { cursor, limit: PAGE };
        let Answer::Keys { keys, cursor: next } = data.call(tenant, &group.app, &provider, &group.name, op).await?
        else {
            return Ok(found);
        };
        for key in keys {
            let op = Op::Get { key: key.clone() };
            let Answer::Value(Some(value)) = data.call(tenant, &group.app, &provider, &group.name, op).await? else {
                continue;
            };
            match postcard::from_bytes(&value) {
                Ok(message) => found.push(Held { id: key.into(), message: Arc::new(message), tries: 0 }),
                // Kept where it is: a later version may read it.
                Err(cause) => {
                    tracing::error!(%tenant, app = %group.app, id = key, %cause, "a kept message cannot be read")
                }
            }
        }
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok(found),
        }
    }
}
