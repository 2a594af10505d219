//! The last lines of every app on this node, and those to come. Bounded in size twice, per app and all together, and in
//! bytes a second by the quota of the tenant.

mod coming;
mod quota;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::agent::{LogLine, LogStream};
use api::node::LogQuery;
use futures::stream::{BoxStream, StreamExt};
use model::tenant::Quotas;
use model::{AppName, TenantName};
use tokio::sync::broadcast;

use crate::ingress::nanos;
use crate::otlp::Exporter;
use coming::Coming;
use quota::{Quota, rate_of};

/// Bytes kept of one app.
const PER_APP: usize = 256 << 10;
/// Bytes kept of all apps together.
const IN_ALL: usize = 64 << 20;
/// What a line costs beside its text, bytes.
const OVERHEAD: usize = 128;
/// Lines a follower may be behind before it loses some.
const BEHIND: usize = 1024;

type Key = (TenantName, AppName);

/// The log of this node. Cheap to share behind an `Arc`.
#[derive(Debug, Default)]
pub struct Logs {
    rings: Mutex<Rings>,
    exporter: Option<Arc<Exporter>>,
}

#[derive(Debug, Default)]
struct Rings {
    by_app: HashMap<Key, Ring>,
    bytes: usize,
    quotas: HashMap<TenantName, Quota>,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Arc<LogLine>>,
    bytes: usize,
    follow: Option<broadcast::Sender<Arc<LogLine>>>,
}

impl Rings {
    /// Makes room where all have too much together: whoever has more than a fair share pays, and enough that this does not
    /// happen again with the next line. Shares are of tenants first: how many apps one has cuts nobody else's log.
    fn cut(&mut self) {
        let mut tenants: HashMap<TenantName, (usize, usize)> = HashMap::new();
        for ((tenant, _), ring) in &self.by_app {
            let (apps, bytes) = tenants.entry(tenant.clone()).or_default();
            (*apps, *bytes) = (*apps + 1, *bytes + ring.bytes);
        }
        let share = IN_ALL / 2 / tenants.len().max(1);
        for ((tenant, _), ring) in &mut self.by_app {
            if let Some((apps, _)) = tenants.get(tenant).filter(|(_, bytes)| *bytes > share) {
                self.bytes -= ring.shrink(share / *apps);
            }
        }
    }
}

