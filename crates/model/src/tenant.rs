//! What the operator decides for one tenant: whom it trusts, how much it may use, where it may connect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::app::ProviderSpec;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::name::ProviderName;
use crate::unit::ByteSize;

/// Settings of one tenant, written by the operator only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct TenantSettings {
    /// Account public keys (`A…`) whose signatures are accepted. Never taken from a token.
    pub trust_anchors: Vec<String>,
    /// Revoked keys (account `A…`, module `M…`), token ids (`jti`) and artifact digests (`sha256:…`).
    pub revoked: Vec<String>,
    /// The named development policy: unsigned components run.
    pub allow_unsigned: bool,
    /// The largest limits an app of this tenant may ask for.
    pub ceilings: Limits,
    /// Address ranges (CIDR) outside the public internet that the tenant's connections may reach.
    pub egress: Vec<String>,
    /// Hosts that its apps may have routes on: names, `*.suffix` for every name below, `*` for all. An app keeps those that it
    /// has. Empty: whole names below `localhost`; of the tenant `local`: all.
    pub hosts: Vec<String>,
    /// Providers the operator offers to every app of the tenant. The addresses they name are granted to them.
    pub providers: BTreeMap<ProviderName, ProviderSpec>,
    /// Host processes that share the tenant's load; at least 1.
    pub shards: u32,
    /// What all apps of the tenant may use together.
    pub quotas: Quotas,
    /// Why the tenant is suspended: its apps answer 503, its schedules rest, its tokens change nothing, and everything it
    /// has stays. Absent: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<String>,
}

impl TenantSettings {
    /// What `shards` may be.
    pub const SHARDS: std::ops::RangeInclusive<u32> = 1..=64;

    /// The most trust anchors, and the most entries of the revocation list: each is looked at wherever a component is judged.
    pub const MAX_ANCHORS: usize = 64;
    /// See [`TenantSettings::MAX_ANCHORS`].
    pub const MAX_REVOKED: usize = 1024;

    /// Why entries of the revocation list cannot be what they say, one sentence each.
    pub fn revoked_problems(revoked: &[String]) -> Vec<String> {
        if revoked.len() > Self::MAX_REVOKED {
            // Not one sentence more: there may be very many.
            let (has, most) = (revoked.len(), Self::MAX_REVOKED);
            return vec![format!(
                "the revocation list has {has} entries and may have {most}; one of an account's key stands for all that it signed"
            )];
        }
        let problem = |entry: &String| {
            if entry.is_empty() || entry.len() > 256 || !entry.bytes().all(|b| b.is_ascii_graphic()) {
                Some("a revoked entry is a key (A…, M…), a token id or a digest (sha256:…)".to_owned())
            } else if entry.starts_with("sha256:") && entry.parse::<Digest>().is_err() {
                Some(format!("revoked entry `{entry}` is not a whole digest"))
            } else {
                None
            }
        };
        revoked.iter().filter_map(problem).collect()
    }
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            trust_anchors: Vec::new(),
            revoked: Vec::new(),
            allow_unsigned: false,
            ceilings: Limits::ceiling(),
            egress: Vec::new(),
            hosts: Vec::new(),
            providers: BTreeMap::new(),
            shards: 2,
            quotas: Quotas::default(),
            suspended: None,
        }
    }
}

