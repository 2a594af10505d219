//! The servers that keep keys, for scenarios that go through all of them.

use sidereal_tests::consul::{self, Consul};
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::Platform;
use sidereal_tests::redis::Redis;
use sidereal_tests::vault::Vault;

/// Every one that can be had here.
pub(crate) struct Servers {
    redis: Redis,
    nats: Nats,
    vault: Option<Vault>,
    consul: Option<Consul>,
}

impl Servers {
    pub(crate) fn start() -> Self {
        Self {
            redis: Redis::start().unwrap(),
            nats: Nats::start().unwrap(),
            vault: Vault::start().unwrap(),
            consul: Consul::start().unwrap(),
        }
    }

    /// Offers each as a provider; their names, in order.
    pub(crate) fn add(&self, platform: &Platform, app: &str) -> Vec<&'static str> {
        platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &self.redis.url()]).unwrap();
        platform.ok(&["provider", "add", "nats", "--type", "keyvalue-nats", "--url", &self.nats.url()]).unwrap();
        let mut added = vec!["redis", "nats"];
        if let Some(vault) = &self.vault {
            // Not as its operator: a token of the app's own paths is all it takes.
            let below = |what: &str| format!("secret/{what}/sidereal/local/{app}/*");
            let token = vault.token(&[&below("data"), &below("metadata")]);
            platform.secret("vault-token", &token.unwrap()).unwrap();
            let add =
                ["provider", "add", "vault", "--type", "keyvalue-vault", "--secret", "token=vault-token", "--url"];
            platform.ok(&[&add[..], &[&vault.url()]].concat()).unwrap();
            added.push("vault");
        }
        if let Some(consul) = &self.consul {
            platform.secret("consul-token", consul::TOKEN).unwrap();
            let add =
                ["provider", "add", "consul", "--type", "keyvalue-consul", "--secret", "token=consul-token", "--url"];
            platform.ok(&[&add[..], &[&consul.url()]].concat()).unwrap();
            added.push("consul");
        }
        added
    }
}
