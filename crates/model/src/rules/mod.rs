//! What makes an app right, wherever it is written. One set of rules with two callers: `lock` puts their violations at a
//! place in `app.toml`; `admission` applies them in the control plane to an app it does not trust.

pub mod allow_host;
mod app;
pub mod callee;
mod code;
pub mod external;
pub mod http_server;
mod imports;
mod limits;
pub mod links;
pub mod nats;
pub mod postgres;
pub mod provider;
pub mod route;
mod schedules;
pub mod source;
mod watch;

use std::collections::BTreeSet;

pub use app::{check, revision_too_large, shared_too_large, size, too_many};
pub use code::Code;

use crate::name::{ComponentName, ProviderName, ScheduleName};

pub use limits::{LIMIT_FIELDS, LimitField, MAX_REUSE_IDLE, Unit as LimitUnit, ceiling_problems};

/// The largest manifest, bytes.
pub const MAX_MANIFEST: usize = 1024 * 1024;
/// The largest revision of an app as it is stored, bytes of JSON: what its shared configs held and what was vouched for it included.
pub const MAX_REVISION: usize = 1024 * 1024;
/// The largest artifact, bytes.
pub const MAX_ARTIFACT: u64 = crate::component::MAX_COMPONENT as u64;
/// The most components of one app.
pub const MAX_COMPONENTS: usize = 64;
/// The most providers one app declares.
pub const MAX_PROVIDERS: usize = 64;
/// The most routes of one app.
pub const MAX_ROUTES: usize = 256;
/// The most links of one app.
pub const MAX_LINKS: usize = 256;
/// The most methods one route names.
pub const MAX_METHODS: usize = 64;
/// The most settings of one provider, secrets among them, and of one link: more than any kind has.
pub const MAX_SETTINGS: usize = 128;
/// The most hosts one component may name for outgoing HTTP.
pub const MAX_ALLOW_HOSTS: usize = 64;
/// The most `config` entries of one component.
pub const MAX_CONFIG_ENTRIES: usize = 128;
/// The largest `config` entry, key and value together, bytes.
pub const MAX_CONFIG_ENTRY: usize = 8 * 1024;
/// The most characters of an app's version text.
pub const MAX_VERSION: usize = 64;
/// The most calls one instance may serve.
pub const MAX_REUSE_REQUESTS: u32 = 1_000_000;

/// Something an app must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Violation {
    /// Which rule.
    pub code: Code,
    /// What is wrong, and why, in one sentence.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Violation {
    /// A violation without advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Which part of an app a violation is about: `lock` turns it into a place in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The app as a whole.
    App,
    /// The version text.
    Version,
    /// A component.
    Component(ComponentName),
    /// A component's artifact.
    Artifact(ComponentName),
    /// One limit of a component, by its name in manifests.
    Limit(ComponentName, &'static str),
    /// A component's reuse setting.
    Reuse(ComponentName),
    /// One `config` entry of a component.
    Config(ComponentName, String),
    /// One entry of a component's `config-from`, by index.
    ConfigFrom(ComponentName, usize),
    /// One entry of a component's `allow-hosts`, by index.
    AllowHost(ComponentName, usize),
    /// A component's `health`.
    Health(ComponentName),
    /// A link, by index in [`crate::LockedApp::links`].
    Link(usize),
    /// The provider a link names.
    LinkProvider(usize),
    /// The key of one setting of a link.
    LinkKey(usize, String),
    /// The value of one setting of a link.
    LinkValue(usize, String),
    /// A provider.
    Provider(ProviderName),
    /// The key of one setting of a provider.
    ProviderKey(ProviderName, String),
    /// The value of one setting of a provider.
    ProviderValue(ProviderName, String),
    /// A route, by index in [`crate::LockedApp::routes`].
    Route(usize),
    /// One method of a route, by index.
    RouteMethod(usize, usize),
    /// The component a route names.
    RouteComponent(usize),
    /// One key of a schedule.
    Schedule(ScheduleName, &'static str),
}

/// A violation, what it is about, and what else it speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is about.
    pub subject: Subject,
    /// Another part it speaks of, and what to say there.
    pub related: Option<(Subject, String)>,
    /// The violation.
    pub violation: Violation,
}

impl Found {
    fn at(subject: Subject, violation: Violation) -> Self {
        Self { subject, related: None, violation }
    }
}

/// What the rules cannot know, so that nothing is said of it.
#[derive(Debug, Clone, Default)]
pub struct Unknown {
    /// Components whose imports and exports are not known: their artifact could not be read.
    pub artifacts: BTreeSet<ComponentName>,
    /// Components whose links are not all known: one could not be read.
    pub links: BTreeSet<ComponentName>,
    /// Components that are written and could not be read.
    pub components: BTreeSet<String>,
    /// Providers that are written and could not be read.
    pub providers: BTreeSet<String>,
    /// Whether nothing is known of the components: their table is missing.
    pub all_components: bool,
}

/// The entry of `known` that `written` was probably meant to be.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = written.to_ascii_lowercase().replace('_', "-");
    let length = lower.chars().count();
    let allowed = (length / 3).clamp(1, 4);
    known
        .into_iter()
        // No nearer than their lengths are; what is compared takes memory for each pair of characters.
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= allowed)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean …?` where something is near, and the list of what there is where not.
pub(crate) fn suggest(written: &str, known: &[&str], noun: &str) -> String {
    match nearest(written, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{noun}: {}", list(known)),
    }
}

/// `a`, `b`, `c` in backticks.
pub(crate) fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The text with user names and passwords of URLs replaced by asterisks, one for each byte, so that byte offsets stay.
pub(crate) fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || c == '/' || c == '"' || c == '\'').unwrap_or(after.len());
        let secret = after.get(..end).and_then(|authority| authority.rfind('@')).unwrap_or(0);
        out.extend(std::iter::repeat_n('*', secret));
        rest = after.get(secret..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// A text from outside as it may be shown: without secrets, escaped, and cut after 80 characters.
pub(crate) fn shown(text: &str) -> String {
    let text = &masked(text);
    let mut out: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().count() > 80 {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_urls_are_masked_in_place() {
        for (text, expected) in [
            ("url = \"redis://app:pw@host/0\" # a@b", "url = \"redis://******@host/0\" # a@b"),
            ("http://a/x@y https://u@b", "http://a/x@y https://*@b"),
            ("://", "://"),
            ("a://é@b", "a://**@b"),
            ("no url", "no url"),
        ] {
            assert_eq!(masked(text), expected);
            assert_eq!(masked(text).len(), text.len());
        }
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        assert_eq!(nearest("cahce", ["embedded", "cache"]), Some("cache"));
        assert_eq!(nearest("allow_hosts", ["allow-hosts"]), Some("allow-hosts"));
        assert_eq!(nearest("fuel", ["cpu", "wall"]), None);
        assert_eq!(nearest("", ["a"]), Some("a"));
        assert_eq!(nearest(&"a".repeat(4 << 20), ["aaaa"]), None);
    }
}
