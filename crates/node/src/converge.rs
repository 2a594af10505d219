//! What has to happen next: pure functions from what is wanted and what is there to steps. The agent task carries the
//! steps out and comes back with what changed; nothing here waits, reads a clock or remembers.

use model::observed::{AppObserved, Phase, Reason};
use model::plan::{Expiry, Older};
use model::{AppName, Revision};

/// What the control plane wants of one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// This revision.
    pub revision: Revision,
    /// It must not be served, and why.
    pub suspended: Option<Reason>,
    /// It must not be served from then on.
    pub expiry: Option<Expiry>,
    /// What holds of the revision that serves as long as this one does not.
    pub older: Option<Older>,
}

/// What is said of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be served.
    Runs,
    /// It must not be served, and why.
    Barred(Reason),
    /// Nothing: it stays as it is, and what is suspended is not resumed.
    Unsaid,
}

impl Wanted {
    /// Why it must not be served at `now` (seconds since 1970), if so. That the claims end needs nobody to say it again.
    pub fn barred(&self, now: u64) -> Option<Reason> {
        self.suspended.clone().or_else(|| self.expiry.as_ref()?.barred(now))
    }

    /// What is said of a revision at `now`. One that nothing is said of is not better off than the wanted one.
    pub fn verdict(&self, revision: Revision, now: u64) -> Verdict {
        let said = self.older.as_ref().filter(|older| older.revision == revision);
        let barred = match said {
            Some(older) if revision != self.revision => older.barred(now),
            _ => self.barred(now),
        };
        match barred {
            Some(reason) => Verdict::Barred(reason),
            None if revision == self.revision || said.is_some() => Verdict::Runs,
            None => Verdict::Unsaid,
        }
    }

    /// The same where the whole tenant is suspended.
    #[must_use]
    pub fn suspended_with(mut self, tenant: Option<&Reason>) -> Self {
        let all = self.older.as_mut().map(|older| &mut older.suspended).into_iter().chain([&mut self.suspended]);
        all.for_each(|suspended| *suspended = suspended.take().or_else(|| tenant.cloned()));
        self
    }
}

/// Where one app stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// Routes point to this revision.
    pub serving: Option<Revision>,
    /// This revision is being brought up.
    pub bringing: Option<Revision>,
    /// This revision could not be brought up, and trying again as it is would not help.
    pub failed: Option<Revision>,
    /// Routes answer that the app is suspended, with this reason: what serves must not.
    pub suspended: Option<Reason>,
}

/// What to do about one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bring this revision up, then move the routes to it.
    Bring(Revision),
    /// Give up the revision that is being brought up.
    Cancel(Revision),
    /// Answer every request with 503 and the reason.
    Suspend(Reason),
    /// Answer requests with the serving revision again.
    Resume,
    /// Take the routes away and drain this revision.
    Remove(Option<Revision>),
}

/// The next step for one app at `now`; `None` where it is as it should be, or on its way there.
pub fn step(wanted: Option<&Wanted>, actual: &Actual, now: u64) -> Option<Step> {
    let Some(wanted) = wanted else {
        return match actual {
            Actual { bringing: Some(revision), .. } => Some(Step::Cancel(*revision)),
            Actual { serving: None, suspended: None, failed: None, .. } => None,
            Actual { serving, .. } => Some(Step::Remove(*serving)),
        };
    };
    // What is judged is what serves: it may be another revision than the wanted one, for as long as that one takes, or for
    // ever where it does not start.
    let stands = wanted.verdict(actual.serving.unwrap_or(wanted.revision), now);
    match (stands, &actual.suspended) {
        (Verdict::Barred(reason), current) if current.as_ref() != Some(&reason) => return Some(Step::Suspend(reason)),
        (Verdict::Runs, Some(_)) => return Some(Step::Resume),
        _ => {}
    }
    let barred = wanted.barred(now);
    if let Some(bringing) = actual.bringing {
        // What must not be served need not be brought up either; a newer revision replaces one on its way.
        let moot = bringing != wanted.revision || barred.is_some();
        return moot.then_some(Step::Cancel(bringing));
    }
    let there = actual.serving == Some(wanted.revision) || actual.failed == Some(wanted.revision);
    (!there && barred.is_none()).then_some(Step::Bring(wanted.revision))
}

/// How the hosts of an app's tenant stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// None of them was ready yet.
    Starting,
    /// At least one was ready; those that end are started again.
    Up,
    /// All of them end again and again.
    Degraded(Reason),
}

