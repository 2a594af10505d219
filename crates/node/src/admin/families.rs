//! Facts as Prometheus metric families. Pure; the names and what they mean are in `docs/observability.md`.

use std::collections::BTreeMap;

use api::metrics::{ComponentCounts, Counts as _, LinkCounts};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::facts::{Facts, Tenant};
use super::slots::{COMPONENTS, LINKS, OTHER, Slots, TENANTS};
use crate::ingress::CLASSES;

/// Bounds that are told of a histogram whose entry `n` counts what took less than 2^n microseconds: 64 µs to 17 s.
const BOUNDS: std::ops::RangeInclusive<usize> = 6..=24;

type Labels<'a> = &'a [(&'a str, &'a str)];

/// The families while they are made, in the order they were begun.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn begin(&mut self, name: &str, help: &str, kind: MetricType) {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.0.push(family);
    }

    fn counters(&mut self, name: &str, help: &str) {
        self.begin(name, help, MetricType::COUNTER);
    }

    fn gauges(&mut self, name: &str, help: &str) {
        self.begin(name, help, MetricType::GAUGE);
    }

    /// One more sample of the family begun last.
    fn add(&mut self, labels: Labels<'_>, value: f64) {
        let Some(family) = self.0.last_mut() else { return };
        let mut metric = labelled(labels);
        if family.get_field_type() == MetricType::GAUGE {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        } else {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        family.mut_metric().push(metric);
    }

    fn one(&mut self, name: &str, help: &str, kind: MetricType, value: f64) {
        self.begin(name, help, kind);
        self.add(&[], value);
    }

    /// `took` as [`BOUNDS`] says, `sum_us` in microseconds.
    fn histogram(&mut self, labels: Labels<'_>, took: &[u64], sum_us: u64) {
        let Some(family) = self.0.last_mut() else { return };
        let mut histogram = Histogram::default();
        let below = |n: usize| took.iter().take(n + 1).sum::<u64>();
        let bound = |n: usize| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound((1u64 << n) as f64 / 1e6);
            bucket.set_cumulative_count(below(n));
            bucket
        };
        histogram.set_bucket(BOUNDS.step_by(2).map(bound).collect());
        histogram.set_sample_count(took.iter().sum());
        histogram.set_sample_sum(sum_us as f64 / 1e6);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        family.mut_metric().push(metric);
    }
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

/// Everything, in families that have at least one sample.
pub(super) fn families(facts: &Facts, slots: &mut Slots) -> Vec<MetricFamily> {
    let mut all = Families::default();
    node(facts, &mut all);
    ingress(facts, &mut all);
    let names: Vec<String> = facts.tenants.iter().map(|tenant| tenant.name.to_string()).collect();
    slots.tenants.assign(names.iter(), TENANTS);
    hosts(&facts.tenants, slots, &mut all);
    components(&facts.tenants, slots, &mut all);
    links(&facts.tenants, slots, &mut all);
    all.0.retain(|family| !family.get_metric().is_empty());
    all.0
}

fn node(facts: &Facts, all: &mut Families) {
    use MetricType::{COUNTER, GAUGE};
    all.gauges("sidereal_build_info", "The version that runs; always 1.");
    all.add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let process = &facts.process;
    let cpu = "User and system CPU time of the node's process, seconds; hosts are processes of their own.";
    all.one("process_cpu_seconds_total", cpu, COUNTER, process.cpu_seconds);
    let memory = "Resident memory of the node's process, bytes.";
    all.one("process_resident_memory_bytes", memory, GAUGE, process.resident as f64);
    all.one("process_open_fds", "Open files of the node's process.", GAUGE, process.open_files as f64);
    all.one("process_start_time_seconds", "When the node started, seconds since 1970.", GAUGE, facts.since);
    all.one("sidereal_apps_serving", "Apps that serve on this node.", GAUGE, facts.serving as f64);
    let help = "Spans and lines for the collector: `taken`, `overflown` (lost in a full queue), `failed` (not taken).";
    all.counters("sidereal_otlp_items_total", help);
    for (outcome, count) in &facts.exported {
        all.add(&[("outcome", outcome)], *count as f64);
    }
    all.gauges("sidereal_store_size_bytes", "Size of a database file: state, or the embedded data.");
    for (name, size) in &facts.files {
        all.add(&[("store", name)], *size as f64);
    }
}

