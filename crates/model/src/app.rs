//! An app as it is stored and run: every default explicit, every path replaced by a digest, every link resolved.
//! Made from `app.toml` by `manifest` and `lock`; immutable once it has a revision number.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::SharedConfig;
use crate::digest::Digest;
use crate::interface::{ContractId, InterfaceId};
use crate::limits::Limits;
use crate::name::{AppName, ComponentName, Label, ProviderName, ScheduleName};
use crate::schedule::Schedule;
use crate::secret::SecretRef;
use crate::unit::Millis;

/// The number of an app's immutable revision; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which engine runs a component: the two need separately compiled code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// WASI 0.2, without concurrency support: the fast engine.
    P2,
    /// WASI 0.3, component-model async.
    P3,
}

impl World {
    /// `p2` or `p3`.
    pub fn as_str(self) -> &'static str {
        match self {
            World::P2 => "p2",
            World::P3 => "p3",
        }
    }
}

/// Everything one revision of an app is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LockedApp {
    /// The app.
    pub name: AppName,
    /// The author's version text; not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Components by name.
    pub components: BTreeMap<ComponentName, LockedComponent>,
    /// Providers the links name: the app's own and those of the operator it uses.
    #[serde(default)]
    pub providers: BTreeMap<ProviderName, ProviderSpec>,
    /// Edges from components to providers.
    #[serde(default)]
    pub links: Vec<Link>,
    /// What the ingress sends where.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// What the clock calls.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub schedules: BTreeMap<ScheduleName, Schedule>,
}

/// One component of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LockedComponent {
    /// The artifact.
    pub digest: Digest,
    /// The artifact's size, bytes.
    pub size: u64,
    /// Which engine runs it.
    pub world: World,
    /// What it imports, read from the artifact.
    pub imports: Vec<InterfaceId>,
    /// What it exports, read from the artifact.
    pub exports: Vec<InterfaceId>,
    /// Answers of `wasi:config` that the manifest gives; they go before those of `config_from`.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Shared configs that answer too, a later one before an earlier one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config_from: Vec<SharedConfig>,
    /// What one call and the component may use.
    #[serde(default)]
    pub limits: Limits,
    /// Instance reuse; a fresh instance per call where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    /// Where outgoing HTTP may go: `https://api.example.com`, `http://*.internal.example:8080`.
    #[serde(default)]
    pub allow_hosts: Vec<String>,
    /// Asked with `GET` before a revision serves, which it does not where the answer is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
}

/// How long one instance serves more than one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reuse {
    /// Calls after which the instance is replaced; at least 1.
    pub requests: u32,
    /// Idle time after which the instance is dropped, milliseconds.
    pub idle: Millis,
}

/// What answers a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProviderSpec {
    /// Which implementation.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// Settings of the implementation, for example `url`.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Settings that are secrets, for example `password`: only which secret is meant, never its value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretRef>,
    /// Declared by the operator: the addresses it names are granted to it.
    #[serde(default)]
    pub operator: bool,
}

impl ProviderSpec {
    /// A provider of an app, without settings.
    pub fn new(kind: ProviderKind) -> Self {
        Self { kind, config: BTreeMap::new(), secrets: BTreeMap::new(), operator: false }
    }

    /// The same for the same settings, wherever it is computed. Names secrets, and holds nothing of their values.
    pub fn fingerprint(&self) -> Digest {
        // Maps with sorted keys: one text for one content. What cannot be written as JSON cannot be in here.
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// The contracts it answers, as those of its kind; of an external provider the one it says.
    pub fn contracts(&self) -> &'static [&'static str] {
        match self.kind {
            ProviderKind::External => crate::rules::external::contracts(self),
            kind => kind.contracts(),
        }
    }

    /// Whether it answers `contract`.
    pub fn answers(&self, contract: &ContractId) -> bool {
        answers(self.contracts(), contract)
    }
}

/// Whether a contract is among those of a provider: by name, or as one of those that a component can answer.
fn answers(own: &[&str], contract: &ContractId) -> bool {
    let name = contract.to_string();
    own.iter().any(|own| *own == name || (*own == "*" && crate::rules::callee::answers(contract)))
}

/// The provider implementations of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// Key-value in the memory of one host; an app that links it runs on one shard.
    KeyvalueMemory,
    /// Key-value in the node's own store: durable before acknowledged.
    KeyvalueEmbedded,
    /// Key-value in Redis or Valkey; `url` is `redis[s]://host[:port][/db]`, `username` and `password` stand beside it.
    KeyvalueRedis,
    /// Key-value in Vault or OpenBao; `url` is `http[s]://host[:port]`.
    KeyvalueVault,
    /// Key-value in Consul; `url` is `http[s]://host[:port]`.
    KeyvalueConsul,
    /// Key-value in NATS JetStream; `url` is `nats://host[:port]` or `tls://host[:port]`.
    KeyvalueNats,
    /// Objects in files of the node: durable before acknowledged.
    BlobstoreFolder,
    /// Objects in a bucket of S3 or of what speaks like it: `url`, `bucket`, an access key.
    BlobstoreS3,
    /// Objects in the object store of NATS JetStream; `url` is `nats://host[:port]` or `tls://host[:port]`.
    BlobstoreNats,
    /// Messages in the memory of the node: shared by the apps of a tenant, gone with the node.
    MessagingLocal,
    /// As `messaging-local`, and every message is on the node's disk before it is acknowledged.
    MessagingDurable,
    /// Another component of the app, for the contracts it exports; `component` is its name.
    Component,
    /// Messages over NATS, at most once; `url` is `nats://host[:port]`.
    MessagingNats,
    /// Messages in a stream of NATS JetStream, at least once: `url`, `stream`.
    MessagingJetstream,
    /// Secrets of the tenant, kept sealed by this machine.
    SecretsEmbedded,
    /// A process beside the platform, run from a program that the operator names; see [`crate::rules::external`].
    External,
    /// A SQLite database of the app in a file of the node: durable before acknowledged.
    SqlSqlite,
    /// A Postgres database; `url` is `postgres://host[:port]/database`, `username` and `password` stand beside it.
    SqlPostgres,
    /// Secrets in Vault or OpenBao; `url` is `http[s]://host[:port]`.
    SecretsVault,
}

