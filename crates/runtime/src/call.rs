//! What one call shares between the guest's store, the task that drives it and the reader of its response.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use model::Limits;
use model::unit::Millis;

use crate::clock::Began;
use crate::fault::Fault;
use crate::head;
use crate::meter::Meter;
use crate::outbound::HttpBody;
use crate::peer::MAX_CALL_DEPTH;
use crate::trace::CallTrace;

/// The head the guest set, or the error code it answered with.
pub(crate) type Head = Result<http::Response<HttpBody>, Fault>;

#[derive(Default)]
struct State {
    head: Option<Head>,
    fault: Option<Fault>,
    settled: bool,
    body_read: bool,
    body_waker: Option<Waker>,
    reader: Option<Waker>,
}

thread_local! {
    /// CPU time of the calls made from within the poll that runs on this thread, nanoseconds: theirs, not its own.
    static INNER_NS: Cell<u64> = const { Cell::new(0) };
}

/// One call.
pub(crate) struct Call {
    began: Instant,
    wall: Millis,
    /// The call of the component that makes this one, where it is one between components.
    outer: Option<Arc<Call>>,
    depth: u32,
    trace: Option<Arc<CallTrace>>,
    cpu_limit_ns: u64,
    cpu_used_ns: AtomicU64,
    poll_began: [AtomicU64; 2],
    subrequests: AtomicU32,
    open: AtomicU32,
    has_head: AtomicBool,
    state: Mutex<State>,
    meter: Arc<Meter>,
}

/// Outgoing requests one call may have open at once (`docs/limits.md`).
pub(crate) const OPEN_SUBREQUESTS: u32 = 16;

/// An outgoing request that is open.
pub(crate) struct Subrequest(Arc<Call>);

impl Drop for Subrequest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl Call {
    pub(crate) fn new(limits: &Limits, meter: Arc<Meter>) -> Self {
        Self {
            began: Instant::now(),
            wall: limits.wall,
            outer: None,
            depth: 1,
            trace: None,
            cpu_limit_ns: limits.cpu.0.saturating_mul(1_000_000),
            cpu_used_ns: AtomicU64::new(0),
            poll_began: Default::default(),
            subrequests: AtomicU32::new(limits.subrequests),
            open: AtomicU32::new(0),
            has_head: AtomicBool::new(false),
            state: Mutex::default(),
            meter,
        }
    }

    /// A call that the component of `outer` makes.
    pub(crate) fn within(limits: &Limits, meter: Arc<Meter>, outer: &Arc<Call>) -> Result<Self, Fault> {
        let depth = outer.depth + 1;
        if depth > MAX_CALL_DEPTH {
            return Err(Fault::Depth { limit: MAX_CALL_DEPTH });
        }
        Ok(Self { outer: Some(outer.clone()), depth, ..Self::new(limits, meter) })
    }

    /// The same call, in a trace.
    pub(crate) fn traced(self, trace: Option<Arc<CallTrace>>) -> Self {
        Self { trace, ..self }
    }

    pub(crate) fn trace(&self) -> Option<&Arc<CallTrace>> {
        self.trace.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest is about to run on this thread. What is returned belongs to [`Self::poll_ends`].
    pub(crate) fn poll_begins(&self) -> u64 {
        let Began { wall, cpu } = Began::now();
        let [on_wall, on_cpu] = &self.poll_began;
        on_wall.store(wall, Relaxed);
        on_cpu.store(cpu, Relaxed);
        INNER_NS.replace(0)
    }

    /// The guest stopped running on this thread. The CPU time of the poll, nanoseconds, with that of inner calls.
    pub(crate) fn poll_ends(&self, before: u64) -> u64 {
        let all = self.poll_ns();
        let inner = INNER_NS.replace(before.saturating_add(all));
        self.cpu_used_ns.fetch_add(all.saturating_sub(inner), Relaxed);
        all
    }

    /// CPU time used up to the end of the last poll, nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.cpu_used_ns.load(Relaxed)
    }

    /// Asked at every tick, while the guest runs on this thread.
    pub(crate) fn over_cpu(&self) -> bool {
        self.cpu_ns().saturating_add(self.poll_ns().saturating_sub(INNER_NS.get())) >= self.cpu_limit_ns
    }

    /// CPU time of this thread since the poll that runs on it began, nanoseconds.
    fn poll_ns(&self) -> u64 {
        let [wall, cpu] = &self.poll_began;
        Began { wall: wall.load(Relaxed), cpu: cpu.load(Relaxed) }.cpu_ns()
    }

