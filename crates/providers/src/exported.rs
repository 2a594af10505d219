//! What every contract needs that a component answers in the place of a provider: its functions, looked up once for each
//! time its code is loaded, and the words for a call of it that had no answer.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use runtime::wasmtime::component::{Instance, InstancePre};
use runtime::wasmtime::{self, Store};
use runtime::{Callee, Ctx, Fault, FaultKind, Invoked, call_component};

/// Where a component has the functions of a contract.
pub(crate) trait Functions: Sized + Send + Sync + 'static {
    /// Looks them up.
    fn of(pre: &InstancePre<Ctx>) -> wasmtime::Result<Self>;
}

/// A component that exports a contract.
pub(crate) struct Exported<F> {
    callee: Arc<dyn Callee>,
    known: Arc<Known<F>>,
}

/// The functions, and the code that has them there.
struct Known<F>(Mutex<Option<(Range<usize>, Arc<F>)>>);

impl<F: Functions> Known<F> {
    fn of(&self, pre: &InstancePre<Ctx>) -> wasmtime::Result<Arc<F>> {
        let code = pre.component().image_range();
        let code = code.start as usize..code.end as usize;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, functions)) = known.as_ref().filter(|(of, _)| *of == code) {
            return Ok(functions.clone());
        }
        let functions = Arc::new(F::of(pre)?);
        *known = Some((code, functions.clone()));
        Ok(functions)
    }
}

impl<F: Functions> Exported<F> {
    pub(crate) fn new(callee: Arc<dyn Callee>) -> Self {
        Self { callee, known: Arc::new(Known(Mutex::default())) }
    }

    /// One call of it: `body` runs on an instance, which is kept only if it returns `Ok`. Dropping the future ends the
    /// guest.
    pub(crate) fn call<T, B>(&self, body: B) -> impl Future<Output = Result<T, Failed>> + Send + use<T, B, F>
    where
        T: Send + 'static,
        B: for<'a> FnOnce(&'a mut Store<Ctx>, Instance, Arc<F>) -> Invoked<'a, T> + Send + 'static,
    {
        let (callee, known) = (self.callee.clone(), self.known.clone());
        async move {
            let called = call_component(&callee, move |store, instance| {
                Box::pin(async move {
                    let functions = known.of(&instance.instance_pre(&*store))?;
                    body(store, instance, functions).await
                })
            });
            called.await.map_err(|fault| Failed::of(&fault))
        }
    }
}

/// Why a call had no answer. Each contract has an error for each of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It took too long, or its caller's time was over.
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
    /// It met one of its limits.
    TooLarge(String),
    /// It trapped, has no place for the call, or is not there.
    Unavailable(String),
}

impl Failed {
    fn of(fault: &Fault) -> Self {
        let words = || format!("the component behind the link failed: {fault}");
        match (fault.root(), fault.kind()) {
            (Fault::WallTime { limit }, _) => Self::TimedOut { ms: limit.0 },
            (_, FaultKind::Limit) => Self::TooLarge(words()),
            _ => Self::Unavailable(words()),
        }
    }
}