impl Ring {
    /// Drops the oldest lines until at most `keep` bytes are left; says how many bytes went.
    fn shrink(&mut self, keep: usize) -> usize {
        let before = self.bytes;
        while self.bytes > keep
            && let Some(line) = self.lines.pop_front()
        {
            self.bytes -= cost(&line);
        }
        before - self.bytes
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn cost(line: &LogLine) -> usize {
    line.text.len() + line.context.len() + line.instance.len() + OVERHEAD
}

impl Logs {
    /// Logs whose lines also go to a collector.
    pub fn exported(exporter: Option<Arc<Exporter>>) -> Self {
        Self { exporter, ..Self::default() }
    }

    /// What the tenant may write from now on.
    pub fn limit(&self, tenant: &TenantName, quotas: &Quotas) {
        let rings = &mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let quota = rings.quotas.entry(tenant.clone()).or_default();
        (quota.rate, quota.reading) = (rate_of(quotas, 1), rate_of(quotas, 2));
        let now = nanos(Instant::now());
        (quota.paid, quota.read) = (quota.rate.taken_over(quota.paid, now), quota.reading.taken_over(quota.read, now));
    }

    /// Lines of the tenant that were left out because it wrote more than its quota.
    pub fn dropped(&self, tenant: &TenantName) -> u64 {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.quotas.get(tenant).map_or(0, |quota| quota.dropped)
    }

    /// For whoever reads so many bytes of what a host of the tenant says: `None` where that may be now, or how long to wait
    /// before it asks again. What is read to be left out costs too.
    pub(crate) fn read(&self, tenant: &TenantName, bytes: usize) -> Option<Duration> {
        let rings = &mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        match rings.quotas.get_mut(tenant) {
            Some(quota) => quota.pause(Instant::now(), bytes),
            None => rings.quotas.entry(tenant.clone()).or_default().pause(Instant::now(), bytes),
        }
    }

    /// Adds a line of an app of `tenant`, unless the tenant writes more than it may. Where lines were left out, a line
    /// says how many.
    pub fn push(&self, tenant: &TenantName, line: LogLine) {
        let rings = &mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = match rings.quotas.get_mut(tenant) {
            Some(quota) => quota.take(Instant::now(), cost(&line)),
            None => rings.quotas.entry(tenant.clone()).or_default().take(Instant::now(), cost(&line)),
        };
        match left_out {
            None => return,
            Some(0) => {}
            Some(lines) => {
                let text =
                    format!("{lines} lines of this tenant were left out: it writes more than its quota `log_rate`");
                self.add(rings, tenant, LogLine { stream: LogStream::Platform, text, ..line.clone() });
            }
        }
        self.add(rings, tenant, line);
    }

    fn add(&self, rings: &mut Rings, tenant: &TenantName, line: LogLine) {
        let line = Arc::new(line);
        if let Some(exporter) = &self.exporter {
            exporter.line(tenant, &line);
        }
        let ring = rings.by_app.entry((tenant.clone(), line.app.clone())).or_default();
        if let Some(follow) = &ring.follow
            && follow.send(line.clone()).is_err()
        {
            // The last follower left.
            ring.follow = None;
        }
        ring.bytes += cost(&line);
        rings.bytes += cost(&line);
        ring.lines.push_back(line);
        rings.bytes -= ring.shrink(PER_APP);
        if rings.bytes > IN_ALL {
            rings.cut();
        }
    }

    /// Forgets an app that is gone; its followers end.
    pub fn forget(&self, tenant: &TenantName, app: &AppName) {
        let rings = &mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ring) = rings.by_app.remove(&(tenant.clone(), app.clone())) {
            rings.bytes -= ring.bytes;
        }
    }

    /// Forgets a tenant that is gone, and what it might write.
    pub(crate) fn forget_tenant(&self, tenant: &TenantName) {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).quotas.remove(tenant);
    }

    /// Past lines, then coming ones if asked. A follower that is too slow misses lines and is told how many, never delays anybody.
    pub fn query(&self, tenant: &TenantName, app: &AppName, query: LogQuery) -> BoxStream<'static, LogLine> {
        let rings = &mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tenant.clone(), app.clone());
        let since_ms = query.since.map_or(0, |since| since.at(now_ms()));
        let fits = {
            let LogQuery { component, instance, level, .. } = query.clone();
            move |line: &Arc<LogLine>| {
                component.as_ref().is_none_or(|name| *name == line.component)
                    && instance.as_ref().is_none_or(|name| *name == line.instance)
                    && level.is_none_or(|level| line.stream.level() >= level)
            }
        };
        let past: Vec<LogLine> = rings.by_app.get(&key).map_or_else(Vec::new, |ring| {
            let mut lines: Vec<_> = ring
                .lines
                .iter()
                .rev()
                .filter(|line| line.time_ms >= since_ms && fits(line))
                .take(query.last)
                .map(|l| l.as_ref().clone())
                .collect();
            lines.reverse();
            lines
        });
        let past = futures::stream::iter(past);
        if !query.follow {
            return past.boxed();
        }
        let ring = rings.by_app.entry(key).or_default();
        let receiver = ring.follow.get_or_insert_with(|| broadcast::channel(BEHIND).0).subscribe();
        let coming = Coming { receiver, lost: 0, next: None };
        past.chain(futures::stream::unfold(coming, move |coming| coming.next(fits.clone()))).boxed()
    }
}

#[cfg(test)]
mod tests;
