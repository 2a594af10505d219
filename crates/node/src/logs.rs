//! The last lines of every app on this node, and those to come. Bounded twice: per app, and all together.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use api::agent::LogLine;
use api::node::LogQuery;
use futures::stream::{BoxStream, StreamExt};
use model::{AppName, TenantName};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

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
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Arc<LogLine>>,
    bytes: usize,
    follow: Option<broadcast::Sender<Arc<LogLine>>>,
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

    /// Adds a line of an app of `tenant`.
    pub fn push(&self, tenant: &TenantName, line: LogLine) {
        let rings = &mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner);
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
            // Those with more than a fair share pay, and enough that this does not happen again with the next line.
            let share = IN_ALL / 2 / rings.by_app.len().max(1);
            let freed: usize = rings.by_app.values_mut().map(|ring| ring.shrink(share)).sum();
            rings.bytes -= freed;
        }
    }

    /// Forgets an app that is gone; its followers end.
    pub fn forget(&self, tenant: &TenantName, app: &AppName) {
        let rings = &mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ring) = rings.by_app.remove(&(tenant.clone(), app.clone())) {
            rings.bytes -= ring.bytes;
        }
    }

    /// Past lines, then coming ones if asked. A follower that is too slow misses lines, never delays anybody.
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
        let coming = futures::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(line) => return Some((line, receiver)),
                    Err(RecvError::Lagged(lines)) => tracing::debug!(lines, "a follower of a log was too slow"),
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        let coming = coming.filter(move |line| std::future::ready(fits(line))).map(|line| line.as_ref().clone());
        past.chain(coming).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::agent::{LogLevel, LogStream};
    use api::node::Since;
    use model::Revision;

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
        for app in 0..400 {
            for _ in 0..250 {
                logs.push(&tenant, line(&format!("a{app}"), "c", "x".repeat(1000)));
            }
        }
        let rings = logs.rings.lock().unwrap();
        let sum: usize = rings.by_app.values().map(|ring| ring.lines.iter().map(|l| cost(l)).sum::<usize>()).sum();
        assert!(rings.bytes <= IN_ALL && sum == rings.bytes, "{} {sum}", rings.bytes);
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
}
