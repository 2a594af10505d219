//! Hosts that tenants gave up a short time ago. Whoever still asks for one means the tenant that had it, and sends along what
//! that one gave him: so for a while no other tenant gets it, unless the operator frees it. Looked up by the host's own name,
//! never gone through, so that nobody's number of hosts makes the changes of others take longer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use model::TenantName;
use model::rules::route::hosts_overlap;

/// How long a host stays with the tenant that gave it up, milliseconds.
const KEPT: u64 = 24 * 60 * 60 * 1000;
/// Hosts that are kept of one tenant: of more, those that it gave up last.
const MOST: usize = 1024;
/// When a host was given up that still serves, by a revision from before: its time has not begun, so it is never over.
pub(crate) const SERVES: u64 = u64::MAX;

/// What is kept of one tenant, as it is in the store: each host, and when it was given up, milliseconds since 1970, or
/// [`SERVES`].
pub(crate) type Hosts = BTreeMap<String, u64>;

/// See the module.
#[derive(Default)]
pub(crate) struct Left {
    of: BTreeMap<TenantName, Hosts>,
    /// The same by host, read backwards: what is under `*.a.b` begins with `b.a.`, and is together.
    by: BTreeMap<String, BTreeSet<TenantName>>,
    /// The same by time.
    due: BTreeSet<(u64, TenantName, String)>,
}

fn backwards(host: &str) -> String {
    host.chars().rev().collect()
}

impl Left {
    /// What a tenant gave up, and when each was: what is kept of it from now on.
    pub(crate) fn take_in(
        &mut self,
        tenant: &TenantName,
        hosts: impl IntoIterator<Item = (String, u64)>,
        now: u64,
    ) -> Hosts {
        self.lapse(now);
        for (host, at) in hosts {
            self.forget(tenant, &host);
            if now < at.saturating_add(KEPT) {
                self.by.entry(backwards(&host)).or_default().insert(tenant.clone());
                self.due.insert((at, tenant.clone(), host.clone()));
                self.of.entry(tenant.clone()).or_default().insert(host, at);
            }
        }
        while let Some(oldest) = self.of.get(tenant).filter(|hosts| hosts.len() > MOST).and_then(oldest) {
            self.forget(tenant, &oldest);
        }
        self.of(tenant)
    }

    /// Who gave up `host`, or one that overlaps with it, and what would be kept of each tenant without those.
    pub(crate) fn without(&self, host: &str) -> Vec<(TenantName, Hosts)> {
        let whose: BTreeSet<&TenantName> = self.overlapping(host).map(|(_, tenant, _)| tenant).collect();
        let rest = |tenant: &TenantName| {
            let mut hosts = self.of(tenant);
            hosts.retain(|left, _| !hosts_overlap(left, host));
            (tenant.clone(), hosts)
        };
        whose.into_iter().map(rest).collect()
    }

    /// Takes `host`, and every one that overlaps with it, from a tenant that gave it up.
    pub(crate) fn free(&mut self, tenant: &TenantName, host: &str) {
        let theirs = self.overlapping(host).filter(|(_, whose, _)| whose == tenant);
        let freed: Vec<String> = theirs.map(|(_, _, left)| left.clone()).collect();
        for left in &freed {
            self.forget(tenant, left);
        }
    }

    fn overlapping(&self, host: &str) -> impl Iterator<Item = &(u64, TenantName, String)> {
        self.due.iter().filter(move |(_, _, left)| hosts_overlap(left, host))
    }

    /// What is kept of a tenant.
    pub(crate) fn of(&self, tenant: &TenantName) -> Hosts {
        self.of.get(tenant).cloned().unwrap_or_default()
    }

    /// Hosts of a tenant that it gave up while a revision from before served on them.
    pub(crate) fn serving(&self, tenant: &TenantName) -> Vec<String> {
        let first = (SERVES, tenant.clone(), String::new());
        let own = self.due.range(first..).take_while(|(_, whose, _)| whose == tenant);
        own.map(|(_, _, host)| host.clone()).collect()
    }