fn ingress(facts: &Facts, all: &mut Families) {
    let requests = &facts.requests;
    let help = "Requests that ended, by status class; `aborted` has no status the client could have seen whole.";
    all.counters("sidereal_ingress_requests_total", help);
    for (class, count) in CLASSES.iter().zip(&requests.ended) {
        all.add(&[("class", class)], *count as f64);
    }
    let help = "From the head of a request to the end of its answer.";
    all.begin("sidereal_ingress_request_duration_seconds", help, MetricType::HISTOGRAM);
    all.histogram(&[], &requests.took, requests.took_us);
    let help = "Requests under way.";
    all.one("sidereal_ingress_requests_in_flight", help, MetricType::GAUGE, requests.in_flight as f64);
}

fn hosts(tenants: &[Tenant], slots: &Slots, all: &mut Families) {
    #[derive(Default)]
    struct Sum {
        up: f64,
        down: f64,
        restarts: u64,
        rss: u64,
        in_flight: u64,
        dials: BTreeMap<&'static str, u64>,
        open: u64,
        refused: BTreeMap<&'static str, u64>,
    }
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for tenant in tenants {
        let own = slots.tenants.has(&tenant.name.to_string());
        let sum = sums.entry(if own { tenant.name.as_str() } else { OTHER }).or_default();
        for up in &tenant.hosts {
            if *up { sum.up += 1.0 } else { sum.down += 1.0 }
        }
        sum.restarts += tenant.restarts;
        for (outcome, count) in tenant.dials {
            *sum.dials.entry(outcome).or_default() += count;
        }
        sum.open += tenant.open as u64;
        for (what, count) in tenant.refused {
            *sum.refused.entry(what).or_default() += count;
        }
        for host in &tenant.counted.hosts {
            sum.rss += host.rss;
            sum.in_flight += u64::from(host.in_flight);
        }
    }
    all.gauges("sidereal_hosts", "Host processes of a tenant, by whether they answer (`up`) or are being started.");
    for (tenant, sum) in &sums {
        all.add(&[("tenant", tenant), ("state", "up")], sum.up);
        all.add(&[("tenant", tenant), ("state", "down")], sum.down);
    }
    all.counters("sidereal_host_restarts_total", "Host processes of a tenant that ended and were started again.");
    sums.iter().for_each(|(tenant, sum)| all.add(&[("tenant", tenant)], sum.restarts as f64));
    all.gauges("sidereal_host_resident_memory_bytes", "Resident memory of a tenant's host processes.");
    sums.iter().for_each(|(tenant, sum)| all.add(&[("tenant", tenant)], sum.rss as f64));
    all.gauges("sidereal_host_calls_in_flight", "Calls that run in a tenant's host processes.");
    sums.iter().for_each(|(tenant, sum)| all.add(&[("tenant", tenant)], sum.in_flight as f64));
    let help = "Outgoing connections of a tenant: `denied` by policy, `limited` by rate or number, `failed` to resolve or connect, `revoked` while open.";
    all.counters("sidereal_egress_connections_total", help);
    for (tenant, sum) in &sums {
        sum.dials.iter().for_each(|(outcome, n)| all.add(&[("tenant", tenant), ("outcome", outcome)], *n as f64));
    }
    all.gauges("sidereal_egress_connections_open", "Outgoing connections of a tenant that are open, TCP and UDP.");
    sums.iter().for_each(|(tenant, sum)| all.add(&[("tenant", tenant)], sum.open as f64));
    all.counters(
        "sidereal_quota_refusals_total",
        "What a tenant's quotas refused: requests at the ingress, log lines, writes to what is kept here.",
    );
    for (tenant, sum) in &sums {
        sum.refused.iter().for_each(|(what, n)| all.add(&[("tenant", tenant), ("what", what)], *n as f64));
    }
}

fn components(tenants: &[Tenant], slots: &mut Slots, all: &mut Families) {
    let counted: Vec<([String; 3], ComponentCounts)> = tenants
        .iter()
        .flat_map(|t| {
            t.counted.components.iter().map(|c| ([text(&t.name), text(&c.app), text(&c.component)], c.counts))
        })
        .collect();
    slots.components.assign(counted.iter().map(|(key, _)| key), COMPONENTS);
    let mut sums: BTreeMap<[&str; 3], ComponentCounts> = BTreeMap::new();
    for (key, counts) in &counted {
        let own = slots.components.has(key);
        let sum = sums.entry(if own { key.each_ref().map(String::as_str) } else { [OTHER; 3] }).or_default();
        sum.add(counts);
        sum.in_flight += counts.in_flight;
    }
    let mut tell = |name: &str, help: &str, value: fn(&ComponentCounts) -> f64| {
        let gauge = name.ends_with("in_flight");
        if gauge {
            all.gauges(name, help)
        } else {
            all.counters(name, help)
        }
        for ([tenant, app, component], counts) in &sums {
            all.add(&[("tenant", tenant), ("app", app), ("component", component)], value(counts));
        }
    };
    tell("sidereal_component_calls_total", "Calls of a component that ended.", |c| c.calls as f64);
    tell("sidereal_component_failures_total", "Of those, how many ended in a trap or a limit.", |c| c.failed as f64);
    let help = "Calls refused because the component had all it may have at once.";
    tell("sidereal_component_refused_total", help, |c| c.refused as f64);
    tell("sidereal_component_cpu_seconds_total", "CPU time of a component.", |c| c.cpu_us as f64 / 1e6);
    let help = "Bytes a component logged beyond its limits.";
    tell("sidereal_component_log_dropped_bytes_total", help, |c| c.log_dropped as f64);
    tell("sidereal_component_calls_in_flight", "Calls of a component that run.", |c| f64::from(c.in_flight));
}

