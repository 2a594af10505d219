//! References to secrets. A revision says which secret is meant, never what it holds: values are revealed where they are
//! used, by whoever keeps them, and stand in no record, message or log of ours.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::app::{Link, LockedApp};
use crate::name::SecretName;

/// The largest value of a secret, bytes; the smallest has one.
pub const MAX_SECRET: usize = 64 * 1024;
/// The most secrets of one tenant.
pub const MAX_SECRETS: usize = 1024;

/// Which secret of the tenant is meant: `{ secret = "cache-password" }`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// Its name in the tenant's secret store.
    pub secret: SecretName,
}

impl SecretRef {
    /// The secret of this name.
    pub fn new(secret: SecretName) -> Self {
        Self { secret }
    }
}

/// One use of a secret by an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUse {
    /// Which secret.
    pub secret: SecretName,
    /// What uses it, for people: ``the `password` of provider `cache` ``.
    pub by: String,
}

/// Every use of a secret in an app.
pub fn uses(app: &LockedApp) -> Vec<SecretUse> {
    let of_providers = app.providers.iter().flat_map(|(name, spec)| {
        spec.secrets.iter().map(move |(key, reference)| SecretUse {
            secret: reference.secret.clone(),
            by: format!("the `{key}` of provider `{name}`"),
        })
    });
    let of_links = app.links.iter().filter_map(|link| {
        let (_, reference) = of_link(link)?;
        let by = format!("the link `{}` of component `{}`", link.label, link.component);
        Some(SecretUse { secret: reference.secret, by })
    });
    of_providers.chain(of_links).collect()
}

/// The contract by which components reach secrets.
pub const CONTRACT: &str = "wasmcloud:secrets";

/// The key that a component asks for over a link of [`CONTRACT`], and the secret it then gets: each the link's label where
/// the link does not say otherwise. `None` for links of other contracts, and where what is said is no name.
pub fn of_link(link: &Link) -> Option<(&str, SecretRef)> {
    if link.contract.to_string() != CONTRACT {
        return None;
    }
    let named = |key: &str| link.config.get(key).map_or(link.label.as_str(), String::as_str);
    Some((named("key"), SecretRef::new(named("secret").parse().ok()?)))
}

/// The names of all secrets an app uses.
pub fn names(app: &LockedApp) -> BTreeSet<SecretName> {
    uses(app).into_iter().map(|used| used.secret).collect()
}

/// What a secret holds. Wiped when dropped; prints as nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for whoever uses them up at once.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The same as text, where it is text.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl AsRef<[u8]> for SecretValue {
    fn as_ref(&self) -> &[u8] {
        self.expose()
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_does_not_print() {
        let value = SecretValue::new(b"hunter2".to_vec());
        assert_eq!(format!("{value:?} {:#?}", Some(&value)).matches("hunter").count(), 0);
        assert_eq!((value.expose(), value.expose_text()), (&b"hunter2"[..], Some("hunter2")));
        assert_eq!(SecretValue::new(vec![0xff]).expose_text(), None);
    }
}
