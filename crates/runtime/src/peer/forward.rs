//! One call from component to component: the callee's instance, its limits, and what the caller is told when it fails.
//!
//! A function that passes no handles runs on any instance of the callee, as a request does. One that passes handles
//! runs on the instance that owns them.

use std::sync::Arc;

use wasmtime::component::{Accessor, Val};
use wasmtime::{AsContextMut, StoreContextMut};

use super::held::{self, Owner};
use super::{Begun, Callee, Peers, enter};
use crate::call::Call;
use crate::ctx::Ctx;
use crate::drive::drive;
use crate::fault::Fault;
use crate::trace::CallTrace;
use crate::workload::Workload;

/// What a function of a linker forwards to.
pub(super) struct Target {
    pub(super) interface: String,
    pub(super) function: String,
    /// Whether it passes handles.
    pub(super) handles: bool,
}

/// A call whose caller needs not be looked at before it has ended.
struct Ready {
    peers: Arc<Peers>,
    outer: Arc<Call>,
    /// The parameters, where they are others than the caller gave, and the instance to run on, where it is decided.
    given: Option<(Vec<Val>, Option<Arc<Owner>>)>,
}

pub(super) async fn forward(
    mut store: StoreContextMut<'_, Ctx>,
    target: &Target,
    params: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    let ready = prepare(&mut store, target, params)?;
    match ready.run(target, params, results).await? {
        Some(owner) => settle(&mut store, owner, results).await,
        None => Ok(()),
    }
}

pub(super) async fn forward_concurrent(
    accessor: &Accessor<Ctx>,
    target: &Target,
    params: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    let ready = accessor.with(|mut store| prepare(&mut store.as_context_mut(), target, params))?;
    let Some(owner) = ready.run(target, params, results).await? else { return Ok(()) };
    accessor.with(|mut store| held::outward(&mut store.as_context_mut(), &owner, results))?;
    free(&owner).await;
    Ok(())
}

/// Hands the answer's handles to the caller.
async fn settle(store: &mut StoreContextMut<'_, Ctx>, owner: Arc<Owner>, results: &mut [Val]) -> wasmtime::Result<()> {
    held::outward(store, &owner, results)?;
    free(&owner).await;
    Ok(())
}

/// Where the caller holds nothing of the instance any more, it is free for others.
async fn free(owner: &Owner) {
    let mut slot = owner.instance.lock().await;
    if let Some(instance) = slot.take() {
        owner.put(&mut slot, instance);
    }
}

fn prepare(store: &mut StoreContextMut<'_, Ctx>, target: &Target, params: &[Val]) -> wasmtime::Result<Ready> {
    let ctx = store.data();
    let unbound = || wasmtime::format_err!("nothing answers {} for this component", target.interface);
    let peers = ctx.binding::<Peers>().ok_or_else(unbound)?.clone();
    let outer = ctx.call.clone();
    let callee = &peers.get(&target.interface).ok_or_else(unbound)?.callee;
    let given = if target.handles {
        let (params, owner) = held::inward(store, callee, params)?;
        Some((params, owner.or_else(|| store.data().held.owner(callee))))
    } else {
        None
    };
    Ok(Ready { peers, outer, given })
}

impl Ready {
    /// Runs the call to its end. Where it passes handles: the instance that owns them.
    async fn run(self, target: &Target, params: &[Val], results: &mut [Val]) -> Result<Option<Arc<Owner>>, Fault> {
        let Some(peer) = self.peers.get(&target.interface) else { return Err(Fault::Cancelled) };
        let mut begun = Begun::new(&peer.callee, &target.function);
        let (function, from) =
            ((&*peer.export, &*target.function), Caller { outer: &self.outer, trace: begun.trace() });
        let ran = match self.given {
            None => on_any(&peer.callee, from, function, params, results).await.map(|()| None),
            Some((params, owner)) => on_owner(&peer.callee, owner, from, function, &params, results).await.map(Some),
        };
        begun.outcome = ran.as_ref().err().cloned();
        ran.map_err(|fault| Fault::Callee {
            name: peer.name.to_string(),
            interface: target.interface.clone(),
            fault: Box::new(fault),
        })
    }
}

type Function<'a> = (&'a str, &'a str);

/// Who calls, and the callee's place in the caller's trace.
struct Caller<'a> {
    outer: &'a Arc<Call>,
    trace: Option<Arc<CallTrace>>,
}

impl Caller<'_> {
    fn call(self, work: &Workload) -> Result<Arc<Call>, Fault> {
        Ok(Arc::new(Call::within(work.limits(), work.shared_meter(), self.outer)?.traced(self.trace)))
    }
}

async fn on_any(
    callee: &Arc<dyn Callee>,
    from: Caller<'_>,
    function: Function<'_>,
    params: &[Val],
    results: &mut [Val],
) -> Result<(), Fault> {
    let (_place, work) = enter(callee).await?;
    let call = from.call(&work)?;
    let guest = async {
        let mut instance = work.instance(&call).await?;
        instance.call(&call, work.linked().exported(), function, params, results).await?;
        work.keep(instance);
        Ok(())
    };
    drive(work.clone(), call.clone(), || guest).await
}

async fn on_owner(
    callee: &Arc<dyn Callee>,
    owner: Option<Arc<Owner>>,
    from: Caller<'_>,
    function: Function<'_>,
    params: &[Val],
    results: &mut [Val],
) -> Result<Arc<Owner>, Fault> {
    let (owner, fresh) = match owner {
        Some(owner) => (owner, false),
        None => {
            let (place, work) = enter(callee).await?;
            (Owner::new(work, place), true)
        }
    };
    let work = &owner.work;
    let call = from.call(work)?;
    let mut slot = owner.instance.lock().await;
    let guest = async {
        let mut instance = if fresh {
            work.instance(&call).await?
        } else {
            // Taken out: a call that fails or is dropped half-way leaves no instance behind.
            let mut instance = slot.take().ok_or_else(gone)?;
            instance.begin(&call);
            instance
        };
        instance.call(&call, work.linked().exported(), function, params, results).await?;
        Ok(instance)
    };
    let instance = drive(work.clone(), call.clone(), || guest).await?;
    *slot = Some(instance);
    drop(slot);
    Ok(owner)
}

fn gone() -> Fault {
    Fault::Trap { message: "the instance that owned the resource has ended".to_owned() }
}

/// The caller drops a handle: the callee's destructor runs, as a call of its own.
pub(super) async fn drop_handle(mut store: StoreContextMut<'_, Ctx>, rep: u32) -> wasmtime::Result<()> {
    let outer = store.data().call.clone();
    let (owner, resource) = held::dropped(&mut store, rep)?;
    let work = &owner.work;
    let call = Call::within(work.limits(), work.shared_meter(), &outer)?;
    let mut slot = owner.instance.lock().await;
    // Where an earlier call failed, the resource has ended with its instance.
    let Some(mut instance) = slot.take() else { return Ok(()) };
    let mut begun = Begun::new(&owner.place.0, "drop");
    let call = Arc::new(call.traced(begun.trace()));
    let guest = async {
        instance.begin(&call);
        instance.drop_resource(&call, resource).await?;
        Ok(instance)
    };
    match drive(work.clone(), call.clone(), || guest).await {
        Ok(instance) => owner.put(&mut slot, instance),
        Err(fault) => {
            begun.outcome = Some(fault.clone());
            return Err(fault.into());
        }
    }
    begun.outcome = None;
    Ok(())
}
