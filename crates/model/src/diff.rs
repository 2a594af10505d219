//! What differs between two revisions, one line each, for `plan` and the history. Values of config and of provider
//! settings are never shown: they can be secrets.

use std::collections::{BTreeMap, BTreeSet};

use crate::app::{Link, LockedApp, LockedComponent, ProviderSpec, Reuse, Route};
use crate::config::{SharedConfig, Values};
use crate::limits::Limits;
use crate::name::{ComponentName, ConfigName, ProviderName};
use crate::schedule::Schedule;
use crate::secret::SecretRef;

/// Lines such as `+ route …`, `~ link …`, `- component …`; empty exactly where the two are equal.
pub fn diff(old: Option<&LockedApp>, new: &LockedApp) -> Vec<String> {
    let mut lines = Vec::new();
    let nothing = LockedApp {
        name: new.name.clone(),
        version: None,
        components: [].into(),
        providers: [].into(),
        links: vec![],
        routes: vec![],
        schedules: [].into(),
    };
    let was = old.unwrap_or(&nothing);
    if was.name != new.name {
        lines.push(format!("~ app: {} -> {}", was.name, new.name));
    }
    if was.version != new.version {
        let text = |v: &Option<String>| v.clone().unwrap_or_else(|| "none".to_owned());
        lines.push(format!("~ version: {} -> {}", text(&was.version), text(&new.version)));
    }
    for (name, pair) in both(&was.components, &new.components) {
        component(&mut lines, name, pair);
    }
    for (name, pair) in both(&was.providers, &new.providers) {
        provider(&mut lines, name, pair);
    }
    links(&mut lines, &was.links, &new.links);
    routes(&mut lines, &was.routes, &new.routes);
    for (name, pair) in both(&was.schedules, &new.schedules) {
        match pair {
            (None, Some(is)) => lines.push(format!("+ schedule {name}: {}", schedule(is))),
            (Some(was), None) => lines.push(format!("- schedule {name}: {}", schedule(was))),
            (Some(was), Some(is)) if was != is => {
                lines.push(format!("~ schedule {name}: {} -> {}", schedule(was), schedule(is)));
            }
            _ => {}
        }
    }
    if lines.is_empty() && was != new {
        // Links or routes in another order: no other meaning, yet another content.
        lines.push("~ order of links or routes".to_owned());
    }
    lines
}

fn schedule(schedule: &Schedule) -> String {
    let Schedule { component, cron, timezone, missed, missed_max } = schedule;
    let missed = match missed {
        crate::schedule::Missed::All => format!("all up to {missed_max}"),
        other => other.as_str().to_owned(),
    };
    format!("{component} at `{cron}` {timezone}, missed {missed}")
}

/// A value before and after.
type Pair<'a, V> = (Option<&'a V>, Option<&'a V>);

/// Both values of each key that either map has.
fn both<'a, K: Ord, V>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> Vec<(&'a K, Pair<'a, V>)> {
    let keys: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    keys.into_iter().map(|k| (k, (old.get(k), new.get(k)))).collect()
}

fn component(
    lines: &mut Vec<String>,
    name: &ComponentName,
    pair: (Option<&LockedComponent>, Option<&LockedComponent>),
) {
    let (old, new) = match pair {
        (Some(old), Some(new)) => (old, new),
        (None, Some(new)) => {
            lines.push(format!("+ component {name}: sha256:{} ({})", new.digest.short(), new.world.as_str()));
            config(lines, &format!("config {name}"), &BTreeMap::new(), &new.config);
            config_from(lines, name, &[], &new.config_from);
            return;
        }
        (Some(old), None) => {
            lines.push(format!("- component {name}: sha256:{}", old.digest.short()));
            return;
        }
        (None, None) => return,
    };
    if old.digest != new.digest {
        lines.push(format!("~ component {name}: sha256:{} -> sha256:{}", old.digest.short(), new.digest.short()));
    } else if (old.size, &old.imports, &old.exports) != (new.size, &new.imports, &new.exports) {
        lines.push(format!("~ component {name}: what is said of its artifact"));
    }
    if old.world != new.world {
        lines.push(format!("~ component {name} world: {} -> {}", old.world.as_str(), new.world.as_str()));
    }
    config(lines, &format!("config {name}"), &old.config, &new.config);
    config_from(lines, name, &old.config_from, &new.config_from);
    for ((field, was), (_, is)) in limits(&old.limits).into_iter().zip(limits(&new.limits)) {
        if was != is {
            lines.push(format!("~ limit {name} {field}: {was} -> {is}"));
        }
    }
    if old.reuse != new.reuse {
        lines.push(format!("~ reuse {name}: {} -> {}", reuse(old.reuse), reuse(new.reuse)));
    }
    let (was, is): (BTreeSet<_>, BTreeSet<_>) = (old.allow_hosts.iter().collect(), new.allow_hosts.iter().collect());
    lines.extend(was.difference(&is).map(|host| format!("- allowed host {name}: {host}")));
    lines.extend(is.difference(&was).map(|host| format!("+ allowed host {name}: {host}")));
    if was == is && old.allow_hosts != new.allow_hosts {
        lines.push(format!("~ order of allowed hosts {name}"));
    }
    if old.health != new.health {
        let path = |health: &Option<String>| health.clone().unwrap_or_else(|| "none".to_owned());
        lines.push(format!("~ health {name}: {} -> {}", path(&old.health), path(&new.health)));
    }
}

