//! Components of a revision that answer one another: who they are, when they may be called, and whether each has what
//! the other imports.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use model::rules::callee;
use model::{ComponentName, InterfaceId, LockedApp, ProviderName, offers};
use providers::meter::{self, ErrorKind, LinkMeter};
use runtime::trace::CallTrace;
use runtime::{Callee, CalleeTrace, Fault, FaultKind, Loading, Peer, Workload};

use crate::apps::Apps;
use crate::entry::Entry;
use crate::error::StartError;
use crate::fault::describe;

/// The components of one revision. Known to one another before they are all made, and not kept alive by one another.
pub(crate) struct Siblings {
    apps: Weak<Apps>,
    entries: OnceLock<BTreeMap<ComponentName, Weak<Entry>>>,
}

impl Siblings {
    pub(crate) fn new(apps: Weak<Apps>) -> Arc<Self> {
        Arc::new(Self { apps, entries: OnceLock::new() })
    }

    /// Says which they are, once.
    pub(crate) fn are(&self, entries: &[Arc<Entry>]) {
        let named = entries.iter().map(|entry| (entry.component().clone(), Arc::downgrade(entry)));
        self.entries.get_or_init(|| named.collect());
    }

    fn find(&self, name: &ComponentName) -> Option<Arc<Entry>> {
        self.entries.get()?.get(name)?.upgrade()
    }
}

/// One of them, as another one calls it.
pub(crate) struct Sibling {
    all: Arc<Siblings>,
    name: ComponentName,
    /// Counts what goes over the link; absent where the contract's own adapter does.
    meter: Option<Arc<LinkMeter>>,
}

impl Sibling {
    pub(crate) fn new(all: &Arc<Siblings>, name: &ComponentName, meter: Option<Arc<LinkMeter>>) -> Arc<Self> {
        Arc::new(Self { all: all.clone(), name: name.clone(), meter })
    }
}

impl Callee for Sibling {
    fn enter(&self) -> Result<Option<Arc<Workload>>, Fault> {
        let (Some(entry), Some(apps)) = (self.all.find(&self.name), self.all.apps.upgrade()) else {
            return Err(Fault::Cancelled);
        };
        if !apps.enter_from_inside(&entry) {
            return Err(Fault::Busy);
        }
        Ok(entry.live())
    }

    fn load(&self) -> Loading<'_> {
        Box::pin(async {
            let (Some(entry), Some(apps)) = (self.all.find(&self.name), self.all.apps.upgrade()) else {
                return Err(Fault::Cancelled);
            };
            let loaded = entry.load(apps.code()).await;
            apps.trim();
            loaded.map_err(|error| {
                tracing::warn!(%error, "a component could not be loaded for a call of another");
                match error {
                    StartError::Late { .. } => Fault::Busy,
                    StartError::Ended { .. } => Fault::Cancelled,
                    error => Fault::Instantiate { message: error.to_string() },
                }
            })
        })
    }

    fn leave(&self) {
        if let Some(apps) = self.all.apps.upgrade() {
            apps.leave_from_inside(self.all.find(&self.name).as_deref());
        }
    }

    fn begins(&self, caller: Option<&CallTrace>, function: &str) -> Option<CalleeTrace> {
        if let Some(meter) = &self.meter {
            meter.begins();
        }
        let (caller, entry) = (caller?, self.all.find(&self.name)?);
        let link = self.meter.as_ref().and_then(|meter| meter.span(caller, function));
        let (trace, own) = caller.below(link.as_ref()).callee(entry.origin());
        Some(CalleeTrace { link, own, trace })
    }

    fn ended(&self, began: Instant, fault: Option<&Fault>, trace: Option<CalleeTrace>) {
        if let Some(meter) = &self.meter {
            meter.ends(Some((began, fault.map(kind))));
        }
        if let Some(CalleeTrace { link, own, trace: _ }) = trace {
            if let Some(mut own) = own {
                own.end(fault.map(|fault| describe(fault).0.as_str().to_owned()));
            }
            if let Some(mut link) = link {
                meter::end(&mut link, fault.map(kind));
            }
        }
        if let (Some(fault), Some(entry)) = (fault, self.all.find(&self.name)) {
            entry.failed(fault);
        }
    }
}

