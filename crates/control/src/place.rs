//! Where a link keeps its data. Several links of an app may name one bucket of one provider: they move together, and a move
//! does not touch a bucket that another link stays with, for it would replace what that one wrote by older values.

use std::collections::BTreeSet;

use model::app::{LockedApp, ProviderKind, ProviderSpec};
use model::egress::{Destination, endpoint_of};
use model::rules::provider::built_in;
use model::{Label, Link, ProviderName};

/// A provider of `app`.
pub(crate) fn spec(app: &LockedApp, name: &ProviderName) -> Option<ProviderSpec> {
    app.providers.get(name).cloned().or_else(|| built_in(name.as_str()))
}

/// Whether a link of `app` goes to this provider, or by another name to the same data: some keep no name of a provider in
/// their keys.
pub(crate) fn goes_to(app: &LockedApp, link: &Link, (name, there): (&ProviderName, &ProviderSpec)) -> bool {
    let same = || Some(Server::of(there)?.eq(&Server::of(&spec(app, &link.provider)?)?));
    link.provider == *name || same() == Some(true)
}

/// Whether two names of providers may stand for one store of keys though their settings do not say so: a host has several
/// names, and what a program reaches only it knows.
pub(crate) fn may_be(one: &ProviderSpec, other: &ProviderSpec) -> bool {
    let reaches = Server::of(one).is_some() || one.kind == ProviderKind::External;
    reaches && one.kind == other.kind && one.contracts().contains(&"wasi:keyvalue")
}

/// Where the keys of a provider are that keeps no name of it in them, as far as its settings say it. Who logs in, how the
/// server is believed and how many copies it keeps make no difference: whoever else reaches this has the same keys.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    kind: ProviderKind,
    host: Destination,
    port: u16,
    /// What part of the server it is: a database, a domain, a mount, what all keys begin with.
    part: Vec<String>,
}

impl Server {
    fn of(spec: &ProviderSpec) -> Option<Self> {
        let text =
            |name: &str, usual: &str| spec.config.get(name).map_or(usual, |text| text.trim_matches('/')).to_owned();
        let part = match spec.kind {
            // The database, as a number: none is the first.
            ProviderKind::KeyvalueRedis => vec![path(spec).parse().unwrap_or(0_u16).to_string()],
            ProviderKind::KeyvalueNats => vec![text("jetstream_domain", "")],
            ProviderKind::KeyvalueVault => {
                vec![path(spec), text("namespace", ""), text("mount", "secret"), text("prefix", "sidereal")]
            }
            ProviderKind::KeyvalueConsul => vec![path(spec), text("prefix", "sidereal")],
            _ => return None,
        };
        let (host, port) = endpoint_of(spec)?;
        Some(Self { kind: spec.kind, host, port, part })
    }
}

/// What the `url` of a provider has behind host and port.
fn path(spec: &ProviderSpec) -> String {
    let url = spec.config.get("url").and_then(|url| url.split_once("://"));
    let path = url.and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    path.trim_matches('/').to_owned()
}

/// What a link reaches in its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// This bucket or container.
    One(String),
    /// Every container but those that have a label of their own.
    AllBut(BTreeSet<String>),
}

impl Place {
    /// Of a link of the app; `None` where nothing of its contract is copied.
    pub(crate) fn of(app: &LockedApp, link: &Link) -> Option<Self> {
        let (setting, whole) = match link.contract.to_string().as_str() {
            "wasi:keyvalue" => ("bucket", false),
            "wasi:blobstore" => ("container", link.label == Label::default_label()),
            _ => return None,
        };
        Some(match link.config.get(setting) {
            Some(named) => Self::One(named.clone()),
            // A link without the name of one container answers for every one that no other label names.
            None if whole => Self::AllBut(
                app.links
                    .iter()
                    .filter(|other| {
                        (&other.component, &other.contract) == (&link.component, &link.contract)
                            && other.label != link.label
                    })
                    .map(|other| other.label.to_string())
                    .collect(),
            ),
            None => Self::One(link.label.to_string()),
        })
    }

    /// Whether something may be in both.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(one), Self::One(other)) => one == other,
            (Self::One(one), Self::AllBut(but)) | (Self::AllBut(but), Self::One(one)) => !but.contains(one),
            (Self::AllBut(_), Self::AllBut(_)) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Which providers a link goes to, by name, that reach the same keys as the first one.
    fn same(providers: &[(&str, serde_json::Value)]) -> Vec<String> {
        let link = |provider: &str| json!({ "component": "a", "contract": "wasi:keyvalue", "label": provider, "provider": provider });
        let links: Vec<_> = providers.iter().map(|(name, _)| link(name)).collect();
        let specs: serde_json::Map<_, _> =
            providers.iter().map(|(name, spec)| ((*name).to_owned(), spec.clone())).collect();
        let app = json!({ "name": "a", "components": {}, "links": links, "providers": specs });
        let app: LockedApp = serde_json::from_value(app).unwrap();
        let name: ProviderName = providers[0].0.parse().unwrap();
        let there = spec(&app, &name).unwrap();
        let to = app.links.iter().filter(|link| goes_to(&app, link, (&name, &there)));
        to.map(|link| link.provider.to_string()).collect()
    }

