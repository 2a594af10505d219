//! What nodes serve in the place of what is wanted: a revision goes on serving until the next one is up, and for as long as
//! that one does not start. What is promised of what runs holds for it as well, so it is judged, its routes and secrets are
//! in use, and its record is kept, whatever was deployed after it.

use std::collections::{BTreeMap, BTreeSet};

use model::app::{LockedApp, Revision};
use model::observed::{AppObserved, Phase, Reason, Served};
use model::plan::{AppId, Wanted};
use model::{AppName, NodeName, TenantName};

use super::{Known, Live, State};

impl State {
    /// What a node says that it serves of an app. Answers with the revisions whose records were kept only for what it
    /// served before.
    pub(crate) fn serves(&mut self, node: &NodeName, id: &AppId, served: Option<Served>) -> Vec<Revision> {
        let all = self.observed.served.entry(node.clone()).or_default();
        let was = match served {
            Some(served) => all.insert(id.clone(), served),
            None => all.remove(id),
        };
        if let Some(wanted) = self.revision(id) {
            let older = self.older(id, wanted);
            self.only_older(id, &older);
        }
        was.iter().flat_map(kept).filter(|revision| !self.keeps(id, *revision)).collect()
    }

    /// What is judged of a revision that some node serves in the place of the wanted one, and what it is where it is known.
    pub(crate) fn stands(&mut self, id: &AppId, app: Option<&LockedApp>, judged: Wanted) {
        let revision = judged.revision;
        if self.revision(id).is_some_and(|wanted| self.older(id, wanted).contains(&revision)) {
            let live = app.map(|app| Live::of(app, revision));
            self.change(id, |known| known.older.extend(live.map(|live| (revision, live))));
            self.desired.older.entry(id.clone()).or_default().insert(revision, judged);
        }
    }

    /// Revisions that nodes serve in the place of the wanted one, and that nobody has judged yet.
    pub(crate) fn unjudged(&self, id: &AppId) -> Vec<Revision> {
        let older = self.revision(id).map(|wanted| self.older(id, wanted)).unwrap_or_default();
        let judged = self.desired.older.get(id);
        older.into_iter().filter(|revision| judged.is_none_or(|judged| !judged.contains_key(revision))).collect()
    }

    /// What the nodes serve of an app. Where it is placed counts: of a node that was lost it may be of an app of that name
    /// that is deleted since.
    fn served<'a>(&'a self, id: &'a AppId) -> impl Iterator<Item = &'a Served> {
        let placed = self.observed.nodes.iter().filter(move |(_, node)| node.apps.contains_key(id));
        placed.filter_map(move |(node, _)| self.observed.served.get(node)?.get(id))
    }

    /// Revisions that nodes serve in the place of this one.
    pub(super) fn older(&self, id: &AppId, wanted: Revision) -> BTreeSet<Revision> {
        self.served(id).map(|served| served.revision).filter(|revision| *revision != wanted).collect()
    }

    /// Whether some node serves this revision.
    pub(super) fn serves_now(&self, id: &AppId, revision: Revision) -> bool {
        self.served(id).any(|served| served.revision == revision)
    }

    /// Of older revisions, only these serve.
    pub(super) fn only_older(&mut self, id: &AppId, older: &BTreeSet<Revision>) {
        let over = |known: &Known| known.older.keys().any(|revision| !older.contains(revision));
        if self.apps.get(id).is_some_and(over) {
            self.change(id, |known| known.older.retain(|revision, _| older.contains(revision)));
            self.ended.add([id.tenant.clone()]);
        }
        self.judge_only(id, older);
    }

    /// Of older revisions, only these are judged.
    fn judge_only(&mut self, id: &AppId, older: &BTreeSet<Revision>) {
        if let Some(judged) = self.desired.older.get_mut(id) {
            judged.retain(|revision, _| older.contains(revision));
            if judged.is_empty() {
                self.desired.older.remove(id);
            }
        }
    }

