//! Which revisions the hosts of a tenant are to have, which of them are leaving, and what those may ask for: data, code, secrets and
//! connections.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use api::services::{Caller, Dial};
use model::egress::{Destination, Grant};
use model::{AppName, Digest, ProviderName, ProviderSpec, Revision, SecretName, World};

use super::Tenant;
use super::prepared::{Prepared, is_built_in_otherwise, keeps_keys};
use crate::asks::Place;
use crate::connections::Open;
use crate::converge;

/// The key-value provider that every app has.
const BUILT_IN: &str = "embedded";

/// A revision that leaves, and what it is where that is known.
type Parting = (Revision, Option<Arc<Prepared>>);

#[derive(Debug, Default)]
pub(super) struct Runs {
    revisions: BTreeMap<AppName, Vec<Arc<Prepared>>>,
    code: HashMap<(Digest, World), u32>,
    /// Where providers are that data are being moved to or from.
    lent: BTreeMap<AppName, Vec<Place>>,
    /// Those of them whose keys the node keeps.
    lent_keys: BTreeMap<AppName, BTreeSet<ProviderName>>,
    /// Revisions that are leaving the hosts.
    leaving: BTreeMap<AppName, Vec<Parting>>,
    /// Apps that are suspended, and which of their revisions: whatever still runs of those gets nothing of the node. The
    /// next revision is none of them: what it names it may have while it is brought up, and nothing else.
    barred: BTreeMap<AppName, BTreeSet<Revision>>,
}

