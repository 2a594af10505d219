//! What this host counted, over the revisions of each app: a revision that leaves hands its counts on, so that no
//! counter falls while the app is here. Links keep one meter per provider, whichever revision calls over it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use api::agent::{ComponentStatus, LinkTrouble};
use api::metrics::{ComponentCounts, Counts, LinkCounts, LinkErrors, LinkKey, LinkMetrics};
use model::{AppName, ComponentName, Link, ProviderKind};
use providers::meter::{self, LinkMeter, LinkName};

/// Meters kept of links that no revision has any more, per app: an app can be moved to ever new providers.
const KEPT: usize = 64;

/// Counters of every app on this host.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<HashMap<AppName, Total>>);

#[derive(Debug, Default)]
struct Total {
    /// What revisions counted that have left.
    past: BTreeMap<ComponentName, ComponentCounts>,
    /// In the order they were made.
    links: Vec<(LinkKey, ProviderKind, Arc<LinkMeter>)>,
}

impl Total {
    /// A meter only kept here belongs to no revision.
    fn is_unused(meter: &Arc<LinkMeter>) -> bool {
        Arc::strong_count(meter) == 1
    }

    fn shrink(&mut self) {
        let unused = self.links.iter().filter(|(_, _, meter)| Self::is_unused(meter)).count();
        let mut surplus = unused.saturating_sub(KEPT);
        self.links.retain(|(_, _, meter)| {
            let goes = surplus > 0 && Self::is_unused(meter);
            surplus -= usize::from(goes);
            !goes
        });
    }
}

impl Totals {
    fn lock(&self) -> MutexGuard<'_, HashMap<AppName, Total>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The meter of a link of `app` to a provider of this kind: the one it had before, where it had one.
    pub(crate) fn meter(&self, app: &AppName, link: &Link, kind: ProviderKind) -> Arc<LinkMeter> {
        let key = LinkKey {
            app: app.clone(),
            component: link.component.clone(),
            contract: link.contract.clone(),
            label: link.label.clone(),
            provider: link.provider.clone(),
        };
        let mut all = self.lock();
        let total = all.entry(app.clone()).or_default();
        if let Some((_, _, meter)) = total.links.iter().find(|(known, of, _)| *known == key && *of == kind) {
            return meter.clone();
        }
        total.shrink();
        let fresh = Arc::new(LinkMeter::of(LinkName {
            contract: link.contract.clone(),
            label: link.label.clone(),
            provider: link.provider.clone(),
            kind: kind.as_str(),
        }));
        total.links.push((key, kind, fresh.clone()));
        fresh
    }

    /// Keeps what a component of a leaving revision counted.
    pub(crate) fn keep(&self, app: &AppName, component: &ComponentName, counts: &ComponentCounts) {
        let mut all = self.lock();
        all.entry(app.clone()).or_default().past.entry(component.clone()).or_default().add(counts);
    }

    /// Forgets an app that has no revision here. Meters that somebody is about to use stay.
    pub(crate) fn forget(&self, app: &AppName) {
        let mut all = self.lock();
        let Some(total) = all.get_mut(app) else { return };
        total.past.clear();
        total.links.retain(|(_, _, meter)| !Total::is_unused(meter));
        if total.links.is_empty() {
            all.remove(app);
        }
    }

    /// Adds what leaving revisions counted to `now`, what those that are here do.
    pub(crate) fn add_past(&self, now: &mut BTreeMap<(AppName, ComponentName), ComponentCounts>) {
        for (app, total) in &*self.lock() {
            for (component, past) in &total.past {
                now.entry((app.clone(), component.clone())).or_default().add(past);
            }
        }
    }

    /// The links of an app that do not work now, and why.
    pub(crate) fn troubles(&self, app: &AppName) -> Vec<LinkTrouble> {
        let all = self.lock();
        let links = all.get(app).into_iter().flat_map(|total| &total.links);
        let in_use = links.filter(|(_, _, meter)| !Total::is_unused(meter));
        let troubled = in_use.filter_map(|(key, _, meter)| {
            let trouble = meter.trouble()?;
            let since = trouble.since.duration_since(UNIX_EPOCH).unwrap_or_default();
            Some(LinkTrouble {
                link: key.clone(),
                kind: trouble.kind.as_str().to_owned(),
                reason: trouble.reason,
                since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            })
        });
        troubled.collect()
    }

