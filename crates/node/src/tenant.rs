//! What the node knows about one tenant while it runs: which revisions its hosts are to have, which compiled code and
//! which addresses they may ask for. Everything a host asks is answered from here, never from what the host says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use api::services::{Caller, Dial};
use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use model::egress::{Destination, Grant, Policy};
use model::tenant::{Quotas, Rate, TenantSettings};
use model::{
    AppName, ComponentName, Digest, LockedApp, ProviderKind, ProviderName, ProviderSpec, Revision, Route, SecretName,
    TenantName, World,
};
use store::room::Room;
use tokio::sync::{OnceCell, Semaphore};

use crate::asks::{self, Asks, Place};
use crate::connections::{Connections, Open};
use crate::converge;
use crate::external::{Externals, Lease};
pub use crate::flows::Flows;
use crate::ingress::{Gate, nanos};
use crate::messaging::{self, Declared};
use crate::schedules::{self, Planned};
use crate::services::Share;

/// Connections of a tenant being made at once.
const DIALS_AT_ONCE: usize = 64;
/// Connections a tenant may have open, TCP and UDP together.
const MAX_OPEN: usize = 1024;

/// One revision, reduced to what the node needs again and again.
#[derive(Debug)]
pub struct Prepared {
    /// The app.
    pub app: AppName,
    /// Its revision.
    pub revision: Revision,
    /// Has state in the memory of a host, so it runs on one shard only.
    pub pinned: bool,
    /// Every component: its name and its request body limit, bytes.
    pub components: Vec<(ComponentName, u64)>,
    /// The component that is meant where none is named.
    pub main: Option<ComponentName>,
    /// Compiled code it needs.
    pub code: Vec<(Digest, World)>,
    /// What the ingress sends to it.
    pub routes: Vec<Route>,
    /// Secrets it names, and may have revealed.
    pub secrets: BTreeSet<SecretName>,
    /// Which connections its components and providers may ask for.
    pub asks: Asks,
    /// What it takes from the brokers of the node.
    pub messages: Vec<Declared>,
    /// Has a component that takes messages, from whichever broker, or is told of changes.
    pub takes: bool,
    /// What the clock calls of it.
    pub schedules: Arc<[Planned]>,
    /// Takes messages now: it serves, and is not suspended.
    pub taking: AtomicBool,
    /// Its external providers that a link names.
    pub externals: Vec<(ProviderName, ProviderSpec)>,
    /// Keeps their processes running, from when it is brought up until it is forgotten.
    pub leases: OnceLock<Vec<Lease>>,
    /// The [`LockedApp`] as JSON: sent to every host that runs it, now and after each restart.
    json: Bytes,
}

impl Prepared {
    /// Reduces a revision.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of(revision: Revision, app: &LockedApp) -> Result<Self, serde_json::Error> {
        let in_memory = |link: &model::Link| {
            let declared = app.providers.get(&link.provider).map(|spec| spec.kind);
            let built_in = || ProviderKind::BUILT_IN.iter().find(|(name, _)| *name == link.provider.as_str());
            declared.or_else(|| built_in().map(|(_, kind)| *kind)) == Some(ProviderKind::KeyvalueMemory)
        };
        let mut code: Vec<_> = app.components.values().map(|c| (c.digest, c.world)).collect();
        code.sort_unstable();
        code.dedup();
        let serves_http = |component: &model::LockedComponent| {
            component.exports.iter().any(|export| export.to_string().starts_with("wasi:http/"))
        };
        let mut mains = app.components.iter().filter(|(_, c)| serves_http(c)).map(|(name, _)| name);
        let main = match (mains.next(), mains.next()) {
            (Some(name), None) => Some(name.clone()),
            _ => None,
        };
        Ok(Self {
            app: app.name.clone(),
            revision,
            pinned: app.links.iter().any(in_memory),
            components: app.components.iter().map(|(name, c)| (name.clone(), c.limits.request_body.0)).collect(),
            main,
            code,
            routes: app.routes.clone(),
            secrets: model::secret::names(app),
            asks: Asks::of(app),
            messages: messaging::declared(app),
            takes: model::messaging::subscriptions(app).next().is_some() || model::watch::watches(app).next().is_some(),
            schedules: schedules::planned(app).into(),
            taking: AtomicBool::new(false),
            externals: externals(app),
            leases: OnceLock::new(),
            json: serde_json::to_vec(app)?.into(),
        })
    }

    /// Has the processes of its external providers run, for as long as it is there.
    pub fn hold(&self, tenant: &TenantName, externals: &Externals) {
        let lease =
            |(name, spec): &(ProviderName, ProviderSpec)| externals.lease(tenant, &self.app, self.revision, name, spec);
        self.leases.get_or_init(|| self.externals.iter().map(lease).collect());
    }

    /// The JSON text of the [`api::agent::StartRequest`] for this revision.
    pub fn start_request(&self, load: bool) -> Bytes {
        let mut text = BytesMut::with_capacity(self.json.len() + 32);
        text.put_slice(b"{\"app\":");
        text.put_slice(&self.json);
        text.put_slice(if load { b",\"load\":true}" } else { b",\"load\":false}" });
        text.freeze()
    }
}

