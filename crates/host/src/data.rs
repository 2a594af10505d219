//! Requests of apps: find the component by the route header, hand it the request, stream its answer. They come on the
//! data socket, or whole on a [line](crate::line); an answer to one of those that is not whole is kept here until the
//! ingress asks for it on the data socket.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use api::Code;
use api::agent::ROUTE_HEADER;
use api::data_line::{CLAIM_HEADER, MAX_MESSAGE};
use bytes::Bytes;
use futures::FutureExt;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use runtime::{Fault, Few, HttpBodyError, ResponseBody};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tokio_util::task::AbortOnDropHandle;

use crate::apps::{Apps, NoPlace, Place};
use crate::entry::Entry;
use crate::error::StartError;
use crate::fault;
use crate::spans::Traced;

/// [`ROUTE_HEADER`], parsed.
const ROUTE: HeaderName = HeaderName::from_static(ROUTE_HEADER);
/// How headers of the platform's own start: none reaches a component, none comes from one.
const OURS: &str = "sidereal-";
/// Set by the ingress: how the caller reached it.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// [`CLAIM_HEADER`], parsed.
const CLAIM: HeaderName = HeaderName::from_static(CLAIM_HEADER);

/// A request without the platform's own headers, and the component that they named.
pub(crate) struct Routed<B> {
    /// The value of [`ROUTE_HEADER`].
    pub(crate) route: Option<HeaderValue>,
    pub(crate) request: Request<B>,
}

impl<B> From<Request<B>> for Routed<B> {
    fn from(mut request: Request<B>) -> Self {
        let route = request.headers_mut().remove(ROUTE);
        strip(request.headers_mut());
        Self { route, request }
    }
}

/// A call of a line: the number of the line, and that of the call.
pub(crate) type CallOnLine = (u64, u64);

/// What requests are answered with.
pub(crate) struct Data {
    apps: Arc<Apps>,
    /// Answers that wait to be asked for; they go with the line their call came on.
    kept: Mutex<HashMap<CallOnLine, Response<DataBody>>>,
}

