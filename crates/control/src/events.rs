//! What happened, for everybody who wants to know: bounded rings of CloudEvents and streams that read them at their own
//! pace. A slow reader costs nothing but its place; one that falls out of its ring is told so.
//!
//! The operator reads one ring of everything. A tenant's tokens read a ring of its own, with numbers of its own: neither the
//! ids nor what was missed nor the pauses tell how much happens to others.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::control::{Event, event};
use api::metrics::TenantMetrics;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream};
use model::plan::AppId;
use model::{AppName, NodeName, TenantName};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

/// Events that are kept for an operator's readers that come back.
const KEPT: usize = 4096;
/// Events of one tenant that are kept for its own readers that come back.
const KEPT_OF_TENANT: usize = 512;
/// Tenants that are gone of which it is remembered that nobody reads.
const GONE: usize = 256;
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

    fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::App(id) => Some(&id.tenant),
            Self::Tenant(tenant) => Some(tenant),
            Self::None => None,
        }
    }
}

/// Who reads: from which ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reads {
    /// The operator: all events, or those of one tenant and those about none (nodes).
    All(Option<TenantName>),
    /// A token of this tenant: its own.
    Own(TenantName),
}

/// Which events a reader wants. That some were missed is for everybody.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) reads: Reads,
    pub(crate) app: Option<AppName>,
}

impl Filter {
    fn wants(&self, subject: &Subject) -> bool {
        let of_tenant = match (&self.reads, subject.tenant()) {
            (Reads::Own(own), tenant) => tenant == Some(own),
            (Reads::All(Some(wanted)), Some(tenant)) => tenant == wanted,
            (Reads::All(_), _) => true,
        };
        let of_app = match subject {
            Subject::App(id) => self.app.as_ref().is_none_or(|wanted| *wanted == id.app),
            Subject::Tenant(_) | Subject::None => true,
        };
        of_tenant && of_app
    }
}

struct Kept {
    id: u64,
    subject: Subject,
    frame: Bytes,
}

/// Ids are consecutive within a process and larger than those of earlier ones.
struct Ring {
    kept: VecDeque<Kept>,
    latest: u64,
    most: usize,
}

impl Ring {
    fn new(latest: u64, most: usize) -> Self {
        Self { kept: VecDeque::new(), latest, most }
    }

    fn push(&mut self, subject: Subject, frame: impl FnOnce(u64) -> Bytes) {
        self.latest = self.latest.saturating_add(1);
        if self.kept.len() >= self.most {
            self.kept.pop_front();
        }
        self.kept.push_back(Kept { id: self.latest, subject, frame: frame(self.latest) });
    }
}

struct Rings {
    all: Ring,
    /// `None` of a tenant that is gone: what its last apps leave behind has no readers.
    own: HashMap<TenantName, Option<Ring>>,
    /// The last tenants that are gone.
    gone: VecDeque<TenantName>,
    /// Where every ring begins: the first event of a tenant says nothing of when it was.
    start: u64,
}

impl Rings {
    /// The ring somebody reads; of a tenant nothing happened to, none.
    fn of(&self, reads: &Reads) -> Option<&Ring> {
        match reads {
            Reads::All(_) => Some(&self.all),
            Reads::Own(tenant) => self.own.get(tenant)?.as_ref(),
        }
    }

    fn latest(&self, reads: &Reads) -> u64 {
        self.of(reads).map_or(self.start, |ring| ring.latest)
    }
}

/// Cheap to clone; clones share the rings.
#[derive(Clone)]
pub(crate) struct Events {
    rings: Arc<Mutex<Rings>>,
    changed: Arc<watch::Sender<()>>,
}