/// A revision that leaves, and what it is where that is known.
type Parting = (Revision, Option<Arc<Prepared>>);

#[derive(Debug, Default)]
struct Runs {
    revisions: BTreeMap<AppName, Vec<Arc<Prepared>>>,
    code: HashMap<(Digest, World), u32>,
    /// Where providers are that data are being moved to or from.
    lent: BTreeMap<AppName, Vec<Place>>,
    /// Revisions that are leaving the hosts.
    leaving: BTreeMap<AppName, Vec<Parting>>,
}

/// What a tenant keeps on this node, and whether it was counted.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) room: Arc<Room>,
    pub(crate) keys: OnceCell<()>,
    pub(crate) objects: OnceCell<()>,
    pub(crate) databases: OnceCell<()>,
}

/// One tenant on this node.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// Its outgoing connections.
    pub flows: Flows,
    /// Its hosts that ended and were started again.
    pub restarts: AtomicU64,
    /// One permit for each connection that is being made.
    pub dialing: Semaphore,
    /// One permit for each connection there is.
    pub(crate) room: Arc<Semaphore>,
    /// The connections there are.
    pub(crate) connections: Arc<Connections>,
    /// Apps whose calls wait while their data are moved, and the revision that is held: a host that is started again
    /// meanwhile holds them before it answers.
    pub held: tokio::sync::Mutex<BTreeMap<AppName, Revision>>,
    policy: ArcSwap<Policy>,
    runs: RwLock<Runs>,
    /// Outgoing connections a second.
    dials: Metered,
    /// What the ingress takes of its requests.
    pub gate: Arc<Gate>,
    pub(crate) kept: Kept,
    /// What its hosts have of the node.
    pub(crate) share: Share,
}

impl Tenant {
    /// A tenant with nothing running and nothing granted.
    pub fn new(name: TenantName) -> Arc<Self> {
        Arc::new(Self {
            name,
            flows: Flows::default(),
            restarts: AtomicU64::new(0),
            dialing: Semaphore::new(DIALS_AT_ONCE),
            room: Arc::new(Semaphore::new(MAX_OPEN)),
            connections: Arc::default(),
            held: tokio::sync::Mutex::default(),
            policy: ArcSwap::default(),
            runs: RwLock::default(),
            dials: Metered::new(dial_rate(&Quotas::default())),
            gate: Arc::new(Gate::default()),
            kept: Kept::default(),
            share: Share::default(),
        })
    }

    /// Connections its hosts have open.
    pub fn open_connections(&self) -> usize {
        self.connections.count()
    }

