//! What each provider promises, in one sentence each: for whoever chooses between the providers of a contract. The pages
//! of `docs/providers/` say it at length.

use crate::app::ProviderKind;

/// What a provider promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// What an acknowledged write, or message, survives.
    pub durability: &'static str,
    /// What happens at once or not at all, and what order there is.
    pub atomicity: &'static str,
    /// Who can have the same data.
    pub reach: &'static str,
}

impl ProviderKind {
    /// What it promises.
    pub fn promises(self) -> Promises {
        let (durability, atomicity, reach) = match self {
            Self::KeyvalueMemory => {
                ("nothing: gone with the host", "each operation, increment and batch", "one app, on one shard")
            }
            Self::KeyvalueEmbedded => {
                ("a killed process and a power cut", "each operation, increment and batch", "one app, on this node")
            }
            Self::KeyvalueRedis => (
                "what the server's persistence survives",
                "each operation, increment and batch",
                "whoever uses the server's database",
            ),
            Self::KeyvalueVault => (
                "what Vault's storage survives",
                "each operation; increment on KV version 2; no batch",
                "whoever may read the path",
            ),
            Self::KeyvalueConsul => (
                "what Consul's servers survive",
                "each operation and increment; a batch of up to 64 keys",
                "whoever may read the path",
            ),
            Self::KeyvalueNats => (
                "what the stream's replicas survive",
                "each operation and increment; a batch from NATS 2.12 on",
                "whoever may use the bucket",
            ),
            Self::BlobstoreFolder => (
                "a killed process and a power cut",
                "each object appears whole or not at all; a container is cleared at once",
                "one app, on this node",
            ),
            Self::BlobstoreS3 => (
                "what the service survives",
                "each object appears whole or not at all; clearing a container is not",
                "whoever may use the bucket",
            ),
            Self::BlobstoreNats => (
                "what the stream's replicas survive",
                "each object appears whole or not at all; a container is cleared at once",
                "whoever may use the bucket",
            ),
            Self::MessagingJetstream => (
                "what the stream's replicas survive",
                "at least once; no order among messages",
                "whoever may use the stream",
            ),
            Self::MessagingLocal => {
                ("a killed host", "at least once; no order among messages", "the tenant's apps on this node")
            }
            Self::MessagingDurable => (
                "a killed process and a power cut",
                "at least once; no order among messages",
                "the tenant's apps on this node",
            ),
            Self::MessagingNats => {
                ("nothing: whoever listens gets it", "at most once", "everybody on the server's account")
            }
            Self::SecretsEmbedded => {
                ("a killed process and a power cut", "each value, by compare-and-set", "the tenant, on this node")
            }
            Self::SecretsVault => (
                "what Vault's storage survives",
                "each value; the version that was got is revealed",
                "whoever may read the path",
            ),
            Self::SqlSqlite => (
                "a killed process and a power cut",
                "each statement and each batch of statements",
                "one app, on this node",
            ),
            Self::SqlPostgres => (
                "what the server's settings survive",
                "each statement and each batch of statements",
                "whoever may use the database",
            ),
            Self::External => ("what the program keeps", "what the program does", "what the program decides"),
            Self::Component => ("what the component's own links survive", "what the component does", "one app"),
        };
        Promises { durability, atomicity, reach }
    }

    /// The name under which it is there without being declared.
    pub fn built_in_as(self) -> Option<&'static str> {
        Self::BUILT_IN.iter().find(|(_, kind)| *kind == self).map(|(name, _)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_says_what_it_promises() {
        for kind in ProviderKind::ALL {
            let Promises { durability, atomicity, reach } = kind.promises();
            for text in [durability, atomicity, reach] {
                assert!(!text.is_empty() && text.len() <= 80, "{}: {text}", kind.as_str());
            }
        }
        assert_eq!(ProviderKind::KeyvalueEmbedded.built_in_as(), Some("embedded"));
        assert_eq!(ProviderKind::KeyvalueRedis.built_in_as(), None);
    }
}