fn config(lines: &mut Vec<String>, what: &str, old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) {
    for (key, pair) in both(old, new) {
        match pair {
            (None, Some(_)) => lines.push(format!("+ {what} {key}")),
            (Some(_), None) => lines.push(format!("- {what} {key}")),
            (was, is) if was != is => lines.push(format!("~ {what} {key}")),
            _ => {}
        }
    }
}

/// Shared configs that are named, and what each of them held.
fn config_from(lines: &mut Vec<String>, name: &ComponentName, old: &[SharedConfig], new: &[SharedConfig]) {
    let by_name = |all: &[SharedConfig]| -> BTreeMap<ConfigName, Values> {
        all.iter().map(|shared| (shared.name.clone(), shared.values.clone())).collect()
    };
    let (was, is) = (by_name(old), by_name(new));
    for (shared, pair) in both(&was, &is) {
        match pair {
            (None, Some(_)) => lines.push(format!("+ config {name} from {shared}")),
            (Some(_), None) => lines.push(format!("- config {name} from {shared}")),
            (Some(was), Some(is)) => config(lines, &format!("config {name} from {shared}"), was, is),
            (None, None) => {}
        }
    }
    let order = |all: &[SharedConfig]| all.iter().map(|shared| shared.name.clone()).collect::<Vec<_>>();
    if was.keys().eq(is.keys()) && order(old) != order(new) {
        lines.push(format!("~ order of shared configs {name}"));
    }
}

/// Which secret is meant is no secret.
fn secrets(lines: &mut Vec<String>, what: &str, old: &BTreeMap<String, SecretRef>, new: &BTreeMap<String, SecretRef>) {
    for (key, pair) in both(old, new) {
        match pair {
            (None, Some(new)) => lines.push(format!("+ {what} {key}: secret {new}")),
            (Some(old), None) => lines.push(format!("- {what} {key}: secret {old}")),
            (Some(old), Some(new)) if old != new => {
                lines.push(format!("~ {what} {key}: secret {old} -> {new}"));
            }
            _ => {}
        }
    }
}

fn reuse(reuse: Option<Reuse>) -> String {
    reuse.map_or_else(|| "a fresh instance per call".to_owned(), |r| format!("{} calls, idle {}", r.requests, r.idle))
}