impl Data {
    pub(crate) fn new(apps: Arc<Apps>) -> Arc<Self> {
        Arc::new(Self { apps, kept: Mutex::default() })
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<CallOnLine, Response<DataBody>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an answer; what it is asked for by.
    pub(crate) fn keep(&self, call: CallOnLine, response: Response<DataBody>) -> String {
        self.kept().insert(call, response);
        format!("{}.{}", call.0, call.1)
    }

    /// Ends the calls whose answers nobody will ask for.
    pub(crate) fn forget(&self, is_one: impl Fn(&CallOnLine) -> bool) {
        let mut kept = self.kept();
        if kept.is_empty() {
            return;
        }
        let (gone, rest) = std::mem::take(&mut *kept).into_iter().partition(|(call, _)| is_one(call));
        *kept = rest;
        drop(kept);
        // Their guests end here, outside of the lock.
        drop::<HashMap<_, _>>(gone);
    }

    /// The answer that is asked for by `claim`. Nothing of it was sent yet, so one whose guest has failed meanwhile is that
    /// fault, as it would have been had it failed a moment earlier.
    fn claimed(&self, claim: &HeaderValue) -> Option<Response<DataBody>> {
        let (line, call) = claim.to_str().ok()?.split_once('.')?;
        let kept = self.kept().remove(&(line.parse().ok()?, call.parse().ok()?))?;
        let (head, mut body) = kept.into_parts();
        Some(match body.failed() {
            Some(fault) => faulted(&fault),
            None => Response::from_parts(head, body),
        })
    }
}

/// Answers one request on the data socket. Never fails and never panics: whatever happens is an answer.
pub(crate) async fn answer_or_hand_over(
    data: Arc<Data>,
    request: Request<Incoming>,
) -> Result<Response<DataBody>, Infallible> {
    Ok(match request.headers().get(CLAIM) {
        Some(claim) => {
            data.claimed(claim).unwrap_or_else(|| refuse(Code::Internal, "the answer is not there any more"))
        }
        None => answer(data, request.into()).await,
    })
}

/// Answers one request. Never panics: whatever happens is an answer.
pub(crate) async fn answer<B>(data: Arc<Data>, request: Routed<B>) -> Response<DataBody>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<HttpBodyError>,
{
    let answered = AssertUnwindSafe(call(&data.apps, request)).catch_unwind().await;
    answered.unwrap_or_else(|_| {
        tracing::error!("a call panicked in the host");
        refuse(Code::Internal, "the host failed; this is a defect of the platform")
    })
}

/// The host's own answer.
pub(crate) fn refuse(code: Code, sentence: &str) -> Response<DataBody> {
    fault::answer(code, sentence).map(DataBody::Text)
}

/// The answer to a call that failed before anything was sent.
fn faulted(fault: &Fault) -> Response<DataBody> {
    let (code, sentence) = fault::describe(fault);
    refuse(code, &sentence)
}

/// The answer to a call whose component has no code here. Nothing has run.
fn unloaded(error: &StartError) -> Response<DataBody> {
    match error {
        StartError::Late { .. } => refuse(Code::Busy, "the component's code is still being compiled; try again"),
        StartError::Ended { .. } => refuse(Code::NotFound, "this host does not have that revision any more"),
        _ => refuse(Code::StartFailed, "the component could not be loaded; try again"),
    }
}

async fn call<B>(apps: &Arc<Apps>, request: Routed<B>) -> Response<DataBody>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<HttpBodyError>,
{
    let Routed { route, mut request } = request;
    let Some(route) = route else {
        return refuse(Code::RequestInvalid, "the request names no component");
    };
    let Ok(route) = route.to_str() else {
        return refuse(Code::RequestInvalid, "the route is no text");
    };
    let place = match apps.enter(route) {
        Err(NoPlace::Held) => Box::pin(apps.enter_later(route, brings(&request))).await,
        other => other,
    };
    let place = match place {
        Ok(place) => place,
        Err(NoPlace::Unknown) => return refuse(Code::NotFound, "this host does not have that revision"),
        // The same code: whoever sent it may try another host, nothing has run.
        Err(NoPlace::Closed) => return refuse(Code::NotFound, "this host is ending"),
        Err(NoPlace::Busy | NoPlace::Held) => {
            return refuse(Code::Busy, "the component has all the calls it may have; try again");
        }
    };
    let entry = place.entry().clone();
    let workload = match entry.live() {
        Some(workload) => workload,
        // In a box of its own: most calls find it loaded, and have no room for this in theirs.
        None => match Box::pin(entry.load(apps.code())).await {
            Ok(workload) => {
                apps.trim();
                workload
            }
            Err(error) => {
                tracing::warn!(%error, "a component could not be loaded for a call");
                return unloaded(&error);
            }
        },
    };
    secure(&mut request);
    let mut traced = apps.spans().begin(request.headers_mut(), entry.origin());
    if let Some(traced) = &traced {
        request.extensions_mut().insert(traced.trace.clone());
    }
    let result = tokio::select! {
        biased;
        result = workload.handle(request) => result,
        () = entry.ended().cancelled() => Err(Fault::Cancelled),
    };
    match result {
        Ok(response) => {
            if let Some(traced) = &mut traced {
                let status = response.status();
                traced.end(Some(status.as_u16()), status.is_server_error().then(|| status.to_string()));
            }
            let mut response = response.map(|body| DataBody::guest(body, place, traced));
            strip(response.headers_mut());
            response
        }
        Err(fault) => {
            entry.failed(&fault);
            if let Some(traced) = &mut traced {
                traced.end(None, Some(fault::describe(&fault).0.as_str().to_owned()));
            }
            faulted(&fault)
        }
    }
}

/// What a request has in memory while it waits, bytes. Of a body that is not whole no more than a whole one may have: the
/// rest stays with whoever sends it.
fn brings<B: Body>(request: &Request<B>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    let body = request.body().size_hint().upper().and_then(|upper| usize::try_from(upper).ok());
    fields + request.uri().path().len() + body.map_or(MAX_MESSAGE, |body| body.min(MAX_MESSAGE))
}

/// Says how the caller reached the ingress, where it was not over plain HTTP.
fn secure<B>(request: &mut Request<B>) {
    let secure = request.headers().get(FORWARDED_PROTO).is_some_and(|proto| proto.as_bytes() == b"https");
    // Without a scheme the runtime takes `http` and the authority of the `Host` header.
    if secure && let Some(authority) = authority(request) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(authority);
        parts.path_and_query.get_or_insert_with(|| http::uri::PathAndQuery::from_static("/"));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

fn authority<B>(request: &Request<B>) -> Option<Authority> {
    let host = || Authority::try_from(request.headers().get(http::header::HOST)?.as_bytes()).ok();
    request.uri().authority().cloned().or_else(host)
}

/// Whether a header of this name is one of the platform's own.
pub(crate) fn is_ours(name: &str) -> bool {
    name.get(..OURS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(OURS))
}

fn strip(headers: &mut HeaderMap) {
    while let Some(ours) = headers.keys().find(|name| is_ours(name.as_str())).cloned() {
        headers.remove(ours);
    }
}

/// The body of an answer.
pub(crate) enum DataBody {
    /// The host's own.
    Text(Full<Bytes>),
    /// A component's: its call has its place until the end.
    Guest(Box<Guest>),
}

/// The place of a call: its answer's, and its guest's where that goes on after it.
pub(crate) enum Taken {
    Alone(Place),
    Shared(Arc<Place>),
}

impl Taken {
    /// Shares the place with the guest that writes `body`, where it goes on: it may do so after its answer was read, and
    /// ends with its revision.
    fn by(place: Place, body: &mut ResponseBody) -> Self {
        let Some(guest) = body.goes_on() else { return Self::Alone(place) };
        let place = Arc::new(place);
        let (ended, task) = (place.entry().ended().clone(), guest.task().clone());
        let ends = tokio::spawn(async move {
            ended.cancelled().await;
            task.abort();
        });
        guest.hold((place.clone(), AbortOnDropHandle::new(ends)));
        Self::Shared(place)
    }

    fn entry(&self) -> &Arc<Entry> {
        match self {
            Self::Alone(place) => place.entry(),
            Self::Shared(place) => place.entry(),
        }
    }
}

pub(crate) struct Guest {
    body: ResponseBody,
    place: Taken,
    /// Recorded with the end of the answer.
    traced: Option<Traced>,
    /// Made when the body first waits.
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl DataBody {
    fn guest(mut body: ResponseBody, place: Place, traced: Option<Traced>) -> Self {
        let place = Taken::by(place, &mut body);
        Self::Guest(Box::new(Guest { body, place, traced, ended: None }))
    }

    /// Why the body will not come to its end, where that is certain already.
    fn failed(&mut self) -> Option<Fault> {
        match self {
            Self::Text(_) => None,
            Self::Guest(guest) => guest.failed(),
        }
    }

    /// The pieces of a body that is here to its end, of at most so many bytes.
    pub(crate) fn whole(self, most: usize) -> Result<Few<Bytes>, Self> {
        match self {
            Self::Guest(guest) => {
                let Guest { body, place, traced, ended } = *guest;
                body.whole(most).map_err(|body| Self::Guest(Box::new(Guest { body, place, traced, ended })))
            }
            Self::Text(mut body) => {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                // A text never waits and never fails.
                let mut next = || match Pin::new(&mut body).poll_frame(&mut cx) {
                    Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
                    _ => None,
                };
                Ok(std::iter::from_fn(&mut next).collect())
            }
        }
    }
}

impl Body for DataBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self.get_mut() {
            Self::Text(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Guest(guest) => guest.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(body) => body.is_end_stream(),
            Self::Guest(guest) => guest.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(body) => body.size_hint(),
            Self::Guest(guest) => guest.body.size_hint(),
        }
    }
}

impl Guest {
    fn failed(&mut self) -> Option<Fault> {
        let fault = self.body.failed()?;
        self.note(&fault);
        Some(fault)
    }

    /// The component has failed this call.
    fn note(&mut self, fault: &Fault) {
        self.place.entry().failed(fault);
        if let Some(traced) = &mut self.traced {
            traced.end(None, Some(fault::describe(fault).0.as_str().to_owned()));
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Pending => {
                let entry = self.place.entry();
                let ended = self.ended.get_or_insert_with(|| Box::pin(entry.ended().clone().cancelled_owned()));
                ended.as_mut().poll(cx).map(|()| Some(Err(Fault::Cancelled)))
            }
            Poll::Ready(frame) => {
                if let Some(Err(fault)) = frame {
                    self.note(fault);
                }
                polled
            }
        }
    }
}
