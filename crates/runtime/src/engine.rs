//! The engines of a process: code is loaded into them and linked against what the process offers.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use model::{InterfaceId, World};
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};
use wasmtime_wasi_http::{p2, p3};

use crate::config::{self, RuntimeSettings};
use crate::ctx::{Capability, Ctx};
use crate::error::{LinkError, LoadError, RuntimeError};
use crate::idle::Shelves;
use crate::instance::Instance;
use crate::ticker::{Queue, Ticker};
use crate::{compile, linker, load, peer};

/// One engine with its linker. Shared by everything loaded into it.
pub(crate) struct Set {
    pub(crate) engine: Engine,
    pub(crate) ticker: Arc<Ticker>,
    /// Instances that wait for their next call; they give way when the pool is full.
    pub(crate) shelves: Shelves<Instance>,
    linker: Linker<Ctx>,
    world: World,
}

/// The engines of this process, the interfaces it offers, and the thread that interrupts guests. One per process.
pub struct Runtime {
    settings: RuntimeSettings,
    capabilities: Vec<Box<dyn Capability>>,
    ticker: Arc<Ticker>,
    p2: Arc<Set>,
    /// Made when the first component of WASI 0.3 is loaded: a host without one never pays for its pool.
    p3: Mutex<Option<Arc<Set>>>,
}

/// Compiled code mapped into the process. Dropping the last clone unmaps it.
#[derive(Clone)]
pub struct Code {
    component: Component,
    set: Arc<Set>,
}

/// Code whose imports are resolved; instances are made from it. Cheap to clone.
#[derive(Clone)]
pub struct Linked {
    pub(crate) pre: Pre,
    pub(crate) set: Arc<Set>,
    exported: Arc<OnceLock<Exported>>,
}

/// Where the functions of a component's exported interfaces are.
#[derive(Default)]
pub(crate) struct Exported(HashMap<Box<str>, HashMap<Box<str>, ComponentExportIndex>>);

impl Exported {
    fn new(component: &Component) -> Self {
        let ty = component.component_type();
        let mut all = HashMap::new();
        for (interface, item) in ty.exports(component.engine()) {
            let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
            let Some(at) = component.get_export_index(None, interface) else { continue };
            let functions = instance.exports(component.engine()).filter_map(|(function, item)| {
                matches!(item.ty, ComponentItem::ComponentFunc(_)).then_some(())?;
                Some((function.into(), component.get_export_index(Some(&at), function)?))
            });
            all.insert(interface.into(), functions.collect());
        }
        Self(all)
    }

    pub(crate) fn get(&self, interface: &str, function: &str) -> Option<&ComponentExportIndex> {
        self.0.get(interface)?.get(function)
    }
}

/// A component that can be instantiated, and where it takes HTTP requests.
#[derive(Clone)]
pub(crate) struct Pre {
    pub(crate) instance: InstancePre<Ctx>,
    pub(crate) http: Http,
}

/// The ways a component takes a request.
#[derive(Clone)]
pub(crate) enum Http {
    P2(p2::bindings::ProxyIndices),
    P3(p3::bindings::ServiceIndices),
    None,
}

impl Linked {
    /// The component ready to be instantiated: what generated bindings look the indices of its exports up in.
    pub fn instance_pre(&self) -> &InstancePre<Ctx> {
        &self.pre.instance
    }

    /// Whether `callee` has what this component imports from it: pairs of (interface as imported, as exported).
    ///
    /// # Errors
    /// [`LinkError::Disagree`] names the interface and what differs.
    pub fn agrees(&self, callee: &Linked, pairs: &[(&str, &str)]) -> Result<(), LinkError> {
        peer::agree(self.pre.instance.component(), callee.pre.instance.component(), pairs)
    }

    /// Made by the first call from another component; most are never called by one.
    pub(crate) fn exported(&self) -> &Exported {
        self.exported.get_or_init(|| Exported::new(self.pre.instance.component()))
    }
}

impl Runtime {
    /// Starts the engine of WASI 0.2 and the epoch thread.
    ///
    /// # Errors
    /// Where the machine cannot reserve the instance pool, or two capabilities offer the same interface.
    pub fn new(settings: RuntimeSettings, capabilities: Vec<Box<dyn Capability>>) -> Result<Self, RuntimeError> {
        let ticker = Arc::new(Ticker::start().map_err(RuntimeError::Ticker)?);
        let p2 = Arc::new(Set::new(World::P2, &settings, &capabilities, ticker.clone())?);
        Ok(Self { settings, capabilities, ticker, p2, p3: Mutex::new(None) })
    }

    /// Lets the thread that runs guests give way in this queue while one computes. Only the first queue counts.
    pub fn queue_in(&self, queue: Box<dyn Queue>) {
        self.ticker.queue(queue);
    }

    /// Names everything that decides whether compiled code loads here: 32 hex digits. Cached code is kept by it.
    ///
    /// # Errors
    /// Where the engine cannot be set up on this machine.
    pub fn fingerprint(&self, world: World) -> Result<String, RuntimeError> {
        match world {
            World::P2 => Ok(compile::fingerprint(&self.p2.engine, world)),
            World::P3 => fingerprint(world),
        }
    }

