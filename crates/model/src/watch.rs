//! Watched buckets: a link of `wasi:keyvalue` with the setting `watch` has its component called when keys of the bucket
//! change. Parsed in one place, so that the manifest's rules, the node's queues and the hosts agree.

use crate::app::{Link, LockedApp, ProviderKind, ProviderSpec};
use crate::interface::InterfaceId;
use crate::messaging::{DEFAULT_TRIES, Group, Subscription};
use crate::name::AppName;
use crate::offers::Offered;

/// The contract, as links name it.
pub const CONTRACT: &str = "wasi:keyvalue";
/// The link's setting.
pub const SETTING: &str = "watch";

/// Where changes wait for their handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// In the memory of the node, as the keys are in that of a host.
    Memory,
    /// On the node's disk, as the keys are.
    Disk,
    /// On the server that has the keys: it says itself what changed, whoever wrote it.
    Server,
}

/// Which keys are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// This one.
    One(String),
    /// Those that begin so; all where it is empty.
    Beginning(String),
}

impl std::fmt::Display for Keys {
    /// As the setting is written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(key) => f.write_str(key),
            Self::Beginning(beginning) => write!(f, "{beginning}*"),
        }
    }
}

impl Keys {
    /// Reads the setting: a key, or the beginning of keys and a `*`.
    pub fn of(written: &str) -> Self {
        match written.strip_suffix('*') {
            Some(beginning) => Self::Beginning(beginning.to_owned()),
            None => Self::One(written.to_owned()),
        }
    }

    /// Whether a key is meant.
    pub fn has(&self, key: &str) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Beginning(beginning) => key.starts_with(beginning.as_str()),
        }
    }
}

/// A link that watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch<'a> {
    /// The link: its component is called.
    pub link: &'a Link,
    /// Which keys.
    pub keys: Keys,
    /// Where changes wait.
    pub kept: Kept,
    /// What the link's provider is.
    pub kind: ProviderKind,
}

impl Watch<'_> {
    /// The queue of its changes. It takes no messages of any subject: changes are put into it by name.
    pub fn subscription(&self, app: &AppName) -> Subscription {
        Subscription {
            component: self.link.component.clone(),
            label: self.link.label.clone(),
            group: group(app, self.link),
            patterns: Vec::new(),
            tries: DEFAULT_TRIES,
            in_flight: 1,
        }
    }

    /// Whether what `other` writes is told to it by us: to the same bucket of the same provider, by another link. Of what
    /// a server follows itself we need not tell.
    pub fn hears(&self, other: &Link) -> bool {
        let same_place = self.link.provider == other.provider && bucket(self.link) == bucket(other);
        let same_link = self.link.component == other.component && self.link.label == other.label;
        self.kept != Kept::Server && same_place && !same_link && other.contract == self.link.contract
    }
}

/// The queue of a watching link: two dots, which no queue group of messages has.
fn group(app: &AppName, link: &Link) -> Group {
    Group { app: app.clone(), name: format!("watch.{}.{}", link.component, link.label) }
}

/// The bucket of a link's setting, or the one named like its label.
pub fn bucket(link: &Link) -> &str {
    link.config.get("bucket").map_or(link.label.as_str(), String::as_str)
}

/// Where changes of this kind of provider wait; `None` where this version does not follow them.
pub fn kept(kind: ProviderKind) -> Option<Kept> {
    match kind {
        ProviderKind::KeyvalueMemory => Some(Kept::Memory),
        ProviderKind::KeyvalueEmbedded => Some(Kept::Disk),
        ProviderKind::KeyvalueNats | ProviderKind::KeyvalueRedis | ProviderKind::KeyvalueConsul => Some(Kept::Server),
        _ => None,
    }
}

/// The export by which a component is called.
pub fn export(exports: &[InterfaceId]) -> Option<&InterfaceId> {
    exports.iter().find(|export| {
        export.contract.to_string() == CONTRACT
            && &*export.interface == "watcher"
            && Offered::Exact("0.2.0-draft").accepts(export.version.as_ref())
    })
}

/// The links of an app that watch; the rules refuse an app with one that cannot.
pub fn watches(app: &LockedApp) -> impl Iterator<Item = Watch<'_>> {
    let watching = app.links.iter().filter(|link| link.contract.to_string() == CONTRACT);
    watching.filter_map(|link| {
        let keys = Keys::of(link.config.get(SETTING)?);
        let declared = app.providers.get(&link.provider).map(|spec: &ProviderSpec| spec.kind);
        let built_in = || ProviderKind::BUILT_IN.iter().find(|(name, _)| *name == link.provider.as_str());
        let kind = declared.or_else(|| built_in().map(|(_, kind)| *kind))?;
        Some(Watch { link, keys, kept: kept(kind)?, kind })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_one_or_those_that_begin_so() {
        for (written, key, meant) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*", "ab", true),
            ("a*", "b", false),
            ("*", "anything", true),
            ("orders/*", "orders", false),
        ] {
            assert_eq!(Keys::of(written).has(key), meant, "{written} {key}");
        }
    }

    #[test]
    fn a_watch_hears_other_links_of_its_bucket() {
        let app: LockedApp = serde_json::from_str(
            r#"{"name":"a","components":{},"links":[
                {"component":"w","contract":"wasi:keyvalue","label":"default","provider":"embedded","config":{"watch":"*"}},
                {"component":"w","contract":"wasi:keyvalue","label":"again","provider":"embedded","config":{"bucket":"default"}},
                {"component":"c","contract":"wasi:keyvalue","label":"default","provider":"embedded"},
                {"component":"c","contract":"wasi:keyvalue","label":"other","provider":"embedded"},
                {"component":"c","contract":"wasi:keyvalue","label":"third","provider":"memory","config":{"bucket":"default"}}]}"#,
        )
        .unwrap();
        let all: Vec<_> = watches(&app).collect();
        assert_eq!((all.len(), all[0].kept), (1, Kept::Disk));
        let heard: Vec<bool> = app.links.iter().map(|link| all[0].hears(link)).collect();
        assert_eq!(heard, [false, true, true, false, false]);
        assert_eq!(all[0].subscription(&app.name).group.name, "watch.w.default");
    }
}
