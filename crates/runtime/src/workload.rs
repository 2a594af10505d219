//! One component of one revision, ready to serve: limits, bindings and sinks fixed, instances made per call or reused.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::BodyExt;
use model::Limits;
use model::app::Reuse;
use wasmtime::Store;
use wasmtime::component::InstancePre;

use crate::body::{Capped, GoesOn, Pulled, ResponseBody};
use crate::call::Call;
use crate::ctx::{Bindings, Ctx};
use crate::drive::{drive, until_head};
use crate::engine::Linked;
use crate::fault::Fault;
use crate::idle::Shelf;
use crate::instance::{Instance, Invoked};
use crate::log::LogSink;
use crate::meter::Meter;
use crate::outbound::{HttpBody, HttpBodyError, Outbound};
use crate::sockets::Sockets;
use crate::trace::CallTrace;

/// Where a component's log, its outgoing requests and its sockets go.
#[derive(Clone)]
pub struct Sinks {
    /// Takes its log.
    pub log: Arc<dyn LogSink>,
    /// Sends its HTTP requests; every one is denied where absent.
    pub outbound: Option<Arc<dyn Outbound>>,
    /// Opens its sockets; every one is denied where absent.
    pub sockets: Option<Arc<dyn Sockets>>,
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sinks")
            .field("outbound", &self.outbound.is_some())
            .field("sockets", &self.sockets.is_some())
            .finish_non_exhaustive()
    }
}

/// One component of one revision.
pub struct Workload {
    linked: Linked,
    limits: Limits,
    reuse: Option<Reuse>,
    bindings: Arc<Bindings>,
    sinks: Sinks,
    meter: Arc<Meter>,
    /// Instances that wait for their next call. Empty unless reuse is on.
    idle: Arc<Shelf<Instance>>,
    reaping: AtomicBool,
}

impl Workload {
    /// Fixes everything a call of the component needs. Instances are reused only where `reuse` says so, and never by
    /// another workload.
    pub fn new(
        linked: Linked,
        limits: Limits,
        reuse: Option<Reuse>,
        bindings: Arc<Bindings>,
        sinks: Sinks,
    ) -> Arc<Self> {
        let idle = linked.set.shelves.shelf();
        Arc::new(Self {
            linked,
            limits,
            reuse,
            bindings,
            sinks,
            meter: Arc::default(),
            idle,
            reaping: AtomicBool::new(false),
        })
    }

    /// Makes one instance, within the limits of a call.
    ///
    /// # Errors
    /// The fault a call would end with.
    pub async fn probe(self: &Arc<Self>) -> Result<(), Fault> {
        let call = Arc::new(Call::new(&self.limits, self.meter.clone()));
        let instance = drive(self.clone(), call.clone(), || self.instantiate(&call)).await?;
        self.keep(instance);
        Ok(())
    }

    /// Answers one request. Must run inside a tokio runtime with timers; a body that is still being written when the
    /// head is ready goes on in a task of its own. A [`CallTrace`] among its extensions is the call's. Dropping the future, or the body before its end, ends the guest.
    ///
    /// # Errors
    /// Why the call failed, where no head has been returned yet; later failures end the body.
    pub async fn handle<B>(
        self: &Arc<Self>,
        mut request: http::Request<B>,
    ) -> Result<http::Response<ResponseBody>, Fault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<HttpBodyError>,
    {
        let trace = request.extensions_mut().remove::<Arc<CallTrace>>();
        let call = Arc::new(Call::new(&self.limits, self.meter.clone()).traced(trace));
        let request = self.admit(request, &call)?;
        let (work, of) = (self.clone(), call.clone());
        let mut task = Box::pin(drive(self.clone(), call.clone(), move || serve(work, of, request)));
        let mut ended = until_head(&mut task, &call).await;
        if let Some(Err(fault)) = ended {
            return Err(fault);
        }
        let head = call.take_head().unwrap_or(Err(Fault::NoResponse));
        let (head, body) = head?.into_parts();
        let mut body = ResponseBody::new(body, call.clone(), self.limits.response_body);
        gather(&mut body, &mut task, &mut ended).await?;
        if ended.is_none() {
            // What is sent here is dropped with the guest, however it ends.
            let (hold, held) = tokio::sync::oneshot::channel();
            let guest = tokio::spawn(async move {
                drop(task.await);
                drop(held);
            });
            body.driven_by(GoesOn::new(guest.abort_handle(), hold));
        } else if let Some(fault) = call.fault() {
            return Err(fault);
        }
        Ok(http::Response::from_parts(head, body))
    }