    /// Every link, also those that no revision has any more and that were called.
    pub(crate) fn links(&self) -> Vec<LinkMetrics> {
        let all = self.lock();
        let mut sums: BTreeMap<&LinkKey, LinkCounts> = BTreeMap::new();
        for (key, _, meter) in all.values().flat_map(|total| &total.links) {
            let counts = meter.counts();
            if counts.calls > 0 || !Total::is_unused(meter) {
                // A provider that became one of another kind under the same name has two meters.
                let (sum, counts) = (sums.entry(key).or_default(), wire(&counts));
                sum.add(&counts);
                sum.in_flight += counts.in_flight;
            }
        }
        sums.into_iter().map(|(key, counts)| LinkMetrics { link: key.clone(), counts }).collect()
    }
}

/// The counters of a component's status.
pub(crate) fn counts(status: &ComponentStatus) -> ComponentCounts {
    ComponentCounts {
        in_flight: status.in_flight,
        calls: status.calls,
        failed: status.failed,
        refused: status.refused,
        cpu_us: status.cpu_us,
        log_dropped: status.log_dropped,
    }
}

fn wire(counts: &meter::LinkCounts) -> LinkCounts {
    let [refused, denied, unavailable, timed_out, cancelled] = counts.errors;
    let used = counts.took.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
    LinkCounts {
        in_flight: counts.in_flight,
        calls: counts.calls,
        errors: LinkErrors { refused, denied, unavailable, timed_out, cancelled },
        took: counts.took.iter().take(used).copied().collect(),
        took_us: counts.took_us,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use providers::meter::ErrorKind;

    use super::*;

    fn link(provider: &str) -> Link {
        Link {
            component: "main".parse().unwrap(),
            contract: "wasi:keyvalue".parse().unwrap(),
            label: "default".parse().unwrap(),
            provider: provider.parse().unwrap(),
            config: BTreeMap::new(),
        }
    }

    #[test]
    fn a_link_that_comes_back_goes_on_counting() {
        let (totals, app) = (Totals::default(), "shop".parse().unwrap());
        totals.meter(&app, &link("redis"), ProviderKind::KeyvalueRedis).ended(Instant::now(), None);
        totals.meter(&app, &link("memory"), ProviderKind::KeyvalueRedis).ended(Instant::now(), None);
        let again = totals.meter(&app, &link("redis"), ProviderKind::KeyvalueRedis);
        again.ended(Instant::now() - Duration::from_millis(3), Some(ErrorKind::TimedOut));
        let links = totals.links();
        let calls: Vec<_> = links.iter().map(|l| (l.link.provider.as_str(), l.counts.calls)).collect();
        assert_eq!(calls, [("memory", 1), ("redis", 2)]);
        let redis = &links[1].counts;
        assert_eq!((redis.errors.timed_out, redis.errors.sum(), redis.took.iter().sum::<u64>()), (1, 1, 2));
        assert!(redis.took.len() >= 12 && redis.took.len() <= api::metrics::BUCKETS, "{:?}", redis.took);
        totals.forget(&app);
        assert_eq!(totals.links().len(), 1, "one is held by a revision");
        drop(again);
        totals.forget(&app);
        assert!(totals.lock().is_empty());
    }

    #[test]
    fn an_app_that_moves_and_moves_keeps_only_so_many_meters() {
        let (totals, app) = (Totals::default(), "shop".parse().unwrap());
        let held = totals.meter(&app, &link("held"), ProviderKind::KeyvalueRedis);
        for n in 0..500 {
            totals.meter(&app, &link(&format!("p{n}")), ProviderKind::KeyvalueRedis).ended(Instant::now(), None);
        }
        let links = totals.links();
        assert!(links.len() <= KEPT + 2, "{}", links.len());
        assert!(links.iter().any(|l| l.link.provider.as_str() == "held"), "what is in use stays");
        drop(held);
    }

    #[test]
    fn every_kind_and_bucket_has_its_place_on_the_wire() {
        let names = ErrorKind::ALL.map(ErrorKind::as_str);
        assert_eq!(LinkErrors::default().by_kind().map(|(name, _)| name), names);
        assert_eq!(api::metrics::BUCKETS, meter::BUCKETS);
    }
}
