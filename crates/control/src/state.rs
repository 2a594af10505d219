//! What the control plane holds in memory of all apps: what is wanted, what is assigned, what is reported, and the
//! routes. Small by design (a few hundred bytes an app): whole revisions stay in the store.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::control::AppView;
use model::app::{LockedApp, Revision, Route};
use model::observed::AppObserved;
use model::plan::{AppId, Desired, NodeState, Observed, Wanted};
use model::tenant::Quotas;
use model::{AppName, NodeName, TenantName};
use store::keys::NodeRecord;

use crate::moved::Moved;

/// The state, shared by the writer, the reconciler and the readers. Never held over an await.
#[derive(Default)]
pub(crate) struct Shared(Mutex<State>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or removal: there is no half-made state to protect from.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an app's head.
struct Known {
    /// The store revision of the head this comes from: an older one never replaces it.
    at: u64,
    /// `None`: deleted.
    live: Option<Live>,
}

struct Live {
    revision: Revision,
    components: u32,
    routes: Box<[Route]>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) desired: Desired,
    pub(crate) observed: Observed,
    apps: BTreeMap<AppId, Known>,
    pub(crate) nodes: BTreeMap<NodeName, NodeRecord>,
    pub(crate) reports: BTreeMap<NodeName, BTreeMap<AppId, AppObserved>>,
    /// Links whose data are being moved.
    pub(crate) moves: BTreeMap<AppId, Moved>,
    /// Bytes of the revisions, configs and secrets that are kept of each tenant.
    kept: BTreeMap<TenantName, u64>,
}

impl State {
    /// The app's head was written at store revision `at`.
    pub(crate) fn want(&mut self, id: &AppId, at: u64, app: &LockedApp, wanted: Wanted) {
        if self.apps.get(id).is_none_or(|known| known.at <= at) {
            let components = u32::try_from(app.components.len()).unwrap_or(u32::MAX);
            let live = Live { revision: wanted.revision, components, routes: app.routes.as_slice().into() };
            self.apps.insert(id.clone(), Known { at, live: Some(live) });
            self.desired.apps.insert(id.clone(), wanted);
        }
    }

    /// The app was deleted at store revision `at`.
    pub(crate) fn forget(&mut self, id: &AppId, at: u64) {
        if self.apps.get(id).is_none_or(|known| known.at <= at) {
            self.apps.insert(id.clone(), Known { at, live: None });
            self.desired.apps.remove(id);
        }
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

    /// The tenant's apps, in order.
    pub(crate) fn apps_of<'a>(
        &'a self,
        tenant: &'a TenantName,
    ) -> impl Iterator<Item = (&'a AppId, Revision, &'a [Route])> {
        let live = self.apps.iter().filter(move |(id, _)| id.tenant == *tenant);
        live.filter_map(|(id, known)| known.live.as_ref().map(|l| (id, l.revision, &*l.routes)))
    }

    /// Whether the tenant's quotas allow `app`; a sentence for each that does not. What was there before a quota became
    /// smaller may be deployed again, and may shrink.
    pub(crate) fn over_quota(&self, id: &AppId, app: &LockedApp, quotas: &Quotas) -> Vec<String> {
        let (mut apps, mut components, mut own) = (1u64, app.components.len() as u64, None);
        for (other, known) in self.apps.iter().filter(|(other, _)| other.tenant == id.tenant) {
            let Some(live) = &known.live else { continue };
            if other == id {
                own = Some(live.components);
            } else {
                apps += 1;
                components += u64::from(live.components);
            }
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

    /// Routes of all other apps, whosever, that could get in the way of one of `app`'s.
    pub(crate) fn routes_near(&self, id: &AppId, app: &LockedApp) -> Vec<(TenantName, AppName, Route)> {
        let mut near = Vec::new();
        for (other, known) in self.apps.iter().filter(|(other, _)| *other != id) {
            let routes = known.live.iter().flat_map(|l| l.routes.iter());
            let close = routes.filter(|theirs| app.routes.iter().any(|ours| hosts_meet(&ours.host, &theirs.host)));
            near.extend(close.map(|route| (other.tenant.clone(), other.app.clone(), route.clone())));
        }
        near
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
        let ports: std::collections::BTreeSet<&str> =
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
        view.reason = barred.or_else(|| {
            let message = match (placed, reachable) {
                (true, true) => return None,
                (true, false) => {
                    format!("the node that runs `{}` is lost; the app goes on there once it is back", id.app)
                }
                (false, _) if self.observed.nodes.values().any(|n| n.alive) => return None,
                (false, _) => format!("no node is there to run `{}`; it starts once one joins", id.app),
            };
            let help = Some("start one with `sidereal up`".to_owned());
            Some(model::observed::Reason { code: "unreachable".to_owned(), message, help })
        });
    }
}

/// Some request could be for both: the same host, or one is under the other's wildcard.
fn hosts_meet(a: &str, b: &str) -> bool {
    let under = |host: &str, pattern: &str| {
        pattern.strip_prefix('*').is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
    };
    a == b || under(a, b) || under(b, a)
}

#[cfg(test)]
mod tests {
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
    fn wildcards_meet_what_is_under_them() {
        for (a, b) in [("a.b", "a.b"), ("*.b", "a.b"), ("*.b", "x.a.b"), ("*.b", "*.a.b")] {
            assert!(hosts_meet(a, b) && hosts_meet(b, a), "{a} {b}");
        }
        for (a, b) in [("a.b", "c.b"), ("*.b", "b"), ("*.b", "a.c"), ("*.a.b", "xa.b")] {
            assert!(!hosts_meet(a, b) && !hosts_meet(b, a), "{a} {b}");
        }
    }
}