/// What a fault of a callee is to whoever watches the link.
pub(crate) fn kind(fault: &Fault) -> ErrorKind {
    match (fault.root(), fault.kind()) {
        (Fault::WallTime { .. }, _) => ErrorKind::TimedOut,
        (_, FaultKind::Cancelled) => ErrorKind::Cancelled,
        (_, FaultKind::Limit | FaultKind::Request) => ErrorKind::Refused,
        (_, FaultKind::Busy | FaultKind::Component) => ErrorKind::Unavailable,
    }
}

/// The component that a provider of `app` is.
pub(super) fn target(app: &LockedApp, provider: &ProviderName) -> Option<ComponentName> {
    let target = callee::component_of(app.providers.get(provider)?)?;
    app.components.keys().find(|name| name.as_str() == target).cloned()
}

/// The imports of `component` that other components answer directly: pairs with what those export. Contracts of the
/// platform are not among them: there an adapter stands between the two.
fn direct(app: &LockedApp, component: &ComponentName) -> Vec<(ComponentName, InterfaceId, InterfaceId)> {
    let Some(caller) = app.components.get(component) else { return Vec::new() };
    let mut found = Vec::new();
    for link in app.links.iter().filter(|link| link.component == *component && !offers::is_by_link(&link.contract)) {
        let Some(target) = target(app, &link.provider) else { continue };
        let exports = app.components.get(&target).map(|callee| callee.exports.as_slice()).unwrap_or_default();
        for import in caller.imports.iter().filter(|import| import.contract == link.contract) {
            if let Some(export) = exports.iter().find(|export| callee::agrees(import, export)) {
                found.push((target.clone(), import.clone(), export.clone()));
            }
        }
    }
    found
}

/// The imports of `component` that are forwarded to other components.
pub(crate) fn forwarded(app: &LockedApp, component: &ComponentName) -> Vec<InterfaceId> {
    direct(app, component).into_iter().map(|(_, import, _)| import).collect()
}

/// Which component answers each of them.
pub(super) fn peers(
    app: &LockedApp,
    component: &ComponentName,
    siblings: &Arc<Siblings>,
    meter: impl Fn(&model::Link) -> Arc<LinkMeter>,
) -> Vec<Peer> {
    let mut callees: BTreeMap<ComponentName, Arc<dyn Callee>> = BTreeMap::new();
    let mut peers = Vec::new();
    for (target, import, export) in direct(app, component) {
        let link = app.links.iter().find(|link| link.component == *component && link.contract == import.contract);
        // One for all interfaces of a component: they may share resources.
        let callee = callees
            .entry(target.clone())
            .or_insert_with(|| Sibling::new(siblings, &target, link.map(&meter)) as Arc<dyn Callee>)
            .clone();
        peers.push(Peer {
            import: import.to_string().into(),
            export: export.to_string().into(),
            name: target.as_str().into(),
            callee,
        });
    }
    peers
}

/// Checks that each component has what the others import from it. The code of all of them is in memory.
pub(crate) fn agree(app: &LockedApp, entries: &[Arc<Entry>]) -> Result<(), StartError> {
    let of = |name: &ComponentName| entries.iter().find(|entry| entry.component() == name)?.live();
    for caller in entries {
        let mut pairs: BTreeMap<ComponentName, Vec<(String, String)>> = BTreeMap::new();
        for (target, import, export) in direct(app, caller.component()) {
            pairs.entry(target).or_default().push((import.to_string(), export.to_string()));
        }
        for (target, pairs) in pairs {
            // Unloaded again by many others: then the first call finds out.
            let (Some(ours), Some(theirs)) = (caller.live(), of(&target)) else { continue };
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            let component = || caller.component().clone();
            ours.linked()
                .agrees(theirs.linked(), &pairs)
                .map_err(|cause| StartError::Link { component: component(), cause })?;
        }
    }
    Ok(())
}
