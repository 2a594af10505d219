//! Where a link keeps its data. Several links of an app may name one bucket of one provider: they move together, and a move
//! does not touch a bucket that another link stays with, for it would replace what that one wrote by older values.

use std::collections::BTreeSet;

use model::app::{LockedApp, ProviderKind, ProviderSpec};
use model::rules::provider::built_in;
use model::{Label, Link, ProviderName};

/// A provider of `app`.
pub(crate) fn spec(app: &LockedApp, name: &ProviderName) -> Option<ProviderSpec> {
    app.providers.get(name).cloned().or_else(|| built_in(name.as_str()))
}

/// Whether a link of `app` goes to this provider, or by another name to the same data: some keep no name of a provider in
/// their keys. Who logs in makes no difference.
pub(crate) fn goes_to(app: &LockedApp, link: &Link, (name, there): (&ProviderName, &ProviderSpec)) -> bool {
    use ProviderKind::{KeyvalueConsul, KeyvalueNats, KeyvalueRedis, KeyvalueVault};
    let nameless = matches!(there.kind, KeyvalueConsul | KeyvalueNats | KeyvalueRedis | KeyvalueVault);
    let alike = |other: ProviderSpec| (other.kind, &other.config) == (there.kind, &there.config);
    link.provider == *name || nameless && spec(app, &link.provider).is_some_and(alike)
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

    #[test]
    fn another_name_of_the_same_server_is_the_same_where_keys_name_no_provider() {
        let redis = |port: u16, user: &str| {
            json!({ "type": "keyvalue-redis", "config": { "url": format!("redis://127.0.0.1:{port}") },
            "secrets": { "password": { "secret": user } } })
        };
        let link = |provider: &str| json!({ "component": "a", "contract": "wasi:keyvalue", "label": provider, "provider": provider });
        let embedded = json!({ "type": "keyvalue-embedded" });
        let links: Vec<_> = ["one", "alias", "other", "disk", "disk2"].map(link).into();
        let app = json!({ "name": "a", "components": {}, "links": links,
            "providers": { "one": redis(1, "x"), "alias": redis(1, "y"), "other": redis(2, "x"), "disk": embedded, "disk2": embedded } });
        let app: LockedApp = serde_json::from_value(app).unwrap();
        let go = |to: &str| {
            let name: ProviderName = to.parse().unwrap();
            let there = spec(&app, &name).unwrap();
            let to = app.links.iter().filter(|link| goes_to(&app, link, (&name, &there)));
            to.map(|link| link.provider.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(go("one"), ["one", "alias"]);
        assert_eq!(go("disk"), ["disk"], "the node keeps them apart");
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