impl Tenant {
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
        self.named.add(&prepared);
        revisions.push(prepared);
    }

    /// Hosts of the tenant are not to have this revision any more.
    pub fn remove(&self, app: &AppName, revision: Revision) {
        let runs = &mut *self.write();
        runs.take(app, revision);
        runs.pardon(app, revision);
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
        !self.is_suspended() && (runs.here(app).next().is_some() || runs.parting(app).next().is_some())
    }

    /// Whether the app may use the keys that are kept for it under this provider: the built-in one, one of a revision that
    /// its hosts are to have or that is leaving them, or one that its data are moved to or from.
    pub(crate) fn has_keys(&self, app: &AppName, provider: &ProviderName) -> bool {
        if provider.as_str() == BUILT_IN {
            return true;
        }
        let runs = self.read();
        let names = |known: &Prepared| known.keys.contains(provider);
        // Of one that is not known any more, all but what is certainly none of its own.
        let named = |known: &Option<Arc<Prepared>>| known.as_deref().map_or(!is_built_in_otherwise(provider), names);
        runs.here(app).any(|known| names(known))
            || runs.parting(app).any(|(_, known)| named(known))
            || runs.lent_keys.get(app).is_some_and(|all| all.contains(provider))
    }

    /// Whatever runs of the app gets nothing of the node from now on, no connection, no secret, no data, but for one
    /// revision that is being brought up. [`crate::dialer::Dialer::recheck`] ends what is open.
    pub(crate) fn bar(&self, app: &AppName, but: Option<Revision>) {
        let runs = &mut *self.write();
        let here = runs.revisions.get(app).into_iter().flatten().map(|known| known.revision);
        let leaving = runs.leaving.get(app).into_iter().flatten().map(|(revision, _)| *revision);
        let all = here.chain(leaving).filter(|revision| Some(*revision) != but);
        runs.barred.entry(app.clone()).or_default().extend(all);
    }

    /// The same of one revision, which may not be there yet.
    pub(crate) fn bar_one(&self, app: &AppName, revision: Revision) {
        self.write().barred.entry(app.clone()).or_default().insert(revision);
    }

    /// This revision of the app may have again what it names; others stay as they are.
    pub(crate) fn unbar(&self, app: &AppName, revision: Revision) {
        let runs = &mut *self.write();
        runs.pardon(app, revision);
        if runs.barred.get(app).is_some_and(BTreeSet::is_empty) {
            runs.barred.remove(app);
        }
    }

    /// The app is gone, and the next of its name is another one.
    pub(crate) fn unbar_all(&self, app: &AppName) {
        self.write().barred.remove(app);
    }

    /// Whether the app, or its tenant, is suspended.
    pub(crate) fn is_barred(&self, app: &AppName) -> bool {
        self.bars(&self.read(), app)
    }

    fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::SeqCst)
    }

    fn bars(&self, runs: &Runs, app: &AppName) -> bool {
        let may_run = || runs.here(app).next().is_some() || runs.parting(app).next().is_some();
        self.is_suspended() || runs.barred.contains_key(app) && !may_run()
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
        let runs = self.read();
        !self.is_suspended() && runs.here(app).any(|known| known.secrets.contains(secret))
    }

    /// Whether an app its hosts are to have may ask for such a connection: a component for what its `allow-hosts` name,
    /// a provider for what its settings name.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn may_ask(&self, dial: &Dial, destination: &Destination) -> Result<(), &'static str> {
        let runs = self.read();
        if self.bars(&runs, &dial.app) {
            return Err("asked for by an app that is suspended");
        }
        if !runs.revisions.contains_key(&dial.app) && !runs.leaving.contains_key(&dial.app) {
            return Err("asked for by an app that does not run here");
        }
        let leaving = runs.parting(&dial.app).filter_map(|(_, known)| known.as_ref());
        if runs.here(&dial.app).chain(leaving).any(|known| known.asks.has(dial, destination)) {
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
        let (mut places, mut keys) = (Vec::new(), BTreeSet::new());
        for (name, spec) in providers {
            places.extend(Place::of(name, spec));
            if keeps_keys(name, spec) {
                keys.insert(name.clone());
            }
        }
        let runs = &mut *self.write();
        runs.lent.insert(app.clone(), places);
        runs.lent_keys.insert(app.clone(), keys);
    }

    /// Takes back what was lent to an app; what is open is looked at by [`crate::dialer::Dialer::recheck`].
    pub fn take_back(&self, app: &AppName) {
        let runs = &mut *self.write();
        runs.lent.remove(app);
        runs.lent_keys.remove(app);
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
    /// The revisions of an app that its hosts are to have, and that may run.
    fn here<'a>(&'a self, app: &AppName) -> impl Iterator<Item = &'a Arc<Prepared>> + use<'a> {
        let barred = self.barred.get(app);
        let all = self.revisions.get(app).into_iter().flatten();
        all.filter(move |known| barred.is_none_or(|barred| !barred.contains(&known.revision)))
    }

    /// Those that are leaving them, and may run to their end.
    fn parting<'a>(&'a self, app: &AppName) -> impl Iterator<Item = &'a Parting> + use<'a> {
        let barred = self.barred.get(app);
        let all = self.leaving.get(app).into_iter().flatten();
        all.filter(move |(revision, _)| barred.is_none_or(|barred| !barred.contains(revision)))
    }

    /// A revision is not barred any more, or not there to be. Whether its app is suspended is for others to say.
    fn pardon(&mut self, app: &AppName, revision: Revision) {
        if let Some(barred) = self.barred.get_mut(app) {
            barred.remove(&revision);
        }
    }

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
        if !runs.revisions.get(&self.app).is_some_and(|all| all.iter().any(|known| known.revision == self.revision)) {
            runs.pardon(&self.app, self.revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use model::LockedApp;

    use super::super::prepared::tests::prepared;
    use super::*;

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
    fn a_secret_is_revealed_to_apps_whose_revisions_link_it_and_no_longer() {
        let (tenant, name): (_, AppName) = (Tenant::new("t".parse().unwrap()), "a".parse().unwrap());
        let app = |revision, labels: &[&str]| {
            let link = |label: &&str| {
                serde_json::json!({
                    "component": "c", "contract": "wasmcloud:secrets", "label": label, "provider": "secrets",
                })
            };
            let links: Vec<_> = labels.iter().map(link).collect();
            let app = serde_json::json!({ "name": "a", "components": {}, "links": links });
            Arc::new(Prepared::of(Revision(revision), &serde_json::from_value(app).unwrap()).unwrap())
        };
        let may = |app: &AppName, secret: &str| tenant.may_reveal(app, &secret.parse().unwrap());
        tenant.add(app(1, &["linked", "kept"]));
        assert!(may(&name, "linked") && may(&name, "kept"));
        assert!(!may(&name, "other") && !may(&"b".parse().unwrap(), "linked"), "nobody else, and nothing else");
        // The next revision has no such link: it is over with the last one that had it.
        tenant.add(app(2, &["kept"]));
        let last = tenant.part(&name, Revision(1));
        assert!(!may(&name, "linked") && may(&name, "kept"));
        drop(last);
        tenant.remove(&name, Revision(2));
        assert!(!may(&name, "kept"));
    }

    #[test]
    fn a_revision_that_is_barred_gets_nothing_and_the_next_one_only_what_it_names() {
        let (tenant, name): (_, AppName) = (Tenant::new("t".parse().unwrap()), "a".parse().unwrap());
        let app = |revision, label: &str, host: &str| {
            let app = serde_json::json!({ "name": "a", "components": {},
                "providers": { "cache": { "type": "keyvalue-redis", "config": { "url": format!("redis://{host}:7000") } } },
                "links": [
                    { "component": "c", "contract": "wasmcloud:secrets", "label": label, "provider": "secrets" },
                    { "component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": "cache" },
                ] });
            Arc::new(Prepared::of(Revision(revision), &serde_json::from_value(app).unwrap()).unwrap())
        };
        // What it may: data, its secrets, where it connects to.
        let may = || {
            let dial = |host: &str| {
                let caller = Caller::Provider("cache".parse().unwrap());
                let transport = model::egress::Transport::Tcp;
                let dial = Dial { app: name.clone(), caller, transport, host: host.to_owned(), port: 7000 };
                tenant.may_ask(&dial, &Destination::parse(host).unwrap()).is_ok()
            };
            let secret = |label: &str| tenant.may_reveal(&name, &label.parse().unwrap());
            let all = [("data", tenant.has_data(&name)), ("one", secret("one")), ("two", secret("two"))];
            let all = all.into_iter().chain(["one.internal", "two.internal"].map(|host| (host, dial(host))));
            all.filter(|(_, may)| *may).map(|(what, _)| what).collect::<Vec<_>>()
        };
        tenant.add(app(1, "one", "one.internal"));
        assert_eq!(may(), ["data", "one", "one.internal"]);
        tenant.bar(&name, None);
        assert!(may().is_empty() && tenant.is_barred(&name));
        // The next one is brought up: nothing of what only the first names comes back with it.
        tenant.unbar(&name, Revision(2));
        assert!(may().is_empty() && tenant.is_barred(&name), "it is not there yet");
        tenant.add(app(2, "two", "two.internal"));
        assert_eq!(may(), ["data", "two", "two.internal"]);
        assert!(!tenant.is_barred(&name));
        // It fails, and what was barred still is.
        tenant.remove(&name, Revision(2));
        assert!(may().is_empty() && tenant.is_barred(&name));
        tenant.add(app(3, "two", "two.internal"));
        let last = tenant.part(&name, Revision(1));
        assert_eq!(may(), ["data", "two", "two.internal"], "nor does it leave with what it had");
        drop(last);
        assert_eq!(may(), ["data", "two", "two.internal"]);
        // What is brought up may be spared, or given up before it is there.
        tenant.bar(&name, Some(Revision(3)));
        assert!(!tenant.is_barred(&name));
        tenant.bar_one(&name, Revision(4));
        tenant.remove(&name, Revision(3));
        tenant.add(app(4, "two", "two.internal"));
        assert!(may().is_empty() && tenant.is_barred(&name));
        tenant.unbar(&name, Revision(4));
        assert_eq!(may(), ["data", "two", "two.internal"]);
    }

    #[test]
    fn an_app_has_the_keys_of_its_own_providers_and_of_no_name_that_is_made_up() {
        let (tenant, name): (_, AppName) = (Tenant::new("t".parse().unwrap()), "a".parse().unwrap());
        let app = |revision, providers: &[(&str, &str)]| {
            let providers: serde_json::Map<_, _> = providers
                .iter()
                .map(|(name, kind)| ((*name).to_owned(), serde_json::json!({ "type": kind, "config": {} })))
                .collect();
            let app = serde_json::json!({ "name": "a", "components": {}, "providers": providers });
            let app: LockedApp = serde_json::from_value(app).unwrap();
            Arc::new(Prepared::of(Revision(revision), &app).unwrap())
        };
        let has = |provider: &str| tenant.has_keys(&name, &provider.parse().unwrap());
        let embedded = "keyvalue-embedded";
        tenant.add(app(1, &[("mine", embedded), ("near", "keyvalue-memory"), ("durable", embedded)]));
        let others = ["durable", "local", "folder", "memory", "sqlite", "secrets", "made-up", "near"];
        assert!(has("embedded") && has("mine"));
        assert!(!others.into_iter().any(has));
        // The next revision names another; the last calls of the first one end as they began.
        tenant.add(app(2, &[("next", embedded)]));
        let last = tenant.part(&name, Revision(1));
        assert!(has("mine") && has("next"));
        drop(last);
        assert!(!has("mine") && has("next"));
        // Data are moved to one that no revision names yet.
        let (to, durable): (ProviderName, ProviderName) = ("to".parse().unwrap(), "durable".parse().unwrap());
        let spec = ProviderSpec::new(model::ProviderKind::KeyvalueEmbedded);
        tenant.lend(&name, [(&to, &spec), (&durable, &spec)].into_iter());
        assert!(has("to") && has("next") && !has("durable"));
        tenant.take_back(&name);
        assert!(!has("to"));
        // Of a revision from before this process nothing is known but that it was there.
        let unknown = tenant.part(&name, Revision(7));
        assert!(has("mine") && !has("durable"));
        drop(unknown);
        assert!(!has("mine"));
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
}