    /// Whether some request for `host` is one for what another tenant gave up a short time ago.
    pub(crate) fn bars(&mut self, tenant: &TenantName, host: &str, now: u64) -> bool {
        self.lapse(now);
        let others = |whose: &BTreeSet<TenantName>| whose.iter().any(|whose| whose != tenant);
        let ours = backwards(host);
        let above = ours.match_indices('.').map(|(dot, _)| {
            let (suffix, _) = ours.split_at(dot.saturating_add(1));
            format!("{suffix}*")
        });
        if above.chain([ours.clone()]).any(|host| self.by.get(&host).is_some_and(others)) {
            return true;
        }
        // The tenant's own come before another's, and of those no more are kept.
        let Some(under) = ours.strip_suffix('*') else { return false };
        let below = self.by.range::<str, _>((Excluded(under), Unbounded));
        below.take_while(|(host, _)| host.starts_with(under)).any(|(_, whose)| others(whose))
    }

    /// Drops what is over.
    fn lapse(&mut self, now: u64) {
        while let Some((_, tenant, host)) = self.due.first().filter(|(at, ..)| now >= at.saturating_add(KEPT)).cloned()
        {
            self.forget(&tenant, &host);
        }
    }

    fn forget(&mut self, tenant: &TenantName, host: &str) {
        let Some(hosts) = self.of.get_mut(tenant) else { return };
        let Some(at) = hosts.remove(host) else { return };
        if hosts.is_empty() {
            self.of.remove(tenant);
        }
        self.due.remove(&(at, tenant.clone(), host.to_owned()));
        let host = backwards(host);
        if let Some(whose) = self.by.get_mut(&host) {
            whose.remove(tenant);
            if whose.is_empty() {
                self.by.remove(&host);
            }
        }
    }
}

