//! Interfaces and contracts: `wasi:keyvalue/store@0.2.0-draft` is an interface, `wasi:keyvalue` the contract whose
//! interfaces one link carries.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text is not `namespace:package/interface[@version]` (interfaces) or `namespace:package` (contracts).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an interface: write namespace:package/interface, for example wasi:keyvalue/store")]
pub struct InterfaceError(pub String);

/// A WIT package whose interfaces are linked together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContractId {
    /// For example `wasi`.
    pub namespace: String,
    /// For example `keyvalue`.
    pub package: String,
}

/// One interface of a contract, with the version it was built against.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceId {
    /// The package the interface belongs to.
    pub contract: ContractId,
    /// For example `store`.
    pub interface: String,
    /// For example `0.2.0-draft`; absent in unversioned packages.
    pub version: Option<semver::Version>,
}

fn kebab(text: &str) -> bool {
    !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

impl FromStr for ContractId {
    type Err = InterfaceError;
    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        match text.split_once(':') {
            Some((ns, pkg)) if kebab(ns) && kebab(pkg) => {
                Ok(Self { namespace: ns.to_owned(), package: pkg.to_owned() })
            }
            _ => Err(InterfaceError(text.to_owned())),
        }
    }
}

impl FromStr for InterfaceId {
    type Err = InterfaceError;
    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        let err = || InterfaceError(text.to_owned());
        let (path, version) = match text.split_once('@') {
            Some((path, v)) => (path, Some(semver::Version::parse(v).map_err(|_| err())?)),
            None => (text, None),
        };
        let (contract, interface) = path.split_once('/').ok_or_else(err)?;
        if !kebab(interface) {
            return Err(err());
        }
        Ok(Self { contract: contract.parse().map_err(|_| err())?, interface: interface.to_owned(), version })
    }
}

impl fmt::Display for ContractId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.namespace, self.package)
    }
}

impl fmt::Display for InterfaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.contract, self.interface)?;
        self.version.as_ref().map_or(Ok(()), |v| write!(f, "@{v}"))
    }
}

macro_rules! as_string {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = InterfaceError;
            fn try_from(text: String) -> Result<Self, InterfaceError> {
                text.parse()
            }
        }
        crate::schema::text!($name, "^[a-zA-Z0-9-]+:[a-zA-Z0-9-]+(/[a-zA-Z0-9-]+(@.+)?)?$");
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}
as_string!(ContractId);
as_string!(InterfaceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_round_trip() {
        for text in ["wasi:keyvalue/store@0.2.0-draft", "wasi:http/types@0.2.3", "acme:shop/cart"] {
            assert_eq!(text.parse::<InterfaceId>().unwrap().to_string(), text);
        }
        for bad in ["wasi", "wasi:keyvalue", "wasi:/store", "wasi:kv/", "a:b/c@x", "a:b/c/d"] {
            assert!(bad.parse::<InterfaceId>().is_err(), "{bad}");
        }
    }
}