fn links(tenants: &[Tenant], slots: &mut Slots, all: &mut Families) {
    let key = |tenant: &Tenant, l: &api::metrics::LinkKey| {
        [text(&tenant.name), text(&l.app), text(&l.component), text(&l.contract), text(&l.label), text(&l.provider)]
    };
    let counted: Vec<([String; 6], &LinkCounts)> = tenants
        .iter()
        .flat_map(|tenant| tenant.counted.links.iter().map(move |link| (key(tenant, &link.link), &link.counts)))
        .collect();
    slots.links.assign(counted.iter().map(|(key, _)| key), LINKS);
    let mut sums: BTreeMap<[&str; 6], LinkCounts> = BTreeMap::new();
    for (key, counts) in &counted {
        let own = slots.links.has(key);
        let sum = sums.entry(if own { key.each_ref().map(String::as_str) } else { [OTHER; 6] }).or_default();
        sum.add(counts);
        sum.in_flight += counts.in_flight;
    }
    all.counters("sidereal_link_calls_total", "Calls over a link that ended.");
    sums.iter().for_each(|(key, sum)| all.add(&link_labels(key), sum.calls as f64));
    let help = "Calls over a link that failed; `cancelled`: the component's own call ended first.";
    all.counters("sidereal_link_errors_total", help);
    for (key, sum) in &sums {
        for (kind, count) in sum.errors.by_kind() {
            all.add(&[link_labels(key).as_slice(), &[("kind", kind)]].concat(), count as f64);
        }
    }
    all.begin("sidereal_link_call_duration_seconds", "How long calls over a link took.", MetricType::HISTOGRAM);
    sums.iter().for_each(|(key, sum)| all.histogram(&link_labels(key), &sum.took, sum.took_us));
    all.gauges("sidereal_link_calls_in_flight", "Calls over a link that wait for their answer.");
    sums.iter().for_each(|(key, sum)| all.add(&link_labels(key), f64::from(sum.in_flight)));
}

fn link_labels<'a>(key: &[&'a str; 6]) -> [(&'static str, &'a str); 6] {
    let [tenant, app, component, contract, label, provider] = *key;
    [
        ("tenant", tenant),
        ("app", app),
        ("component", component),
        ("contract", contract),
        ("label", label),
        ("provider", provider),
    ]
}

