//! What `sidereal top` shows: rates from two readings of counters, quantiles from a histogram, and the table. Pure.

use std::collections::BTreeMap;

use anstyle::{AnsiColor, Style};
use api::metrics::{ComponentCounts, HostLoad, LinkCounts, LinkKey, TenantMetrics};
use model::{AppName, ComponentName, TenantName};
use serde::Serialize;

use crate::output::table;

/// What went on between two readings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Top {
    /// The tenant.
    pub tenant: TenantName,
    /// When the second reading was taken, milliseconds since 1970.
    pub time_ms: u64,
    /// Between the readings, milliseconds.
    pub over_ms: u64,
    /// The host processes.
    pub hosts: Vec<HostLoad>,
    /// Busiest first.
    pub components: Vec<ComponentRow>,
    /// Busiest first.
    pub links: Vec<LinkRow>,
}

/// One component.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComponentRow {
    /// Whose.
    pub app: AppName,
    /// Which.
    pub component: ComponentName,
    /// Calls ended, a second.
    pub per_second: f64,
    /// Calls that ended in a trap or a limit, a second.
    pub failed_per_second: f64,
    /// Calls refused by the concurrency limit, a second.
    pub refused_per_second: f64,
    /// CPU time a second of time, percent: 100 is one processor.
    pub cpu_percent: f64,
    /// The counters themselves.
    #[serde(flatten)]
    pub counts: ComponentCounts,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkRow {
    /// Which.
    #[serde(flatten)]
    pub link: LinkKey,
    /// Calls ended, a second.
    pub per_second: f64,
    /// Of those, how many failed, by kind; kinds without one are left out.
    pub errors_per_second: BTreeMap<&'static str, f64>,
    /// Half of the calls took at most so long, microseconds; absent without calls. Exact to a factor of two.
    pub p50_us: Option<f64>,
    /// 99 of 100 did.
    pub p99_us: Option<f64>,
    /// The counters themselves.
    #[serde(flatten)]
    pub counts: LinkCounts,
}

impl Top {
    /// What went on from `before` to `now`. What was not there before began at 0.
    pub fn between(before: &TenantMetrics, now: &TenantMetrics) -> Self {
        let over_ms = now.time_ms.saturating_sub(before.time_ms);
        let rate = |now: u64, before: u64| match over_ms {
            0 => 0.0,
            ms => now.saturating_sub(before) as f64 * 1000.0 / ms as f64,
        };
        let old: BTreeMap<_, _> = before.components.iter().map(|c| ((&c.app, &c.component), c.counts)).collect();
        let mut components: Vec<ComponentRow> = now
            .components
            .iter()
            .map(|c| {
                let (new, old) = (c.counts, old.get(&(&c.app, &c.component)).copied().unwrap_or_default());
                ComponentRow {
                    app: c.app.clone(),
                    component: c.component.clone(),
                    per_second: rate(new.calls, old.calls),
                    failed_per_second: rate(new.failed, old.failed),
                    refused_per_second: rate(new.refused, old.refused),
                    cpu_percent: rate(new.cpu_us, old.cpu_us) / 10_000.0,
                    counts: new,
                }
            })
            .collect();
        let old: BTreeMap<_, _> = before.links.iter().map(|l| (&l.link, &l.counts)).collect();
        let none = LinkCounts::default();
        let mut links: Vec<LinkRow> = now
            .links
            .iter()
            .map(|l| {
                let (new, old) = (&l.counts, old.get(&l.link).copied().unwrap_or(&none));
                let kinds = new.errors.by_kind().into_iter().zip(old.errors.by_kind());
                let errors =
                    kinds.map(|((kind, new), (_, old))| (kind, rate(new, old))).filter(|(_, rate)| *rate > 0.0);
                let was = old.took.iter().copied().chain(std::iter::repeat(0));
                let took: Vec<u64> = new.took.iter().zip(was).map(|(new, old)| new.saturating_sub(old)).collect();
                LinkRow {
                    link: l.link.clone(),
                    per_second: rate(new.calls, old.calls),
                    errors_per_second: errors.collect(),
                    p50_us: quantile(&took, 0.5),
                    p99_us: quantile(&took, 0.99),
                    counts: new.clone(),
                }
            })
            .collect();
        // Sorting is stable: where nothing goes on the order is that of the names.
        components.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
        links.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
        Self { tenant: now.tenant.clone(), time_ms: now.time_ms, over_ms, hosts: now.hosts.clone(), components, links }
    }