    /// Applies what the operator decided about connections, from the next dial on; [`crate::dialer::Dialer::recheck`]
    /// applies it to those that are open.
    pub fn apply(&self, settings: &TenantSettings) {
        let (policy, errors) = Policy::of(settings);
        for cause in errors {
            tracing::warn!(tenant = %self.name, %cause, "an egress range of the tenant is ignored");
        }
        self.policy.store(Arc::new(policy));
        self.dials.set(dial_rate(&settings.quotas));
        self.gate.set(&settings.quotas);
        self.kept.room.set(settings.quotas.store_bytes.map(|bytes| bytes.0));
    }

    /// What its connections may reach.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Takes one connection from the tenant's rate; false where it is used up.
    pub fn may_dial(&self, now: Instant) -> bool {
        self.dials.take(now, 1)
    }

    /// From now on hosts of the tenant are to have this revision, and may ask for its code.
    pub fn add(&self, prepared: Arc<Prepared>) {
        let runs = &mut *self.write();
        let revisions = runs.revisions.entry(prepared.app.clone()).or_default();
        if revisions.iter().any(|known| known.revision == prepared.revision) {
            return;
        }
        for code in &prepared.code {
            *runs.code.entry(*code).or_default() += 1;
        }
        revisions.push(prepared);
    }

    /// Hosts of the tenant are not to have this revision any more.
    pub fn remove(&self, app: &AppName, revision: Revision) {
        self.write().take(app, revision);
    }

    /// Every revision the host `shard` of `shards` is to have.
    pub fn revisions_for(&self, shard: u32, shards: u32) -> Vec<Arc<Prepared>> {
        let here = |p: &&Arc<Prepared>| !p.pinned || converge::home(&p.app, shards) == shard;
        self.read().revisions.values().flatten().filter(here).cloned().collect()
    }

    /// Whether its hosts are to have this revision.
    pub fn has(&self, app: &AppName, revision: Revision) -> bool {
        self.read().revisions.get(app).is_some_and(|all| all.iter().any(|known| known.revision == revision))
    }

    /// Whether its hosts are to have any revision of the app.
    pub fn knows(&self, app: &AppName) -> bool {
        self.read().revisions.contains_key(app)
    }

    /// Whether the app may use what is kept for it: its hosts are to have a revision of it, or one is leaving them and its
    /// last calls end.
    pub fn has_data(&self, app: &AppName) -> bool {
        let runs = self.read();
        runs.revisions.contains_key(app) || runs.leaving.contains_key(app)
    }

    /// Hosts of the tenant are not to have this revision any more; its last calls may use what is kept for the app, and
    /// ask for the connections that it was granted, until the answer is dropped.
    pub(crate) fn part(self: &Arc<Self>, app: &AppName, revision: Revision) -> Leaving {
        let runs = &mut *self.write();
        let prepared = runs.take(app, revision);
        runs.leaving.entry(app.clone()).or_default().push((revision, prepared));
        Leaving { tenant: self.clone(), app: app.clone(), revision }
    }

    /// Whether a revision its hosts are to have needs this code.
    pub fn may_have(&self, code: &(Digest, World)) -> bool {
        self.read().code.contains_key(code)
    }

    /// Whether a revision its hosts are to have needs this artifact.
    pub fn runs(&self, digest: &Digest) -> bool {
        [World::P2, World::P3].iter().any(|world| self.may_have(&(*digest, *world)))
    }

    /// Whether a revision its hosts are to have names this secret.
    pub fn may_reveal(&self, app: &AppName, secret: &SecretName) -> bool {
        self.read().revisions.get(app).is_some_and(|all| all.iter().any(|known| known.secrets.contains(secret)))
    }

