//! What has to be written so that the nodes run what is wanted: a pure function of what is wanted, what is assigned,
//! which nodes are there, and the time.
//!
//! Rules, each a row of the tests below:
//! * An app has one home. It stays there; a new app goes to the live node with the fewest apps.
//! * A node that is lost keeps its assignments, and they follow what is wanted; nothing new is placed on it.
//! * An app whose claims are denied or have expired is suspended where it is, and placed nowhere.
//! * A revision that a node serves in the place of the wanted one is judged like that one, and the node is told: what is
//!   promised of what runs holds whatever was deployed after it.
//! * An app that is not wanted is unassigned, also from a lost node: it must not come back with it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::app::Revision;
use crate::name::{AppName, ComponentName, NodeName, TenantName};
use crate::observed::{Reason, Served};

/// An app of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId {
    /// Whose.
    pub tenant: TenantName,
    /// Its name.
    pub app: AppName,
}

/// When the claims of an app stop to be valid. A node is told, so that it stops serving then whoever else is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// Seconds since 1970: valid before, not from then on.
    pub at: u64,
    /// The component whose claims end first.
    pub component: ComponentName,
}

impl Expiry {
    /// Why the app must not run at `now` (seconds since 1970), if so.
    pub fn barred(&self, now: u64) -> Option<Reason> {
        (self.at <= now).then(|| Reason {
            code: "artifact-expired".to_owned(),
            message: format!("the claims of component `{}` expired at {}", self.component, rfc3339(self.at)),
            help: Some("sign the component again and deploy it".to_owned()),
        })
    }
}

/// What is wanted of one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which revision.
    pub revision: Revision,
    /// It must not run, whatever the time: a key, token or artifact of it was revoked, for example.
    pub denied: Option<Box<Reason>>,
    /// It must not run from some time on.
    pub expiry: Option<Box<Expiry>>,
}

impl Wanted {
    /// Why the app must not run at `now` (seconds since 1970), if so.
    pub fn barred(&self, now: u64) -> Option<Reason> {
        if let Some(reason) = &self.denied {
            return Some((**reason).clone());
        }
        self.expiry.as_ref()?.barred(now)
    }

    /// What a node is told of it, and of what it serves in its place.
    fn told(&self, older: Option<Older>, now: u64) -> Assigned {
        Assigned {
            revision: self.revision,
            suspended: self.barred(now).map(Box::new),
            expiry: self.expiry.clone(),
            older: older.map(Box::new),
        }
    }

    /// What a node is told of it where it is not the wanted one, and serves.
    fn older(&self, now: u64) -> Older {
        Older { revision: self.revision, suspended: self.barred(now), expiry: self.expiry.as_deref().cloned() }
    }
}

/// What is judged of the revision that a node serves in the place of the wanted one: until that one is up, or because it
/// does not start. The node holds it to this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Older {
    /// Which revision.
    pub revision: Revision,
    /// Present: it must not be served, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Reason>,
    /// Present: it must not be served from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Expiry>,
}

impl Older {
    /// Why it must not be served at `now` (seconds since 1970), if so.
    pub fn barred(&self, now: u64) -> Option<Reason> {
        self.suspended.clone().or_else(|| self.expiry.as_ref()?.barred(now))
    }
}

/// A moment that people read, in UTC.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or_else(|| format!("second {seconds}"), |t| t.to_string())
}

/// Everything that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// By app.
    pub apps: BTreeMap<AppId, Wanted>,
    /// What is judged of revisions that are not wanted any more, and that a node still serves.
    pub older: BTreeMap<AppId, BTreeMap<Revision, Wanted>>,
}

impl Desired {
    /// The next second after `now` at which the passing of time alone changes the plan.
    pub fn next_change(&self, now: u64) -> Option<u64> {
        let all = self.apps.values().chain(self.older.values().flat_map(BTreeMap::values));
        all.filter_map(|w| w.expiry.as_ref().map(|e| e.at)).filter(|at| *at > now).min()
    }
}