    /// For people: at most `rows` lines where that is given, and what is left out is said.
    pub fn text(&self, rows: Option<usize>) -> String {
        let bold = Style::new().bold();
        let (memory, in_flight) =
            self.hosts.iter().fold((0, 0), |(rss, calls), host| (rss + host.rss, calls + host.in_flight));
        let hosts = match self.hosts.len() {
            1 => "1 host".to_owned(),
            n => format!("{n} hosts"),
        };
        let mut text = format!(
            "{bold}{}{bold:#}  {hosts}, {} MiB, {in_flight} in flight, over {:.1} s\n\n",
            self.tenant,
            memory >> 20,
            self.over_ms as f64 / 1000.0
        );
        if self.components.is_empty() {
            text.push_str("nothing runs");
            return text;
        }
        // Title, two headings, two blank lines, and a remark for each table.
        let room = rows.map_or(usize::MAX, |rows| rows.saturating_sub(7));
        let for_links = self.links.len().min((room / 2).max(room.saturating_sub(self.components.len())));
        let for_components = self.components.len().min(room.saturating_sub(for_links));
        let header = ["COMPONENT", "CALLS/S", "FAILED/S", "REFUSED/S", "IN FLIGHT", "CPU"];
        let rows = self.components.iter().take(for_components);
        text.push_str(&marked(&header, rows.map(|row| (row.cells(), row.is_bad())).collect()));
        text.push_str(&more(self.components.len() - for_components));
        if !self.links.is_empty() {
            text.push_str("\n\n");
            let header = ["LINK", "CALLS/S", "P50", "P99", "IN FLIGHT", "ERRORS/S"];
            let rows = self.links.iter().take(for_links);
            text.push_str(&marked(&header, rows.map(|row| (row.cells(), row.is_bad())).collect()));
            text.push_str(&more(self.links.len() - for_links));
        }
        text
    }
}

/// A table whose bad rows are red.
fn marked(header: &[&str], rows: Vec<(Vec<String>, bool)>) -> String {
    let red = Style::new().fg_color(Some(AnsiColor::Red.into()));
    let (cells, bad): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let lines = table(header, cells);
    let paint = |(line, bad): (&str, bool)| if bad { format!("{red}{line}{red:#}") } else { line.to_owned() };
    let painted = lines.lines().zip(std::iter::once(false).chain(bad)).map(paint);
    painted.collect::<Vec<_>>().join("\n")
}

fn more(hidden: usize) -> String {
    if hidden == 0 { String::new() } else { format!("\n… and {hidden} more") }
}

impl ComponentRow {
    fn is_bad(&self) -> bool {
        self.failed_per_second > 0.0 || self.refused_per_second > 0.0
    }

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{}/{}", self.app, self.component),
            number(self.per_second),
            number(self.failed_per_second),
            number(self.refused_per_second),
            self.counts.in_flight.to_string(),
            format!("{:.1} %", self.cpu_percent),
        ]
    }
}

impl LinkRow {
    fn is_bad(&self) -> bool {
        !self.errors_per_second.is_empty()
    }

    fn cells(&self) -> Vec<String> {
        let link = &self.link;
        let errors: Vec<String> =
            self.errors_per_second.iter().map(|(kind, rate)| format!("{kind} {}", number(*rate))).collect();
        vec![
            format!("{}/{} {} {} -> {}", link.app, link.component, link.contract, link.label, link.provider),
            number(self.per_second),
            duration(self.p50_us),
            duration(self.p99_us),
            self.counts.in_flight.to_string(),
            if errors.is_empty() { "0".to_owned() } else { errors.join(", ") },
        ]
    }
}

fn number(rate: f64) -> String {
    if rate > 0.0 && rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn duration(us: Option<f64>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us) if us < 1000.0 => format!("{us:.0} µs"),
        Some(us) if us < 1_000_000.0 => format!("{:.1} ms", us / 1000.0),
        Some(us) => format!("{:.1} s", us / 1_000_000.0),
    }
}