impl Events {
    /// Empty rings. `now_ms` is the time, milliseconds since 1970: ids grow from it, so that they grow over restarts.
    pub(crate) fn new(now_ms: u64) -> Self {
        let start = now_ms.saturating_mul(1 << 20);
        let rings = Rings { all: Ring::new(start, KEPT), own: HashMap::new(), gone: VecDeque::new(), start };
        Self { rings: Arc::new(Mutex::new(rings)), changed: Arc::new(watch::Sender::new(())) }
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened at the control plane itself.
    pub(crate) fn control(&self, kind: &str, subject: Subject, data: &impl Serialize) {
        self.publish("/control", kind, subject, data);
    }

    /// Something happened at a node.
    pub(crate) fn node(&self, node: &NodeName, kind: &str, subject: Subject, data: &impl Serialize) {
        self.publish(&format!("/nodes/{node}"), kind, subject, data);
    }

    fn publish(&self, source: &str, kind: &str, subject: Subject, data: &impl Serialize) {
        let data = serde_json::to_value(data).unwrap_or_default();
        let text = subject.text();
        let framed = |id| frame(id, source.to_owned(), kind, text.clone(), data.clone());
        {
            let mut rings = self.lock();
            let start = rings.start;
            if let Some(tenant) = subject.tenant() {
                let own = rings.own.entry(tenant.clone());
                if let Some(own) = own.or_insert_with(|| Some(Ring::new(start, KEPT_OF_TENANT))) {
                    own.push(subject.clone(), framed);
                }
            }
            rings.all.push(subject, framed);
        }
        self.changed.send_replace(());
    }

    /// A tenant that is gone has no readers any more, and its name comes never again.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        let rings = &mut *self.lock();
        if let Some(None) = rings.own.insert(tenant.clone(), None) {
            return;
        }
        rings.gone.push_back(tenant.clone());
        // What its last apps leave behind is over long before so many more are gone.
        if rings.gone.len() > GONE
            && let Some(oldest) = rings.gone.pop_front()
        {
            rings.own.remove(&oldest);
        }
    }

    /// A frame with what a tenant's hosts counted, of `app` alone where that is given. It is not kept: its id is that
    /// of the event before it and the time.
    pub(crate) fn reading(&self, reads: &Reads, metrics: &TenantMetrics, app: Option<&AppName>) -> Bytes {
        let mut shown = metrics.clone();
        shown.components.retain(|c| app.is_none_or(|app| c.app == *app));
        shown.links.retain(|l| app.is_none_or(|app| l.link.app == *app));
        let id = format!("{}-{}", self.lock().latest(reads), metrics.time_ms);
        let data = serde_json::to_value(shown).unwrap_or_default();
        frame(id, "/control".to_owned(), event::METRICS, Some(metrics.tenant.to_string()), data)
    }

    /// Server-sent event frames: those after `after` that are still kept, or from now on; then every new one.
    pub(crate) fn stream(&self, filter: Filter, after: Option<u64>) -> impl Stream<Item = Bytes> + Send + 'static {
        let reader = Reader {
            cursor: after.unwrap_or_else(|| self.lock().latest(&filter.reads)),
            changed: self.changed.subscribe(),
            events: self.clone(),
            filter,
        };
        stream::unfold(reader, |mut reader| async move { Some((reader.next().await, reader)) })
    }
}

struct Reader {
    cursor: u64,
    changed: watch::Receiver<()>,
    events: Events,
    filter: Filter,
}

impl Reader {
    async fn next(&mut self) -> Bytes {
        // Once for the whole wait: what happens to others neither hurries nor delays it.
        let idle = Instant::now() + KEEP_ALIVE;
        loop {
            self.changed.mark_unchanged();
            let found = self.batch();
            if !found.is_empty() {
                return found;
            }
            match tokio::time::timeout_at(idle, self.changed.changed()).await {
                Ok(Ok(())) => {}
                // The sender lives in `self.events`: only the time can have passed.
                Ok(Err(_)) | Err(_) => return Bytes::from_static(b":\n\n"),
            }
        }
    }

    fn batch(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        let rings = self.events.lock();
        let empty = Ring::new(rings.start, 0);
        let ring = rings.of(&self.filter.reads).unwrap_or(&empty);
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
        Filter { reads: Reads::All(None), app: None }
    }

