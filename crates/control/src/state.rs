//! What the control plane holds in memory of all apps: what is wanted, what is assigned, what is reported, and the
//! routes. Small by design (a few hundred bytes an app): whole revisions stay in the store.

mod ended;
mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::control::AppView;
use model::app::{LockedApp, Revision, Route};
use model::observed::{AppObserved, Reason};
use model::plan::{AppId, Desired, NodeState, Observed, Wanted};
use model::rules::MAX_ROUTES;
use model::tenant::Quotas;
use model::{AppName, NodeName, TenantName};
use store::keys::NodeRecord;

pub(crate) use self::ended::Ended;
use crate::moved::Moved;
use crate::named::{Named, Thing, Users};
use crate::taken::Taken;

/// The state, shared by the writer, the reconciler and the readers. Never held over an await.
#[derive(Default)]
pub(crate) struct Shared(Mutex<State>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or removal: there is no half-made state to protect from.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an app.
#[derive(Default)]
struct Known {
    /// The store revision of the head this comes from: an older one never replaces it.
    at: u64,
    /// The wanted revision. `None`: deleted.
    live: Option<Live>,
    /// Those that nodes serve in its place. What they route and name is no more free than what the wanted one does.
    older: BTreeMap<Revision, Live>,
}

impl Known {
    fn all(&self) -> impl Iterator<Item = &Live> {
        self.live.iter().chain(self.older.values())
    }

    fn names(&self) -> BTreeSet<Thing> {
        self.all().flat_map(|live| live.names.iter().cloned()).collect()
    }
}

struct Live {
    revision: Revision,
    components: u32,
    routes: Box<[Route]>,
    names: Box<[Thing]>,
}

impl Live {
    fn of(app: &LockedApp, revision: Revision) -> Self {
        let components = u32::try_from(app.components.len()).unwrap_or(u32::MAX);
        let names = Thing::of(app).into_iter().collect();
        Self { revision, components, routes: app.routes.as_slice().into(), names }
    }
}

/// What a tenant has together.
#[derive(Default)]
struct Total {
    apps: u64,
    components: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) desired: Desired,
    pub(crate) observed: Observed,
    apps: BTreeMap<AppId, Known>,
    /// The same by what a change asks for: kept true by [`State::want`] and [`State::forget`], so that none goes through all.
    totals: BTreeMap<TenantName, Total>,
    taken: Taken,
    named: Named,
    pub(crate) nodes: BTreeMap<NodeName, NodeRecord>,
    pub(crate) reports: BTreeMap<NodeName, BTreeMap<AppId, AppObserved>>,
    /// Links whose data are being moved.
    pub(crate) moves: BTreeMap<AppId, Moved>,
    /// Of whom a revision from before may have ended to serve.
    pub(crate) ended: Ended,
    /// Bytes of the revisions, configs and secrets that are kept of each tenant.
    kept: BTreeMap<TenantName, u64>,
}

impl State {
    /// The app's head was written at store revision `at`.
    pub(crate) fn want(&mut self, id: &AppId, at: u64, app: &LockedApp, wanted: Wanted) {
        if self.apps.get(id).is_none_or(|known| known.at <= at) {
            let live = Live::of(app, wanted.revision);
            // What was wanted until now may be what serves for some time yet.
            if let Some(was) = self.desired.apps.insert(id.clone(), wanted) {
                self.desired.older.entry(id.clone()).or_default().insert(was.revision, was);
            }
            let older = self.older(id, live.revision);
            self.change(id, |known| {
                known.at = at;
                let was = known.live.replace(live);
                known.older.extend(was.map(|was| (was.revision, was)));
            });
            self.only_older(id, &older);
        }
    }

    /// A revision that is wanted, or that serves, is judged anew. False where it does neither any more, and where nothing
    /// else comes of it than before.
    pub(crate) fn rejudge(&mut self, id: &AppId, judged: Wanted) -> bool {
        let wanted = self.desired.apps.get_mut(id).filter(|known| known.revision == judged.revision);
        let older = self.desired.older.get_mut(id).and_then(|all| all.get_mut(&judged.revision));
        let known = wanted.or(older).filter(|known| **known != judged);
        known.map(|known| *known = judged).is_some()
    }