/// What is reported of one app at `now`. `phase` is where the revision stands that is being brought up; `failure` is why
/// the last attempt failed.
pub fn observe(
    wanted: &Wanted,
    actual: &Actual,
    phase: Phase,
    failure: Option<&Reason>,
    hosts: &Hosts,
    now: u64,
) -> AppObserved {
    let serving = actual.serving.filter(|_| actual.suspended.is_none() && *hosts != Hosts::Starting);
    let report = |phase, reason: Option<&Reason>| AppObserved {
        revision: wanted.revision,
        phase,
        serving,
        reason: reason.cloned(),
    };
    let degraded = match hosts {
        Hosts::Degraded(reason) => Some(reason),
        Hosts::Starting | Hosts::Up => None,
    };
    if let Some(reason) = wanted.barred(now) {
        return report(Phase::Failed, Some(&reason));
    }
    if actual.bringing == Some(wanted.revision) {
        return report(phase, None);
    }
    if actual.failed == Some(wanted.revision) {
        return report(Phase::Failed, failure);
    }
    if let Some(reason) = &actual.suspended {
        return report(Phase::Failed, Some(reason));
    }
    if actual.serving == Some(wanted.revision) {
        let phase = if *hosts == Hosts::Starting { Phase::Starting } else { Phase::Serving };
        return report(phase, degraded);
    }
    report(Phase::Fetching, degraded)
}

/// The most hosts one tenant has on a node, whatever its settings say.
pub const MAX_SHARDS: u32 = 64;

/// What to do about a tenant's hosts: shards to start, then shards to stop.
pub fn hosts(apps: usize, shards: u32, running: &[u32]) -> (Vec<u32>, Vec<u32>) {
    // A tenant without apps costs no process.
    let wanted = if apps == 0 { 0 } else { shards.clamp(1, MAX_SHARDS) };
    let start = (0..wanted).filter(|shard| !running.contains(shard)).collect();
    let stop = running.iter().copied().filter(|shard| *shard >= wanted).collect();
    (start, stop)
}

