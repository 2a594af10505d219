//! What the operator decides for one tenant: whom it trusts, how much it may use, where it may connect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::app::ProviderSpec;
use crate::limits::Limits;
use crate::name::ProviderName;

/// Settings of one tenant, written by the operator only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct TenantSettings {
    /// Account public keys (`A…`) whose signatures are accepted. Never taken from a token.
    pub trust_anchors: Vec<String>,
    /// Revoked keys (account `A…`, module `M…`), token ids (`jti`) and artifact digests (`sha256:…`).
    pub revoked: Vec<String>,
    /// The named development policy: unsigned components run.
    pub allow_unsigned: bool,
    /// The largest limits an app of this tenant may ask for.
    pub ceilings: Limits,
    /// Address ranges (CIDR) outside the public internet that the tenant's connections may reach.
    pub egress: Vec<String>,
    /// Providers the operator offers to every app of the tenant. The addresses they name are granted to them.
    pub providers: BTreeMap<ProviderName, ProviderSpec>,
    /// Host processes that share the tenant's load; at least 1.
    pub shards: u32,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            trust_anchors: Vec::new(),
            revoked: Vec::new(),
            allow_unsigned: false,
            ceilings: Limits::ceiling(),
            egress: Vec::new(),
            providers: BTreeMap::new(),
            shards: 2,
        }
    }
}
