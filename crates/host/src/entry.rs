//! One component of one revision on this host: small while nobody calls it, with code while somebody does.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::agent::ComponentStatus;
use model::app::Reuse;
use model::trace::SpanOrigin;
use model::{ComponentName, Digest, InterfaceId, Limits, World};
use runtime::{Bindings, Fault, MeterSnapshot, Outbound, Sinks, Sockets, Workload};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::code::{CodeStore, Loaded, Wanted};
use crate::error::StartError;
use crate::fault;
use crate::hold::Line;
use crate::logs::ComponentLog;

/// What does not change between calls.
pub(crate) struct Spec {
    pub(crate) component: ComponentName,
    pub(crate) digest: Digest,
    pub(crate) world: World,
    pub(crate) imports: Arc<[InterfaceId]>,
    /// The imports that other components of the app answer.
    pub(crate) forwarded: Arc<[InterfaceId]>,
    pub(crate) limits: Limits,
    pub(crate) reuse: Option<Reuse>,
    pub(crate) bindings: Arc<Bindings>,
    pub(crate) outbound: Option<Arc<dyn Outbound>>,
    pub(crate) sockets: Option<Arc<dyn Sockets>>,
    pub(crate) log: Arc<ComponentLog>,
    pub(crate) origin: Arc<SpanOrigin>,
    pub(crate) line: Arc<Line>,
}

/// A component that can be called.
pub(crate) struct Entry {
    spec: Spec,
    state: Mutex<State>,
    in_flight: AtomicU32,
    refused: AtomicU64,
    /// When it was called last, on the clock of [`crate::apps::Apps`].
    used: AtomicU64,
    ended: CancellationToken,
    held: AtomicBool,
    /// Of those that wait for a place, whoever has it is next.
    turn: Semaphore,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    /// What workloads counted that are unloaded by now.
    before: MeterSnapshot,
    last_fault: Option<Box<str>>,
    /// Probes that the workloads counted as calls, and how many of them failed.
    probes: u64,
    failed_probes: u64,
}

struct Live {
    workload: Arc<Workload>,
    _code: Arc<Loaded>,
}

impl Entry {
    pub(crate) fn new(spec: Spec) -> Self {
        Self {
            spec,
            state: Mutex::default(),
            in_flight: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            used: AtomicU64::new(0),
            ended: CancellationToken::new(),
            held: AtomicBool::new(false),
            turn: Semaphore::new(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn component(&self) -> &ComponentName {
        &self.spec.component
    }

    /// Whose its spans are.
    pub(crate) fn origin(&self) -> &Arc<SpanOrigin> {
        &self.spec.origin
    }

    /// Cancelled when its calls must end now.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether new calls from outside have to wait.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Relaxed)
    }

    pub(crate) fn set_held(&self, held: bool) {
        self.held.store(held, Relaxed);
    }

    /// The calls of its app that wait.
    pub(crate) fn line(&self) -> &Line {
        &self.spec.line
    }

    /// One permit, for whoever is next among those that wait.
    pub(crate) fn turn(&self) -> &Semaphore {
        &self.turn
    }

    /// Takes a place among the calls at once; `false`, and the call counts as refused, where there is none.
    pub(crate) fn enter(&self, now: u64) -> bool {
        let entered = self.enter_if_free(now);
        self.refused.fetch_add(u64::from(!entered), Relaxed);
        entered
    }

    /// The same for a call that waits where there is none.
    pub(crate) fn enter_if_free(&self, now: u64) -> bool {
        if self.in_flight.fetch_add(1, Relaxed) >= self.spec.limits.concurrency {
            self.in_flight.fetch_sub(1, Relaxed);
            return false;
        }
        self.used.store(now, Relaxed);
        true
    }

    /// Gives the place back.
    pub(crate) fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Ready to be called, where its code is in memory.
    pub(crate) fn live(&self) -> Option<Arc<Workload>> {
        self.state().live.as_ref().map(|live| live.workload.clone())
    }

    /// Ready to be called; brings its code where that is not in memory.
    pub(crate) async fn load(&self, code: &CodeStore) -> Result<Arc<Workload>, StartError> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let spec = &self.spec;
        let wall = spec.limits.wall.duration();
        let wanted = Wanted {
            component: &spec.component,
            digest: spec.digest,
            world: spec.world,
            imports: &spec.imports,
            forwarded: &spec.forwarded,
        };
        let load = code.load(&wanted, wall);
        let loaded = tokio::select! {
            biased;
            loaded = load => loaded?,
            () = self.ended.cancelled() => return Err(StartError::Ended { component: spec.component.clone() }),
        };
        let mut state = self.state();
        // Another call may have waited for the same code.
        if let Some(live) = &state.live {
            return Ok(live.workload.clone());
        }
        let sinks = Sinks { log: spec.log.clone(), outbound: spec.outbound.clone(), sockets: spec.sockets.clone() };
        let workload = Workload::new(loaded.linked.clone(), spec.limits, spec.reuse, spec.bindings.clone(), sinks);
        state.live = Some(Live { workload: workload.clone(), _code: loaded });
        Ok(workload)
    }

    /// Makes one instance to see that it can be made.
    pub(crate) async fn probe(&self, code: &CodeStore) -> Result<(), StartError> {
        let workload = self.load(code).await?;
        let probed = workload.probe().await;
        {
            let mut state = self.state();
            state.probes += 1;
            state.failed_probes += u64::from(probed.is_err());
        }
        probed.map_err(|fault| {
            self.failed(&fault);
            StartError::Probe { component: self.spec.component.clone(), fault }
        })
    }

    /// Gives up its code, where nobody is calling. Says whether it had any.
    pub(crate) fn unload(&self) -> bool {
        let mut state = self.state();
        if self.in_flight() > 0 {
            return false;
        }
        let Some(live) = state.live.take() else { return false };
        state.before = add(state.before, live.workload.meter().snapshot());
        true
    }

    /// When it was called last, where it has code that nobody is using.
    pub(crate) fn idle_since(&self) -> Option<u64> {
        (self.in_flight() == 0 && self.state().live.is_some()).then(|| self.used.load(Relaxed))
    }

    /// Remembers why a call failed and says so in the component's log.
    pub(crate) fn failed(&self, fault: &Fault) {
        if fault::blames_component(fault) {
            let sentence = fault.to_string();
            self.spec.log.remark(&sentence);
            self.state().last_fault = Some(sentence.into_boxed_str());
        }
    }

    /// Says something in the component's log.
    pub(crate) fn remark(&self, sentence: &str) {
        self.spec.log.remark(sentence);
    }

    pub(crate) fn status(&self) -> ComponentStatus {
        let state = self.state();
        let now = state.live.as_ref().map(|live| live.workload.meter().snapshot()).unwrap_or_default();
        let sum = add(state.before, now);
        ComponentStatus {
            loaded: state.live.is_some(),
            in_flight: self.in_flight(),
            calls: sum.calls.saturating_sub(state.probes),
            failed: sum.failed.saturating_sub(state.failed_probes),
            refused: self.refused.load(Relaxed),
            cpu_us: sum.cpu_us,
            log_dropped: self.spec.log.dropped_bytes(),
            last_fault: state.last_fault.as_deref().map(str::to_owned),
        }
    }
}

fn add(a: MeterSnapshot, b: MeterSnapshot) -> MeterSnapshot {
    MeterSnapshot {
        calls: a.calls + b.calls,
        failed: a.failed + b.failed,
        cpu_us: a.cpu_us + b.cpu_us,
        in_flight: 0,
        instances: a.instances + b.instances,
    }
}
