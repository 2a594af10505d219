//! Names: one alphabet, one length, one type per kind of thing, so that a name can be a DNS label, a directory, a
//! storage key and a jailer id without escaping.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 40;

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The string has no characters.
    #[error("a name cannot be empty")]
    Empty,
    /// The string has more than [`MAX_NAME`] bytes.
    #[error("a name has at most {MAX_NAME} characters, this one has {0}")]
    TooLong(usize),
    /// A character outside `[a-z0-9-]`, or a hyphen at either end.
    #[error("`{0}` is not a name: use a-z, 0-9 and inner hyphens")]
    Alphabet(String),
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME {
        return Err(NameError::TooLong(text.len()));
    }
    let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !inner || text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::Alphabet(text.escape_debug().take(60).collect()));
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        crate::schema::text!($name, "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$");

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

names! {
    /// An account: owner of apps, keys, quotas and policies.
    TenantName,
    /// An app of one tenant.
    AppName,
    /// A component of one app.
    ComponentName,
    /// A provider, declared by an app, by the operator, or built in.
    ProviderName,
    /// Which of several links of one contract is meant; `default` where there is one.
    Label,
    /// A machine.
    NodeName,
    /// A secret of one tenant.
    SecretName,
    /// A config that apps of one tenant share.
    ConfigName,
    /// A schedule of one app.
    ScheduleName,
}

impl TenantName {
    /// The tenant of a machine where nobody names one.
    pub fn local() -> Self {
        Self("local".into())
    }
}

impl AppName {
    /// The name that is before all others, where they stand in order.
    pub fn first() -> Self {
        Self("0".into())
    }
}

impl Label {
    /// The label of a link that names none.
    pub fn default_label() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_closed() {
        for good in ["a", "0", "a-b", "counter", &"a".repeat(40)] {
            assert!(good.parse::<AppName>().is_ok_and(|name| name >= AppName::first()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "..", "a/b", "é", "a\0", "*", ">", &"a".repeat(41), "%2e"] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }
}
