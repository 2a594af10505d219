//! What a tenant keeps for its apps: secrets and configs.

use model::app::Revision;
use model::config::Values;
use model::{AppName, ConfigName, SecretName};
use serde::{Deserialize, Serialize};

use crate::Problem;

/// A secret without its value: values go in and never come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretView {
    /// Its name.
    pub name: SecretName,
    /// How often it was set since it was made; starts at 1.
    pub version: u64,
    /// When it was last set, milliseconds since 1970.
    pub updated_ms: u64,
    /// For `If-Match`.
    pub etag: u64,
    /// What names it now, for people.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// What a shared config is to hold: all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigRequest {
    /// Keys and what is answered for them. Stored and shown: no secrets.
    pub values: Values,
}

/// A config that apps of the tenant share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigView {
    /// Its name; `env` is the environment of the operator's choice, the same for all tenants.
    pub name: ConfigName,
    /// What it holds.
    pub values: Values,
    /// How often it was changed since it was made; starts at 1.
    pub version: u64,
    /// When it was last changed, milliseconds since 1970.
    pub updated_ms: u64,
    /// For `If-Match`; 0 for `env`, which is changed by nobody here.
    pub etag: u64,
    /// The apps that name it.
    #[serde(default)]
    pub used_by: Vec<ConfigUse>,
}

/// An app that names a shared config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigUse {
    /// The app.
    pub app: AppName,
    /// Its wanted revision.
    pub revision: Revision,
    /// That revision holds other values: it was rolled back, or could not follow. It follows with its next deploy, or
    /// when the config is set again.
    pub differs: bool,
}

/// A config was set, and the apps that name it follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigSet {
    /// What it is now.
    pub config: ConfigView,
    /// It held the same already: its version is the same.
    pub unchanged: bool,
    /// What became of each app that names it.
    pub apps: Vec<ConfigFollowed>,
}

/// What became of an app when a config it names was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigFollowed {
    /// The app.
    pub app: AppName,
    /// Its new revision, which differs in configuration only, or the current one where it had the values already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// Why it goes on with the values it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// The master key of the secret store was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyRotated {
    /// The id of the new key; no secret.
    pub key: String,
    /// Tenants whose data key was wrapped anew.
    pub tenants: u64,
}
