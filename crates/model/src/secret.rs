//! References to secrets. A revision says which secret is meant, never what it holds: values are revealed where they are
//! used, by whoever keeps them, and stand in no record, message or log of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::app::{Link, LockedApp, ProviderKind, ProviderSpec};
use crate::name::{ProviderName, SecretName};

/// The largest value of a secret, bytes; the smallest has one.
pub const MAX_SECRET: usize = 64 * 1024;
/// The most secrets of one tenant.
pub const MAX_SECRETS: usize = 1024;

/// Which secret is meant: `{ secret = "cache-password" }` of the tenant's own store, or with `from` of a provider.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// Its name where it is kept.
    pub secret: SecretName,
    /// The provider that keeps it; the tenant's own store where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ProviderName>,
    /// Which field of a secret that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<SecretField>,
}

impl SecretRef {
    /// The secret of this name in the tenant's own store.
    pub fn new(secret: SecretName) -> Self {
        Self { secret, from: None, field: None }
    }

    /// Whether it is in the tenant's own store, as far as it says so itself.
    pub fn is_own(&self) -> bool {
        let built_in = |from: &ProviderName| {
            let own =
                |(name, kind): &(&str, ProviderKind)| *name == from.as_str() && *kind == ProviderKind::SecretsEmbedded;
            ProviderKind::BUILT_IN.iter().any(own)
        };
        self.from.as_ref().is_none_or(built_in)
    }

    /// The secret of this name at this provider.
    pub fn at(secret: SecretName, from: ProviderName) -> Self {
        Self { from: Some(from), ..Self::new(secret) }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.secret)?;
        self.field.as_ref().map_or(Ok(()), |field| write!(f, " field {field}"))?;
        self.from.as_ref().map_or(Ok(()), |from| write!(f, " from {from}"))
    }
}

/// The name of one field of a secret, as Vault's secrets have them: it is compared, and never a piece of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct SecretField(Box<str>);

/// The text is no name of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a field has 1 to {MAX_FIELD} letters, digits, `-`, `_` and `.`")]
pub struct SecretFieldError;

/// The longest name of a field, bytes.
pub const MAX_FIELD: usize = 64;

impl SecretField {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretField {
    type Err = SecretFieldError;
    fn from_str(text: &str) -> Result<Self, SecretFieldError> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if (1..=MAX_FIELD).contains(&text.len()) && plain { Ok(Self(text.into())) } else { Err(SecretFieldError) }
    }
}

impl TryFrom<String> for SecretField {
    type Error = SecretFieldError;
    fn try_from(text: String) -> Result<Self, SecretFieldError> {
        text.parse()
    }
}

impl From<SecretField> for String {
    fn from(field: SecretField) -> Self {
        field.0.into()
    }
}

impl fmt::Display for SecretField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the provider of this name in an app is, declared or built in.
pub fn kind_of(app: &LockedApp, name: &ProviderName) -> Option<ProviderKind> {
    let built_in = || ProviderKind::BUILT_IN.into_iter().find(|(known, _)| *known == name.as_str());
    app.providers.get(name).map(|spec| spec.kind).or_else(|| built_in().map(|(_, kind)| kind))
}

/// One use of a secret of the tenant's own store by an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUse {
    /// Which secret.
    pub secret: SecretName,
    /// What uses it, for people: ``the `password` of provider `cache` ``.
    pub by: String,
}

/// Every use of a secret of the tenant's own store in an app.
pub fn uses(app: &LockedApp) -> Vec<SecretUse> {
    let of_providers = app.providers.iter().flat_map(|(name, spec)| {
        let own = spec.secrets.iter().filter(|(_, reference)| reference.is_own());
        own.map(move |(key, reference)| SecretUse {
            secret: reference.secret.clone(),
            by: format!("the `{key}` of provider `{name}`"),
        })
    });
    let of_links = app.links.iter().filter_map(|link| {
        let (_, reference) =
            of_link(link).filter(|_| kind_of(app, &link.provider) == Some(ProviderKind::SecretsEmbedded))?;
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
    let field = link.config.get("field").map(|field| field.parse()).transpose().ok()?;
    Some((named("key"), SecretRef { field, ..SecretRef::new(named("secret").parse().ok()?) }))
}

/// The providers of an app that the secrets of `spec` come from, beside the tenant's own store.
pub fn sources(app: &LockedApp, spec: &ProviderSpec) -> BTreeMap<ProviderName, ProviderSpec> {
    let named = spec.secrets.values().filter(|reference| !reference.is_own()).filter_map(|one| one.from.as_ref());
    named.filter_map(|name| Some((name.clone(), app.providers.get(name)?.clone()))).collect()
}

/// The names of all secrets of the tenant's own store that an app uses.
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

    #[test]
    fn a_reference_says_where_the_secret_is_and_old_records_mean_the_own_store() {
        let own: SecretRef = serde_json::from_str(r#"{"secret":"a"}"#).unwrap();
        assert_eq!((own.to_string(), serde_json::to_string(&own).unwrap()), ("a".into(), r#"{"secret":"a"}"#.into()));
        let text = r#"{"secret":"db","from":"vault","field":"password"}"#;
        let there: SecretRef = serde_json::from_str(text).unwrap();
        assert_eq!(there.to_string(), "db field password from vault");
        assert_eq!(serde_json::to_string(&there).unwrap(), text);
        for bad in ["", "a/b", "a b", "..%2f", &"x".repeat(65)] {
            assert_eq!(bad.parse::<SecretField>(), Err(SecretFieldError), "{bad}");
        }
    }
}