fn oldest(hosts: &Hosts) -> Option<String> {
    hosts.iter().min_by_key(|(_, at)| **at).map(|(host, _)| host.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    fn leave(left: &mut Left, tenant: &TenantName, hosts: &[&str], now: u64) -> Hosts {
        left.take_in(tenant, hosts.iter().map(|host| ((*host).to_owned(), now)), now)
    }

    fn left(hosts: &[&str]) -> Left {
        let mut left = Left::default();
        leave(&mut left, &name("acme"), hosts, 1000);
        left
    }

    #[test]
    fn what_was_given_up_stays_with_its_tenant_for_a_while() {
        for host in ["shop.example", "*.example", "a.acme.example", "*.acme.example", "*.b.acme.example"] {
            let mut left = left(&["shop.example", "*.acme.example"]);
            assert!(left.bars(&name("mallory"), host, 1000) && left.bars(&name("mallory"), host, 999 + KEPT), "{host}");
            assert!(!left.bars(&name("acme"), host, 1000), "{host}: its own");
            assert!(!left.bars(&name("mallory"), host, 1000 + KEPT), "{host}: it is over");
        }
        let mut left = left(&["shop.example", "*.acme.example"]);
        for host in ["example", "login.shop.example", "acme.example", "*.shop.example", "workshop.example"] {
            assert!(!left.bars(&name("mallory"), host, 1000), "{host}");
        }
    }

    #[test]
    fn what_is_looked_up_is_what_comparing_with_all_finds() {
        let hosts = ["b", "a.b", "c.b", "*.b", "a.a.b", "*.a.b", "xa.b", "*.xa.b", "a-b", "a.b.c", "*.c", "*.b.c"];
        let (one, other) = (name("one"), name("other"));
        for theirs in hosts {
            for ours in hosts {
                let mut left = Left::default();
                leave(&mut left, &one, &[theirs], 0);
                // What is its own beside it hides nothing.
                leave(&mut left, &other, &hosts, 0);
                for asked in hosts {
                    assert_eq!(left.bars(&other, asked, 0), hosts_overlap(theirs, asked), "{theirs} {asked}");
                }
                left.free(&one, ours);
                assert_eq!(left.bars(&other, theirs, 0), !hosts_overlap(theirs, ours), "{theirs} freed by {ours}");
            }
        }
    }

    #[test]
    fn what_is_freed_is_anybodys_and_the_rest_is_not() {
        let mut left = left(&["shop.example", "a.example", "b.test"]);
        assert_eq!(left.without("nothing.example").len(), 0);
        let freed = left.without("shop.example");
        assert_eq!(freed[0].0, name("acme"));
        assert_eq!(freed[0].1.keys().collect::<Vec<_>>(), ["a.example", "b.test"]);
        assert!(left.bars(&name("mallory"), "shop.example", 1000), "it is only asked about");
        left.free(&name("other"), "shop.example");
        assert!(left.bars(&name("mallory"), "shop.example", 1000), "it is another one's");
        left.free(&name("acme"), "shop.example");
        assert!(!left.bars(&name("mallory"), "shop.example", 1000) && left.bars(&name("mallory"), "a.example", 1000));
        assert_eq!(left.without("*.example")[0].1.len(), 1);
        left.free(&name("acme"), "*.example");
        assert_eq!(left.without("b.test"), [(name("acme"), Hosts::new())]);
        left.free(&name("acme"), "b.test");
        assert!(left.of.is_empty() && left.by.is_empty() && left.due.is_empty());
    }

    #[test]
    fn the_time_of_what_still_serves_has_not_begun() {
        let (mut left, acme) = (left(&["a.example"]), name("acme"));
        let serves = [("b.example".to_owned(), SERVES), ("a.example".to_owned(), SERVES)];
        let kept = left.take_in(&acme, serves, 1000);
        assert_eq!((kept["a.example"], kept["b.example"]), (SERVES, SERVES));
        left.take_in(&name("beta"), [("c.example".to_owned(), SERVES)], 1000);
        assert!(left.bars(&name("mallory"), "b.example", 1000 * KEPT), "however long that is");
        assert_eq!(left.serving(&acme), ["a.example", "b.example"]);
        leave(&mut left, &acme, &["b.example"], 7 * KEPT);
        assert_eq!(left.serving(&acme), ["a.example"]);
        assert!(left.bars(&name("mallory"), "b.example", 8 * KEPT - 1));
        assert!(!left.bars(&name("mallory"), "b.example", 8 * KEPT));
        // As any other, it is the operator's to free.
        left.free(&acme, "a.example");
        assert!(left.serving(&acme).is_empty());
    }

    #[test]
    fn one_tenant_has_so_many_and_nothing_stays_behind() {
        let mut left = Left::default();
        let (acme, beta) = (name("acme"), name("beta"));
        leave(&mut left, &beta, &["kept.example"], 5);
        let all: Vec<String> = (0..=MOST).map(|n| format!("{n}.example")).collect();
        for (at, host) in (0..).zip(&all) {
            leave(&mut left, &acme, &[host], at);
        }
        assert!(!left.bars(&beta, "0.example", 0) && left.bars(&beta, "1.example", 0), "the oldest goes");
        assert!(left.bars(&acme, "kept.example", 0), "and nobody else's");
        // Given up once more: it is kept from then on.
        let kept = leave(&mut left, &acme, &["1.example"], 9999);
        assert_eq!((kept.len(), kept["1.example"]), (MOST, 9999));
        assert!(leave(&mut left, &beta, &[], 9999 + KEPT).is_empty());
        assert!(left.of.is_empty() && left.by.is_empty() && left.due.is_empty());
    }

    #[test]
    fn what_the_store_has_is_taken_in_but_for_what_is_over() {
        let mut read = Left::default();
        let kept = Hosts::from([("old.example".to_owned(), 0), ("new.example".to_owned(), 10)]);
        read.take_in(&name("acme"), kept, KEPT);
        let mut bars = |host: &str| read.bars(&name("mallory"), host, KEPT);
        assert!(!bars("old.example") && bars("new.example"));
    }
}
