//! What happened, for everybody who wants to know: a bounded ring of CloudEvents and streams that read it at their own
//! pace. A slow reader costs nothing but its place; one that falls out of the ring is told so.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::control::{Event, event};
use api::metrics::TenantMetrics;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream};
use model::plan::AppId;
use model::{AppName, NodeName, TenantName};
use serde::Serialize;
use tokio::sync::watch;

/// Events that are kept for readers that come back.
const KEPT: usize = 4096;
/// Events that one write to a reader carries at most.
const BATCH: usize = 64;
/// An idle stream gets a comment this often, so that a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    App(AppId),
    Tenant(TenantName),
    None,
}

impl Subject {
    fn text(&self) -> Option<String> {
        match self {
            Self::App(id) => Some(format!("{}/{}", id.tenant, id.app)),
            Self::Tenant(tenant) => Some(tenant.to_string()),
            Self::None => None,
        }
    }
}

/// Which events a reader wants. Those about no tenant (nodes) are the operator's; that some were missed is for everybody.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) tenant: Option<TenantName>,
    pub(crate) app: Option<AppName>,
    pub(crate) operator: bool,
}

impl Filter {
    fn wants(&self, subject: &Subject) -> bool {
        let tenant = |t: &TenantName| self.tenant.as_ref().is_none_or(|wanted| wanted == t);
        match subject {
            Subject::App(id) => tenant(&id.tenant) && self.app.as_ref().is_none_or(|wanted| *wanted == id.app),
            Subject::Tenant(t) => tenant(t),
            Subject::None => self.operator,
        }
    }
}

struct Kept {
    id: u64,
    subject: Subject,
    frame: Bytes,
}

/// The ring. Ids are consecutive within a process and larger than those of earlier ones.
struct Ring {
    kept: VecDeque<Kept>,
    latest: u64,
}

/// Cheap to clone; clones share the ring.
#[derive(Clone)]
pub(crate) struct Events {
    ring: Arc<Mutex<Ring>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Events {
    /// An empty ring. `now_ms` is the time, milliseconds since 1970: ids grow from it, so that they grow over restarts.
    pub(crate) fn new(now_ms: u64) -> Self {
        let latest = now_ms.saturating_mul(1 << 20);
        let ring = Ring { kept: VecDeque::new(), latest };
        Self { ring: Arc::new(Mutex::new(ring)), changed: Arc::new(watch::Sender::new(latest)) }
    }

    /// Something happened at the control plane itself.
    pub(crate) fn control(&self, kind: &str, subject: Subject, data: &impl Serialize) {
        self.publish("/control".to_owned(), kind, subject, data);
    }

    /// Something happened at a node.
    pub(crate) fn node(&self, node: &NodeName, kind: &str, subject: Subject, data: &impl Serialize) {
        self.publish(format!("/nodes/{node}"), kind, subject, data);
    }

    fn publish(&self, source: String, kind: &str, subject: Subject, data: &impl Serialize) {
        let data = serde_json::to_value(data).unwrap_or_default();
        let latest = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.latest = ring.latest.saturating_add(1);
            let id = ring.latest;
            let frame = frame(id, source, kind, subject.text(), data);
            if ring.kept.len() >= KEPT {
                ring.kept.pop_front();
            }
            ring.kept.push_back(Kept { id, subject, frame });
            id
        };
        self.changed.send_replace(latest);
    }

    /// A frame with what a tenant's hosts counted, of `app` alone where that is given. It is not kept: its id is that
    /// of the event before it and the time.
    pub(crate) fn reading(&self, metrics: &TenantMetrics, app: Option<&AppName>) -> Bytes {
        let mut shown = metrics.clone();
        shown.components.retain(|c| app.is_none_or(|app| c.app == *app));
        shown.links.retain(|l| app.is_none_or(|app| l.link.app == *app));
        let id = format!("{}-{}", *self.changed.borrow(), metrics.time_ms);
        let data = serde_json::to_value(shown).unwrap_or_default();
        frame(id, "/control".to_owned(), event::METRICS, Some(metrics.tenant.to_string()), data)
    }

    /// Server-sent event frames: those after `after` that are still kept, or from now on; then every new one.
    pub(crate) fn stream(&self, filter: Filter, after: Option<u64>) -> impl Stream<Item = Bytes> + Send + 'static {
        let reader = Reader {
            cursor: after.unwrap_or_else(|| *self.changed.borrow()),
            changed: self.changed.subscribe(),
            events: self.clone(),
            filter,
        };
        stream::unfold(reader, |mut reader| async move { Some((reader.next().await, reader)) })
    }
}

struct Reader {
    cursor: u64,
    changed: watch::Receiver<u64>,
    events: Events,
    filter: Filter,
}

