//! Which connections the components and the providers of an app may ask for. A host process that was taken over says
//! whatever it likes about who in it wants to connect, so it is held to what the revision was deployed with.

use std::collections::{BTreeMap, BTreeSet};

use api::services::{Caller, Dial};
use model::egress::{AllowedHost, Destination, Transport, endpoint_of};
use model::{ComponentName, LockedApp, ProviderName, ProviderSpec};

/// Where one provider connects to: exactly what its settings name, over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    provider: ProviderName,
    host: Destination,
    port: u16,
}

impl Place {
    /// The place in the settings of a provider; `None` for one that dials nowhere.
    pub fn of(provider: &ProviderName, spec: &ProviderSpec) -> Option<Self> {
        let (host, port) = endpoint_of(spec)?;
        Some(Self { provider: provider.clone(), host, port })
    }

    /// Whether it is this one that is asked for.
    pub fn is(&self, provider: &ProviderName, dial: &Dial, destination: &Destination) -> bool {
        let there = self.host == *destination && self.port == dial.port;
        there && self.provider == *provider && dial.transport == Transport::Tcp
    }
}

/// What one revision may ask for.
#[derive(Debug, Default)]
pub struct Asks {
    components: BTreeMap<ComponentName, Vec<AllowedHost>>,
    providers: Vec<Place>,
}

impl Asks {
    /// What the app's `allow-hosts` name, and where the providers are that its links name or that these take secrets from.
    pub fn of(app: &LockedApp) -> Self {
        let entries = |component: &model::LockedComponent| {
            component.allow_hosts.iter().filter_map(|text| AllowedHost::parse(text)).collect()
        };
        let components = app.components.iter().map(|(name, component)| (name.clone(), entries(component))).collect();
        let used = used(app);
        let used = app.providers.iter().filter(|(name, _)| used.contains(name));
        Self { components, providers: used.filter_map(|(name, spec)| Place::of(name, spec)).collect() }
    }

    /// Whether a connection is one of those.
    pub fn has(&self, dial: &Dial, destination: &Destination) -> bool {
        match &dial.caller {
            Caller::Component(name) => {
                let covers = |entry: &AllowedHost| entry.covers(dial.transport, &dial.host, dial.port);
                self.components.get(name).is_some_and(|all| all.iter().any(covers))
            }
            Caller::Provider(name) => self.providers.iter().any(|place| place.is(name, dial, destination)),
        }
    }
}

/// The providers of an app that a host opens: those that a link names, and those that keep their secrets.
pub(crate) fn used(app: &LockedApp) -> BTreeSet<&ProviderName> {
    let linked = app.links.iter().map(|link| &link.provider);
    let keepers = linked.clone().filter_map(|name| app.providers.get(name)).flat_map(|spec| spec.secrets.values());
    linked.chain(keepers.filter_map(|secret| secret.from.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> LockedApp {
        let component = serde_json::json!({"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
            "exports": [], "allow_hosts": ["https://api.example"]});
        let redis = |url: &str| serde_json::json!({"type": "keyvalue-redis", "config": {"url": url}});
        let mut cache = redis("redis://cache.internal:7000/2");
        cache["secrets"] = serde_json::json!({"password": {"secret": "cache", "from": "vault"}});
        let vault = serde_json::json!({"type": "secrets-vault", "config": {"url": "https://vault.internal:8200"}});
        serde_json::from_value(serde_json::json!({"name": "a", "components": {"c": component},
            "providers": {"cache": cache, "vault": vault, "idle": redis("redis://idle.internal")},
            "links": [{"component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": "cache"},
                {"component": "c", "contract": "wasi:blobstore", "label": "default", "provider": "folder"}]}))
        .unwrap()
    }

    #[test]
    fn a_provider_asks_for_what_its_settings_name_and_nothing_else() {
        let asks = Asks::of(&app());
        let dial = |caller: Caller, transport, host: &str, port| {
            let dial = Dial { app: "a".parse().unwrap(), caller, transport, host: host.into(), port };
            asks.has(&dial, &Destination::parse(host).unwrap())
        };
        let by = |provider: &str| Caller::Provider(provider.parse().unwrap());
        for (provider, host, port, expected) in [
            ("cache", "cache.internal", 7000, true),
            ("cache", "CACHE.internal.", 7000, true),
            ("vault", "vault.internal", 8200, true),
            ("cache", "cache.internal", 6379, false),
            ("cache", "vault.internal", 8200, false),
            ("cache", "api.example", 443, false),
            ("cache", "8.8.8.8", 7000, false),
            // Declared, and no link uses it.
            ("idle", "idle.internal", 6379, false),
            // Nobody declared it; this one dials nowhere; this one is a component.
            ("other", "cache.internal", 7000, false),
            ("folder", "cache.internal", 7000, false),
            ("c", "api.example", 443, false),
        ] {
            assert_eq!(dial(by(provider), Transport::Tcp, host, port), expected, "{provider} to {host}:{port}");
            assert!(!dial(by(provider), Transport::Udp, host, port), "{provider} to {host}:{port} over UDP");
        }
        let component = Caller::Component("c".parse().unwrap());
        assert!(dial(component.clone(), Transport::Tcp, "api.example", 443));
        assert!(!dial(component, Transport::Tcp, "cache.internal", 7000));
    }
}
