//! Who routes which hosts and paths: what a deploy is compared with under the turn of all changes. Looked up by the app's own
//! hosts and paths, never gone through, so that nobody's number of routes makes the changes of others take longer.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher as _;
use std::ops::Bound::{Excluded, Included, Unbounded};

use model::app::Route;
use model::plan::AppId;
use model::{AppName, TenantName};

/// A host read backwards: what is under `*.a.b` begins with `b.a.`, and is together.
type Backwards = String;

/// Routes of all apps, by host and by path.
#[derive(Default)]
pub(crate) struct Taken {
    /// The apps that have routes at a host, and how many each; a tenant's are together.
    hosts: BTreeMap<Backwards, BTreeMap<AppId, usize>>,
    /// Hosts at which not all is of the one tenant that has the host before: where a stretch of hosts has none of these
    /// after its first, it is one tenant's.
    borders: BTreeSet<Backwards>,
    /// The apps of a tenant that answer a path of a host. By hash, because paths may be long: whoever asks looks at the routes.
    paths: HashMap<u64, BTreeMap<AppId, usize>>,
    hasher: RandomState,
}

fn backwards(host: &str) -> Backwards {
    host.chars().rev().collect()
}

/// The tenant whose all of them are.
fn only(apps: &BTreeMap<AppId, usize>) -> Option<&TenantName> {
    let (first, last) = (apps.keys().next()?, apps.keys().next_back()?);
    (first.tenant == last.tenant).then_some(&first.tenant)
}

/// One of another tenant.
fn other<'a>(apps: &'a BTreeMap<AppId, usize>, than: &TenantName) -> Option<&'a AppId> {
    // They are in the order of tenants: where neither end is another's, nothing between them is.
    [apps.keys().next(), apps.keys().next_back()].into_iter().flatten().find(|id| id.tenant != *than)
}

fn less(apps: &mut BTreeMap<AppId, usize>, id: &AppId) {
    if let Some(count) = apps.get_mut(id) {
        *count -= 1;
        if *count == 0 {
            apps.remove(id);
        }
    }
}

impl Taken {
    fn path(&self, tenant: &TenantName, route: &Route) -> u64 {
        self.hasher.hash_one((tenant, &route.host, &route.path))
    }

    pub(crate) fn add(&mut self, id: &AppId, routes: &[Route]) {
        for route in routes {
            let host = backwards(&route.host);
            *self.hosts.entry(host.clone()).or_default().entry(id.clone()).or_default() += 1;
            self.mark(&host);
            let path = self.path(&id.tenant, route);
            *self.paths.entry(path).or_default().entry(id.clone()).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, id: &AppId, routes: &[Route]) {
        for route in routes {
            let host = backwards(&route.host);
            if let Some(apps) = self.hosts.get_mut(&host) {
                less(apps, id);
                if apps.is_empty() {
                    self.hosts.remove(&host);
                }
            }
            self.mark(&host);
            let path = self.path(&id.tenant, route);
            if let Some(apps) = self.paths.get_mut(&path) {
                less(apps, id);
                if apps.is_empty() {
                    self.paths.remove(&path);
                }
            }
        }
    }

    /// A host's apps are others now: it and the one behind it may have become borders, or ceased to be.
    fn mark(&mut self, host: &str) {
        let behind = self.hosts.range::<str, _>((Excluded(host), Unbounded)).next().map(|(host, _)| host.clone());
        for host in [Some(host.to_owned()), behind].into_iter().flatten() {
            let before = self.hosts.range::<str, _>((Unbounded, Excluded(host.as_str()))).next_back();
            let border = self.hosts.get(&host).is_some_and(|apps| {
                before.is_some_and(|(_, before)| only(before).is_none() || only(before) != only(apps))
            });
            if border {
                self.borders.insert(host);
            } else {
                self.borders.remove(&host);
            }
        }
    }

    /// An app of another tenant, and its host, which some request for `host` could be for as well: it is the same, or one
    /// is under the other's wildcard.
    pub(crate) fn foreign(&self, tenant: &TenantName, host: &str) -> Option<(&AppId, String)> {
        let ours = backwards(host);
        let above = ours.match_indices('.').map(|(dot, _)| {
            let (suffix, _) = ours.split_at(dot.saturating_add(1));
            format!("{suffix}*")
        });
        for host in above.chain([ours.clone()]) {
            if let Some(id) = self.hosts.get(&host).and_then(|apps| other(apps, tenant)) {
                return Some((id, backwards(&host)));
            }
        }
        let under = ours.strip_suffix('*')?;
        let (first, apps) = self
            .hosts
            .range::<str, _>((Included(under), Unbounded))
            .next()
            .filter(|(host, _)| host.starts_with(under))?;
        if let Some(id) = other(apps, tenant) {
            return Some((id, backwards(first)));
        }
        // From the first on all is ours up to the next border, and what is there is not, or not alone.
        let border = self.borders.range::<str, _>((Excluded(first.as_str()), Unbounded)).next()?;
        let (host, apps) = self.hosts.get_key_value(border).filter(|(host, _)| host.starts_with(under))?;
        other(apps, tenant).map(|id| (id, backwards(host)))
    }

    /// Whether some app of the tenant has a route on just this host.
    pub(crate) fn has(&self, tenant: &TenantName, host: &str) -> bool {
        let first = AppId { tenant: tenant.clone(), app: AppName::first() };
        let apps = self.hosts.get(&backwards(host));
        apps.and_then(|apps| apps.range(first..).next()).is_some_and(|(id, _)| id.tenant == *tenant)
    }

    /// The tenant's other apps that may answer the path of the route.
    pub(crate) fn own<'a>(&'a self, id: &'a AppId, route: &Route) -> impl Iterator<Item = &'a AppId> {
        let apps = self.paths.get(&self.path(&id.tenant, route));
        apps.into_iter().flat_map(BTreeMap::keys).filter(move |other| *other != id)
    }
}

#[cfg(test)]
mod tests {
    use model::rules::route::hosts_overlap;