/// What a node was told to do with an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Which revision to run.
    pub revision: Revision,
    /// Not to be served, and why.
    pub suspended: Option<Box<Reason>>,
    /// Not to be served from then on.
    pub expiry: Option<Box<Expiry>>,
    /// The same of what it serves as long as it does not serve that revision.
    pub older: Option<Box<Older>>,
}

impl Assigned {
    /// Why something of it is not to be served.
    fn reason(&self) -> Option<&Reason> {
        self.suspended.as_deref().or_else(|| self.older.as_ref()?.suspended.as_ref())
    }
}

/// A node as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Its lease is alive.
    pub alive: bool,
    /// What it was told to run.
    pub apps: BTreeMap<AppId, Assigned>,
}

/// Everything that is assigned, and to whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Nodes that are there or have assignments.
    pub nodes: BTreeMap<NodeName, NodeState>,
    /// What each of them serves, as it said last; also of apps that it does not run any more.
    pub served: BTreeMap<NodeName, BTreeMap<AppId, Served>>,
}

/// One thing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The node is to run this revision.
    Assign { node: NodeName, app: AppId, told: Assigned },
    /// The node is to forget the app.
    Unassign { node: NodeName, app: AppId },
    /// The node is to stop serving the app, or what it serves in the place of the wanted revision.
    Suspend { node: NodeName, app: AppId, told: Assigned, reason: Reason },
    /// The node is to serve the app again.
    Resume { node: NodeName, app: AppId, told: Assigned },
}

impl Action {
    /// Whom and what it is about.
    pub fn target(&self) -> (&NodeName, &AppId) {
        match self {
            Self::Assign { node, app, .. }
            | Self::Unassign { node, app }
            | Self::Suspend { node, app, .. }
            | Self::Resume { node, app, .. } => (node, app),
        }
    }

    /// What the node is told once the action is done; `None`: nothing any more.
    pub fn assigned(&self) -> Option<Assigned> {
        match self {
            Self::Unassign { .. } => None,
            Self::Assign { told, .. } | Self::Suspend { told, .. } | Self::Resume { told, .. } => Some(told.clone()),
        }
    }
}

/// What to write so that the nodes run what is wanted. `now` is in seconds since 1970. Done, it plans nothing more.
pub fn plan(desired: &Desired, observed: &Observed, now: u64) -> Vec<Action> {
    let assigned = observed.nodes.values().flat_map(|n| n.apps.keys());
    let all: BTreeSet<&AppId> = desired.apps.keys().chain(assigned).collect();
    plan_some(all, desired, observed, now)
}

/// The part of [`plan`] that concerns some apps: what a change of only these can have changed.
pub fn plan_some<'a>(
    apps: impl IntoIterator<Item = &'a AppId>,
    desired: &Desired,
    observed: &Observed,
    now: u64,
) -> Vec<Action> {
    let mut room: BTreeMap<&NodeName, usize> =
        observed.nodes.iter().filter(|(_, n)| n.alive).map(|(name, n)| (name, n.apps.len())).collect();
    let mut actions = Vec::new();
    for app in apps {
        let homes = observed.nodes.iter().filter_map(|(name, n)| n.apps.get(app).map(|a| (name, a)));
        let Some(wanted) = desired.apps.get(app) else {
            actions.extend(homes.map(|(node, _)| Action::Unassign { node: node.clone(), app: app.clone() }));
            continue;
        };
        let barred = wanted.barred(now);
        let mut placed = false;
        for (node, assigned) in homes {
            placed = true;
            actions.extend(follow(node, app, wanted.told(older(desired, observed, node, app, now), now), assigned));
        }
        if placed || barred.is_some() {
            continue;
        }
        if let Some((node, apps)) = room.iter_mut().min_by_key(|(_, apps)| **apps) {
            *apps += 1;
            actions.push(Action::Assign { node: (*node).clone(), app: app.clone(), told: wanted.told(None, now) });
        }
    }
    actions
}

/// What a node is told of what it serves, where that is not what is wanted of it.
fn older(desired: &Desired, observed: &Observed, node: &NodeName, app: &AppId, now: u64) -> Option<Older> {
    let served = observed.served.get(node)?.get(app)?.revision;
    Some(desired.older.get(app)?.get(&served)?.older(now))
}