impl ProviderKind {
    /// Every kind, for help texts and nearest-match hints.
    pub const ALL: [Self; 19] = [
        Self::KeyvalueMemory,
        Self::KeyvalueEmbedded,
        Self::KeyvalueRedis,
        Self::KeyvalueVault,
        Self::KeyvalueConsul,
        Self::KeyvalueNats,
        Self::BlobstoreFolder,
        Self::BlobstoreS3,
        Self::BlobstoreNats,
        Self::MessagingLocal,
        Self::MessagingDurable,
        Self::Component,
        Self::MessagingNats,
        Self::MessagingJetstream,
        Self::SecretsEmbedded,
        Self::External,
        Self::SqlSqlite,
        Self::SqlPostgres,
        Self::SecretsVault,
    ];

    /// The name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyvalueMemory => "keyvalue-memory",
            Self::KeyvalueEmbedded => "keyvalue-embedded",
            Self::KeyvalueRedis => "keyvalue-redis",
            Self::KeyvalueVault => "keyvalue-vault",
            Self::KeyvalueConsul => "keyvalue-consul",
            Self::KeyvalueNats => "keyvalue-nats",
            Self::BlobstoreFolder => "blobstore-folder",
            Self::BlobstoreS3 => "blobstore-s3",
            Self::BlobstoreNats => "blobstore-nats",
            Self::MessagingLocal => "messaging-local",
            Self::MessagingDurable => "messaging-durable",
            Self::Component => "component",
            Self::MessagingNats => "messaging-nats",
            Self::MessagingJetstream => "messaging-jetstream",
            Self::SecretsEmbedded => "secrets-embedded",
            Self::External => "external",
            Self::SqlSqlite => "sql-sqlite",
            Self::SqlPostgres => "sql-postgres",
            Self::SecretsVault => "secrets-vault",
        }
    }

    /// The contracts it answers, as `namespace:package`, the first one above all; `*` where that is what its component
    /// exports.
    pub fn contracts(self) -> &'static [&'static str] {
        match self {
            Self::KeyvalueMemory
            | Self::KeyvalueEmbedded
            | Self::KeyvalueRedis
            | Self::KeyvalueVault
            | Self::KeyvalueConsul
            | Self::KeyvalueNats => &["wasi:keyvalue"],
            Self::BlobstoreFolder | Self::BlobstoreS3 | Self::BlobstoreNats => &["wasi:blobstore"],
            Self::MessagingLocal | Self::MessagingDurable | Self::MessagingNats | Self::MessagingJetstream => {
                &[crate::messaging::CONTRACT]
            }
            Self::SecretsEmbedded | Self::SecretsVault => &[crate::secret::CONTRACT],
            Self::SqlSqlite => &[crate::sql::CONTRACT],
            Self::SqlPostgres => &[crate::sql::CONTRACT, crate::sql::POSTGRES],
            Self::Component => &["*"],
            // Each one answers one of them: [`ProviderSpec::contracts`].
            Self::External => crate::rules::external::CONTRACTS,
        }
    }

    /// Whether one of this kind can answer `contract`.
    pub fn answers(self, contract: &ContractId) -> bool {
        answers(self.contracts(), contract)
    }

    /// The providers that exist without being declared: name and kind.
    pub const BUILT_IN: [(&'static str, Self); 7] = [
        ("embedded", Self::KeyvalueEmbedded),
        ("memory", Self::KeyvalueMemory),
        ("folder", Self::BlobstoreFolder),
        ("local", Self::MessagingLocal),
        ("durable", Self::MessagingDurable),
        ("secrets", Self::SecretsEmbedded),
        ("sqlite", Self::SqlSqlite),
    ];
}

/// A named edge: (component, contract, label) to a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Link {
    /// Whose import.
    pub component: ComponentName,
    /// Which contract.
    pub contract: ContractId,
    /// Which of several links of the contract: the name of the bucket or container the component
    /// opens.
    pub label: Label,
    /// What answers.
    pub provider: ProviderName,
    /// Settings of this edge, for example `bucket` (the bucket in the backend, where it differs from the label); see
    /// [`crate::messaging`] for those of a messaging link.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
}

/// What the ingress sends to a component. Longest path prefix wins; exact host before wildcard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Route {
    /// Lower-case host name without port, or `*.suffix`.
    pub host: String,
    /// Path prefix on segment borders, starts with `/`.
    pub path: String,
    /// Methods; empty means all.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Who answers.
    pub component: ComponentName,
}
