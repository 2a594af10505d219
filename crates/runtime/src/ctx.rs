//! What a guest has: the data of its store, the capabilities behind its imports, and the bindings they look up.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use model::Limits;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::call::Call;
use crate::clock;
use crate::config;
use crate::limiter::Limiter;
use crate::log::{CallLog, LogStreamKind, Stdio};
use crate::outbound::Hooks;
use crate::peer::Held;
use crate::program::{Environment, Folders, Told};
use crate::sockets::{Names, Sockets};
use crate::workload::Sinks;

/// Offers interfaces to every component of the process. What a component may use of it comes from its [`Bindings`].
pub trait Capability: Send + Sync {
    /// The interfaces it adds, with their versions: `wasi:keyvalue/store@0.2.0-draft`.
    fn interfaces(&self) -> &'static [&'static str];
    /// Adds them to a linker; called once per engine.
    ///
    /// # Errors
    /// What the linker says, for example that a name is taken.
    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()>;
}

/// What one component of one revision may use, by type. Immutable; looked up without a lock.
#[derive(Default, Clone)]
pub struct Bindings(Vec<(TypeId, Arc<dyn Any + Send + Sync>)>);

impl Bindings {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a binding; one of the same type is replaced.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, binding: Arc<T>) -> Self {
        self.0.retain(|(id, _)| *id != TypeId::of::<T>());
        self.0.push((TypeId::of::<T>(), Arc::new(binding)));
        self
    }

    /// The binding of a type.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&Arc<T>> {
        let id = TypeId::of::<T>();
        self.0.iter().find(|(found, _)| *found == id).and_then(|(_, binding)| binding.downcast_ref())
    }
}

impl fmt::Debug for Bindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bindings({})", self.0.len())
    }
}

/// The data of one instance's store.
pub struct Ctx {
    pub(crate) table: ResourceTable,
    pub(crate) limiter: Limiter,
    pub(crate) call: Arc<Call>,
    /// Instances of other components that own resources of this one's.
    pub(crate) held: Held,
    http: WasiHttpCtx,
    hooks: Hooks,
    bindings: Arc<Bindings>,
    /// Contracts for which the guest chose a link by its label; empty but for components that do.
    chosen: Vec<(Box<str>, Box<str>)>,
    sinks: Sinks,
    /// What the guest looked up.
    pub(crate) names: Names,
    /// Made when first asked for: most calls need neither clocks nor random numbers nor output.
    wasi: Option<Box<WasiCtx>>,
    log: Option<Arc<CallLog>>,
}

impl Ctx {
    pub(crate) fn new(limits: &Limits, call: Arc<Call>, bindings: Arc<Bindings>, sinks: &Sinks) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles as usize);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(config::FIELDS.as_usize());
        Self {
            table,
            limiter: Limiter::new(*limits),
            hooks: Hooks { outbound: sinks.outbound.clone(), call: call.clone() },
            call,
            held: Held::default(),
            http,
            bindings,
            chosen: Vec::new(),
            sinks: sinks.clone(),
            names: Names::default(),
            wasi: None,
            log: None,
        }
    }

    /// Starts a new call on the same instance.
    pub(crate) fn begin(&mut self, call: Arc<Call>) {
        self.limiter.begin();
        self.chosen.clear();
        self.hooks.call = call.clone();
        self.call = call;
        if let Some(log) = &self.log {
            log.begin(self.limiter.limits().log_per_call);
        }
    }

    /// Ends the current call: unfinished log lines are handed over.
    pub(crate) fn end(&self) {
        if let Some(log) = &self.log {
            log.end();
        }
    }

    /// What the component was given of this type.
    pub fn binding<T: Send + Sync + 'static>(&self) -> Option<&Arc<T>> {
        self.bindings.get()
    }

    /// From now on until the call ends, the links of `contract` are looked for under `label`.
    pub fn choose_link(&mut self, contract: &str, label: &str) {
        self.chosen.retain(|(known, _)| **known != *contract);
        self.chosen.push((contract.into(), label.into()));
    }

    /// The label that the guest chose for `contract`, where it did.
    pub fn chosen_link(&self, contract: &str) -> Option<&str> {
        self.chosen.iter().find(|(known, _)| **known == *contract).map(|(_, label)| &**label)
    }

    /// The resources the guest holds handles to; bounded by its handle limit.
    pub fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    /// The component's limits.
    pub fn limits(&self) -> &Limits {
        self.limiter.limits()
    }

    /// What opens sockets for the component; absent where it may have none.
    pub(crate) fn sockets(&self) -> Option<&Arc<dyn Sockets>> {
        self.sinks.sockets.as_ref()
    }

    /// Writes one message to the component's log, within the budget of the call.
    pub fn log(&mut self, stream: LogStreamKind, context: &str, text: &[u8]) {
        self.call_log().message(stream, context, text);
    }

    fn call_log(&mut self) -> &Arc<CallLog> {
        let (sinks, limiter) = (&self.sinks, &self.limiter);
        self.log.get_or_insert_with(|| Arc::new(CallLog::new(sinks.log.clone(), limiter.limits().log_per_call)))
    }

    fn wasi(&mut self) -> (&mut WasiCtx, &mut ResourceTable) {
        let log = match &self.wasi {
            Some(_) => None,
            None => Some(self.call_log().clone()),
        };
        let wasi = self.wasi.get_or_insert_with(|| {
            let mut builder = plain();
            if let Some(log) = log {
                builder
                    .stdout(Stdio { log: log.clone(), stream: LogStreamKind::Stdout })
                    .stderr(Stdio { log, stream: LogStreamKind::Stderr });
            }
            if let Some(environment) = self.bindings.get::<Environment>() {
                builder.envs(&environment.0);
            }
            if let Some(folders) = self.bindings.get::<Folders>()
                && let Err(error) = folders.give(&mut builder)
                && let Some(log) = &self.log
            {
                log.message(LogStreamKind::Error, "sidereal", format!("{error:#}").as_bytes());
            }
            Box::new(builder.build())
        });
        (wasi, &mut self.table)
    }

    /// Gives the guest what a program has.
    pub(crate) fn tell(&mut self, told: &Told) -> wasmtime::Result<()> {
        let mut builder = plain();
        told.give(&mut builder);
        if let Some(folders) = self.bindings.get::<Folders>() {
            folders.give(&mut builder)?;
        }
        self.wasi = Some(Box::new(builder.build()));
        Ok(())
    }
}

/// What every guest has: clocks and random numbers.
fn plain() -> WasiCtxBuilder {
    let mut builder = WasiCtx::builder();
    builder
        .max_random_size(config::RANDOM.0)
        .wall_clock(clock::Wall)
        .monotonic_clock(clock::Monotonic(Instant::now()))
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    builder
}

impl Drop for Ctx {
    fn drop(&mut self) {
        self.end();
    }
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (ctx, table) = self.wasi();
        WasiCtxView { ctx, table }
    }
}

impl WasiHttpView for Ctx {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_found_by_type() {
        let bindings = Bindings::new().with(Arc::new(1_u32)).with(Arc::new("x".to_owned())).with(Arc::new(2_u32));
        assert_eq!(bindings.get::<u32>().map(|v| **v), Some(2));
        assert_eq!(bindings.get::<String>().map(|v| v.as_str()), Some("x"));
        assert!(bindings.get::<u64>().is_none());
    }
}
