//! Resources of a callee in the hands of a caller: the instance that owns them waits as long as one of them lives, and
//! the caller's table knows each by a number.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use wasmtime::StoreContextMut;
use wasmtime::component::{Resource, ResourceAny, ResourceDynamic, Val};

use super::{Callee, Place};
use crate::ctx::Ctx;
use crate::instance::Instance;
use crate::workload::Workload;

/// The one host type all resources of callees have in a caller's store. They cannot be mistaken for one another: the
/// caller's types are checked when it is compiled, the callee's at every call.
pub(super) const KIND: u32 = 1;

/// An instance that owns resources some caller holds.
pub(super) struct Owner {
    pub(super) work: Arc<Workload>,
    /// Nothing while a call runs on it, and once one has failed.
    pub(super) instance: tokio::sync::Mutex<Option<Instance>>,
    live: AtomicU32,
    pub(super) place: Place,
}

impl Owner {
    pub(super) fn new(work: Arc<Workload>, place: Place) -> Arc<Self> {
        Arc::new(Self { work, instance: tokio::sync::Mutex::default(), live: AtomicU32::new(0), place })
    }

    fn is_of(&self, callee: &Arc<dyn Callee>) -> bool {
        address(&self.place.0) == address(callee)
    }

    /// Puts the instance back after a call; where nobody holds a resource of it any more, it is free for other calls.
    pub(super) fn put(&self, slot: &mut Option<Instance>, instance: Instance) {
        if self.live.load(Relaxed) == 0 {
            self.work.keep(instance);
        } else {
            *slot = Some(instance);
        }
    }
}

fn address(callee: &Arc<dyn Callee>) -> usize {
    Arc::as_ptr(callee).cast::<()>() as usize
}

/// A resource of a callee, as the caller's table has it.
struct Handle {
    owner: Arc<Owner>,
    resource: ResourceAny,
}

/// The owners that one caller's instance has dealings with.
#[derive(Default)]
pub(crate) struct Held(Vec<Weak<Owner>>);

impl Held {
    /// The instance of `callee` that owns resources of this caller already.
    pub(super) fn owner(&self, callee: &Arc<dyn Callee>) -> Option<Arc<Owner>> {
        self.0.iter().filter_map(Weak::upgrade).find(|owner| owner.is_of(callee))
    }

    fn add(&mut self, owner: &Arc<Owner>) {
        self.0.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(owner)));
        self.0.push(Arc::downgrade(owner));
    }
}

/// The parameters as the callee takes them, and the owner of the handles among them.
pub(super) fn inward(
    store: &mut StoreContextMut<'_, Ctx>,
    callee: &Arc<dyn Callee>,
    params: &[Val],
) -> wasmtime::Result<(Vec<Val>, Option<Arc<Owner>>)> {
    let mut owner: Option<Arc<Owner>> = None;
    let mut params = params.to_vec();
    for value in &mut params {
        each_resource(value, &mut |resource| {
            let dynamic = resource.try_into_resource_dynamic(&mut *store)?;
            let table = &mut store.data_mut().table;
            let (found, inner) = if dynamic.owned() {
                let handle = table.delete(Resource::<Handle>::new_own(dynamic.rep()))?;
                handle.owner.live.fetch_sub(1, Relaxed);
                (handle.owner, handle.resource)
            } else {
                let handle = table.get(&Resource::<Handle>::new_borrow(dynamic.rep()))?;
                (handle.owner.clone(), handle.resource)
            };
            let other = owner.as_ref().is_some_and(|known| !Arc::ptr_eq(known, &found));
            if other || !found.is_of(callee) {
                wasmtime::bail!("a resource was passed to a component that does not own it");
            }
            owner = Some(found);
            *resource = inner;
            Ok(())
        })?;
    }
    Ok((params, owner))
}

/// Makes the handles in what the callee answered the caller's.
pub(super) fn outward(
    store: &mut StoreContextMut<'_, Ctx>,
    owner: &Arc<Owner>,
    results: &mut [Val],
) -> wasmtime::Result<()> {
    for value in results {
        each_resource(value, &mut |resource| {
            let ctx = store.data_mut();
            let handle = ctx.table.push(Handle { owner: owner.clone(), resource: *resource })?;
            owner.live.fetch_add(1, Relaxed);
            ctx.held.add(owner);
            *resource = ResourceDynamic::new_own(handle.rep(), KIND).try_into_resource_any(&mut *store)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Takes a handle that the caller drops out of its table.
pub(super) fn dropped(store: &mut StoreContextMut<'_, Ctx>, rep: u32) -> wasmtime::Result<(Arc<Owner>, ResourceAny)> {
    let handle = store.data_mut().table.delete(Resource::<Handle>::new_own(rep))?;
    handle.owner.live.fetch_sub(1, Relaxed);
    Ok((handle.owner, handle.resource))
}

fn each_resource(
    value: &mut Val,
    each: &mut impl FnMut(&mut ResourceAny) -> wasmtime::Result<()>,
) -> wasmtime::Result<()> {
    match value {
        Val::Resource(resource) => each(resource),
        Val::List(values) | Val::Tuple(values) | Val::FixedLengthList(values) => {
            values.iter_mut().try_for_each(|value| each_resource(value, each))
        }
        Val::Map(entries) => entries.iter_mut().try_for_each(|(key, value)| {
            each_resource(key, each)?;
            each_resource(value, each)
        }),
        Val::Record(fields) => fields.iter_mut().try_for_each(|(_, value)| each_resource(value, each)),
        Val::Variant(_, Some(value)) | Val::Option(Some(value)) | Val::Result(Ok(Some(value)) | Err(Some(value))) => {
            each_resource(value, each)
        }
        _ => Ok(()),
    }
}