    #[test]
    fn another_name_of_the_same_server_is_the_same_where_keys_name_no_provider() {
        let redis = |url: &str| json!({ "type": "keyvalue-redis", "config": { "url": url } });
        let user = json!({ "type": "keyvalue-redis", "config": { "url": "redis://h", "username": "x" },
            "secrets": { "password": { "secret": "x" } } });
        let servers = [
            ("one", redis("redis://h:6379")),
            ("bare", redis("redis://h")),
            ("first", redis("redis://h:6379/0")),
            ("case", redis("redis://H./")),
            ("tls", redis("rediss://h:6379")),
            ("user", user),
            ("port", redis("redis://h:6380")),
            ("second", redis("redis://h:6379/1")),
            ("host", redis("redis://i:6379")),
        ];
        assert_eq!(same(&servers), ["one", "bare", "first", "case", "tls", "user"]);

        let nats = |config: serde_json::Value| json!({ "type": "keyvalue-nats", "config": config });
        let servers = [
            ("one", nats(json!({ "url": "nats://h" }))),
            ("copies", nats(json!({ "url": "tls://h:4222", "replicas": "3", "username": "x" }))),
            ("domain", nats(json!({ "url": "nats://h", "jetstream_domain": "hub" }))),
            ("port", nats(json!({ "url": "nats://h:4223" }))),
        ];
        assert_eq!(same(&servers), ["one", "copies"]);

        let vault = |config: serde_json::Value| json!({ "type": "keyvalue-vault", "config": config });
        let servers = [
            ("one", vault(json!({ "url": "https://h:8200" }))),
            (
                "usual",
                vault(json!({ "url": "https://h:8200/", "mount": "secret/", "prefix": "sidereal", "role": "x" })),
            ),
            ("mount", vault(json!({ "url": "https://h:8200", "mount": "kv" }))),
            ("prefix", vault(json!({ "url": "https://h:8200", "prefix": "other" }))),
            ("namespace", vault(json!({ "url": "https://h:8200", "namespace": "team" }))),
        ];
        assert_eq!(same(&servers), ["one", "usual"]);

        let consul = |config: serde_json::Value| json!({ "type": "keyvalue-consul", "config": config });
        let servers = [
            ("one", consul(json!({ "url": "http://h:8500" }))),
            ("usual", consul(json!({ "url": "http://h:8500", "prefix": "sidereal/" }))),
            ("path", consul(json!({ "url": "http://h:8500/east" }))),
            ("prefix", consul(json!({ "url": "http://h:8500", "prefix": "other" }))),
        ];
        assert_eq!(same(&servers), ["one", "usual"]);

        let disk = json!({ "type": "keyvalue-embedded" });
        assert_eq!(same(&[("disk", disk.clone()), ("disk2", disk)]), ["disk"], "the node keeps them apart");
    }

    #[test]
    fn links_meet_where_they_reach_the_same_bucket_or_container() {
        let link = |component: &str, contract: &str, label: &str, config: serde_json::Value| json!({ "component": component, "contract": contract, "label": label, "provider": "p", "config": config });
        let links = [
            link("a", "wasi:keyvalue", "default", json!({})),
            link("b", "wasi:keyvalue", "orders", json!({ "bucket": "default" })),
            link("b", "wasi:keyvalue", "default", json!({ "bucket": "own" })),
            link("a", "wasi:blobstore", "default", json!({})),
            link("a", "wasi:blobstore", "photos", json!({})),
            link("b", "wasi:blobstore", "default", json!({})),
            link("a", "wasmcloud:messaging", "default", json!({})),
        ];
        let app = json!({ "name": "a", "components": {}, "links": links });
        let app: LockedApp = serde_json::from_value(app).unwrap();
        let places: Vec<_> = app.links.iter().map(|link| Place::of(&app, link)).collect();
        let meets = |one: usize, other: usize| places[one].as_ref().unwrap().meets(places[other].as_ref().unwrap());
        assert!(meets(0, 1) && !meets(0, 2) && !meets(1, 2));
        assert!(!meets(3, 4), "the label answers for its container, and the other one does not");
        assert!(meets(5, 4) && meets(4, 5) && meets(3, 5));
        assert_eq!(places[6], None);
    }
}
