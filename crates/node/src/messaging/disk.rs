//! What the durable broker keeps on disk: one key of the embedded data per group and message, written before the message
//! is acknowledged and removed when it is settled. Writes of many senders share one sync. How often a message was handed
//! out has a key of its own behind it, for one that was more often than most are: what ends its hosts, and with them the
//! node, is not to begin anew.
//!
//! The keys lie under the app of the group and the provider `durable`, a built-in name that no key-value provider can
//! have: they go when the app goes, and no bucket of a component is among them.

use std::sync::Arc;

use api::services::messaging::WireMessage;
use model::messaging::Group;
use model::{AppName, ProviderName, TenantName};
use store::data::{Answer, DataEngine, Fault, Op};

use super::queue::{Held, MAX_MESSAGES};

/// Keys of one page.
const PAGE: u32 = 500;
/// Messages that are read before others have the thread.
const AT_ONCE: usize = 16;
/// A message that was handed out more often has the number on disk.
const FEW: u32 = 3;
/// What the key of that number ends with; no id has a dot.
const TRIES: &str = ".tries";

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

/// Writes down how often a message has been handed out, where it is worth it.
pub(super) async fn tried(
    data: &DataEngine,
    tenant: &TenantName,
    group: &Group,
    id: &str,
    tries: u32,
) -> Result<(), Fault> {
    if tries <= FEW {
        return Ok(());
    }
    let op = Op::Set { key: format!("{id}{TRIES}"), value: tries.to_string().into_bytes() };
    data.call(tenant, &group.app, &provider()?, &group.name, op).await.map(drop)
}

/// Removes a message, and what was written down of it.
pub(super) async fn settled(data: &DataEngine, tenant: &TenantName, group: &Group, held: &Held) -> Result<(), Fault> {
    if held.tries <= FEW {
        return remove(data, tenant, group, &held.id).await;
    }
    let op = Op::DeleteMany { keys: vec![held.id.to_string(), format!("{}{TRIES}", held.id)] };
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

/// Removes every message of a group.
pub(super) async fn clear_group(data: &DataEngine, tenant: &TenantName, group: &Group) -> Result<(), Fault> {
    data.purge_bucket(tenant, &group.app, &provider()?, &group.name).await
}

/// The names of an app's groups for which something is kept.
pub(super) async fn groups(data: &DataEngine, tenant: &TenantName, app: &AppName) -> Result<Vec<String>, Fault> {
    data.buckets(tenant, app, &provider()?).await
}

/// Reads a message. One that was kept before messages had a trace ends before it.
fn message(value: &[u8]) -> Result<WireMessage, postcard::Error> {
    postcard::from_bytes(value).or_else(|cause| match cause {
        postcard::Error::DeserializeUnexpectedEnd => postcard::from_bytes(&[value, &[0]].concat()),
        other => Err(other),
    })
}

/// What of a group is read at once.
pub(super) struct Part<'a> {
    /// After this key.
    pub(super) after: Option<String>,
    /// What ends the ids of messages that are left out.
    pub(super) but: Option<&'a str>,
    /// Bytes of messages, about; one message is read in any case.
    pub(super) most: usize,
}

