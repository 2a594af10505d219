//! Configuration that apps of a tenant share by name. A revision holds the values it was made with, so that it is
//! immutable and `rollback` means something; whoever changes a config makes new revisions of the apps that name it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::app::{LockedApp, LockedComponent};
use crate::name::ConfigName;
use crate::rules::{MAX_CONFIG_ENTRIES, MAX_CONFIG_ENTRY};

/// The config that the operator fills from the environment of the platform; a tenant has none of this name.
pub const ENV: &str = "env";
/// The most configs of one tenant.
pub const MAX_CONFIGS: usize = 256;
/// The most configs that one component names.
pub const MAX_CONFIG_FROM: usize = 8;
/// The largest config, keys and values together, bytes.
pub const MAX_CONFIG: usize = 64 * 1024;
/// All shared values that one revision of an app holds, keys and values together, bytes.
pub const MAX_SHARED: usize = 1024 * 1024;
/// The longest key, bytes.
pub const MAX_CONFIG_KEY: usize = 256;

/// Keys and what is answered for them.
pub type Values = BTreeMap<String, String>;

/// A shared config that a component names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SharedConfig {
    /// Its name; `env` is the operator's.
    pub name: ConfigName,
    /// What it held when the revision was made. The control plane fills it in; what a client sends here is replaced.
    #[serde(default)]
    pub values: Values,
}

impl SharedConfig {
    /// A reference whose values are still to be filled in.
    pub fn named(name: ConfigName) -> Self {
        Self { name, values: Values::new() }
    }
}

impl LockedComponent {
    /// Everything `wasi:config` answers: the manifest's own values before shared ones, a later config before an earlier.
    pub fn answers(&self) -> Values {
        let shared = self.config_from.iter().flat_map(|shared| &shared.values);
        shared.chain(&self.config).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// Whether this is the config of the operator's environment.
pub fn is_env(name: &ConfigName) -> bool {
    name.as_str() == ENV
}

/// The names of all configs an app uses.
pub fn names(app: &LockedApp) -> BTreeSet<ConfigName> {
    shared(app).map(|shared| shared.name.clone()).collect()
}

/// Every place where an app names one.
pub fn shared(app: &LockedApp) -> impl Iterator<Item = &SharedConfig> {
    app.components.values().flat_map(|component| &component.config_from)
}

/// The same names, and how many places each has in the app.
pub fn places(app: &LockedApp) -> BTreeMap<ConfigName, usize> {
    let mut places = BTreeMap::new();
    for shared in shared(app) {
        *places.entry(shared.name.clone()).or_default() += 1;
    }
    places
}

/// Puts the values of `name` into every component that names it.
pub fn fill(app: &mut LockedApp, name: &ConfigName, values: &Values) {
    let all = app.components.values_mut().flat_map(|component| &mut component.config_from);
    for shared in all.filter(|shared| shared.name == *name) {
        shared.values.clone_from(values);
    }
}

/// Takes all shared values out: what is left is what the author wrote.
pub fn strip(app: &mut LockedApp) {
    let all = app.components.values_mut().flat_map(|component| &mut component.config_from);
    all.for_each(|shared| shared.values.clear());
}

/// The bytes of keys and values.
pub fn size(values: &Values) -> usize {
    values.iter().map(|(key, value)| key.len().saturating_add(value.len())).sum()
}

/// The bytes of all shared values of an app.
pub fn shared_size(app: &LockedApp) -> usize {
    shared(app).map(|shared| size(&shared.values)).sum()
}

/// Everything that keeps `values` from being a config, in whole sentences that repeat no value.
pub fn problems(values: &Values) -> Vec<String> {
    let mut problems = Vec::new();
    if values.len() > MAX_CONFIG_ENTRIES {
        problems.push(format!("a config has at most {MAX_CONFIG_ENTRIES} entries, this one has {}", values.len()));
    }
    let total = size(values);
    if total > MAX_CONFIG {
        problems
            .push(format!("a config has at most {MAX_CONFIG} bytes, keys and values together; this one has {total}"));
    }
    for (key, value) in values {
        if key.is_empty() || key.len() > MAX_CONFIG_KEY || key.chars().any(|c| c.is_control() || c == '=') {
            let shown: String = key.chars().take(60).flat_map(char::escape_debug).collect();
            problems.push(format!(
                "`{shown}` is no key: 1 to {MAX_CONFIG_KEY} bytes without `=` and without control characters"
            ));
        } else if key.len().saturating_add(value.len()) > MAX_CONFIG_ENTRY {
            problems.push(format!(
                "the entry `{key}` has {} bytes; at most {MAX_CONFIG_ENTRY} are kept",
                key.len().saturating_add(value.len())
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_manifest_goes_before_the_last_config_and_that_before_the_first() {
        let shared =
            |name: &str, pairs: &[(&str, &str)]| SharedConfig { name: name.parse().unwrap(), values: values(pairs) };
        let component = LockedComponent {
            digest: crate::Digest::of(b""),
            size: 0,
            world: crate::World::P2,
            imports: vec![],
            exports: vec![],
            config: values(&[("a", "manifest")]),
            config_from: vec![
                shared("one", &[("a", "one"), ("b", "one"), ("c", "one")]),
                shared("two", &[("a", "two"), ("b", "two")]),
            ],
            limits: crate::Limits::default(),
            reuse: None,
            allow_hosts: vec![],
            health: None,
        };
        assert_eq!(component.answers(), values(&[("a", "manifest"), ("b", "two"), ("c", "one")]));
    }

    #[test]
    fn what_is_no_config_is_said_without_its_values() {
        assert_eq!(problems(&values(&[("greeting", ""), ("A_B.c", "x=y")])), [""; 0]);
        for (key, value, expected) in [
            ("", "v", "is no key"),
            ("a=b", "v", "is no key"),
            ("a\nb", "v", "is no key"),
            (&*"k".repeat(257), "v", "is no key"),
            ("k", &*"secret".repeat(2000), "has 12001 bytes"),
        ] {
            let found = problems(&values(&[(key, value)])).join("; ");
            assert!(found.contains(expected) && !found.contains("secret"), "{key}: {found}");
        }
        let many: Values = (0..129).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(problems(&many).join(" ").contains("at most 128 entries"));
        let large: Values = (0..9).map(|n| (format!("k{n}"), "v".repeat(8000))).collect();
        assert!(problems(&large).join(" ").contains("at most 65536 bytes"));
    }
}