    /// What is judged of a tenant's apps beside what is wanted.
    pub(crate) fn older_of<'a>(&'a self, tenant: &'a TenantName) -> impl Iterator<Item = (&'a AppId, Revision)> {
        let first = AppId { tenant: tenant.clone(), app: AppName::first() };
        let own = self.desired.older.range(first..).take_while(move |(id, _)| id.tenant == *tenant);
        own.flat_map(|(id, all)| all.keys().map(move |revision| (id, *revision)))
    }

    /// Where one goes back to from the wanted revision: to what serves in its place, or to what served before it.
    pub(crate) fn way_back(&self, id: &AppId, wanted: Revision) -> Option<Revision> {
        let served = self.served(id).max_by_key(|served| served.revision)?;
        if served.revision == wanted { served.before } else { Some(served.revision) }
    }

    /// Whether the record of a revision is kept, however old it is.
    pub(crate) fn keeps(&self, id: &AppId, revision: Revision) -> bool {
        self.served(id).flat_map(kept).any(|kept| kept == revision)
    }

    /// Why nothing serves although an older revision did: the newest one does not start, and that one must not run.
    pub(super) fn fallen(&self, id: &AppId, nodes: &BTreeMap<NodeName, AppObserved>, now: u64) -> Option<Reason> {
        let wanted = self.revision(id)?;
        let failed = |(node, seen): (&NodeName, &AppObserved)| {
            let served = self.observed.served.get(node)?.get(id)?.revision;
            (seen.revision == wanted && seen.phase == Phase::Failed).then_some(served)
        };
        let judged = self.desired.older.get(id)?;
        let reason = |served| Some((served, judged.get(&served)?.barred(now)?));
        let (served, reason) = nodes.iter().filter_map(failed).find_map(reason)?;
        let message = format!("revision {served} must not serve any more: {}", reason.message);
        Some(Reason { message, ..reason })
    }
}

/// The revisions whose records are kept for what a node serves: that one, the one that served before it, and the one after
/// each, which says that it was wanted.
fn kept(served: &Served) -> impl Iterator<Item = Revision> + use<> {
    let all = [Some(served.revision), served.before].into_iter().flatten();
    all.flat_map(|kept| [kept, Revision(kept.0.saturating_add(1))])
}

#[cfg(test)]
mod tests {
    use model::plan::Assigned;
    use serde_json::json;

    use super::*;
    use crate::named::Thing;

    fn id() -> AppId {
        AppId { tenant: "t".parse().unwrap(), app: "a".parse().unwrap() }
    }

    fn judged(revision: u64, code: Option<&str>) -> Wanted {
        let reason = |code: &str| Box::new(Reason { code: code.into(), message: "because".into(), help: None });
        Wanted { revision: Revision(revision), denied: code.map(reason), expiry: None }
    }

    /// An app with a route to this host and a secret of this name.
    fn app(host: &str) -> LockedApp {
        let own = json!({ "type": "keyvalue-redis", "secrets": { "password": { "secret": host } } });
        let route = json!({ "host": format!("{host}.example"), "path": "/", "component": "c" });
        serde_json::from_value(json!({ "name": "a", "components": {}, "providers": { "own": own }, "routes": [route] }))
            .unwrap()
    }

    /// The numbers of what a node serves, and of what served before that.
    type Serves = Option<(u64, Option<u64>)>;

    /// A state in which the app is placed on a node, and what that says it serves.
    fn placed() -> (State, impl Fn(&mut State, Serves) -> Vec<Revision>) {
        let (mut state, node) = (State::default(), "n".parse::<NodeName>().unwrap());
        let assigned = Assigned { revision: Revision(1), suspended: None, expiry: None, older: None };
        state.node(&node).apps.insert(id(), assigned);
        let serves = move |state: &mut State, served: Serves| {
            let served =
                served.map(|(revision, before)| Served { revision: Revision(revision), before: before.map(Revision) });
            state.serves(&node, &id(), served)
        };
        (state, serves)
    }

