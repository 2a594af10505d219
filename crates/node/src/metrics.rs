//! What the tenants' hosts counted, as one set of counters per tenant: shards are added up, and what hosts counted that
//! have ended is kept, so that no counter falls while its app is here.
//!
//! Hosts are asked when somebody asks the node, never by itself; askers at the same moment share one reading.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::metrics::{
    ComponentCounts, ComponentMetrics, Counts, HostLoad, HostMetrics, LinkCounts, LinkKey, LinkMetrics, TenantMetrics,
};
use model::{AppName, ComponentName, TenantName};

use crate::supervisor::{HostRef, HostState};
use crate::tenant::Tenant;

/// A reading so old still answers: many watchers cost the hosts no more than one.
const FRESH: Duration = Duration::from_millis(200);
/// How long a host may take to say what it counted.
const ANSWER: Duration = Duration::from_secs(2);
/// Links, and components, of one app of which counts are kept that no host has any more.
const KEPT: usize = 256;

/// The counters of every tenant on this node.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    tenants: Mutex<HashMap<TenantName, Arc<Account>>>,
}

/// One tenant's. The lock is held while its hosts are asked: a reading never overtakes an earlier one.
#[derive(Debug, Default)]
struct Account {
    reading: tokio::sync::Mutex<Option<(Instant, Arc<TenantMetrics>)>>,
    books: Mutex<Books>,
}

impl Metrics {
    fn account(&self, tenant: &TenantName) -> Arc<Account> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.entry(tenant.clone()).or_default().clone()
    }

    /// Asks `hosts`, those of `of`, and adds up. One that does not answer in time counts as it did last.
    pub(crate) async fn read(&self, of: &Tenant, hosts: &[HostRef]) -> Arc<TenantMetrics> {
        let (tenant, most) = (&of.name, of.named.most());
        let account = self.account(tenant);
        let mut reading = account.reading.lock().await;
        if let Some((_, seen)) = reading.as_ref().filter(|(when, _)| when.elapsed() < FRESH) {
            return seen.clone();
        }
        let ready = hosts.iter().filter(|host| *host.state.borrow() == HostState::Ready);
        let asked =
            ready.map(|host| async { (host.shard, tokio::time::timeout(ANSWER, host.client.metrics(most)).await) });
        let answers = futures::future::join_all(asked).await;
        let mut loads = Vec::new();
        let mut books = account.books();
        for (shard, answer) in answers {
            match answer {
                Ok(Ok(host)) => {
                    let host = of.named.counted(host);
                    loads.push(HostLoad { shard, in_flight: host.in_flight, rss: host.rss });
                    books.enter(shard, host);
                }
                Ok(Err(cause)) => tracing::debug!(%tenant, shard, %cause, "a host does not say what it counted"),
                Err(_) => tracing::debug!(%tenant, shard, "a host takes too long to say what it counted"),
            }
        }
        books.close(&hosts.iter().map(|host| host.shard).collect());
        let seen = Arc::new(books.sum(tenant, loads));
        *reading = Some((Instant::now(), seen.clone()));
        seen
    }

    /// What was counted of a tenant that has no host.
    pub(crate) fn past(&self, tenant: &TenantName) -> TenantMetrics {
        self.account(tenant).books().sum(tenant, Vec::new())
    }

    /// Forgets a tenant that is gone.
    pub(crate) fn forget_tenant(&self, tenant: &TenantName) {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }

    /// Forgets an app that is gone.
    pub(crate) fn forget(&self, tenant: &TenantName, app: &AppName) {
        self.account(tenant).books().forget(app);
    }
}

impl Account {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type ComponentKey = (AppName, ComponentName);

/// What every shard said last, and what is over.
#[derive(Debug, Default)]
struct Books {
    shards: BTreeMap<u32, Page>,
    past_components: BTreeMap<ComponentKey, ComponentCounts>,
    past_links: BTreeMap<LinkKey, LinkCounts>,
}

/// What one host process said last.
#[derive(Debug, Default)]
struct Page {
    since_us: u64,
    components: BTreeMap<ComponentKey, ComponentCounts>,
    links: BTreeMap<LinkKey, LinkCounts>,
}

impl From<HostMetrics> for Page {
    fn from(host: HostMetrics) -> Self {
        Self {
            since_us: host.since_us,
            components: host.components.into_iter().map(|c| ((c.app, c.component), c.counts)).collect(),
            links: host.links.into_iter().map(|l| (l.link, l.counts)).collect(),
        }
    }
}

impl Books {
    /// A shard said something new.
    fn enter(&mut self, shard: u32, host: HostMetrics) {
        let new = Page::from(host);
        let old = self.shards.remove(&shard).unwrap_or_default();
        let anew = old.since_us != new.since_us;
        pass_on(old.components, &new.components, anew, &mut self.past_components);
        pass_on(old.links, &new.links, anew, &mut self.past_links);
        self.shards.insert(shard, new);
        self.shrink();
    }

    /// Shards other than these are over.
    fn close(&mut self, there: &BTreeSet<u32>) {
        let over: Vec<u32> = self.shards.keys().filter(|shard| !there.contains(shard)).copied().collect();
        for page in over.iter().filter_map(|shard| self.shards.remove(shard)).collect::<Vec<_>>() {
            pass_on(page.components, &BTreeMap::new(), true, &mut self.past_components);
            pass_on(page.links, &BTreeMap::new(), true, &mut self.past_links);
        }
    }