/// A number that is the same for an app wherever and whenever it is computed.
pub fn preference(app: &AppName) -> u64 {
    let hash = blake3::hash(app.as_str().as_bytes());
    hash.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The one shard of an app that keeps state in its host's memory. When the number of shards grows, an app either stays
/// or moves to a new one (rendezvous).
pub fn home(app: &AppName, shards: u32) -> u32 {
    let weight = |shard: &u32| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&shard.to_le_bytes()).update(app.as_str().as_bytes());
        *hasher.finalize().as_bytes()
    };
    (0..shards.clamp(1, MAX_SHARDS)).max_by_key(weight).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: &str) -> Reason {
        Reason { code: code.into(), message: String::new(), help: None }
    }

    fn wanted(revision: u64) -> Wanted {
        Wanted { revision: Revision(revision), suspended: None, expiry: None, older: None }
    }

    /// The same where the node is told of what serves instead.
    fn instead(revision: u64, older: u64, code: Option<&str>) -> Wanted {
        let older = Older { revision: Revision(older), suspended: code.map(reason), expiry: None };
        Wanted { older: Some(older), ..wanted(revision) }
    }

    #[test]
    fn every_situation_of_an_app_has_its_step() {
        let suspended = |code: &str| Wanted { suspended: Some(reason(code)), ..wanted(2) };
        let nothing = Actual::default;
        let serving = |n| Actual { serving: Some(Revision(n)), ..nothing() };
        let bringing = |n| Actual { bringing: Some(Revision(n)), ..nothing() };
        let failed = |n| Actual { failed: Some(Revision(n)), ..nothing() };
        let closed = |code: &str| Actual { suspended: Some(reason(code)), ..nothing() };
        let both = |s, b| Actual { serving: Some(Revision(s)), bringing: Some(Revision(b)), ..nothing() };
        let fell = |s, f| Actual { serving: Some(Revision(s)), failed: Some(Revision(f)), ..nothing() };
        let shut = |actual: Actual| Actual { suspended: Some(reason("x")), ..actual };
        let table: Vec<(Option<Wanted>, Actual, Option<Step>)> = vec![
            // first deploy, steady state
            (Some(wanted(1)), nothing(), Some(Step::Bring(Revision(1)))),
            (Some(wanted(1)), bringing(1), None),
            (Some(wanted(1)), serving(1), None),
            (Some(wanted(1)), failed(1), None),
            // next revision, rollback, one overtaken by another
            (Some(wanted(2)), serving(1), Some(Step::Bring(Revision(2)))),
            (Some(wanted(1)), serving(2), Some(Step::Bring(Revision(1)))),
            (Some(wanted(2)), both(1, 2), None),
            (Some(wanted(3)), both(1, 2), Some(Step::Cancel(Revision(2)))),
            (Some(wanted(1)), both(1, 2), Some(Step::Cancel(Revision(2)))),
            (Some(wanted(2)), failed(1), Some(Step::Bring(Revision(2)))),
            // a failure keeps the old one and is not repeated; rolling back needs nothing
            (Some(wanted(2)), fell(1, 2), None),
            (Some(wanted(1)), fell(1, 2), None),
            (Some(wanted(3)), fell(1, 2), Some(Step::Bring(Revision(3)))),
            // deletion
            (None, nothing(), None),
            (None, serving(1), Some(Step::Remove(Some(Revision(1))))),
            (None, failed(1), Some(Step::Remove(None))),
            (None, closed("x"), Some(Step::Remove(None))),
            (None, both(1, 2), Some(Step::Cancel(Revision(2)))),
            // suspension
            (Some(suspended("x")), serving(2), Some(Step::Suspend(reason("x")))),
            (Some(suspended("x")), nothing(), Some(Step::Suspend(reason("x")))),
            (Some(suspended("x")), closed("x"), None),
            (Some(suspended("y")), closed("x"), Some(Step::Suspend(reason("y")))),
            (
                Some(suspended("x")),
                Actual { suspended: Some(reason("x")), ..bringing(2) },
                Some(Step::Cancel(Revision(2))),
            ),
            (Some(wanted(2)), closed("x"), Some(Step::Resume)),
            (Some(wanted(2)), Actual { suspended: Some(reason("x")), ..serving(2) }, Some(Step::Resume)),
            // what serves is an older one, and must not: the wanted one is brought up, and the older one never resumed
            (Some(instead(2, 1, Some("x"))), fell(1, 2), Some(Step::Suspend(reason("x")))),
            (Some(instead(2, 1, Some("x"))), both(1, 2), Some(Step::Suspend(reason("x")))),
            (Some(instead(2, 1, Some("x"))), shut(serving(1)), Some(Step::Bring(Revision(2)))),
            (Some(instead(2, 1, Some("x"))), shut(both(1, 2)), None),
            (Some(instead(2, 1, Some("x"))), shut(fell(1, 2)), None),
            (Some(instead(3, 1, Some("x"))), shut(fell(1, 2)), Some(Step::Bring(Revision(3)))),
            (Some(instead(2, 1, Some("x"))), shut(serving(2)), Some(Step::Resume)),
            (Some(instead(2, 1, None)), shut(fell(1, 2)), Some(Step::Resume)),
            // nor where nothing is said of it yet, or of another one
            (Some(wanted(2)), shut(serving(1)), Some(Step::Bring(Revision(2)))),
            (Some(wanted(2)), shut(fell(1, 2)), None),
            (Some(instead(3, 1, None)), shut(fell(2, 3)), None),
            // the wanted one must not run, and what serves may
            (Some(Wanted { suspended: Some(reason("x")), ..instead(2, 1, None) }), fell(1, 2), None),
            (
                Some(Wanted { suspended: Some(reason("x")), ..instead(2, 1, None) }),
                both(1, 2),
                Some(Step::Cancel(Revision(2))),
            ),
            (Some(suspended("x")), serving(1), Some(Step::Suspend(reason("x")))),
        ];
        for (wanted, actual, expected) in table {
            assert_eq!(step(wanted.as_ref(), &actual, 0), expected, "{wanted:?} {actual:?}");
        }
    }

    #[test]
    fn claims_that_end_need_nobody_who_says_so() {
        let expiry = Expiry { at: 100, component: "web".parse().unwrap() };
        let wanted = Wanted { expiry: Some(expiry.clone()), ..wanted(1) };
        let serving = Actual { serving: Some(Revision(1)), ..Actual::default() };
        assert_eq!(step(Some(&wanted), &serving, 99), None);
        let reason = expiry.barred(100).unwrap();
        assert_eq!(step(Some(&wanted), &serving, 100), Some(Step::Suspend(reason.clone())));
        let suspended = Actual { suspended: Some(reason.clone()), ..serving };
        assert_eq!(step(Some(&wanted), &suspended, 101), None);
        // What is then said is the same.
        let told = Wanted { suspended: Some(reason), ..wanted };
        assert_eq!(step(Some(&told), &suspended, 102), None);
        // So of what serves in the place of the wanted one.
        let older = Older { expiry: Some(expiry.clone()), ..instead(2, 1, None).older.unwrap() };
        let wanted = Wanted { older: Some(older), ..self::wanted(2) };
        let fell = Actual { serving: Some(Revision(1)), failed: Some(Revision(2)), ..Actual::default() };
        assert_eq!(step(Some(&wanted), &fell, 99), None);
        assert_eq!(step(Some(&wanted), &fell, 100), expiry.barred(100).map(Step::Suspend));
    }

    #[test]
    fn a_tenant_that_is_suspended_is_so_in_every_revision() {
        let held = instead(2, 1, None).suspended_with(Some(&reason("t")));
        for revision in 1..=3 {
            assert_eq!(held.verdict(Revision(revision), 0), Verdict::Barred(reason("t")), "{revision}");
        }
        let own = instead(2, 1, Some("x")).suspended_with(Some(&reason("t")));
        assert_eq!(own.verdict(Revision(1), 0), Verdict::Barred(reason("x")), "its own reason stays");
        let free = instead(2, 1, None).suspended_with(None);
        let verdicts = [1, 2, 3].map(|revision| free.verdict(Revision(revision), 0));
        assert_eq!(verdicts, [Verdict::Runs, Verdict::Runs, Verdict::Unsaid]);
    }

    #[test]
    fn reports_say_what_serves_and_why_not() {
        let hosts = Hosts::Up;
        let see = |actual: &Actual, hosts: &Hosts| {
            let seen = observe(&wanted(2), actual, Phase::Compiling, Some(&reason("f")), hosts, 0);
            (seen.phase, seen.serving.map(|revision| revision.0), seen.reason.map(|reason| reason.code))
        };
        let serving = |n| Actual { serving: Some(Revision(n)), ..Actual::default() };
        let bringing = Actual { bringing: Some(Revision(2)), ..serving(1) };
        let failed = Actual { failed: Some(Revision(2)), ..serving(1) };
        let suspended = Actual { suspended: Some(reason("s")), ..serving(2) };
        let some = |code: &str| Some(code.to_owned());
        assert_eq!(see(&Actual::default(), &hosts), (Phase::Fetching, None, None));
        assert_eq!(see(&bringing, &hosts), (Phase::Compiling, Some(1), None));
        assert_eq!(see(&failed, &hosts), (Phase::Failed, Some(1), some("f")));
        assert_eq!(see(&serving(2), &hosts), (Phase::Serving, Some(2), None));
        assert_eq!(see(&serving(2), &Hosts::Starting), (Phase::Starting, None, None));
        assert_eq!(see(&serving(2), &Hosts::Degraded(reason("d"))), (Phase::Serving, Some(2), some("d")));
        assert_eq!(see(&suspended, &hosts), (Phase::Failed, None, some("s")));
        // What served is suspended: it serves nothing, and what is told is how the wanted one stands.
        let shut = |actual: &Actual| Actual { suspended: Some(reason("s")), ..actual.clone() };
        assert_eq!(see(&shut(&bringing), &hosts), (Phase::Compiling, None, None));
        assert_eq!(see(&shut(&failed), &hosts), (Phase::Failed, None, some("f")));
        let denied = Wanted { suspended: Some(reason("d")), ..wanted(2) };
        let seen = observe(&denied, &serving(1), Phase::Fetching, None, &hosts, 0);
        let reason = seen.reason.map(|reason| reason.code);
        assert_eq!((seen.phase, seen.serving, reason), (Phase::Failed, Some(Revision(1)), some("d")));
    }

    #[test]
    fn hosts_follow_the_setting() {
        assert_eq!(hosts(0, 2, &[]), (vec![], vec![]));
        assert_eq!(hosts(1, 2, &[]), (vec![0, 1], vec![]));
        assert_eq!(hosts(1, 2, &[0, 1]), (vec![], vec![]));
        assert_eq!(hosts(1, 4, &[0, 1]), (vec![2, 3], vec![]));
        assert_eq!(hosts(1, 1, &[0, 1, 2]), (vec![], vec![1, 2]));
        assert_eq!(hosts(1, 2, &[0]), (vec![1], vec![]));
        assert_eq!(hosts(0, 2, &[0, 1]), (vec![], vec![0, 1]));
        assert_eq!(hosts(1, 0, &[]), (vec![0], vec![]));
        assert_eq!(hosts(1, u32::MAX, &[]).0.len(), MAX_SHARDS as usize);
    }

    #[test]
    fn homes_spread_and_move_only_to_new_shards() {
        let mut moved = 0;
        for n in 0..1000 {
            let app: AppName = format!("app-{n}").parse().unwrap();
            let (two, three) = (home(&app, 2), home(&app, 3));
            assert!(two < 2 && (three == two || three == 2));
            moved += u32::from(three == 2);
        }
        assert!((250..420).contains(&moved), "{moved}");
    }
}