    /// Hosts and secrets that are in use, of these.
    fn used<'a>(state: &State, names: &[&'a str]) -> Vec<&'a str> {
        let other = AppId { tenant: "u".parse().unwrap(), app: "b".parse().unwrap() };
        let used = |name: &&&str| {
            let route = !state.routes_near(&other, &app(name)).is_empty();
            let secret = state.users(&id().tenant, Thing::Secret(name.parse().unwrap())).count() == 1;
            assert_eq!(route, secret, "{name}");
            route
        };
        names.iter().filter(used).copied().collect()
    }

    #[test]
    fn what_still_serves_is_judged_and_in_use_until_the_next_one_serves() {
        let (mut state, serves) = placed();
        let names = ["one", "two", "three"];
        state.want(&id(), 1, &app("one"), judged(1, None));
        state.want(&id(), 2, &app("two"), judged(2, None));
        assert_eq!(used(&state, &names), ["two"], "nothing of the first one ever served");
        serves(&mut state, Some((2, None)));
        state.want(&id(), 3, &app("three"), judged(3, None));
        assert_eq!(used(&state, &names), ["two", "three"]);
        assert_eq!(state.desired.older[&id()].keys().collect::<Vec<_>>(), [&Revision(2)]);
        assert!(state.unjudged(&id()).is_empty());
        // The same again, as it comes back from the store.
        state.want(&id(), 3, &app("three"), judged(3, None));
        assert_eq!(used(&state, &names), ["two", "three"]);
        serves(&mut state, Some((3, Some(2))));
        assert_eq!((used(&state, &names), state.desired.older.len()), (vec!["three"], 0));
        state.forget(&id(), 4);
        assert!(used(&state, &names).is_empty());
    }

    #[test]
    fn what_is_served_and_not_known_is_asked_for() {
        let (mut state, serves) = placed();
        serves(&mut state, Some((1, None)));
        assert!(state.unjudged(&id()).is_empty(), "of an app that is not there");
        state.want(&id(), 9, &app("two"), judged(7, None));
        assert_eq!(state.unjudged(&id()), [Revision(1)]);
        state.stands(&id(), Some(&app("one")), judged(1, Some("revoked")));
        state.stands(&id(), Some(&app("three")), judged(5, None));
        assert!(state.unjudged(&id()).is_empty());
        assert_eq!(used(&state, &["one", "two", "three"]), ["one", "two"], "what nobody serves is not kept");
        // One whose record is gone is judged as well.
        serves(&mut state, Some((3, None)));
        assert_eq!(state.unjudged(&id()), [Revision(3)]);
        state.stands(&id(), None, judged(3, Some("not-found")));
        assert_eq!((state.unjudged(&id()), used(&state, &["one", "two"])), (vec![], vec!["two"]));
        // Of a node that the app is not placed on, nothing counts.
        state.node(&"n".parse().unwrap()).apps.clear();
        state.want(&id(), 10, &app("three"), judged(8, None));
        assert_eq!((state.unjudged(&id()), state.desired.older.len()), (vec![], 0));
    }

    #[test]
    fn one_goes_back_to_what_serves_or_to_what_did() {
        let (mut state, serves) = placed();
        state.want(&id(), 1, &app("one"), judged(60, None));
        let back = |state: &State| state.way_back(&id(), Revision(60)).map(|revision| revision.0);
        let kept = |state: &State| (1..=61).filter(|n| state.keeps(&id(), Revision(*n))).collect::<Vec<_>>();
        assert_eq!((back(&state), kept(&state)), (None, vec![]));
        assert_eq!(serves(&mut state, Some((5, None))), []);
        assert_eq!((back(&state), kept(&state)), (Some(5), vec![5, 6]));
        assert_eq!(serves(&mut state, Some((60, Some(5)))), []);
        assert_eq!((back(&state), kept(&state)), (Some(5), vec![5, 6, 60, 61]));
        assert_eq!(serves(&mut state, Some((61, Some(60)))), [Revision(5), Revision(6)]);
        serves(&mut state, Some((60, None)));
        assert_eq!(back(&state), None);
    }

    #[test]
    fn an_app_says_that_what_it_served_must_not_serve_once_its_newest_failed() {
        let (mut state, serves) = placed();
        state.want(&id(), 1, &app("one"), judged(1, Some("artifact-revoked")));
        serves(&mut state, Some((1, None)));
        state.want(&id(), 2, &app("two"), judged(2, None));
        let said = |phase| {
            let seen = AppObserved { revision: Revision(2), phase, serving: None, reason: None };
            state.fallen(&id(), &[("n".parse().unwrap(), seen)].into(), 0)
        };
        assert_eq!(said(Phase::Starting), None, "whoever deploys what replaces it waits for that");
        let reason = said(Phase::Failed).unwrap();
        assert_eq!(reason.code, "artifact-revoked");
        assert!(reason.message.starts_with("revision 1 must not serve any more: because"), "{}", reason.message);
    }
}