    fn forget(&mut self, app: &AppName) {
        self.past_components.retain(|(known, _), _| known != app);
        self.past_links.retain(|link, _| link.app != *app);
        for page in self.shards.values_mut() {
            page.components.retain(|(known, _), _| known != app);
            page.links.retain(|link, _| link.app != *app);
        }
    }

    /// An app can be moved to ever new providers, and its components renamed: of those it has left, only so many are kept.
    fn shrink(&mut self) {
        let shards = &self.shards;
        let mut kept: BTreeMap<AppName, usize> = BTreeMap::new();
        self.past_components.retain(|key, _| {
            let count = kept.entry(key.0.clone()).or_default();
            *count += 1;
            *count <= KEPT || shards.values().any(|page| page.components.contains_key(key))
        });
        kept.clear();
        self.past_links.retain(|link, _| {
            let count = kept.entry(link.app.clone()).or_default();
            *count += 1;
            *count <= KEPT || shards.values().any(|page| page.links.contains_key(link))
        });
    }

    fn sum(&self, tenant: &TenantName, hosts: Vec<HostLoad>) -> TenantMetrics {
        let (mut components, mut links) = (self.past_components.clone(), self.past_links.clone());
        for page in self.shards.values() {
            for (key, counts) in &page.components {
                let sum = components.entry(key.clone()).or_default();
                sum.add(counts);
                sum.in_flight = sum.in_flight.saturating_add(counts.in_flight);
            }
            for (key, counts) in &page.links {
                let sum = links.entry(key.clone()).or_default();
                sum.add(counts);
                sum.in_flight = sum.in_flight.saturating_add(counts.in_flight);
            }
        }
        let components = components.into_iter();
        TenantMetrics {
            tenant: tenant.clone(),
            time_ms: now_ms(),
            hosts,
            components: components
                .map(|((app, component), c)| ComponentMetrics { app, component, counts: c })
                .collect(),
            links: links.into_iter().map(|(link, counts)| LinkMetrics { link, counts }).collect(),
            kept: None,
        }
    }
}

/// Keeps the counters of `old` that `new` does not go on with: another process, gone, or begun anew.
fn pass_on<K: Ord + Hash, C: Counts + Default>(
    old: BTreeMap<K, C>,
    new: &BTreeMap<K, C>,
    anew: bool,
    past: &mut BTreeMap<K, C>,
) {
    for (key, counts) in old {
        if anew || new.get(&key).is_none_or(|now| now.calls() < counts.calls()) {
            past.entry(key).or_default().add(&counts);
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(app: &str, provider: &str) -> LinkKey {
        LinkKey {
            app: app.parse().unwrap(),
            component: "main".parse().unwrap(),
            contract: "wasi:keyvalue".parse().unwrap(),
            label: "default".parse().unwrap(),
            provider: provider.parse().unwrap(),
        }
    }

    /// What a host says: (app, provider, calls).
    fn host(since_us: u64, links: &[(&str, &str, u64)]) -> HostMetrics {
        let links = links.iter().map(|(app, provider, calls)| LinkMetrics {
            link: key(app, provider),
            counts: LinkCounts { in_flight: 1, calls: *calls, took: vec![0, *calls], ..LinkCounts::default() },
        });
        let component = |calls| ComponentMetrics {
            app: "a".parse().unwrap(),
            component: "main".parse().unwrap(),
            counts: ComponentCounts { calls, in_flight: 2, ..ComponentCounts::default() },
        };
        let links: Vec<_> = links.collect();
        let calls = links.iter().map(|link| link.counts.calls).sum();
        HostMetrics { since_us, components: vec![component(calls)], links, ..HostMetrics::default() }
    }

    fn told(books: &Books) -> Vec<(String, u64, u64, u32)> {
        let sum = books.sum(&"t".parse().unwrap(), Vec::new());
        let links = sum.links.iter();
        links
            .map(|l| {
                (l.link.provider.to_string(), l.counts.calls, l.counts.took.iter().sum::<u64>(), l.counts.in_flight)
            })
            .collect()
    }

    #[test]
    fn shards_are_added_up_and_no_counter_falls() {
        let mut books = Books::default();
        books.enter(0, host(1, &[("a", "redis", 10)]));
        books.enter(1, host(2, &[("a", "redis", 5)]));
        assert_eq!(told(&books), [("redis".into(), 15, 15, 2)]);
        // A host that was started again begins at 0, and may have passed its predecessor meanwhile.
        books.enter(0, host(3, &[("a", "redis", 12)]));
        assert_eq!(told(&books), [("redis".into(), 27, 27, 2)]);
        // A link that left a host, and one that begins anew within the same process.
        books.enter(0, host(3, &[("a", "memory", 1)]));
        assert_eq!(told(&books), [("memory".into(), 1, 1, 1), ("redis".into(), 27, 27, 1)]);
        books.enter(0, host(3, &[("a", "memory", 1), ("a", "redis", 2)]));
        assert_eq!(told(&books)[1], ("redis".into(), 29, 29, 2));
        // A shard that is no longer wanted.
        books.close(&[0].into());
        assert_eq!(told(&books)[1], ("redis".into(), 29, 29, 1));
        let sum = books.sum(&"t".parse().unwrap(), Vec::new());
        assert_eq!((sum.components[0].counts.calls, sum.components[0].counts.in_flight), (30, 2));
        books.forget(&"a".parse().unwrap());
        assert!(told(&books).is_empty());
    }

    #[test]
    fn what_is_kept_of_links_that_were_left_is_bounded() {
        let mut books = Books::default();
        for n in 0..2 * KEPT {
            books.enter(0, host(1, &[("a", &format!("p{n}"), 1)]));
        }
        assert!(told(&books).len() <= KEPT + 1);
    }
}