    /// The app was deleted at store revision `at`.
    pub(crate) fn forget(&mut self, id: &AppId, at: u64) {
        if self.apps.get(id).is_none_or(|known| known.at <= at) {
            self.change(id, |known| *known = Known { at, ..Known::default() });
            self.desired.apps.remove(id);
            self.desired.older.remove(id);
        }
    }

    /// Changes what is known of an app, and what is kept by it.
    fn change(&mut self, id: &AppId, change: impl FnOnce(&mut Known)) {
        let mut known = self.apps.remove(id).unwrap_or_default();
        known.all().for_each(|live| self.taken.remove(id, &live.routes));
        self.named.remove(id, &known.names());
        if let Some(was) = &known.live
            && let Some(total) = self.totals.get_mut(&id.tenant)
        {
            total.apps -= 1;
            total.components -= u64::from(was.components);
            if total.apps == 0 {
                self.totals.remove(&id.tenant);
            }
        }
        change(&mut known);
        known.all().for_each(|live| self.taken.add(id, &live.routes));
        self.named.add(id, &known.names());
        if let Some(live) = &known.live {
            let total = self.totals.entry(id.tenant.clone()).or_default();
            total.apps += 1;
            total.components += u64::from(live.components);
        }
        self.apps.insert(id.clone(), known);
    }