    /// Maps compiled code. The file must have been authenticated (its MAC checked) by whoever opened it.
    ///
    /// # Errors
    /// [`LoadError::Unfit`] where the code was made by another version or other settings, [`LoadError::TooMuch`] where the
    /// component has more parts than the pool gives one.
    pub fn load(&self, world: World, code: File) -> Result<Code, LoadError> {
        let set = self.set(world)?;
        let component = load::map(&set.engine, &code).map_err(|e| load_error(&e))?;
        Ok(Code { component, set })
    }

    /// Resolves the imports of a component. `imports` are its declared imports; one it has beyond them is refused.
    ///
    /// # Errors
    /// [`LinkError`] names the interface.
    pub fn link(&self, code: &Code, imports: &[InterfaceId]) -> Result<Linked, LinkError> {
        self.link_with_peers(code, imports, &[])
    }

    /// As [`Self::link`], where the imports in `forwarded` are answered by other components: each call asks the
    /// [`crate::Peers`] among the bindings of its workload.
    ///
    /// # Errors
    /// [`LinkError`] names the interface.
    pub fn link_with_peers(
        &self,
        code: &Code,
        imports: &[InterfaceId],
        forwarded: &[InterfaceId],
    ) -> Result<Linked, LinkError> {
        let set = &code.set;
        let ty = code.component.component_type();
        for (name, _) in ty.imports(&set.engine) {
            let declared = name.parse::<InterfaceId>().is_ok_and(|id| imports.contains(&id));
            if !declared {
                return Err(LinkError::Undeclared { interface: name.to_owned() });
            }
        }
        let pre = if forwarded.is_empty() {
            set.linker.instantiate_pre(&code.component)
        } else {
            let names: Vec<String> = forwarded.iter().map(ToString::to_string).collect();
            let mut linker = set.linker.clone();
            peer::define(&mut linker, &code.component, &names)?;
            linker.instantiate_pre(&code.component)
        };
        let pre = pre.map_err(|e| link_error(&e))?;
        let exports = |prefix: &str| ty.exports(&set.engine).any(|(name, _)| name.starts_with(prefix));
        let mismatch = |e: wasmtime::Error| LinkError::Mismatch(format!("{e:#}"));
        let http = if set.world == World::P3 && exports("wasi:http/handler@0.3.") {
            Http::P3(p3::bindings::ServiceIndices::new(&pre).map_err(mismatch)?)
        } else if exports("wasi:http/incoming-handler@0.2.") {
            Http::P2(p2::bindings::ProxyIndices::new(&pre).map_err(mismatch)?)
        } else {
            Http::None
        };
        Ok(Linked { pre: Pre { instance: pre, http }, set: set.clone(), exported: Arc::default() })
    }

    /// The interfaces offered beyond WASI itself.
    pub fn interfaces(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.capabilities.iter().flat_map(|c| c.interfaces().iter().copied())
    }

    fn set(&self, world: World) -> Result<Arc<Set>, RuntimeError> {
        if world == World::P2 {
            return Ok(self.p2.clone());
        }
        let mut p3 = self.p3.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = &*p3 {
            return Ok(set.clone());
        }
        let set = Arc::new(Set::new(world, &self.settings, &self.capabilities, self.ticker.clone())?);
        *p3 = Some(set.clone());
        Ok(set)
    }
}

/// [`Runtime::fingerprint`] without a runtime: for the process that compiles and the node that keeps the cache.
///
/// # Errors
/// Where the engine cannot be set up on this machine.
pub fn fingerprint(world: World) -> Result<String, RuntimeError> {
    let engine = compile::bare(world).map_err(|e| RuntimeError::Engine { world, message: format!("{e:#}") })?;
    Ok(compile::fingerprint(&engine, world))
}

impl Set {
    fn new(
        world: World,
        settings: &RuntimeSettings,
        capabilities: &[Box<dyn Capability>],
        ticker: Arc<Ticker>,
    ) -> Result<Self, RuntimeError> {
        let engine = Engine::new(&config::host(world, settings))
            .map_err(|e| RuntimeError::Engine { world, message: format!("{e:#}") })?;
        let failed = |e: wasmtime::Error| RuntimeError::Capability { world, message: format!("{e:#}") };
        let mut linker = Linker::new(&engine);
        linker::add_wasi(&mut linker, world).map_err(failed)?;
        for capability in capabilities {
            capability.link(&mut linker).map_err(failed)?;
        }
        ticker.add(engine.clone());
        Ok(Self { engine, ticker, shelves: Shelves::new(settings.instances), linker, world })
    }
}

/// Which error of ours a load error is. Said in words only; the corpus of hostile components watches them.
fn load_error(error: &wasmtime::Error) -> LoadError {
    let said = format!("{error:#}");
    match said.split_once("pooling allocator requirements: ") {
        Some((_, what)) => LoadError::TooMuch(what.to_owned()),
        None => LoadError::Unfit(said),
    }
}

/// Which error of ours a link error is. The engine says it in words only; `tests/all/link.rs` watches them.
fn link_error(error: &wasmtime::Error) -> LinkError {
    let text = error.to_string();
    let cause = error.root_cause().to_string();
    match text.split('`').nth(1) {
        Some(interface) if cause.ends_with("implementation is missing") => {
            let detail = error.chain().nth(1).map(ToString::to_string).unwrap_or(cause);
            let detail = match detail.split('`').nth(1) {
                Some(item) => format!("`{item}` is missing"),
                None => detail,
            };
            LinkError::Missing { interface: interface.to_owned(), detail }
        }
        _ => LinkError::Mismatch(format!("{error:#}")),
    }
}