fn text(name: &impl ToString) -> String {
    name.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use api::metrics::{ComponentMetrics, HostLoad, LinkErrors, LinkKey, LinkMetrics, TenantMetrics};
    use prometheus::{Encoder as _, TextEncoder};
    use prometheus_parse::{Scrape, Value};

    use super::*;

    fn tenant(name: &str, links: usize) -> Tenant {
        let link = |n: usize| LinkMetrics {
            link: LinkKey {
                app: format!("app{n}").parse().unwrap(),
                component: "main".parse().unwrap(),
                contract: "wasi:keyvalue".parse().unwrap(),
                label: "default".parse().unwrap(),
                provider: "redis".parse().unwrap(),
            },
            counts: LinkCounts {
                in_flight: 1,
                calls: 3,
                errors: LinkErrors { timed_out: 1, ..LinkErrors::default() },
                // Below 1 µs, below 64 µs, and above 17 s.
                took: [vec![1], vec![0; 5], vec![1], vec![0; 17], vec![1]].concat(),
                took_us: 20_000_050,
            },
        };
        let component = |link: &LinkMetrics| ComponentMetrics {
            app: link.link.app.clone(),
            component: link.link.component.clone(),
            counts: ComponentCounts { calls: 7, cpu_us: 1_500_000, ..ComponentCounts::default() },
        };
        let links: Vec<_> = (0..links).map(link).collect();
        let counted = TenantMetrics {
            tenant: name.parse().unwrap(),
            time_ms: 1,
            hosts: vec![HostLoad { shard: 0, in_flight: 2, rss: 4096 }],
            components: links.iter().map(component).collect(),
            links,
            kept: None,
        };
        let dials = [("connected", 1), ("denied", 2), ("limited", 3), ("failed", 4), ("revoked", 5)];
        let refused = [("requests", 6), ("log-lines", 7), ("store-writes", 8)];
        let (name, counted) = (name.parse().unwrap(), Arc::new(counted));
        Tenant { name, hosts: vec![true, false], restarts: 5, dials, open: 6, refused, counted }
    }

    fn scrape(facts: &Facts, slots: &mut Slots) -> (Scrape, String) {
        let mut text = Vec::new();
        TextEncoder::new().encode(&families(facts, slots), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        check(&text);
        (Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap(), text)
    }

    /// What the parser lets pass: every family is introduced once, before its samples, and no sample comes twice.
    fn check(text: &str) {
        let (mut introduced, mut samples) = (HashSet::new(), HashSet::new());
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().unwrap().to_owned();
                assert!(introduced.insert(current.clone()), "{current} comes twice");
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap();
                assert!(samples.insert(series.to_owned()), "{series} comes twice");
                let name = series.split('{').next().unwrap();
                let family =
                    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                assert!(family == current || name == current, "{name} is not in {current}");
            }
        }
    }

    fn value(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |s: &&prometheus_parse::Sample| {
            s.metric == name && labels.iter().all(|(name, value)| s.labels.get(name) == Some(*value))
        };
        let found: Vec<_> = scrape.samples.iter().filter(fits).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        match &found[0].value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => *value,
            other => panic!("{name} is {other:?}"),
        }
    }

    #[test]
    fn what_is_told_can_be_read() {
        let mut facts = Facts { tenants: vec![tenant("acme", 1)], files: vec![("state", 9)], ..Facts::default() };
        facts.requests.ended[3] = 4;
        facts.requests.took[20] = 4;
        let (scrape, text) = scrape(&facts, &mut Slots::default());
        let link = [("tenant", "acme"), ("app", "app0"), ("contract", "wasi:keyvalue"), ("provider", "redis")];
        assert_eq!(value(&scrape, "sidereal_link_calls_total", &link), 3.0);
        assert_eq!(value(&scrape, "sidereal_link_errors_total", &[("kind", "timed-out")]), 1.0);
        assert_eq!(value(&scrape, "sidereal_ingress_requests_total", &[("class", "5xx")]), 4.0);
        assert_eq!(value(&scrape, "sidereal_component_cpu_seconds_total", &[("app", "app0")]), 1.5);
        assert_eq!(value(&scrape, "sidereal_hosts", &[("tenant", "acme"), ("state", "down")]), 1.0);
        assert_eq!(value(&scrape, "sidereal_egress_connections_total", &[("outcome", "limited")]), 3.0);
        assert_eq!(value(&scrape, "sidereal_quota_refusals_total", &[("what", "log-lines")]), 7.0);
        assert_eq!(value(&scrape, "sidereal_store_size_bytes", &[("store", "state")]), 9.0);
        let histogram = scrape.samples.iter().find_map(|s| match &s.value {
            Value::Histogram(buckets) if s.metric == "sidereal_link_call_duration_seconds" => Some(buckets),
            _ => None,
        });
        let buckets: Vec<(f64, f64)> = histogram.unwrap().iter().map(|b| (b.less_than, b.count)).collect();
        assert_eq!(buckets[0], (0.000064, 2.0));
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, 3.0));
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{buckets:?}");
        assert!(text.contains("sidereal_link_call_duration_seconds_sum{"), "{text}");
    }

    #[test]
    fn beyond_the_bound_the_rest_is_one_series_and_nothing_is_lost() {
        let facts = Facts { tenants: vec![tenant("acme", LINKS + 20), tenant("beta", 3)], ..Facts::default() };
        let mut slots = Slots::default();
        let (scrape, _) = scrape(&facts, &mut slots);
        let links = scrape.samples.iter().filter(|s| s.metric == "sidereal_link_calls_total");
        let values: Vec<f64> = links
            .map(|s| match s.value {
                Value::Counter(value) => value,
                _ => 0.0,
            })
            .collect();
        assert_eq!((values.len(), values.iter().sum::<f64>()), (LINKS + 1, 3.0 * (LINKS + 23) as f64));
        assert_eq!(value(&scrape, "sidereal_link_calls_total", &[("tenant", OTHER), ("app", OTHER)]), 69.0);
    }
}