    /// The tenant's apps that name something kept beside them.
    pub(crate) fn users(&self, tenant: &TenantName, thing: Thing) -> Users<'_> {
        self.named.by(tenant, thing)
    }

    /// Everything up to store revision `at` was seen: what is only remembered against older news can go.
    pub(crate) fn settle(&mut self, id: &AppId, at: u64) {
        if self.apps.get(id).is_some_and(|known| known.live.is_none() && known.at <= at) {
            self.apps.remove(id);
        }
    }

    /// Bytes of what is kept of a tenant.
    pub(crate) fn kept(&self, tenant: &TenantName) -> u64 {
        self.kept.get(tenant).copied().unwrap_or_default()
    }

    /// Something that is kept of a tenant had `before` bytes and has `after`.
    pub(crate) fn count(&mut self, tenant: &TenantName, before: u64, after: u64) {
        match self.kept(tenant).saturating_sub(before).saturating_add(after) {
            0 => drop(self.kept.remove(tenant)),
            kept => drop(self.kept.insert(tenant.clone(), kept)),
        }
    }

    /// The revision of an app that is there.
    pub(crate) fn revision(&self, id: &AppId) -> Option<Revision> {
        self.apps.get(id)?.live.as_ref().map(|live| live.revision)
    }

    /// The tenant's apps, in order. Those of others are not gone through.
    pub(crate) fn apps_of<'a>(&'a self, tenant: &'a TenantName) -> impl Iterator<Item = (&'a AppId, Revision)> {
        let first = AppId { tenant: tenant.clone(), app: AppName::first() };
        let own = self.apps.range(first..).take_while(move |(id, _)| id.tenant == *tenant);
        own.filter_map(|(id, known)| known.live.as_ref().map(|live| (id, live.revision)))
    }

    /// The routes of an app that is there, and the revision they are of.
    pub(crate) fn routes_of(&self, id: &AppId) -> Option<(Revision, &[Route])> {
        self.apps.get(id)?.live.as_ref().map(|live| (live.revision, &*live.routes))
    }

    /// Whether the tenant's quotas allow `app`; a sentence for each that does not. What was there before a quota became
    /// smaller may be deployed again, and may shrink.
    pub(crate) fn over_quota(&self, id: &AppId, app: &LockedApp, quotas: &Quotas) -> Vec<String> {
        let own = self.apps.get(id).and_then(|known| Some(known.live.as_ref()?.components));
        let (mut apps, mut components) = (1u64, app.components.len() as u64);
        if let Some(total) = self.totals.get(&id.tenant) {
            apps += total.apps - u64::from(own.is_some());
            components += total.components - u64::from(own.unwrap_or(0));
        }
        let mut problems = Vec::new();
        if own.is_none() && apps > u64::from(quotas.apps) {
            problems.push(format!("tenant `{}` has {} apps and may have {}", id.tenant, apps - 1, quotas.apps));
        }
        let grows = app.components.len() as u64 > u64::from(own.unwrap_or(0));
        if grows && components > u64::from(quotas.components) {
            let quota = quotas.components;
            problems.push(format!("tenant `{}` would have {components} components and may have {quota}", id.tenant));
        }
        problems
    }

    /// Routes of other apps, whosever, that are in the way of one of `app`'s: of each all of the tenant's own, and one of
    /// another tenant, where there is any. What still serves is in the way as well as what is wanted.
    pub(crate) fn routes_near(&self, id: &AppId, app: &LockedApp) -> Vec<(TenantName, AppName, Route)> {
        let mut near = Vec::new();
        let mut add = |other: &AppId, most: usize, is: &dyn Fn(&Route) -> bool| {
            let all = self.apps.get(other).into_iter().flat_map(Known::all);
            let routes = all.flat_map(|live| live.routes.iter()).filter(|route| is(route)).take(most);
            near.extend(routes.map(|route| (other.tenant.clone(), other.app.clone(), route.clone())));
        };
        for route in app.routes.iter().take(MAX_ROUTES) {
            if let Some((other, host)) = self.taken.foreign(&id.tenant, &route.host) {
                add(other, 1, &|theirs| theirs.host == host);
            }
            for other in self.taken.own(id, route) {
                add(other, MAX_ROUTES, &|theirs| theirs.host == route.host && theirs.path == route.path);
            }
        }
        near
    }

    /// The hosts that an app has routes on, also those of what serves in the place of the wanted revision.
    pub(crate) fn hosts_of(&self, id: &AppId) -> BTreeSet<String> {
        let all = self.apps.get(id).into_iter().flat_map(Known::all);
        all.flat_map(|live| live.routes.iter()).map(|route| route.host.clone()).collect()
    }

    /// Those of them that something serves on.
    pub(crate) fn hosts_served(&self, id: &AppId) -> BTreeSet<String> {
        let all = self.apps.get(id).into_iter().flat_map(Known::all);
        let served = all.filter(|live| self.serves_now(id, live.revision));
        served.flat_map(|live| live.routes.iter()).map(|route| route.host.clone()).collect()
    }

    /// Whether some app of a tenant has a route on just this host.
    pub(crate) fn routes_host(&self, tenant: &TenantName, host: &str) -> bool {
        self.taken.has(tenant, host)
    }

    /// Mutable access to a node's place, made where it is new.
    pub(crate) fn node(&mut self, node: &NodeName) -> &mut NodeState {
        self.observed.nodes.entry(node.clone()).or_default()
    }

    /// What each node reports of an app.
    pub(crate) fn reports_of(&self, id: &AppId) -> BTreeMap<NodeName, AppObserved> {
        let of = |(node, apps): (&NodeName, &BTreeMap<AppId, AppObserved>)| Some((node.clone(), apps.get(id)?.clone()));
        self.reports.iter().filter_map(of).collect()
    }

    /// `http://host:port/path` of a route on every ingress there is.
    pub(crate) fn urls(&self, route: &Route) -> Vec<String> {
        let ports: BTreeSet<&str> =
            self.nodes.values().flat_map(|n| &n.ingress).filter_map(|a| a.rsplit_once(':')).map(|(_, p)| p).collect();
        let url = |port: &str| match port {
            "80" => format!("http://{}{}", route.host, route.path),
            port => format!("http://{}:{port}{}", route.host, route.path),
        };
        ports.into_iter().map(url).collect()
    }

    /// Fills in what is known here beside the revision itself.
    pub(crate) fn complete(&self, view: &mut AppView, id: &AppId, now: u64) {
        view.nodes = self.reports_of(id);
        view.urls = view.desired.app.routes.iter().flat_map(|r| self.urls(r)).collect();
        let barred = self.desired.apps.get(id).and_then(|w| w.barred(now));
        let placed = self.observed.nodes.values().any(|n| n.apps.contains_key(id));
        let reachable = self.observed.nodes.values().any(|n| n.alive && n.apps.contains_key(id));
        view.reason = barred.or_else(|| self.fallen(id, &view.nodes, now)).or_else(|| {
            let message = match (placed, reachable) {
                (true, true) => return None,
                (true, false) => {
                    format!("the node that runs `{}` is lost; the app goes on there once it is back", id.app)
                }
                (false, _) if self.observed.nodes.values().any(|n| n.alive) => return None,
                (false, _) => format!("no node is there to run `{}`; it starts once one joins", id.app),
            };
            let help = Some("start one with `sidereal up`".to_owned());
            Some(Reason { code: "unreachable".to_owned(), message, help })
        });
    }
}