impl Reader {
    async fn next(&mut self) -> Bytes {
        loop {
            self.changed.mark_unchanged();
            let found = self.batch();
            if !found.is_empty() {
                return found;
            }
            match tokio::time::timeout(KEEP_ALIVE, self.changed.changed()).await {
                Ok(Ok(())) => {}
                // The sender lives in `self.events`: only the time can have passed.
                Ok(Err(_)) | Err(_) => return Bytes::from_static(b":\n\n"),
            }
        }
    }

    fn batch(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        let ring = self.events.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // The id before the oldest event there is: a reader that stands before it has missed something.
        let floor = ring.kept.front().map_or(ring.latest, |k| k.id.saturating_sub(1));
        if self.cursor < floor || self.cursor > ring.latest {
            self.cursor = if self.cursor < floor { floor } else { ring.latest };
            let gone = serde_json::Value::Object(serde_json::Map::new());
            out.extend_from_slice(&frame(self.cursor, "/control".to_owned(), event::MISSED, None, gone));
        }
        let start = usize::try_from(self.cursor.saturating_sub(floor)).unwrap_or(usize::MAX);
        for kept in ring.kept.iter().skip(start) {
            self.cursor = kept.id;
            if self.filter.wants(&kept.subject) {
                out.extend_from_slice(&kept.frame);
            }
            if out.len() > BATCH * 1024 {
                break;
            }
        }
        out.freeze()
    }
}

fn frame(id: impl Display, source: String, kind: &str, subject: Option<String>, data: serde_json::Value) -> Bytes {
    let id = id.to_string();
    let event = Event {
        specversion: "1.0".to_owned(),
        id: id.clone(),
        source,
        kind: kind.to_owned(),
        subject,
        time: jiff::Timestamp::now().to_string(),
        data,
    };
    sse(&id, kind, &serde_json::to_string(&event).unwrap_or_default())
}

/// One server-sent event. `data` is JSON and has no line ends.
fn sse(id: &str, kind: impl Display, data: &str) -> Bytes {
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    fn app(tenant: &str, app: &str) -> Subject {
        Subject::App(AppId { tenant: tenant.parse().unwrap(), app: app.parse().unwrap() })
    }

    fn all() -> Filter {
        Filter { tenant: None, app: None, operator: true }
    }

    fn ids(frames: &Bytes) -> Vec<String> {
        let text = std::str::from_utf8(frames).unwrap();
        let data = text.lines().filter_map(|l| l.strip_prefix("data: "));
        data.map(|d| serde_json::from_str::<Event>(d).unwrap().kind).collect()
    }

    #[tokio::test]
    async fn readers_get_what_they_asked_for_and_what_they_missed() {
        let events = Events::new(1);
        let start = 1 << 20;
        for (kind, subject) in [("one", app("a", "x")), ("two", app("a", "y")), ("three", app("b", "x"))] {
            events.control(kind, subject, &());
        }
        events.control("four", Subject::None, &());
        let read = |filter: Filter, after| {
            let events = events.clone();
            async move { ids(&Box::pin(events.stream(filter, after)).next().await.unwrap()) }
        };
        let tenant_a = Filter { tenant: Some("a".parse().unwrap()), app: None, operator: true };
        let app_x = Filter { tenant: Some("a".parse().unwrap()), app: Some("x".parse().unwrap()), operator: true };
        assert_eq!(read(all(), Some(start)).await, ["one", "two", "three", "four"]);
        assert_eq!(read(all(), Some(start + 2)).await, ["three", "four"]);
        assert_eq!(read(tenant_a, Some(start)).await, ["one", "two", "four"]);
        assert_eq!(read(app_x, Some(start)).await, ["one", "four"]);
        let member = Filter { tenant: Some("a".parse().unwrap()), app: None, operator: false };
        assert_eq!(read(member, Some(start)).await, ["one", "two"], "what nodes do is the operator's");
        // An id of an earlier process, and one that never was.
        assert_eq!(read(all(), Some(7)).await, [event::MISSED, "one", "two", "three", "four"]);
        assert_eq!(read(all(), Some(u64::MAX)).await, [event::MISSED]);
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_says_so() {
        let events = Events::new(1);
        for _ in 0..KEPT + 3 {
            events.control("e", Subject::None, &());
        }
        assert_eq!(events.ring.lock().unwrap().kept.len(), KEPT);
        let mut stream = Box::pin(events.stream(all(), Some(1 << 20)));
        let mut seen = Vec::new();
        while seen.len() < KEPT + 1 {
            seen.extend(ids(&stream.next().await.unwrap()));
        }
        assert_eq!((seen.len(), seen[0].as_str()), (KEPT + 1, event::MISSED));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_gets_comments() {
        let events = Events::new(1);
        let mut stream = Box::pin(events.stream(all(), None));
        assert_eq!(stream.next().await.unwrap(), ":\n\n");
    }
}
