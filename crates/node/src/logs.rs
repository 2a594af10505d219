//! The last lines of every app on this node, and those to come. Bounded in size twice, per app and all together, and in
//! bytes a second by the quota of the tenant.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::agent::{LogLine, LogStream};
use api::node::LogQuery;
use futures::stream::{BoxStream, StreamExt};
use model::tenant::{Quotas, Rate};
use model::{AppName, TenantName};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::ingress::nanos;
use crate::otlp::Exporter;

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

/// What a tenant may write, and what it wrote.
#[derive(Debug)]
struct Quota {
    rate: Rate,
    /// See [`Rate`].
    paid: u64,
    /// How fast what its hosts write is read at all: what is above the quota is read to be left out, and that costs too.
    reading: Rate,
    read: u64,
    /// Lines left out since the last one that was taken.
    left_out: u64,
    /// Lines left out since the start.
    dropped: u64,
}

impl Default for Quota {
    fn default() -> Self {
        let quotas = Quotas::default();
        Self { rate: rate_of(&quotas, 1), paid: 0, reading: rate_of(&quotas, 2), read: 0, left_out: 0, dropped: 0 }
    }
}

impl Quota {
    /// How long to wait before so many bytes are read; where that is not long, they are read.
    fn pause(&mut self, now: Instant, bytes: usize) -> Option<Duration> {
        match self.reading.take(self.read, nanos(now), bytes as u64) {
            Ok(read) => {
                self.read = read;
                None
            }
            Err(wait) => Some(Duration::from_nanos(wait)),
        }
    }

    /// Whether a line of so many bytes is taken; then, how many before it were not.
    fn take(&mut self, now: Instant, bytes: usize) -> Option<u64> {
        match self.rate.take(self.paid, nanos(now), bytes as u64) {
            Ok(paid) => {
                self.paid = paid;
                Some(std::mem::take(&mut self.left_out))
            }
            Err(_) => {
                self.left_out = self.left_out.saturating_add(1);
                self.dropped = self.dropped.saturating_add(1);
                None
            }
        }
    }
}