    /// Whether an app its hosts are to have may ask for such a connection: a component for what its `allow-hosts` name,
    /// a provider for what its settings name.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn may_ask(&self, dial: &Dial, destination: &Destination) -> Result<(), &'static str> {
        let runs = self.read();
        let here = runs.revisions.get(&dial.app);
        let leaving = runs.leaving.get(&dial.app);
        if here.is_none() && leaving.is_none() {
            return Err("asked for by an app that does not run here");
        }
        let leaving = leaving.into_iter().flatten().filter_map(|(_, known)| known.as_ref());
        if here.into_iter().flatten().chain(leaving).any(|known| known.asks.has(dial, destination)) {
            return Ok(());
        }
        let Caller::Provider(provider) = &dial.caller else {
            return Err("a host that the component's `allow-hosts` does not name");
        };
        match runs.lent.get(&dial.app).is_some_and(|all| all.iter().any(|place| place.is(provider, dial, destination)))
        {
            true => Ok(()),
            false => Err("a place that is not the one in the settings of a provider that the app is linked to"),
        }
    }

    /// Lets an app ask for what the settings of these providers name, in place of those it was lent before: its data are
    /// being moved to one, and no revision names it yet.
    pub fn lend<'a>(&self, app: &AppName, providers: impl Iterator<Item = (&'a ProviderName, &'a ProviderSpec)>) {
        let places = providers.filter_map(|(name, spec)| Place::of(name, spec)).collect();
        self.write().lent.insert(app.clone(), places);
    }

    /// Takes back what was lent to an app; what is open is looked at by [`crate::dialer::Dialer::recheck`].
    pub fn take_back(&self, app: &AppName) {
        self.write().lent.remove(app);
    }

    /// Counts one more.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a connection that is open could be opened now, to the address it has.
    pub(crate) fn still_grants(&self, open: &Open) -> Result<Grant, String> {
        self.may_ask(&open.dial, &open.destination)?;
        let address = &[open.address.ip()];
        let own = crate::dialer::own::among(address);
        let decided = self.policy().decide(open.provider(), &open.destination, open.address.port(), address, &own);
        decided.map_err(|denied| denied.class.to_string())
    }

    fn read(&self) -> RwLockReadGuard<'_, Runs> {
        self.runs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Runs> {
        self.runs.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runs {
    /// Takes a revision out, and its part of the code.
    fn take(&mut self, app: &AppName, revision: Revision) -> Option<Arc<Prepared>> {
        let revisions = self.revisions.get_mut(app)?;
        let at = revisions.iter().position(|known| known.revision == revision)?;
        let prepared = revisions.swap_remove(at);
        if revisions.is_empty() {
            self.revisions.remove(app);
        }
        for code in &prepared.code {
            if let Some(users) = self.code.get_mut(code) {
                *users -= 1;
                if *users == 0 {
                    self.code.remove(code);
                }
            }
        }
        Some(prepared)
    }
}

/// A revision whose last calls end.
#[derive(Debug)]
pub(crate) struct Leaving {
    tenant: Arc<Tenant>,
    app: AppName,
    revision: Revision,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let runs = &mut *self.tenant.write();
        if let Some(all) = runs.leaving.get_mut(&self.app) {
            if let Some(at) = all.iter().position(|(revision, _)| *revision == self.revision) {
                all.swap_remove(at);
            }
            if all.is_empty() {
                runs.leaving.remove(&self.app);
            }
        }
    }
}

/// A rate and its state. Its lock is held for a few instructions.
#[derive(Debug)]
struct Metered(Mutex<(Rate, u64)>);

impl Metered {
    fn new(rate: Rate) -> Self {
        Self(Mutex::new((rate, 0)))
    }

    fn set(&self, rate: Rate) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = rate;
    }

    fn take(&self, now: Instant, units: u64) -> bool {
        let state = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.take(state.1, nanos(now), units) {
            Ok(paid) => {
                state.1 = paid;
                true
            }
            Err(_) => false,
        }
    }
}

fn dial_rate(quotas: &Quotas) -> Rate {
    let rate = u64::from(quotas.connections_per_second);
    Rate::new(rate, rate * 2)
}