/// The `q`-quantile of a histogram whose entry `n` counts what is below 2^n and not below 2^(n-1); evenly spread within
/// an entry.
pub fn quantile(took: &[u64], q: f64) -> Option<f64> {
    let all: u64 = took.iter().sum();
    if all == 0 {
        return None;
    }
    let wanted = q * all as f64;
    let mut below = 0.0;
    for (n, count) in took.iter().enumerate() {
        let count = *count as f64;
        if count > 0.0 && below + count >= wanted {
            let n = i32::try_from(n).unwrap_or(i32::MAX);
            let (from, to) = (if n == 0 { 0.0 } else { 2f64.powi(n - 1) }, 2f64.powi(n));
            return Some(from + (to - from) * ((wanted - below) / count).clamp(0.0, 1.0));
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use api::metrics::{ComponentMetrics, LinkErrors, LinkMetrics};

    use super::*;

    fn reading(time_ms: u64, calls: u64, timed_out: u64, took: &[u64]) -> TenantMetrics {
        let link = LinkKey {
            app: "shop".parse().unwrap(),
            component: "main".parse().unwrap(),
            contract: "wasi:keyvalue".parse().unwrap(),
            label: "default".parse().unwrap(),
            provider: "redis".parse().unwrap(),
        };
        let errors = LinkErrors { timed_out, ..LinkErrors::default() };
        TenantMetrics {
            tenant: "local".parse().unwrap(),
            time_ms,
            hosts: vec![HostLoad { shard: 0, in_flight: 2, rss: 64 << 20 }],
            components: vec![ComponentMetrics {
                app: "shop".parse().unwrap(),
                component: "main".parse().unwrap(),
                counts: ComponentCounts { calls, cpu_us: calls * 1000, ..ComponentCounts::default() },
            }],
            links: vec![LinkMetrics {
                link,
                counts: LinkCounts { calls, errors, took: took.to_vec(), in_flight: 1, took_us: 0 },
            }],
            kept: None,
        }
    }

    #[test]
    fn rates_are_those_between_the_readings() {
        let top = Top::between(&reading(1000, 100, 5, &[0, 100]), &reading(3000, 500, 6, &[0, 100, 0, 400]));
        assert_eq!((top.over_ms, top.components[0].per_second, top.components[0].cpu_percent), (2000, 200.0, 20.0));
        let link = &top.links[0];
        assert_eq!((link.per_second, link.errors_per_second.get("timed-out")), (200.0, Some(&0.5)));
        assert_eq!(link.errors_per_second.len(), 1);
        // Only what is new counts: calls of 4 to 8 µs.
        assert_eq!((link.p50_us, link.p99_us), (Some(6.0), Some(7.96)));
        let text = anstream::adapter::strip_str(&top.text(None)).to_string();
        assert!(text.contains("1 host, 64 MiB, 2 in flight, over 2.0 s"), "{text}");
        assert!(text.contains("shop/main wasi:keyvalue default -> redis  200      6 µs"), "{text}");
        assert!(text.contains("timed-out 0.5"), "{text}");
    }

    #[test]
    fn nothing_new_is_no_rate_and_no_quantile() {
        let same = reading(1000, 7, 0, &[7]);
        let top = Top::between(&same, &same);
        assert_eq!((top.links[0].per_second, top.links[0].p50_us), (0.0, None));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_what_they_are() {
        assert_eq!(quantile(&[10], 0.99), Some(0.99));
        assert_eq!(quantile(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10], 1.0), Some(1024.0));
        let mixed = [0, 50, 0, 0, 49, 0, 0, 0, 0, 0, 1];
        assert_eq!(quantile(&mixed, 0.5), Some(2.0));
        assert_eq!(quantile(&mixed, 0.99), Some(16.0));
    }

    #[test]
    fn a_small_terminal_gets_what_fits_and_is_told() {
        let mut now = reading(2000, 1, 0, &[1]);
        let one = now.components[0].clone();
        now.components =
            (0..50).map(|n| ComponentMetrics { component: format!("c{n}").parse().unwrap(), ..one.clone() }).collect();
        let text = Top::between(&reading(1000, 0, 0, &[]), &now).text(Some(20));
        assert!(text.lines().count() <= 20, "{text}");
        assert!(text.contains("… and 38 more"), "{text}");
    }
}