/// The quota, so many times over.
fn rate_of(quotas: &Quotas, times: u64) -> Rate {
    let rate = quotas.log_rate.0.saturating_mul(times);
    Rate::new(rate, rate.saturating_mul(10))
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

/// Lines as they come, for one follower.
struct Coming {
    receiver: broadcast::Receiver<Arc<LogLine>>,
    /// Lines it missed since the last one.
    lost: u64,
    /// The line after those that it missed, while it is told of them.
    next: Option<Arc<LogLine>>,
}

impl Coming {
    /// The next line that fits; where some were missed before it, one that says so.
    async fn next(mut self, fits: impl Fn(&Arc<LogLine>) -> bool) -> Option<(LogLine, Self)> {
        if let Some(line) = self.next.take() {
            return Some((line.as_ref().clone(), self));
        }
        loop {
            match self.receiver.recv().await {
                Ok(line) if !fits(&line) => {}
                Ok(line) if self.lost == 0 => return Some((line.as_ref().clone(), self)),
                Ok(line) => {
                    let text = format!("{} lines were lost here: they came faster than they were read", self.lost);
                    let told = LogLine { stream: LogStream::Platform, text, ..line.as_ref().clone() };
                    (self.lost, self.next) = (0, Some(line));
                    return Some((told, self));
                }
                Err(RecvError::Lagged(lines)) => self.lost = self.lost.saturating_add(lines),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::agent::LogLevel;
    use api::node::Since;
    use model::Revision;
    use model::unit::ByteSize;

    fn line(app: &str, component: &str, text: String) -> LogLine {
        LogLine {
            time_ms: 0,
            app: app.parse().unwrap(),
            component: component.parse().unwrap(),
            revision: Revision(1),
            shard: 0,
            instance: String::new(),
            stream: LogStream::Stdout,
            context: String::new(),
            text,
        }
    }

    fn texts(logs: &Logs, tenant: &str, app: &str, query: LogQuery) -> Vec<String> {
        let stream = logs.query(&tenant.parse().unwrap(), &app.parse().unwrap(), query);
        futures::executor::block_on(stream.map(|line| line.text).collect())
    }

    #[test]
    fn the_last_lines_of_one_app_and_component() {
        let logs = Logs::default();
        let tenant = "t".parse().unwrap();
        for n in 0..10 {
            logs.push(&tenant, line("a", if n % 2 == 0 { "even" } else { "odd" }, n.to_string()));
        }
        logs.push(&tenant, line("b", "even", "other".into()));
        let last = |n, component: Option<&str>| LogQuery {
            last: n,
            component: component.map(|name| name.parse().unwrap()),
            ..LogQuery::default()
        };
        assert_eq!(texts(&logs, "t", "a", last(3, None)), ["7", "8", "9"]);
        assert_eq!(texts(&logs, "t", "a", last(2, Some("even"))), ["6", "8"]);
        assert!(texts(&logs, "u", "a", last(3, None)).is_empty());
        logs.forget(&tenant, &"a".parse().unwrap());
        assert!(texts(&logs, "t", "a", last(3, None)).is_empty());
    }

    #[test]
    fn a_quota_that_is_raised_is_felt_at_once() {
        let (logs, tenant) = (Logs::default(), "t".parse().unwrap());
        let limit = |log_rate| logs.limit(&tenant, &Quotas { log_rate, ..Quotas::default() });
        limit(ByteSize::kib(1));
        assert_eq!(logs.read(&tenant, 400 << 10), None);
        assert!(logs.read(&tenant, 1).is_some_and(|wait| wait > Duration::from_secs(100)));
        limit(ByteSize::mib(1));
        assert!(logs.read(&tenant, 1).is_none_or(|wait| wait < Duration::from_secs(1)));
    }

    #[test]
    fn lines_are_chosen_by_level_age_and_instance() {
        let logs = Logs::default();
        let tenant = "t".parse().unwrap();
        let now = now_ms();
        for (stream, age_ms, instance, text) in [
            (LogStream::Error, 3_600_000, "0-0-1", "old"),
            (LogStream::Debug, 0, "0-0-1", "debug"),
            (LogStream::Stderr, 0, "0-0-2", "err"),
            (LogStream::Platform, 0, "", "trap"),
            (LogStream::Critical, 0, "0-0-2", "worst"),
        ] {
            let line = line("a", "c", text.into());
            logs.push(&tenant, LogLine { stream, time_ms: now - age_ms, instance: instance.into(), ..line });
        }
        let query = |level, since, instance: Option<&str>| {
            let instance = instance.map(str::to_owned);
            texts(&logs, "t", "a", LogQuery { last: 10, level, since, instance, ..LogQuery::default() })
        };
        assert_eq!(query(Some(LogLevel::Trace), None, None).len(), 5);
        assert_eq!(query(Some(LogLevel::Info), None, None), ["old", "err", "trap", "worst"]);
        assert_eq!(query(Some(LogLevel::Warn), None, None), ["old", "trap", "worst"]);
        assert_eq!(query(Some(LogLevel::Error), Some(Since::Ago("1m".parse().unwrap())), None), ["worst"]);
        assert_eq!(query(None, Some(Since::At(now)), None), ["debug", "err", "trap", "worst"]);
        assert_eq!(query(None, None, Some("0-0-2")), ["err", "worst"]);
    }

    #[test]
    fn memory_is_bounded_per_app_and_in_all() {
        let logs = Logs::default();
        let tenant = "t".parse().unwrap();
        for n in 0..2000 {
            logs.push(&tenant, line("loud", "c", format!("{n:0>1000}")));
        }
        {
            let rings = logs.rings.lock().unwrap();
            let ring = rings.by_app.values().next().unwrap();
            assert!(ring.bytes <= PER_APP && ring.bytes == rings.bytes && ring.lines.len() > 200);
        }
        let free = Quotas { log_rate: model::unit::ByteSize::mib(1 << 20), ..Quotas::default() };
        logs.limit(&tenant, &free);
        for app in 0..400 {
            for _ in 0..250 {
                logs.push(&tenant, line(&format!("a{app}"), "c", "x".repeat(1000)));
            }
        }
        let rings = logs.rings.lock().unwrap();
        let sum: usize = rings.by_app.values().map(|ring| ring.lines.iter().map(|l| cost(l)).sum::<usize>()).sum();
        assert!(rings.bytes <= IN_ALL && sum == rings.bytes, "{} {sum}", rings.bytes);
    }

    #[test]
    fn the_apps_of_one_tenant_however_many_cut_the_kept_log_of_no_other() {
        let (logs, loud, quiet): (_, TenantName, TenantName) =
            (Logs::default(), "loud".parse().unwrap(), "quiet".parse().unwrap());
        logs.limit(&loud, &Quotas { log_rate: model::unit::ByteSize::mib(1 << 20), ..Quotas::default() });
        let kept = |logs: &Logs| texts(logs, "quiet", "a", LogQuery { last: 1000, ..LogQuery::default() }).len();
        for n in 0..200 {
            logs.push(&quiet, line("a", "c", format!("{n:0>1000}")));
        }
        // Twice what all may have together, of 5,000 apps that each have next to nothing.
        for _ in 0..24 {
            for app in 0..5000 {
                logs.push(&loud, line(&format!("a{app}"), "c", "x".repeat(1000)));
            }
        }
        assert_eq!(kept(&logs), 200);
        let rings = logs.rings.lock().unwrap();
        assert!(rings.bytes <= IN_ALL, "{}", rings.bytes);
        let of_loud: Vec<usize> = rings.by_app.values().map(|ring| ring.lines.len()).collect();
        assert!(of_loud.iter().filter(|lines| **lines > 0).count() > 4000, "its own apps share what is its own");
    }

    #[test]
    fn a_tenant_writes_no_more_than_its_quota_and_is_told() {
        let logs = Logs::default();
        let (loud, quiet): (TenantName, TenantName) = ("loud".parse().unwrap(), "quiet".parse().unwrap());
        logs.limit(&loud, &Quotas { log_rate: model::unit::ByteSize::kib(1), ..Quotas::default() });
        for n in 0..1000 {
            logs.push(&loud, line("a", "c", format!("{n:0>896}")));
        }
        logs.push(&quiet, line("a", "c", "heard".into()));
        // Ten seconds' worth, and what came in while this ran.
        let taken = texts(&logs, "loud", "a", LogQuery { last: 1000, ..LogQuery::default() }).len();
        assert!((10..20).contains(&taken), "{taken}");
        assert_eq!(logs.dropped(&loud) as usize + taken, 1000);
        assert_eq!(texts(&logs, "quiet", "a", LogQuery { last: 9, ..LogQuery::default() }), ["heard"]);
        logs.limit(&loud, &Quotas::default());
        logs.rings.lock().unwrap().quotas.get_mut(&loud).unwrap().paid = 0;
        logs.push(&loud, line("a", "c", "again".into()));
        let last = texts(&logs, "loud", "a", LogQuery { last: 2, ..LogQuery::default() });
        assert!(last[0].contains("lines of this tenant were left out") && last[1] == "again", "{last:?}");
    }

    #[tokio::test]
    async fn a_follower_gets_past_and_coming_lines() {
        let logs = Logs::default();
        let tenant: TenantName = "t".parse().unwrap();
        logs.push(&tenant, line("a", "c", "past".into()));
        let query = LogQuery { last: 10, follow: true, level: Some(LogLevel::Info), ..LogQuery::default() };
        let mut stream = logs.query(&tenant, &"a".parse().unwrap(), query);
        logs.push(&tenant, LogLine { stream: LogStream::Debug, ..line("a", "c", "too little".into()) });
        logs.push(&tenant, line("a", "c", "coming".into()));
        assert_eq!(stream.next().await.unwrap().text, "past");
        assert_eq!(stream.next().await.unwrap().text, "coming");
        logs.forget(&tenant, &"a".parse().unwrap());
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_follower_that_is_too_slow_is_told_how_many_lines_it_missed() {
        let logs = Logs::default();
        let tenant: TenantName = "t".parse().unwrap();
        let query = LogQuery { follow: true, component: Some("c".parse().unwrap()), ..LogQuery::default() };
        let stream = logs.query(&tenant, &"a".parse().unwrap(), query);
        for n in 0..BEHIND + 5 {
            logs.push(&tenant, line("a", "c", n.to_string()));
        }
        // One of another component counts among those that were lost, and takes no part beside that.
        logs.push(&tenant, line("a", "other", "of another component".into()));
        logs.forget(&tenant, &"a".parse().unwrap());
        let seen: Vec<LogLine> = stream.collect().await;
        assert_eq!(seen[0].stream, LogStream::Platform);
        assert_eq!(seen[0].text, "6 lines were lost here: they came faster than they were read");
        let texts: Vec<&str> = seen.iter().skip(1).map(|line| line.text.as_str()).collect();
        assert_eq!((texts[0], texts.len(), texts.last().copied()), ("6", BEHIND - 1, Some("1028")));
    }

    #[test]
    fn a_host_is_read_twice_as_fast_as_its_tenant_may_write_and_no_faster() {
        let (logs, tenant): (_, TenantName) = (Logs::default(), "t".parse().unwrap());
        let quotas = Quotas { log_rate: model::unit::ByteSize(10_000), ..Quotas::default() };
        logs.limit(&tenant, &quotas);
        let paused: Vec<_> = (0..300).filter_map(|_| logs.read(&tenant, 1000)).collect();
        // 200,000 bytes are read at once, and then 20,000 in a second.
        assert!((80..=110).contains(&paused.len()), "{}", paused.len());
        let longest = paused.iter().max().unwrap();
        assert!((Duration::from_millis(20)..Duration::from_millis(60)).contains(longest), "{longest:?}");
        let other: TenantName = "other".parse().unwrap();
        assert_eq!(logs.read(&other, 1000), None);
    }
}