/// What all apps of a tenant may use together, on each node. [`Limits`] say what one call may use. What is `None` has no
/// quota. Every field is enforced somewhere; a field nobody enforces is a defect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Quotas {
    /// Apps that are there at once. A deploy of one more is refused.
    pub apps: u32,
    /// Components of all apps together. A deploy that makes them more is refused.
    pub components: u32,
    /// Memory of all hosts of the tenant together, bytes: guests, compiled code, and what the host itself needs.
    pub memory: Option<ByteSize>,
    /// The tenant's part of the processors where several want them, against 100 of a tenant that says nothing; 1 to 10000.
    pub cpu_weight: Option<u32>,
    /// Processor time of all hosts of the tenant together, thousandths of a CPU: 1500 is one and a half, never more.
    pub cpu_millis: Option<u32>,
    /// Requests a second that the ingress takes over time; a quarter of a second's worth may come at once, at least 10.
    /// One more is answered 429.
    pub requests_per_second: Option<u32>,
    /// Requests under way at the ingress at once. One more is answered 503.
    pub concurrent_requests: Option<u32>,
    /// Outgoing connections a second over time; twice as many may be opened at once. One more is denied.
    pub connections_per_second: u32,
    /// Bytes of log a second over time, of all apps together; ten seconds' worth may come at once. The rest is dropped
    /// and counted.
    pub log_rate: ByteSize,
    /// Bytes of keys, messages that wait on disk, objects and databases that the tenant keeps on a node, together. A write
    /// that would keep more is refused.
    pub store_bytes: Option<ByteSize>,
    /// Bytes of the artifacts that the tenant has sent and that are still there. One more is refused.
    pub artifact_bytes: ByteSize,
    /// Bytes of what the control plane keeps of the tenant: all revisions of its apps that are kept, its configs and its secrets, as they are
    /// stored. A change that would make them more is refused.
    pub record_bytes: ByteSize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            apps: 5_000,
            components: 20_000,
            memory: None,
            cpu_weight: None,
            cpu_millis: None,
            requests_per_second: None,
            concurrent_requests: None,
            connections_per_second: 200,
            log_rate: ByteSize::mib(4),
            store_bytes: None,
            artifact_bytes: ByteSize::mib(4096),
            record_bytes: ByteSize::mib(1024),
        }
    }
}

impl Quotas {
    /// Whether only a control group can hold the tenant to them.
    pub fn need_a_group(&self) -> bool {
        self.memory.is_some() || self.cpu_weight.is_some() || self.cpu_millis.is_some()
    }

    /// What a tenant with them may take of a machine without end, by the names of the quotas that are absent. Of processor
    /// time each has its share beside the others, so that is not among them.
    pub fn unbounded(&self) -> Vec<&'static str> {
        let all = [
            ("memory", self.memory.is_none()),
            ("requests_per_second", self.requests_per_second.is_none()),
            ("concurrent_requests", self.concurrent_requests.is_none()),
            ("store_bytes", self.store_bytes.is_none()),
        ];
        all.into_iter().filter(|(_, absent)| *absent).map(|(name, _)| name).collect()
    }

    /// Why they cannot be enforced as they are, one sentence each.
    pub fn problems(&self) -> Vec<String> {
        let positive = [
            ("requests_per_second", self.requests_per_second),
            ("concurrent_requests", self.concurrent_requests),
            ("cpu_millis", self.cpu_millis),
            ("connections_per_second", Some(self.connections_per_second)),
        ];
        let mut problems: Vec<String> = positive
            .into_iter()
            .filter(|(_, value)| *value == Some(0))
            .map(|(name, _)| format!("quotas.{name} is 0: a tenant that is to do nothing is suspended"))
            .collect();
        if self.cpu_weight.is_some_and(|weight| !(1..=10_000).contains(&weight)) {
            problems.push("quotas.cpu_weight is 1 to 10000".to_owned());
        }
        if self.log_rate < ByteSize::kib(1) {
            problems.push(format!("quotas.log_rate is {}; it is at least 1KiB", self.log_rate));
        }
        const LEAST: ByteSize = ByteSize::mib(64);
        if self.memory.is_some_and(|memory| memory < LEAST) {
            problems.push(format!("quotas.memory is at least {LEAST}: a host needs some before it runs anything"));
        }
        if self.store_bytes.is_some_and(|most| most < ByteSize::kib(64)) {
            problems.push("quotas.store_bytes is at least 64KiB".to_owned());
        }
        problems
    }
}

