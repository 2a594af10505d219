//! What is mounted in Vault, for as far as our token may know: a wrong setting is then said early and in plain words.

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::session::MOUNTS;
use super::{Vault, VaultError};
use crate::path::Segments;

/// A secrets engine at a mount.
#[derive(Debug, Deserialize)]
pub(crate) struct Mounted {
    /// For example `kv` or `database`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    options: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Got {
    data: Option<Mounted>,
}

impl Mounted {
    /// Whether it keeps keys and values.
    pub(crate) fn is_kv(&self) -> bool {
        self.kind == "kv" || self.kind == "generic"
    }

    /// Whether it keeps them in versions.
    pub(crate) fn is_versioned(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.get("version").is_some_and(|version| version == "2"))
    }
}

impl Vault {
    /// What is mounted there; `None` where it is not said.
    pub(crate) async fn mounted(&self, mount: &Segments) -> Result<Option<Mounted>, VaultError> {
        let path = format!("{MOUNTS}{mount}");
        match self.call(Method::GET, &path, Zeroizing::default()).await {
            Ok(told) if told.status == 200 => Ok(self.read::<Got>(&told)?.data),
            // Who may read what is there may not always see the mount, and not every server can be asked.
            Ok(_) | Err(VaultError::Denied(_) | VaultError::NoMount(_) | VaultError::Other { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }
}