    /// When the call must have ended: by its own limit, or by that of the call it is made from.
    pub(crate) fn deadline(&self) -> Instant {
        // A wall limit beyond the end of the clock is no limit.
        let own = self.began.checked_add(self.wall.duration());
        let own = own.unwrap_or(self.began + Duration::from_secs(86_400));
        self.outer.as_ref().map_or(own, |outer| outer.deadline().min(own))
    }

    /// Why a call that reached its deadline ends: the limit is that of the call whose deadline it was.
    pub(crate) fn late(&self) -> Fault {
        match &self.outer {
            Some(outer) if outer.deadline() <= self.deadline() => outer.late(),
            _ => Fault::WallTime { limit: self.wall },
        }
    }

    /// Takes one from the budget of outgoing requests. It is open until what is returned goes away; `None` where the
    /// budget is used up or [`OPEN_SUBREQUESTS`] are open.
    pub(crate) fn take_subrequest(self: &Arc<Self>) -> Option<Subrequest> {
        let more = |open: u32| (open < OPEN_SUBREQUESTS).then_some(open + 1);
        self.open.fetch_update(Relaxed, Relaxed, more).ok()?;
        let subrequest = Subrequest(self.clone());
        self.subrequests.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).ok()?;
        Some(subrequest)
    }

    /// The guest answered. Only the first answer counts.
    pub(crate) fn set_head(&self, head: Head) {
        let head = head.and_then(head::within);
        if let Err(fault) = &head {
            self.fail(fault);
        }
        if !self.has_head.swap(true, SeqCst) {
            self.state().head = Some(head);
        }
    }

    /// Whether the guest has answered.
    pub(crate) fn has_head(&self) -> bool {
        self.has_head.load(SeqCst)
    }

    /// The answer, once.
    pub(crate) fn take_head(&self) -> Option<Head> {
        self.state().head.take()
    }

    /// The call has failed; must be said before the guest's end of the body goes away, so that its reader never takes
    /// a cut body for a whole one. Only the first reason counts.
    pub(crate) fn fail(&self, fault: &Fault) {
        let reader = {
            let mut state = self.state();
            if state.fault.is_some() {
                return;
            }
            state.fault = Some(fault.clone());
            if state.settled {
                self.meter.fail(fault.clone());
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Why the call failed, where it has; otherwise the reader of the body is woken when it does. A body need not end
    /// with its guest: one that passes the request's body on is not the guest's at all.
    pub(crate) fn fault_or_wake(&self, cx: &Context<'_>) -> Option<Fault> {
        let mut state = self.state();
        if state.fault.is_none() {
            state.reader = Some(cx.waker().clone());
        }
        state.fault.clone()
    }

    /// The guest has ended: the meter gets what it used and why it failed, where it did.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        state.settled = true;
        self.meter.end(self.cpu_ns(), state.fault.clone());
    }

    /// The reader has seen the end of the body.
    pub(crate) fn body_read(&self) {
        let waker = {
            let mut state = self.state();
            state.body_read = true;
            state.body_waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once the reader has seen the end of the body.
    pub(crate) fn poll_body_read(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.body_read {
            return Poll::Ready(());
        }
        state.body_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Why the call failed, where it has.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.state().fault.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_run_out() {
        let limits = Limits { subrequests: 1, cpu: Millis(0), ..Limits::default() };
        let call = Arc::new(Call::new(&limits, Arc::default()));
        assert!(call.take_subrequest().is_some());
        assert!(call.take_subrequest().is_none());
        assert_eq!(call.open.load(Relaxed), 0);
        call.poll_begins();
        assert!(call.over_cpu());
    }

    #[test]
    fn first_answer_and_first_fault_count() {
        let meter = Arc::new(Meter::default());
        let call = Call::new(&Limits::default(), meter.clone());
        meter.begin();
        call.settle();
        assert_eq!(meter.failed(), 0);
        call.set_head(Err(Fault::NoResponse));
        call.set_head(Err(Fault::Cancelled));
        assert!(matches!(call.take_head(), Some(Err(Fault::NoResponse))));
        assert!(call.take_head().is_none() && call.has_head());
        call.fail(&Fault::NoHandler);
        assert_eq!(call.fault(), Some(Fault::NoResponse));
        // A fault found after the guest had ended is still the call's, once.
        assert_eq!((meter.failed(), meter.last_fault()), (1, Some(Fault::NoResponse)));
    }
}