/// What makes one assignment say what is to be told.
fn follow(node: &NodeName, app: &AppId, told: Assigned, assigned: &Assigned) -> Option<Action> {
    if told == *assigned {
        return None;
    }
    let (node, app) = (node.clone(), app.clone());
    Some(match (told.reason().cloned(), assigned.reason()) {
        (Some(reason), _) => Action::Suspend { node, app, told, reason },
        (None, Some(_)) => Action::Resume { node, app, told },
        (None, None) => Action::Assign { node, app, told },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn id(text: &str) -> AppId {
        AppId { tenant: "t".parse().unwrap(), app: text.parse().unwrap() }
    }

    fn reason(code: &str) -> Reason {
        Reason { code: code.into(), message: "because".into(), help: None }
    }

    /// `a@3` wanted, `a@3!x` denied for x, `a@3<-5` valid until five seconds before now, `a@3<+5` after.
    fn wanted(text: &str) -> (AppId, Wanted) {
        let (name, rest) = text.split_once('@').unwrap();
        let (rest, denied) = rest.split_once('!').map_or((rest, None), |(r, d)| (r, Some(d)));
        let (number, expiry) = rest.split_once('<').map_or((rest, None), |(n, e)| (n, Some(e)));
        let expiry = expiry.map(|e| {
            Box::new(Expiry {
                at: NOW.checked_add_signed(e.parse().unwrap()).unwrap(),
                component: "c".parse().unwrap(),
            })
        });
        let denied = denied.map(|d| Box::new(reason(d)));
        (id(name), Wanted { revision: Revision(number.parse().unwrap()), denied, expiry })
    }

    /// `n1: a@3 b@2!x` a live node, `n1? …` a lost one; `!x` suspended for x, `<+5` told when it ends.
    fn node(text: &str) -> (NodeName, NodeState) {
        let alive = !text.contains('?');
        let (name, rest) = text.split_once([':', '?']).unwrap();
        let apps = rest.split_whitespace().map(|item| {
            let (app, rest) = item.split_once('@').unwrap();
            let (rest, told) = rest.split_once('!').map_or((rest, None), |(n, r)| (n, Some(r)));
            let (number, _) = rest.split_once('<').unwrap_or((rest, ""));
            let expiry = wanted(&format!("{app}@{rest}")).1.expiry;
            let suspended = told.map(|code| {
                let expired = wanted("x@1<-5").1.barred(NOW).unwrap();
                Box::new(if code == "expired" { expired } else { reason(code) })
            });
            (id(app), Assigned { revision: Revision(number.parse().unwrap()), suspended, expiry, older: None })
        });
        (name.parse().unwrap(), NodeState { alive, apps: apps.collect() })
    }

    fn show(action: &Action) -> String {
        match action {
            Action::Assign { node, app, told } => format!("assign {node} {}@{}", app.app, told.revision),
            Action::Unassign { node, app } => format!("unassign {node} {}", app.app),
            Action::Suspend { node, app, told, reason } => {
                format!("suspend {node} {}@{} {}", app.app, told.revision, reason.code)
            }
            Action::Resume { node, app, told } => format!("resume {node} {}@{}", app.app, told.revision),
        }
    }

    fn apply(observed: &mut Observed, action: &Action) {
        let (node, app) = action.target();
        let apps = &mut observed.nodes.get_mut(node).unwrap().apps;
        match action.assigned() {
            Some(assigned) => drop(apps.insert(app.clone(), assigned)),
            None => drop(apps.remove(app)),
        }
    }

    #[test]
    fn table() {
        // wanted, nodes, expected
        type Row = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);
        let rows: &[Row] = &[
            ("nothing", &[], &[], &[]),
            ("nothing to do", &["a@1"], &["n1: a@1"], &[]),
            ("a new app", &["a@1"], &["n1:"], &["assign n1 a@1"]),
            ("no node yet", &["a@1"], &[], &[]),
            ("only a lost node", &["a@1"], &["n1?"], &[]),
            ("a new revision", &["a@2"], &["n1: a@1"], &["assign n1 a@2"]),
            ("back to an older number", &["a@1"], &["n1: a@2"], &["assign n1 a@1"]),
            ("a deleted app", &[], &["n1: a@1"], &["unassign n1 a"]),
            ("a deleted app on a lost node", &[], &["n1? a@1"], &["unassign n1 a"]),
            ("a lost node keeps its apps", &["a@1"], &["n1? a@1", "n2:"], &[]),
            ("a lost node's app follows there", &["a@2"], &["n1? a@1", "n2:"], &["assign n1 a@2"]),
            ("a lost node gets nothing new", &["a@1", "b@1"], &["n1? a@1", "n2:"], &["assign n2 b@1"]),
            ("the emptier node", &["a@1", "b@1", "c@1"], &["n1: a@1 b@1", "n2:"], &["assign n2 c@1"]),
            ("spread", &["a@1", "b@1", "c@1"], &["n1:", "n2:"], &["assign n1 a@1", "assign n2 b@1", "assign n1 c@1"]),
            ("apps do not move to even out", &["a@1", "b@1"], &["n1: a@1 b@1", "n2:"], &[]),
            ("denied", &["a@1!revoked"], &["n1: a@1"], &["suspend n1 a@1 revoked"]),
            ("denied on a lost node", &["a@1!revoked"], &["n1? a@1"], &["suspend n1 a@1 revoked"]),
            ("denied already", &["a@1!revoked"], &["n1: a@1!revoked"], &[]),
            ("denied for another reason", &["a@1!new"], &["n1: a@1!old"], &["suspend n1 a@1 new"]),
            ("denied in another revision", &["a@2!old"], &["n1: a@1!old"], &["suspend n1 a@2 old"]),
            ("denied and nowhere", &["a@1!revoked"], &["n1:"], &[]),
            ("pardoned", &["a@1"], &["n1: a@1!revoked"], &["resume n1 a@1"]),
            ("replaced by a good revision", &["a@2"], &["n1: a@1!revoked"], &["resume n1 a@2"]),
            ("deleted while suspended", &[], &["n1: a@1!revoked"], &["unassign n1 a"]),
            ("still valid", &["a@1<+1"], &["n1: a@1<+1"], &[]),
            ("a node that does not know when it ends", &["a@1<+1"], &["n1: a@1"], &["assign n1 a@1"]),
            ("ends at another time", &["a@1<+9"], &["n1: a@1<+1"], &["assign n1 a@1"]),
            ("ends no more", &["a@1"], &["n1: a@1<+1"], &["assign n1 a@1"]),
            ("expired already", &["a@1<-5"], &["n1: a@1<-5!expired"], &[]),
            ("expires this second", &["a@1<+0"], &["n1: a@1"], &["suspend n1 a@1 artifact-expired"]),
            ("expired", &["a@1<-5"], &["n1: a@1"], &["suspend n1 a@1 artifact-expired"]),
            ("expired and nowhere", &["a@1<-5"], &["n1:"], &[]),
            ("denied counts before expired", &["a@1<-5!revoked"], &["n1: a@1"], &["suspend n1 a@1 revoked"]),
            ("two homes both follow", &["a@2"], &["n1: a@1", "n2: a@2!x"], &["assign n1 a@2", "resume n2 a@2"]),
        ];
        for (name, apps, nodes, expected) in rows {
            let desired = Desired { apps: apps.iter().map(|t| wanted(t)).collect(), ..Desired::default() };
            let mut observed = Observed { nodes: nodes.iter().map(|t| node(t)).collect(), ..Observed::default() };
            let actions = plan(&desired, &observed, NOW);
            assert_eq!(actions.iter().map(show).collect::<Vec<_>>(), *expected, "{name}");
            for action in &actions {
                apply(&mut observed, action);
            }
            assert_eq!(plan(&desired, &observed, NOW), [], "{name}: a plan carried out leaves nothing to do");
        }
    }

    #[test]
    fn a_part_of_the_plan_is_about_that_part_only() {
        let desired = Desired { apps: ["a@2", "b@2"].map(wanted).into(), ..Desired::default() };
        let observed = Observed { nodes: [node("n1: a@1 b@1 c@1")].into(), ..Observed::default() };
        let part = plan_some([&id("b"), &id("c")], &desired, &observed, NOW);
        assert_eq!(part.iter().map(show).collect::<Vec<_>>(), ["assign n1 b@2", "unassign n1 c"]);
    }

    #[test]
    fn what_serves_in_the_place_of_the_wanted_revision_is_judged_and_told_too() {
        // wanted, what is judged of older revisions, what was told, what serves; what is done, and what is told of it then
        type Row =
            (&'static str, &'static [&'static str], &'static str, &'static str, &'static [&'static str], &'static str);
        let rows: &[Row] = &[
            ("a@2", &["a@1"], "n1: a@1", "a@1", &["assign n1 a@2"], "1"),
            ("a@2", &["a@1!revoked"], "n1: a@1!revoked", "a@1", &["suspend n1 a@2 revoked"], "1 revoked"),
            ("a@2", &["a@1!revoked"], "n1: a@2", "a@1", &["suspend n1 a@2 revoked"], "1 revoked"),
            ("a@2", &["a@1<-5"], "n1: a@2", "a@1", &["suspend n1 a@2 artifact-expired"], "1 artifact-expired"),
            ("a@2", &["a@1<+5"], "n1: a@2", "a@1", &["assign n1 a@2"], "1 until 5"),
            // The wanted one may not run, and the older one may.
            ("a@2!revoked", &["a@1"], "n1: a@2", "a@1", &["suspend n1 a@2 revoked"], "1"),
            // It serves: what was before it is nobody's concern. Nor is what is not judged, or on another node.
            ("a@2", &["a@1!revoked"], "n1: a@1!revoked", "a@2", &["resume n1 a@2"], ""),
            ("a@3", &["a@1!revoked"], "n1: a@3", "a@2", &[], ""),
            ("a@2", &["b@1!revoked"], "n1: a@2", "a@1", &[], ""),
        ];
        for (row, (want, judged, told, serves, expected, older)) in rows.iter().enumerate() {
            let mut desired = Desired { apps: [wanted(want)].into(), ..Desired::default() };
            for (id, judged) in judged.iter().map(|t| wanted(t)) {
                desired.older.entry(id).or_default().insert(judged.revision, judged);
            }
            let mut observed = Observed { nodes: [node(told)].into(), ..Observed::default() };
            let (app, serves) = wanted(serves);
            let served = |revision| [(app.clone(), Served { revision, before: None })].into();
            let nodes =
                [("n1".parse().unwrap(), served(serves.revision)), ("n2".parse().unwrap(), served(Revision(1)))];
            observed.served = nodes.into();
            let actions = plan(&desired, &observed, NOW);
            assert_eq!(actions.iter().map(show).collect::<Vec<_>>(), *expected, "row {row}");
            for action in &actions {
                apply(&mut observed, action);
            }
            assert_eq!(plan(&desired, &observed, NOW), [], "row {row}: a plan carried out leaves nothing to do");
            let told = observed.nodes.values().next().unwrap().apps[&id("a")].older.clone();
            let text = told.map_or(String::new(), |older| match (older.suspended, older.expiry) {
                (Some(reason), _) => format!("{} {}", older.revision, reason.code),
                (None, Some(expiry)) => format!("{} until {}", older.revision, expiry.at - NOW),
                (None, None) => older.revision.to_string(),
            });
            assert_eq!(text, *older, "row {row}");
        }
    }

    #[test]
    fn the_next_change_is_the_next_expiry() {
        let apps = ["a@1<-5", "b@1<+7", "c@1<+3", "d@1", "e@1<+0"].map(wanted).into();
        let mut desired = Desired { apps, ..Desired::default() };
        assert_eq!(desired.next_change(NOW), Some(NOW + 3));
        assert_eq!(desired.next_change(NOW + 7), None);
        let (id, older) = wanted("d@0<+2");
        desired.older.insert(id, [(older.revision, older)].into());
        assert_eq!(desired.next_change(NOW), Some(NOW + 2), "also that of what still serves");
    }
}