    fn member(tenant: &str) -> Filter {
        Filter { reads: Reads::Own(tenant.parse().unwrap()), app: None }
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
        let tenant_a = Filter { reads: Reads::All(Some("a".parse().unwrap())), app: None };
        let app_x = Filter { app: Some("x".parse().unwrap()), ..tenant_a.clone() };
        assert_eq!(read(all(), Some(start)).await, ["one", "two", "three", "four"]);
        assert_eq!(read(all(), Some(start + 2)).await, ["three", "four"]);
        assert_eq!(read(tenant_a, Some(start)).await, ["one", "two", "four"]);
        assert_eq!(read(app_x, Some(start)).await, ["one", "four"]);
        assert_eq!(read(member("a"), Some(start)).await, ["one", "two"], "what nodes do is the operator's");
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
        assert_eq!(events.lock().all.kept.len(), KEPT);
        let mut stream = Box::pin(events.stream(all(), Some(1 << 20)));
        let mut seen = Vec::new();
        while seen.len() < KEPT + 1 {
            seen.extend(ids(&stream.next().await.unwrap()));
        }
        assert_eq!((seen.len(), seen[0].as_str()), (KEPT + 1, event::MISSED));
    }

    #[tokio::test]
    async fn a_tenant_cannot_tell_from_its_stream_what_happens_to_others() {
        // Twice the same for `a`: once alone, once beside a tenant that is busy.
        let mut seen = Vec::new();
        for busy in [0, KEPT + 10] {
            let events = Events::new(1);
            let others = || (0..busy).for_each(|_| events.control("other", app("b", "x"), &()));
            others();
            let mut live = Box::pin(events.stream(member("a"), None));
            for kind in ["one", "two"] {
                events.control(kind, app("a", "x"), &());
                others();
            }
            let metrics = TenantMetrics {
                tenant: "a".parse().unwrap(),
                time_ms: 7,
                hosts: Vec::new(),
                components: Vec::new(),
                links: Vec::new(),
                kept: None,
            };
            let frames = [
                live.next().await.unwrap(),
                Box::pin(events.stream(member("a"), Some(1 << 20))).next().await.unwrap(),
                Box::pin(events.stream(member("a"), Some(3))).next().await.unwrap(),
                events.reading(&Reads::Own("a".parse().unwrap()), &metrics, None),
            ];
            let without_time = |text: String| {
                let (before, after) = text.split_once("\"time\":\"").unwrap_or((&text, ""));
                format!("{before}{}", after.split_once('"').map_or("", |(_, rest)| rest))
            };
            seen.push(frames.map(|frame| {
                let text = String::from_utf8(frame.to_vec()).unwrap();
                text.lines().map(|line| without_time(line.to_owned())).collect::<Vec<_>>()
            }));
            events.forget(&"a".parse().unwrap());
            events.control("three", app("a", "x"), &());
            assert_eq!(events.lock().latest(&Reads::Own("a".parse().unwrap())), 1 << 20, "nothing of it is kept");
        }
        assert_eq!(seen[0], seen[1]);
        assert!(seen[0][2][1].contains("missed") && seen[0][0].len() > 4, "{:?}", seen[0]);
    }

    #[test]
    fn tenants_that_are_gone_leave_nothing_behind() {
        let events = Events::new(1);
        for n in 0..1000 {
            let name = format!("t{n}");
            events.control("one", app(&name, "x"), &());
            events.forget(&name.parse().unwrap());
            events.control("two", app(&name, "x"), &());
            events.forget(&name.parse().unwrap());
        }
        let rings = events.lock();
        assert_eq!((rings.own.len(), rings.gone.len()), (GONE, GONE));
        assert!(rings.own.values().all(Option::is_none));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_gets_comments_also_while_others_are_busy() {
        let events = Events::new(1);
        let mut stream = Box::pin(events.stream(all(), None));
        assert_eq!(stream.next().await.unwrap(), ":\n\n");
        let (mut own, began) = (Box::pin(events.stream(member("a"), None)), Instant::now());
        let busy = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                events.control("other", app("b", "x"), &());
            }
        };
        tokio::select! {
            frame = own.next() => assert_eq!(frame.unwrap(), ":\n\n"),
            () = busy => {}
        }
        assert_eq!(began.elapsed(), KEEP_ALIVE);
    }
}
