//! A manifest that has been read: every value is of its type and knows where it was written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::app::{ProviderKind, Reuse};
use crate::digest::Digest;
use crate::interface::ContractId;
use crate::limits::Limits;
use crate::manifest::report::Source;
use crate::name::{AppName, ComponentName, ConfigName, Label, ProviderName, ScheduleName};
use crate::schedule::Schedule;
use crate::secret::SecretRef;

/// A value and the byte range it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub span: Range<usize>,
}

/// An `app.toml`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The app's name.
    pub name: Spanned<AppName>,
    /// The author's version text; not interpreted.
    pub version: Option<Spanned<String>>,
    /// Components by name.
    pub components: BTreeMap<ComponentName, Component>,
    /// Providers the app declares.
    pub providers: BTreeMap<ProviderName, Provider>,
    /// What the ingress sends where, in the order of the file.
    pub routes: Vec<RouteEntry>,
    /// What the clock calls.
    pub schedules: BTreeMap<ScheduleName, ScheduleEntry>,
    /// The text it was read from.
    pub source: Arc<Source>,
}

/// Where a component's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComponentSource {
    /// A file inside the app's folder: relative, `/`-separated, without `..`. Whether a symbolic link leads outside is
    /// for whoever opens it to check.
    Path(String),
    /// An artifact of an OCI registry, pinned by digest.
    Oci(OciReference),
}

/// `registry/repository[:tag]@sha256:<digest>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciReference {
    /// Host name, with a port where one is written.
    pub registry: String,
    /// The path below the registry.
    pub repository: String,
    /// A tag, for people only: the digest decides.
    pub tag: Option<String>,
    /// The digest of the registry's manifest, as in every OCI reference; the manifest names the digest of the bytes.
    pub digest: Digest,
}

/// One component of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Where the name is written.
    pub span: Range<usize>,
    /// Where the bytes come from.
    pub source: Spanned<ComponentSource>,
    /// Answers of `wasi:config`.
    pub config: BTreeMap<String, SettingEntry>,
    /// Shared configs that answer too.
    pub config_from: Vec<Spanned<ConfigName>>,
    /// Limits, with the defaults for those not named.
    pub limits: Limits,
    /// Where each limit that is named is written.
    pub limit_spans: BTreeMap<&'static str, Range<usize>>,
    /// Instance reuse.
    pub reuse: Option<Spanned<Reuse>>,
    /// Where outgoing HTTP may go.
    pub allow_hosts: Vec<Spanned<String>>,
    /// The path that is asked before a revision serves.
    pub health: Option<Spanned<String>>,
    /// Links in the order of the file.
    pub links: Vec<LinkEntry>,
}

/// The value of a key that the user chose, or that depends on a provider type or contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingEntry {
    /// Where the key is written.
    pub key: Range<usize>,
    /// The value.
    pub value: Spanned<String>,
}

/// The value of a key that names a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretEntry {
    /// Where the key is written.
    pub key: Range<usize>,
    /// Where the reference is written.
    pub span: Range<usize>,
    /// Which secret.
    pub reference: SecretRef,
}

/// One link of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEntry {
    /// Where the whole entry is written.
    pub span: Range<usize>,
    /// Which contract.
    pub contract: Spanned<ContractId>,
    /// Which of several links of the contract.
    pub label: Spanned<Label>,
    /// What answers.
    pub provider: Spanned<ProviderName>,
    /// Whether it is a component that is named, not a provider.
    pub to_component: bool,
    /// Settings of the link.
    pub config: BTreeMap<String, SettingEntry>,
}

/// One provider an app declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Where the name is written.
    pub span: Range<usize>,
    /// Which implementation.
    pub kind: Spanned<ProviderKind>,
    /// Settings of the implementation; keys are checked by `lock`.
    pub config: BTreeMap<String, SettingEntry>,
    /// Settings that name a secret; keys are checked by `lock`.
    pub secrets: BTreeMap<String, SecretEntry>,
}

/// One route of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEntry {
    /// Where the table is written.
    pub span: Range<usize>,
    /// Host name or `*.suffix`.
    pub host: Spanned<String>,
    /// Path prefix; `/` where none is written.
    pub path: Spanned<String>,
    /// Methods; empty means all.
    pub methods: Vec<Spanned<String>>,
    /// Who answers.
    pub component: Spanned<ComponentName>,
}

/// One schedule of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleEntry {
    /// Where the name is written.
    pub span: Range<usize>,
    /// Where the value of each key is written.
    pub keys: BTreeMap<&'static str, Range<usize>>,
    /// What it says; its texts are checked by `lock`.
    pub schedule: Schedule,
}
