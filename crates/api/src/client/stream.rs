//! The endless answers of the control API, events (server-sent), logs and flows (lines of JSON), as streams of typed items.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use futures::Stream;
use http::{HeaderMap, HeaderValue, Method};
use hyper::body::{Body, Incoming};
use model::{AppName, TenantName};
use serde::de::DeserializeOwned;

use super::{ClientError, ControlClient, of};
use crate::agent::LogLine;
use crate::control::Event;
use crate::flows::{FlowQuery, FlowRecord};
use crate::node::LogQuery;

/// The longest line either stream may have, bytes: the counters of thousands of apps are one line.
const MAX_LINE: usize = 32 << 20;

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// Only of this tenant.
    pub tenant: Option<TenantName>,
    /// Only of this app; needs a tenant.
    pub app: Option<AppName>,
    /// Go on after the event with this id.
    pub after: Option<String>,
    /// Also counters ([`crate::control::event::METRICS`]), so often, milliseconds; needs a tenant.
    pub metrics: Option<u64>,
}

impl ControlClient {
    /// Events from now on, or after `query.after`. The stream ends when the server stops or the connection breaks: ask
    /// again with the last id seen. Everything that happens after this returns is in the stream.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, query: EventQuery) -> Result<Events, ClientError> {
        let pairs = [
            query.tenant.map(|t| format!("tenant={t}")),
            query.app.map(|a| format!("app={a}")),
            query.metrics.map(|ms| format!("metrics={ms}")),
        ];
        let path = with_query("/v1/events", pairs);
        let mut headers = HeaderMap::new();
        if let Some(after) = query.after {
            let value = HeaderValue::from_str(&after).map_err(|cause| self.protocol(cause))?;
            headers.insert("last-event-id", value);
        }
        let response = self.open(Method::GET, &path, headers, Bytes::new(), None).await?;
        Ok(Events(Lines::new(response.into_body(), self.clone())))
    }

    /// An app's log lines: past ones, then with `query.follow` new ones as they come.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`].
    pub async fn logs(
        &self,
        tenant: &TenantName,
        app: &AppName,
        query: LogQuery,
    ) -> Result<Items<LogLine>, ClientError> {
        let pairs = [
            Some(format!("last={}", query.last)),
            Some(format!("follow={}", query.follow)),
            query.component.map(|c| format!("component={c}")),
            query.level.map(|level| format!("level={}", level.as_str())),
            query.since.map(|since| format!("since={since}")),
            // Of one that is none, nothing is left that could be mistaken for another parameter.
            query
                .instance
                .map(|i| format!("instance={}", i.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_"))),
        ];
        let path = with_query(&of(tenant, app, "/logs"), pairs);
        let response = self.open(Method::GET, &path, HeaderMap::new(), Bytes::new(), None).await?;
        Ok(Items(Lines::new(response.into_body(), self.clone()), PhantomData))
    }
}

impl ControlClient {
    /// What was decided about a tenant's outgoing connections: past records, then with `query.follow` new ones.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`].
    pub async fn flows(&self, tenant: &TenantName, query: FlowQuery) -> Result<Items<FlowRecord>, ClientError> {
        let pairs = [
            Some(format!("last={}", query.last)),
            Some(format!("follow={}", query.follow)),
            query.app.map(|app| format!("app={app}")),
            query.verdict.map(|verdict| format!("verdict={verdict}")),
            query.since.map(|since| format!("since={since}")),
        ];
        let path = with_query(&format!("/v1/tenants/{tenant}/flows"), pairs);
        let response = self.open(Method::GET, &path, HeaderMap::new(), Bytes::new(), None).await?;
        Ok(Items(Lines::new(response.into_body(), self.clone()), PhantomData))
    }
}

/// Names have no characters that need escaping in a query.
fn with_query(path: &str, pairs: impl IntoIterator<Item = Option<String>>) -> String {
    let query = pairs.into_iter().flatten().collect::<Vec<_>>().join("&");
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A body cut into lines.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to have no line end.
    scanned: usize,
    ended: bool,
    client: ControlClient,
}

impl Lines {
    fn new(body: Incoming, client: ControlClient) -> Self {
        Self { body, buffer: BytesMut::new(), scanned: 0, ended: false, client }
    }

    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ClientError>>> {
        loop {
            let new = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = new.iter().position(|b| *b == b'\n').map(|at| at + self.scanned) {
                self.scanned = 0;
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                return Poll::Ready(Some(Ok(line)));
            }
            self.scanned = self.buffer.len();
            if self.ended {
                return Poll::Ready(None);
            }
            if self.buffer.len() > MAX_LINE {
                self.ended = true;
                return Poll::Ready(Some(Err(self.client.protocol("a line longer than 32 MiB"))));
            }
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(cause)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(self.client.unreachable(&cause))));
                }
                None => self.ended = true,
            }
        }
    }
}

/// Events as they happen.
pub struct Events(Lines);

impl Stream for Events {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Each event is one `data:` line (JSON has no raw line ends); `id:`, comments and blank lines say nothing more.
        loop {
            let line = match std::task::ready!(self.0.poll_line(cx)) {
                Some(Ok(line)) => line,
                Some(Err(cause)) => return Poll::Ready(Some(Err(cause))),
                None => return Poll::Ready(None),
            };
            if let Some(data) = line.strip_prefix(b"data:") {
                return Poll::Ready(Some(self.0.client.decode(data)));
            }
        }
    }
}

/// Items as they come, one in each line.
pub struct Items<T>(Lines, PhantomData<fn() -> T>);

impl<T: DeserializeOwned> Stream for Items<T> {
    type Item = Result<T, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let line = match std::task::ready!(self.0.poll_line(cx)) {
                Some(Ok(line)) => line,
                Some(Err(cause)) => return Poll::Ready(Some(Err(cause))),
                None => return Poll::Ready(None),
            };
            // A blank line keeps an idle connection alive.
            if !line.is_empty() {
                return Poll::Ready(Some(self.0.client.decode(&line)));
            }
        }
    }
}