    use super::*;

    fn id(tenant: &str, app: usize) -> AppId {
        AppId { tenant: tenant.parse().unwrap(), app: format!("a{app}").parse().unwrap() }
    }

    fn route(host: &str) -> Route {
        Route { host: host.to_owned(), path: "/".into(), methods: vec![], component: "c".parse().unwrap() }
    }

    #[test]
    fn what_is_looked_up_is_what_comparing_with_all_finds() {
        let hosts = [
            "b", "a.b", "c.b", "*.b", "a.a.b", "x.a.b", "*.a.b", "xa.b", "*.xa.b", "a-b", "a.b.c", "*.c", "*.b.c",
            "b.c",
        ];
        let (mut taken, mut all) = (Taken::default(), Vec::<(AppId, &str)>::new());
        // A fixed walk through adding and removing, in which tenants have hosts together, too: as old data may be.
        let mut walk = 1u64;
        let mut below = |n: usize| {
            walk = walk.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (walk >> 33) as usize % n
        };
        let mut seen = [0; 2];
        for _ in 0..3000 {
            if below(5) < 2 && !all.is_empty() {
                let (id, host) = all.swap_remove(below(all.len()));
                taken.remove(&id, &[route(host)]);
            } else if all.len() < 8 {
                let (id, host) = (id(["t", "u", "v"][below(3)], below(2)), hosts[below(hosts.len())]);
                taken.add(&id, &[route(host)]);
                all.push((id, host));
            }
            for host in hosts {
                for tenant in ["t", "u", "w"] {
                    let tenant = tenant.parse().unwrap();
                    let is = |id: &AppId, theirs: &str| id.tenant != tenant && hosts_overlap(host, theirs);
                    let found = taken.foreign(&tenant, host);
                    let wanted = all.iter().any(|(id, theirs)| is(id, theirs));
                    assert_eq!(found.is_some(), wanted, "{host} of {tenant}: {found:?} in {all:?}");
                    let there = |id: &AppId, theirs: &str| all.iter().any(|one| *one == (id.clone(), theirs));
                    assert!(found.is_none_or(|(id, theirs)| is(id, &theirs) && there(id, &theirs)));
                    seen[usize::from(wanted)] += 1;
                }
            }
        }
        assert!(seen.iter().all(|count| *count > 10_000), "{seen:?}");
        for (id, host) in all {
            taken.remove(&id, &[route(host)]);
        }
        assert!(taken.hosts.is_empty() && taken.borders.is_empty() && taken.paths.is_empty());
    }

    #[test]
    fn a_tenants_other_apps_are_found_by_path() {
        let mut taken = Taken::default();
        let at = |path: &str| Route { path: path.into(), ..route("a.b") };
        taken.add(&id("t", 1), &[at("/x"), at("/x"), at("/y")]);
        taken.add(&id("u", 1), &[at("/x")]);
        let found = |taken: &Taken, app, path| taken.own(&id("t", app), &at(path)).cloned().collect::<Vec<_>>();
        assert_eq!(found(&taken, 2, "/x"), [id("t", 1)]);
        assert_eq!((found(&taken, 1, "/x"), found(&taken, 2, "/z")), (vec![], vec![]), "its own, and none");
        taken.remove(&id("t", 1), &[at("/x")]);
        assert_eq!(found(&taken, 2, "/x"), [id("t", 1)], "it has it twice");
    }
}
