//! Calls from one component to another in this process: an import that no capability answers is answered by the export
//! of another component, each side in a store of its own with its own limits, bindings and log.
//!
//! ```text
//! caller's import ── plan (at link) ── define ─▶ forward ─▶ Callee ─▶ Workload of the callee
//!                                                   │ resources: held, in the instance that owns them
//! ```

mod agree;
mod define;
mod forward;
mod held;
mod plan;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use agree::agree;
pub(crate) use define::define;
pub(crate) use held::Held;

use wasmtime::Store;

use crate::ctx::Ctx;
use crate::fault::Fault;
use crate::instance::Invoked;
use crate::trace::{CallTrace, OpenSpan, within};
use crate::workload::Workload;

/// Calls that stand on one another: a call from outside and the calls between components it led to.
pub const MAX_CALL_DEPTH: u32 = model::rules::callee::MAX_CALL_DEPTH;

/// A workload that is being brought.
pub type Loading<'a> = Pin<Box<dyn Future<Output = Result<Arc<Workload>, Fault>> + Send + 'a>>;

/// The component behind an import: whoever runs the components says when it may be called and brings its code.
pub trait Callee: Send + Sync {
    /// Takes a place among the calls of the component; given back by [`Callee::leave`]. Returns the workload where its
    /// code is in memory; otherwise [`Callee::load`] brings it.
    ///
    /// # Errors
    /// [`Fault::Busy`] where it has all the calls it may have, [`Fault::Cancelled`] where it has ended.
    fn enter(&self) -> Result<Option<Arc<Workload>>, Fault>;

    /// Brings the code of the component.
    fn load(&self) -> Loading<'_>;

    /// Gives the place back.
    fn leave(&self);

    /// A call of `function` begins; `caller` is the trace of the call that makes it. Returns its own place in it.
    fn begins(&self, caller: Option<&CallTrace>, function: &str) -> Option<CalleeTrace>;

    /// A call of the component has ended, and why, where it failed; [`Fault::Cancelled`] where its caller ended first.
    /// `trace` is what [`Callee::begins`] returned.
    fn ended(&self, began: Instant, fault: Option<&Fault>, trace: Option<CalleeTrace>);
}

/// The place in a trace of a call from component to component.
pub struct CalleeTrace {
    /// The span of the link, where no adapter makes one.
    pub link: Option<OpenSpan>,
    /// The span of the call itself, below that of the link; absent where the trace is not recorded.
    pub own: Option<OpenSpan>,
    /// The trace as the callee has it.
    pub trace: Arc<CallTrace>,
}

/// Which component answers an import.
pub struct Peer {
    /// The interface as the caller imports it.
    pub import: Box<str>,
    /// The interface as the callee exports it; the version may be a later one of the same track.
    pub export: Box<str>,
    /// The callee's name, for messages.
    pub name: Box<str>,
    /// The callee.
    pub callee: Arc<dyn Callee>,
}

/// The components behind a component's imports: a binding.
#[derive(Default)]
pub struct Peers(pub Vec<Peer>);

impl Peers {
    fn get(&self, import: &str) -> Option<&Peer> {
        self.0.iter().find(|peer| *peer.import == *import)
    }
}

/// A call that has begun. Told to its callee when it goes away, however that comes about.
struct Begun<'a> {
    callee: &'a dyn Callee,
    began: Instant,
    outcome: Option<Fault>,
    trace: Option<CalleeTrace>,
}

impl<'a> Begun<'a> {
    /// A call of `function` by the call that runs on this thread.
    fn new(callee: &'a Arc<dyn Callee>, function: &str) -> Self {
        let trace = callee.begins(CallTrace::current().as_deref(), function);
        Self { callee: &**callee, began: Instant::now(), outcome: Some(Fault::Cancelled), trace }
    }

    fn trace(&self) -> Option<Arc<CallTrace>> {
        self.trace.as_ref().map(|of| of.trace.clone())
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.callee.ended(self.began, self.outcome.as_ref(), self.trace.take());
    }
}

/// A place among the calls of a callee.
struct Place(Arc<dyn Callee>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Calls an export of another component from host code, as a component would: see [`Workload::invoke`].
///
/// # Errors
/// Why there is no place for the call, or why it failed.
pub async fn call_component<T, F>(callee: &Arc<dyn Callee>, body: F) -> Result<T, Fault>
where
    F: for<'a> FnOnce(&'a mut Store<Ctx>, wasmtime::component::Instance) -> Invoked<'a, T>,
{
    // Which function it is, the adapter of the contract knows, and says so in the span of its link.
    let mut begun = Begun::new(callee, "call");
    let called = async {
        let (_place, work) = enter(callee).await?;
        work.invoke(body).await
    };
    let result = within(begun.trace(), called).await;
    begun.outcome = result.as_ref().err().cloned();
    result
}

/// Takes a place, and brings the code where it is not in memory.
async fn enter(callee: &Arc<dyn Callee>) -> Result<(Place, Arc<Workload>), Fault> {
    let ready = callee.enter()?;
    let place = Place(callee.clone());
    let work = match ready {
        Some(work) => work,
        None => callee.load().await?,
    };
    Ok((place, work))
}