/// How often something may happen: so often a second over time, and `burst` at once. The state is one number, so that it
/// fits in an atomic: the time, in nanoseconds, at which all that was granted so far is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds one unit costs, times 2^10.
    cost: u64,
    /// How far ahead of the clock the paid-for time may be, nanoseconds.
    ahead: u64,
}

/// Fractions of a nanosecond that a unit's cost is counted in.
const FRACTION: u32 = 10;

impl Rate {
    /// `per_second` units, of which `burst` may come at once; both at least 1.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let second = 1_000_000_000u64 << FRACTION;
        let cost = (second / per_second.max(1)).max(1);
        let ahead = (u128::from(cost) * u128::from(burst.max(1))) >> FRACTION;
        Self { cost, ahead: u64::try_from(ahead).unwrap_or(u64::MAX) }
    }

    /// Grants `units` at `now`, nanoseconds of a clock that never goes back, where `paid` is the state: the next state.
    ///
    /// # Errors
    /// In how many nanoseconds that many would be granted. More units at once than the burst are granted only to a full
    /// account, and paid off afterwards.
    pub fn take(&self, paid: u64, now: u64, units: u64) -> Result<u64, u64> {
        let price = u64::try_from((u128::from(self.cost) * u128::from(units)) >> FRACTION).unwrap_or(u64::MAX);
        let from = paid.max(now);
        let after = from.saturating_add(price);
        let limit = now.saturating_add(self.ahead.max(price));
        if after <= limit { Ok(after) } else { Err(after - limit) }
    }

    /// The state `paid` of another rate, at `now`, as this one would have left it at most: what was granted slowly must
    /// not keep a faster rate waiting.
    pub fn taken_over(&self, paid: u64, now: u64) -> u64 {
        paid.min(now.saturating_add(self.ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_grants_its_burst_and_then_so_many_a_second() {
        let rate = Rate::new(200, 400);
        let (mut paid, mut granted) = (0, 0);
        let second = 1_000_000_000;
        let mut run = |now: u64| {
            granted = 0;
            for _ in 0..1000 {
                if let Ok(next) = rate.take(paid, now, 1) {
                    paid = next;
                    granted += 1;
                }
            }
            granted
        };
        assert_eq!(run(5 * second), 400);
        assert_eq!(run(6 * second), 200);
        assert_eq!(run(60 * second), 400, "no more than the burst is saved up");
        let wait = rate.take(paid, 60 * second, 1).unwrap_err();
        assert_eq!(wait, second / 200);
        assert!(rate.take(paid, 60 * second + wait, 1).is_ok());
    }

    #[test]
    fn more_than_the_burst_is_granted_to_a_full_account_only() {
        let rate = Rate::new(1000, 10);
        let paid = rate.take(0, 1_000_000_000, 5000).unwrap();
        assert!(rate.take(paid, 2_000_000_000, 1).is_err());
        assert!(rate.take(paid, 7_000_000_000, 1).is_ok());
        assert!(Rate::new(u64::MAX, u64::MAX).take(0, 0, u64::MAX).is_ok());
    }

    #[test]
    fn what_has_no_end_is_named() {
        assert_eq!(Quotas::default().unbounded().len(), 4);
        let some = Quotas { memory: Some(ByteSize::mib(64)), requests_per_second: Some(1), ..Quotas::default() };
        assert_eq!(some.unbounded(), ["concurrent_requests", "store_bytes"]);
        let all = Quotas { concurrent_requests: Some(1), store_bytes: Some(ByteSize::mib(1)), ..some };
        assert_eq!(all.unbounded(), [""; 0]);
    }

    #[test]
    fn quotas_that_cannot_be_held_are_named() {
        assert_eq!(Quotas::default().problems(), [""; 0]);
        let zero = Quotas { requests_per_second: Some(0), connections_per_second: 0, ..Quotas::default() };
        assert_eq!(zero.problems().len(), 2);
        let old: TenantSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(old.quotas, Quotas::default(), "settings of before there were quotas");
    }
}