/// Every limit as text. Taken apart without `..`, so that a new limit cannot be forgotten here.
fn limits(limits: &Limits) -> [(&'static str, String); 13] {
    let Limits {
        cpu,
        wall,
        memory,
        stack,
        table_elements,
        handles,
        hostcall_copy,
        request_body,
        response_body,
        concurrency,
        subrequests,
        log_per_call,
        log_rate,
    } = limits;
    [
        ("cpu", cpu.to_string()),
        ("wall", wall.to_string()),
        ("memory", memory.to_string()),
        ("stack", stack.to_string()),
        ("table_elements", table_elements.to_string()),
        ("handles", handles.to_string()),
        ("hostcall_copy", hostcall_copy.to_string()),
        ("request_body", request_body.to_string()),
        ("response_body", response_body.to_string()),
        ("concurrency", concurrency.to_string()),
        ("subrequests", subrequests.to_string()),
        ("log_per_call", log_per_call.to_string()),
        ("log_rate", log_rate.to_string()),
    ]
}

fn provider(lines: &mut Vec<String>, name: &ProviderName, pair: (Option<&ProviderSpec>, Option<&ProviderSpec>)) {
    let owner = |p: &ProviderSpec| if p.operator { "operator" } else { "app" };
    match pair {
        (Some(old), Some(new)) => {
            if old.kind != new.kind {
                lines.push(format!("~ provider {name}: {} -> {}", old.kind.as_str(), new.kind.as_str()));
            }
            if old.operator != new.operator {
                lines.push(format!("~ provider {name} declared by: {} -> {}", owner(old), owner(new)));
            }
            config(lines, &format!("provider {name}"), &old.config, &new.config);
            secrets(lines, &format!("provider {name}"), &old.secrets, &new.secrets);
        }
        (None, Some(new)) => lines.push(format!("+ provider {name}: {}", new.kind.as_str())),
        (Some(old), None) => lines.push(format!("- provider {name}: {}", old.kind.as_str())),
        (None, None) => {}
    }
}

fn links(lines: &mut Vec<String>, old: &[Link], new: &[Link]) {
    let by_edge = |links: &[Link]| -> BTreeMap<String, Link> {
        let edge = |l: &Link| format!("{} {} {}", l.component, l.contract, l.label);
        links.iter().map(|l| (edge(l), l.clone())).collect()
    };
    let (old, new) = (by_edge(old), by_edge(new));
    for (edge, pair) in both(&old, &new) {
        match pair {
            (Some(old), Some(new)) => {
                if old.provider != new.provider {
                    lines.push(format!("~ link {edge}: {} -> {}", old.provider, new.provider));
                }
                config(lines, &format!("link {edge}"), &old.config, &new.config);
            }
            (None, Some(new)) => lines.push(format!("+ link {edge}: {}", new.provider)),
            (Some(old), None) => lines.push(format!("- link {edge}: {}", old.provider)),
            (None, None) => {}
        }
    }
}

fn routes(lines: &mut Vec<String>, old: &[Route], new: &[Route]) {
    let text = |r: &Route| {
        let methods = if r.methods.is_empty() { String::new() } else { format!(" {}", r.methods.join(",")) };
        format!("route {}{}{methods} -> {}", r.host, r.path, r.component)
    };
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (old.iter().collect(), new.iter().collect());
    lines.extend(old.difference(&new).map(|r| format!("- {}", text(r))));
    lines.extend(new.difference(&old).map(|r| format!("+ {}", text(r))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{ProviderKind, World};
    use crate::digest::Digest;
    use crate::unit::{ByteSize, Millis};

    fn app() -> LockedApp {
        let component = LockedComponent {
            digest: Digest::of(b"one"),
            size: 3,
            world: World::P2,
            imports: vec!["wasi:keyvalue/store@0.2.0-draft".parse().unwrap()],
            exports: vec![],
            config: [("greeting".into(), "hello".into())].into(),
            config_from: ["base", "shared"]
                .map(|name| SharedConfig {
                    name: name.parse().unwrap(),
                    values: [("region".into(), "north".into())].into(),
                })
                .into(),
            limits: Limits::default(),
            reuse: None,
            allow_hosts: vec!["https://a.example".into(), "https://b.example".into()],
            health: None,
        };
        let embedded = ProviderSpec::new(ProviderKind::KeyvalueEmbedded);
        let link = |label: &str| Link {
            component: "counter".parse().unwrap(),
            contract: "wasi:keyvalue".parse().unwrap(),
            label: label.parse().unwrap(),
            provider: "embedded".parse().unwrap(),
            config: BTreeMap::new(),
        };
        let route = |path: &str| Route {
            host: "counter.localhost".into(),
            path: path.into(),
            methods: vec![],
            component: "counter".parse().unwrap(),
        };
        LockedApp {
            name: "counter".parse().unwrap(),
            version: None,
            components: [("counter".parse().unwrap(), component)].into(),
            providers: [("embedded".parse().unwrap(), embedded)].into(),
            links: vec![link("default"), link("other")],
            routes: vec![route("/"), route("/api")],
            schedules: BTreeMap::new(),
        }
    }

    fn counter(app: &mut LockedApp) -> &mut LockedComponent {
        app.components.values_mut().next().unwrap()
    }

    type Change = fn(&mut LockedApp);

    #[test]
    fn every_change_has_its_line() {
        let rows: &[(Change, &str)] = &[
            (
                |a| a.links[0].provider = "redis".parse().unwrap(),
                "~ link counter wasi:keyvalue default: embedded -> redis",
            ),
            (|a| drop(a.links.pop()), "- link counter wasi:keyvalue other: embedded"),
            (
                |a| drop(a.links[0].config.insert("bucket".into(), "x".into())),
                "+ link counter wasi:keyvalue default bucket",
            ),
            (|a| a.links.reverse(), "~ order of links or routes"),
            (|a| a.routes.reverse(), "~ order of links or routes"),
            (|a| a.version = Some("2".into()), "~ version: none -> 2"),
            (|a| a.name = "other".parse().unwrap(), "~ app: counter -> other"),
            (
                |a| a.routes[1].methods = vec!["GET".into()],
                "- route counter.localhost/api -> counter\n+ route counter.localhost/api GET -> counter",
            ),
            (
                |a| counter(a).digest = Digest::of(b"two"),
                "~ component counter: sha256:7692c3ad3540 -> sha256:3fc4ccfe7458",
            ),
            (|a| counter(a).size = 4, "~ component counter: what is said of its artifact"),
            (|a| counter(a).imports.clear(), "~ component counter: what is said of its artifact"),
            (|a| counter(a).world = World::P3, "~ component counter world: p2 -> p3"),
            (|a| counter(a).config.clear(), "- config counter greeting"),
            (|a| drop(counter(a).config.insert("greeting".into(), "secret".into())), "~ config counter greeting"),
            (|a| drop(counter(a).config_from.pop()), "- config counter from shared"),
            (|a| counter(a).config_from.reverse(), "~ order of shared configs counter"),
            (
                |a| drop(counter(a).config_from[1].values.insert("region".into(), "south".into())),
                "~ config counter from shared region",
            ),
            (|a| counter(a).config_from[1].values.clear(), "- config counter from shared region"),
            (|a| counter(a).limits.memory = ByteSize::mib(64), "~ limit counter memory: 128MiB -> 64MiB"),
            (|a| counter(a).limits.log_rate = ByteSize::mib(2), "~ limit counter log_rate: 1MiB -> 2MiB"),
            (
                |a| counter(a).reuse = Some(Reuse { requests: 5, idle: Millis::secs(9) }),
                "~ reuse counter: a fresh instance per call -> 5 calls, idle 9s",
            ),
            (|a| drop(counter(a).allow_hosts.pop()), "- allowed host counter: https://b.example"),
            (|a| counter(a).allow_hosts.reverse(), "~ order of allowed hosts counter"),
            (|a| counter(a).health = Some("/ready".into()), "~ health counter: none -> /ready"),
            (
                |a| a.providers.values_mut().next().unwrap().operator = true,
                "~ provider embedded declared by: app -> operator",
            ),
            (
                |a| a.providers.values_mut().next().unwrap().kind = ProviderKind::KeyvalueMemory,
                "~ provider embedded: keyvalue-embedded -> keyvalue-memory",
            ),
            (
                |a| {
                    drop(
                        a.providers
                            .values_mut()
                            .next()
                            .unwrap()
                            .config
                            .insert("url".into(), "redis://:secret@h".into()),
                    )
                },
                "+ provider embedded url",
            ),
            (
                |a| {
                    let secret = SecretRef::new("cache-password".parse().unwrap());
                    a.providers.values_mut().next().unwrap().secrets.insert("password".into(), secret);
                },
                "+ provider embedded password: secret cache-password",
            ),
            (|a| a.providers.clear(), "- provider embedded: keyvalue-embedded"),
            (|a| a.components.clear(), "- component counter: sha256:7692c3ad3540"),
        ];
        for (change, expected) in rows {
            let mut new = app();
            change(&mut new);
            assert_eq!(diff(Some(&app()), &new).join("\n"), *expected);
        }
        assert_eq!(diff(Some(&app()), &app()), [""; 0]);
    }

    #[test]
    fn a_first_revision_is_all_additions() {
        assert_eq!(
            diff(None, &app()),
            [
                "+ component counter: sha256:7692c3ad3540 (p2)",
                "+ config counter greeting",
                "+ config counter from base",
                "+ config counter from shared",
                "+ provider embedded: keyvalue-embedded",
                "+ link counter wasi:keyvalue default: embedded",
                "+ link counter wasi:keyvalue other: embedded",
                "+ route counter.localhost/ -> counter",
                "+ route counter.localhost/api -> counter",
            ]
        );
    }
}