#[cfg(test)]
mod tests {
    use model::app::ProviderKind;

    use super::*;

    fn id(app: &str) -> AppId {
        AppId { tenant: "t".parse().unwrap(), app: app.parse().unwrap() }
    }

    fn wanted(n: u64) -> Wanted {
        Wanted { revision: Revision(n), denied: None, expiry: None }
    }

    fn app(components: usize) -> LockedApp {
        let component = r#"{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1,
            "world":"p2","imports":[],"exports":[],"limits":{}}"#;
        let components: Vec<String> = (0..components).map(|n| format!("\"c{n}\":{component}")).collect();
        serde_json::from_str(&format!(r#"{{"name":"a","components":{{{}}}}}"#, components.join(","))).unwrap()
    }

    #[test]
    fn a_quota_refuses_what_is_more_and_nothing_else() {
        let mut state = State::default();
        let quotas = Quotas { apps: 2, components: 3, ..Quotas::default() };
        state.want(&id("a"), 1, &app(1), wanted(1));
        assert_eq!(state.over_quota(&id("b"), &app(2), &quotas), [""; 0]);
        assert_eq!(state.over_quota(&id("b"), &app(3), &quotas), ["tenant `t` would have 4 components and may have 3"]);
        state.want(&id("b"), 2, &app(2), wanted(1));
        assert_eq!(state.over_quota(&id("c"), &app(0), &quotas), ["tenant `t` has 2 apps and may have 2"]);
        assert_eq!(state.over_quota(&id("a"), &app(1), &quotas), [""; 0], "another revision of the same");
        let small = Quotas { apps: 1, components: 1, ..Quotas::default() };
        assert_eq!(state.over_quota(&id("b"), &app(2), &small), [""; 0], "was there before the quota");
        assert_eq!(state.over_quota(&id("b"), &app(3), &small).len(), 1);
        state.forget(&id("a"), 3);
        assert_eq!(state.over_quota(&id("c"), &app(1), &quotas), [""; 0]);
        let other = AppId { tenant: "u".parse().unwrap(), app: "a".parse().unwrap() };
        assert_eq!(state.over_quota(&other, &app(3), &quotas), [""; 0]);
    }

    #[test]
    fn a_tenant_has_its_own_apps_and_no_others() {
        let mut state = State::default();
        for (tenant, name) in [("s", "z"), ("t", "0"), ("t", "b"), ("t", "gone"), ("t-u", "a"), ("u", "a")] {
            let id = AppId { tenant: tenant.parse().unwrap(), app: name.parse().unwrap() };
            state.want(&id, 1, &app(0), wanted(1));
        }
        state.forget(&id("gone"), 2);
        let apps = |tenant: &str| -> Vec<String> {
            state.apps_of(&tenant.parse().unwrap()).map(|(id, _)| format!("{}/{}", id.tenant, id.app)).collect()
        };
        assert_eq!(apps("t"), ["t/0", "t/b"]);
        assert_eq!((apps("r"), apps("s"), apps("v")), (vec![], vec!["s/z".to_owned()], vec![]));
    }

    #[test]
    fn old_news_changes_nothing() {
        let mut state = State::default();
        state.want(&id("a"), 5, &app(0), wanted(2));
        state.want(&id("a"), 4, &app(0), wanted(1));
        assert_eq!(state.revision(&id("a")), Some(Revision(2)));
        state.forget(&id("a"), 7);
        state.want(&id("a"), 6, &app(0), wanted(3));
        assert_eq!((state.revision(&id("a")), state.desired.apps.len()), (None, 0));
        state.settle(&id("a"), 6);
        assert_eq!(state.apps.len(), 1, "news of revision 6 may still come");
        state.settle(&id("a"), 7);
        assert_eq!(state.apps.len(), 0);
    }

    #[test]
    fn what_others_route_is_found_by_host_and_what_we_route_by_path() {
        let routed = |app: &str, routes: &[(&str, &str)]| -> LockedApp {
            let routes: Vec<_> = routes
                .iter()
                .map(|(host, path)| serde_json::json!({ "host": host, "path": path, "component": "c" }))
                .collect();
            serde_json::from_value(serde_json::json!({ "name": app, "components": {}, "routes": routes })).unwrap()
        };
        let of = |tenant: &str, app: &str| AppId { tenant: tenant.parse().unwrap(), app: app.parse().unwrap() };
        let near = |state: &State, id: &AppId, app: &LockedApp| -> Vec<String> {
            let near = state.routes_near(id, app);
            near.into_iter()
                .map(|(tenant, app, route)| format!("{tenant}/{app} {}{}", route.host, route.path))
                .collect()
        };
        let mut state = State::default();
        state.want(&of("u", "x"), 1, &routed("x", &[("*.a.b", "/"), ("*.a.b", "/x"), ("c", "/")]), wanted(1));
        state.want(&id("y"), 2, &routed("y", &[("d", "/"), ("d", "/y"), ("c.d", "/")]), wanted(1));
        let app = routed("z", &[("e.a.b", "/z"), ("d", "/y"), ("c.d", "/z")]);
        assert_eq!(near(&state, &id("z"), &app), ["u/x *.a.b/", "t/y d/y"]);
        assert_eq!(near(&state, &id("y"), &app), ["u/x *.a.b/"], "not its own");
        // Another revision and a deletion give up what they had.
        state.want(&of("u", "x"), 3, &routed("x", &[("c", "/")]), wanted(2));
        state.forget(&id("y"), 4);
        assert_eq!(near(&state, &id("z"), &app), [""; 0]);
        assert_eq!(near(&state, &id("z"), &routed("z", &[("*.c", "/"), ("c", "/z")])), ["u/x c/"]);
    }

    #[test]
    fn what_apps_name_is_known_as_they_are_wanted() {
        let naming = |secret: &str, config: &str| -> LockedApp {
            let component = serde_json::json!({
                "digest": format!("sha256:{}", "0".repeat(64)), "size": 1, "world": "p2", "imports": [], "exports": [],
                "limits": {}, "config_from": [{ "name": config }],
            });
            let own = serde_json::json!({ "type": "keyvalue-redis", "secrets": { "password": { "secret": secret } } });
            let offered = serde_json::json!({ "type": "keyvalue-redis", "operator": true });
            let link = serde_json::json!({ "component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": "shared" });
            serde_json::from_value(serde_json::json!({
                "name": "a", "components": { "c": component }, "providers": { "own": own, "shared": offered },
                "links": [link],
            }))
            .unwrap()
        };
        let secret = |name: &str| Thing::Secret(name.parse().unwrap());
        let config = |name: &str| Thing::Config(name.parse().unwrap());
        let offered = |kind| Thing::Offered("shared".parse().unwrap(), kind);
        let users = |state: &State, tenant: &str, thing: Thing| {
            let tenant = tenant.parse().unwrap();
            state.users(&tenant, thing).first(9).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let mut state = State::default();
        state.want(&id("a"), 1, &naming("one", "c"), wanted(1));
        state.want(&id("b"), 2, &naming("two", "c"), wanted(1));
        assert_eq!(users(&state, "t", config("c")), ["a", "b"]);
        assert_eq!(users(&state, "t", secret("one")), ["a"]);
        assert_eq!(users(&state, "u", secret("one")), [""; 0], "of another tenant");
        assert_eq!(users(&state, "t", offered(ProviderKind::KeyvalueRedis)), ["a", "b"]);
        assert_eq!(users(&state, "t", offered(ProviderKind::KeyvalueMemory)), [""; 0]);
        state.want(&id("a"), 3, &naming("two", "d"), wanted(2));
        assert_eq!(users(&state, "t", secret("one")), [""; 0]);
        assert_eq!(
            (users(&state, "t", secret("two")), users(&state, "t", config("c"))),
            (vec!["a".into(), "b".into()], vec!["b".into()])
        );
        state.forget(&id("b"), 4);
        state.forget(&id("a"), 5);
        for thing in [secret("two"), config("d"), offered(ProviderKind::KeyvalueRedis)] {
            assert_eq!(state.users(&id("a").tenant, thing).count(), 0);
        }
    }
}