/// The external providers that a host of the app connects to.
fn externals(app: &LockedApp) -> Vec<(ProviderName, ProviderSpec)> {
    let used = asks::used(app);
    let external = app.providers.iter().filter(|(_, spec)| spec.kind == ProviderKind::External);
    let wanted = external.filter(|(name, _)| used.contains(name));
    wanted.map(|(name, spec)| (name.clone(), spec.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn prepared(app: &str, revision: u64, code: u8) -> Arc<Prepared> {
        Arc::new(Prepared {
            app: app.parse().unwrap(),
            revision: Revision(revision),
            pinned: false,
            components: Vec::new(),
            main: None,
            code: vec![(Digest::of(&[code]), World::P2)],
            routes: Vec::new(),
            secrets: BTreeSet::new(),
            asks: Asks::default(),
            messages: Vec::new(),
            takes: false,
            schedules: Arc::new([]),
            taking: AtomicBool::new(false),
            externals: Vec::new(),
            leases: OnceLock::new(),
            json: Bytes::from_static(b"{}"),
        })
    }

    #[test]
    fn code_is_granted_as_long_as_one_revision_needs_it() {
        let tenant = Tenant::new("t".parse().unwrap());
        let code = (Digest::of(&[7]), World::P2);
        assert!(!tenant.may_have(&code));
        tenant.add(prepared("a", 1, 7));
        tenant.add(prepared("a", 1, 7));
        tenant.add(prepared("a", 2, 7));
        tenant.remove(&"a".parse().unwrap(), Revision(1));
        assert!(tenant.may_have(&code));
        assert!(!tenant.may_have(&(Digest::of(&[7]), World::P3)));
        tenant.remove(&"a".parse().unwrap(), Revision(2));
        assert!(!tenant.may_have(&code));
        assert!(!tenant.knows(&"a".parse().unwrap()));
    }

    #[test]
    fn an_app_has_its_data_until_its_last_calls_have_ended() {
        let (tenant, app): (_, AppName) = (Tenant::new("t".parse().unwrap()), "a".parse().unwrap());
        assert!(!tenant.has_data(&app));
        tenant.add(prepared("a", 1, 7));
        tenant.add(prepared("a", 2, 7));
        let (first, second) = (tenant.part(&app, Revision(1)), tenant.part(&app, Revision(2)));
        assert!(!tenant.knows(&app) && tenant.has_data(&app));
        drop(first);
        assert!(tenant.has_data(&app));
        drop(second);
        assert!(!tenant.has_data(&app));
    }

    #[test]
    fn the_last_calls_of_a_revision_keep_its_connections() {
        let (tenant, name): (_, AppName) = (Tenant::new("t".parse().unwrap()), "a".parse().unwrap());
        let app: LockedApp = serde_json::from_value(serde_json::json!({ "name": "a", "components": {},
            "providers": { "cache": { "type": "keyvalue-redis", "config": { "url": "redis://cache.internal:7000" } } },
            "links": [{ "component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": "cache" }] }))
        .unwrap();
        tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
        tenant.add(prepared("a", 2, 7));
        let caller = Caller::Provider("cache".parse().unwrap());
        let host = "cache.internal".to_owned();
        let dial = Dial { app: name.clone(), caller, transport: model::egress::Transport::Tcp, host, port: 7000 };
        let may = || tenant.may_ask(&dial, &Destination::parse(&dial.host).unwrap()).is_ok();
        assert!(may());
        let last = tenant.part(&name, Revision(1));
        assert!(may(), "its calls in flight finish where they began");
        drop(last);
        assert!(!may());
    }

    #[test]
    fn a_start_request_is_the_agent_api_s() {
        let app: LockedApp = serde_json::from_str(r#"{"name":"a","components":{}}"#).unwrap();
        let prepared = Prepared::of(Revision(1), &app).unwrap();
        for load in [true, false] {
            let request: api::agent::StartRequest = serde_json::from_slice(&prepared.start_request(load)).unwrap();
            assert_eq!(request, api::agent::StartRequest { app: app.clone(), load });
        }
    }

    #[test]
    fn dials_are_bounded_by_burst_and_rate() {
        let tenant = Tenant::new("t".parse().unwrap());
        let start = Instant::now();
        let burst = (0..1000).filter(|_| tenant.may_dial(start)).count();
        assert_eq!(burst, 400);
        let second = (0..1000).filter(|_| tenant.may_dial(start + Duration::from_secs(1))).count();
        assert_eq!(second, 200);
    }
}