    /// Calls any export of the component, within the limits of a call and counted as one: `body` runs on an instance of
    /// its own or a reused one, which is kept for further calls only if it returns `Ok`. Generated bindings find their
    /// functions with the indices they made from [`Workload::instance_pre`]; asynchronous exports run in
    /// `Store::run_concurrent`. Must run inside a tokio runtime with timers; dropping the future ends the guest. The call
    /// belongs to the trace that is the current one when it begins.
    ///
    /// # Errors
    /// Why the call failed: a limit, a trap, or what `body` returned.
    pub async fn invoke<T, F>(self: &Arc<Self>, body: F) -> Result<T, Fault>
    where
        F: for<'a> FnOnce(&'a mut Store<Ctx>, wasmtime::component::Instance) -> Invoked<'a, T>,
    {
        let call = Arc::new(Call::new(&self.limits, self.meter.clone()).traced(CallTrace::current()));
        let guest = async {
            let mut instance = self.instance(&call).await?;
            let value = instance.invoke(&call, body).await?;
            self.keep(instance);
            Ok(value)
        };
        drive(self.clone(), call.clone(), || guest).await
    }

    /// The component ready to be instantiated: what generated bindings look the indices of its exports up in.
    pub fn instance_pre(&self) -> &InstancePre<Ctx> {
        self.linked.instance_pre()
    }

    /// The workload's counters.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The limits of one call.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Instances that wait for their next call; 0 unless reuse is on.
    pub fn idle_instances(&self) -> usize {
        self.idle.len()
    }

    /// The code it runs.
    pub fn linked(&self) -> &Linked {
        &self.linked
    }
    pub(crate) fn bindings(&self) -> &Arc<Bindings> {
        &self.bindings
    }
    pub(crate) fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Puts the request into the one form the guest's side takes, within the limit on its body.
    fn admit<B>(&self, request: http::Request<B>, call: &Arc<Call>) -> Result<http::Request<HttpBody>, Fault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<HttpBodyError>,
    {
        let limit = self.limits.request_body;
        let hint = request.body().size_hint();
        if hint.lower() > limit.0 {
            return Err(Fault::RequestTooLarge { limit });
        }
        let known = hint.upper().is_some_and(|upper| upper <= limit.0);
        let (mut head, body) = request.into_parts();
        if head.uri.authority().is_none() {
            head.uri = with_authority(&head)?;
        }
        let body = body.map_err(Into::into).boxed_unsync();
        let body = if known { body } else { Capped { body, call: call.clone(), left: limit.0, limit }.boxed_unsync() };
        Ok(http::Request::from_parts(head, body))
    }

    /// An instance that waits for its next call.
    fn take_idle(&self) -> Option<Instance> {
        self.idle.take(self.reuse?.idle.duration())
    }

    pub(crate) fn shared_meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// An instance for a call: a waiting one or a fresh one.
    pub(crate) async fn instance(&self, call: &Arc<Call>) -> Result<Instance, Fault> {
        match self.take_idle() {
            Some(mut instance) => {
                instance.begin(call);
                Ok(instance)
            }
            None => self.instantiate(call).await,
        }
    }

    /// A fresh instance. Where the pool is full, instances that only wait give way to it, whosever they are.
    async fn instantiate(&self, call: &Arc<Call>) -> Result<Instance, Fault> {
        self.meter.instantiated();
        loop {
            match Instance::new(self, call, None).await {
                // Ends: every round drops half of what waits.
                Err(Fault::NoCapacity { .. }) if self.linked.set.shelves.make_room() => {}
                made => return made,
            }
        }
    }

    /// Keeps an instance for its next call, where it may have one and the workload does not keep too many.
    pub(crate) fn keep(self: &Arc<Self>, instance: Instance) {
        if self.reuse.is_none_or(|reuse| instance.served >= reuse.requests) {
            return;
        }
        self.idle.put(instance);
        if !self.reaping.swap(true, SeqCst) {
            tokio::spawn(reap(Arc::downgrade(self)));
        }
    }

    /// Drops the instances that have waited too long; says when the next one will have, where one is left.
    fn drop_expired(&self) -> Option<Instant> {
        self.idle.expire(self.reuse?.idle.duration())
    }
}

/// Drops idle instances in time; ends when none is left or the workload is gone.
async fn reap(work: Weak<Workload>) {
    loop {
        let next = {
            let Some(work) = work.upgrade() else { return };
            match work.drop_expired() {
                Some(next) => next,
                None => {
                    work.reaping.store(false, SeqCst);
                    // One may have come between the look and the flag.
                    match work.drop_expired() {
                        Some(next) if !work.reaping.swap(true, SeqCst) => next,
                        _ => return,
                    }
                }
            }
        };
        tokio::time::sleep_until(next.into()).await;
    }
}

/// One call on an instance.
async fn serve(work: Arc<Workload>, call: Arc<Call>, request: http::Request<HttpBody>) -> Result<(), Fault> {
    let mut instance = work.instance(&call).await?;
    instance.serve(&work.linked.pre.http, &call, request).await?;
    work.keep(instance);
    Ok(())
}

/// Takes as much of the body as comes without waiting. A small answer is whole then, and its guest has ended.
async fn gather(
    body: &mut ResponseBody,
    task: &mut Pin<Box<impl Future<Output = Result<(), Fault>>>>,
    ended: &mut Option<Result<(), Fault>>,
) -> Result<(), Fault> {
    poll_fn(|cx| {
        loop {
            let pulled = match body.pull(cx) {
                Ok(pulled) => pulled,
                Err(fault) => return Poll::Ready(Err(fault)),
            };
            if pulled == Pulled::None || ended.is_some() {
                return Poll::Ready(Ok(()));
            }
            match task.as_mut().poll(cx) {
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Ready(Ok(())) => *ended = Some(Ok(())),
                // It goes on after its answer.
                Poll::Pending if pulled == Pulled::End => return Poll::Ready(Ok(())),
                // It may have written more, now that there is room.
                Poll::Pending => {}
            }
        }
    })
    .await
}

/// The request's URI with the authority its `Host` header names.
fn with_authority(head: &http::request::Parts) -> Result<http::Uri, Fault> {
    let bad = |message: &str| Fault::BadRequest { message: message.to_owned() };
    let host = head.headers.get(http::header::HOST).ok_or_else(|| bad("it names no host"))?;
    let authority = http::uri::Authority::try_from(host.as_bytes()).map_err(|_| bad("its host is not valid"))?;
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query = head.uri.path_and_query().cloned().or(Some(http::uri::PathAndQuery::from_static("/")));
    http::Uri::from_parts(uri).map_err(|_| bad("its target is not valid"))
}