/// Messages of a group, oldest first: as many as a queue holds, and no more bytes than there is room for. Where there are
/// more, also the key to go on after.
pub(super) async fn read(
    data: &DataEngine,
    tenant: &TenantName,
    group: &Group,
    part: Part<'_>,
) -> Result<(Vec<Held>, Option<String>), Fault> {
    let provider = provider()?;
    let (mut found, mut bytes): (Vec<Held>, usize) = (Vec::new(), 0);
    let (mut cursor, mut last) = (part.after.clone(), part.after);
    loop {
        let op = Op::ListKeys { cursor, limit: PAGE };
        let Answer::Keys { keys, cursor: next } = data.call(tenant, &group.app, &provider, &group.name, op).await?
        else {
            return Ok((found, None));
        };
        for (n, key) in keys.into_iter().enumerate() {
            if n.is_multiple_of(AT_ONCE) {
                // The thread serves others too.
                tokio::task::yield_now().await;
            }
            let id = key.strip_suffix(TRIES);
            if part.but.is_some_and(|but| id.unwrap_or(&key).ends_with(but)) {
                last = Some(key);
                continue;
            }
            if id.is_none() && found.len() >= MAX_MESSAGES {
                return Ok((found, last));
            }
            let op = Op::Get { key: key.clone() };
            let Answer::Value(Some(value)) = data.call(tenant, &group.app, &provider, &group.name, op).await? else {
                continue;
            };
            if let Some(id) = id {
                // It comes right after its message.
                let tries = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                if let (Some(held), Some(tries)) = (found.last_mut().filter(|held| &*held.id == id), tries) {
                    held.tries = tries;
                }
                last = Some(key);
                continue;
            }
            match message(&value) {
                Ok(message) => {
                    let held = Held { id: key.as_str().into(), message: Arc::new(message), tries: 0 };
                    bytes += held.bytes();
                    if bytes > part.most && !found.is_empty() {
                        return Ok((found, last));
                    }
                    found.push(held);
                }
                // Kept where it is: a later version may read it.
                Err(cause) => {
                    tracing::error!(%tenant, app = %group.app, id = key, %cause, "a kept message cannot be read")
                }
            }
            last = Some(key);
        }
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok((found, None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_kept_before_messages_had_a_trace_is_read() {
        let before = ("orders.new", b"hat".to_vec(), Some("inbox.1"));
        let read = message(&postcard::to_allocvec(&before).unwrap()).unwrap();
        assert_eq!(
            (&*read.subject, &*read.body, read.reply_to.as_deref(), read.trace),
            ("orders.new", &b"hat"[..], Some("inbox.1"), None)
        );
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
        let now = WireMessage { trace, ..read };
        let kept = postcard::to_allocvec(&now).unwrap();
        assert_eq!(message(&kept).unwrap(), now);
        assert!(message(&kept[..kept.len() - 2]).is_err() && message(&[]).is_err(), "cut off");
    }

    #[tokio::test]
    async fn no_more_is_read_at_once_than_a_queue_holds_and_the_rest_comes_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
        let tenant: TenantName = "t".parse().unwrap();
        let group = Group { app: "a".parse().unwrap(), name: "w.default".into() };
        let id = |n: usize, boot: &str| format!("{n:024x}{boot}");
        let (old, own) = ("00000001", "00000002");
        let body = |size| WireMessage { subject: "s".into(), body: vec![1; size], reply_to: None, trace: None };
        let one = |n, boot, size| (id(n, boot), postcard::to_allocvec(&body(size)).unwrap());
        let mut pairs: Vec<_> = (0..MAX_MESSAGES + 2).map(|n| one(n, old, 1)).collect();
        // The last one of the first part was tried often; what this process wrote meanwhile is in its queue already.
        pairs.push((format!("{}{TRIES}", id(MAX_MESSAGES - 1, old)), b"9".to_vec()));
        pairs.push(one(MAX_MESSAGES + 2, own, 1));
        for pairs in pairs.chunks(1000) {
            let op = Op::SetMany { pairs: pairs.to_vec() };
            data.call(&tenant, &group.app, &provider().unwrap(), &group.name, op).await.unwrap();
        }
        let read = |after, but, most| read(&data, &tenant, &group, Part { after, but, most });
        let (first, rest) = read(None, None, usize::MAX).await.unwrap();
        assert_eq!((first.len(), first[0].tries, first[MAX_MESSAGES - 1].tries), (MAX_MESSAGES, 0, 9));
        assert!(rest.is_some());
        let (next, end) = read(rest.clone(), Some(own), usize::MAX).await.unwrap();
        let ids: Vec<String> = next.iter().map(|held| held.id.to_string()).collect();
        assert_eq!(ids, [id(MAX_MESSAGES, old), id(MAX_MESSAGES + 1, old)]);
        assert_eq!(end, None);
        // However little room there is, one is read.
        let (one, rest) = read(rest, None, 1).await.unwrap();
        assert_eq!((one.len(), rest), (1, Some(id(MAX_MESSAGES, old))));
        let (few, _) = read(None, None, 3 * first[0].bytes()).await.unwrap();
        assert_eq!(few.len(), 3);
    }
}
