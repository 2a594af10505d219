//! Tenants: their settings, quotas, life and tokens. A quota that can be absent is written `none`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use model::TenantName;
use model::access::{Role, TokenId};
use model::rules::{LIMIT_FIELDS, LimitField, LimitUnit};
use model::unit::{ByteSize, Millis};

/// `sidereal tenant-settings`
#[derive(Debug, Subcommand)]
pub enum SettingsCommand {
    /// The settings.
    Show,
    /// Every tenant.
    List,
    /// Change settings of a tenant that is there.
    Set(Box<Settings>),
}

/// What is changed of a tenant's settings.
#[derive(Debug, Args)]
pub struct Settings {
    /// Accept signatures of this account key.
    #[arg(long, value_name = "KEY")]
    pub trust: Vec<String>,
    /// No longer accept signatures of this account key.
    #[arg(long, value_name = "KEY")]
    pub distrust: Vec<String>,
    /// Refuse this key, token id or digest from now on, running or not.
    #[arg(long, value_name = "ID")]
    pub revoke: Vec<String>,
    /// Take an entry off the revocation list.
    #[arg(long, value_name = "ID")]
    pub unrevoke: Vec<String>,
    /// Grant an address range outside the public internet, all its ports or some: `10.1.0.0/16:6379`.
    #[arg(long, value_name = "CIDR")]
    pub allow_egress: Vec<String>,
    /// Take a granted range back, for new connections.
    #[arg(long, value_name = "CIDR")]
    pub deny_egress: Vec<String>,
    /// Let its apps have routes on this host: a name, `*.` and a suffix for every name below, or `*` for all. Without any
    /// they have whole names below `localhost`.
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Take a host back, for apps that do not have it yet.
    #[arg(long = "no-host", value_name = "HOST")]
    pub no_hosts: Vec<String>,
    /// The most an app of the tenant may ask for, for example `memory=256MiB` or `cpu=1s` (`docs/limits.md` has the names).
    #[arg(long = "ceiling", value_name = "NAME=VALUE")]
    pub ceilings: Vec<Ceiling>,
    /// Host processes that share the tenant's load.
    #[arg(long, value_name = "N")]
    pub shards: Option<u32>,
    /// Run unsigned components too.
    #[arg(long, value_name = "BOOL")]
    pub allow_unsigned: Option<bool>,
    #[command(flatten)]
    pub quotas: QuotaFlags,
}

/// What is changed of a tenant's quotas.
#[derive(Debug, Args)]
pub struct QuotaFlags {
    /// Apps that are there at once.
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub apps: Option<u32>,
    /// Components of all apps.
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub components: Option<u32>,
    /// Requests a second at the ingress, or `none`.
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub requests_per_second: Option<Quota>,
    /// Requests under way at the ingress at once, or `none`.
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub concurrent_requests: Option<Quota>,
    /// Outgoing connections a second.
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub connections_per_second: Option<u32>,
    /// Bytes of log a second, for example `1MiB`.
    #[arg(long, value_name = "SIZE", help_heading = "Quotas")]
    pub log_rate: Option<ByteSize>,
    /// Memory of its hosts on a node together, for example `512MiB`, or `none`. What takes more is ended and started again.
    #[arg(long, value_name = "SIZE", help_heading = "Quotas")]
    pub memory: Option<Bytes>,
    /// Its part of the processors where others want them too, against 100 of everybody, or `none`.
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub cpu_weight: Option<Quota>,
    /// Thousandths of a processor that its hosts on a node never get more than, or `none`.
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub cpu_millis: Option<Quota>,
    /// Bytes of keys, waiting messages, objects and databases that are kept on a node, for example `1GiB`, or `none`.
    #[arg(long, value_name = "SIZE", help_heading = "Quotas")]
    pub store_bytes: Option<Bytes>,
    /// Bytes of artifacts that the tenant has sent, for example `1GiB`.
    #[arg(long, value_name = "SIZE", help_heading = "Quotas")]
    pub artifact_bytes: Option<ByteSize>,
    /// Bytes of kept revisions, configs and secrets, for example `256MiB`.
    #[arg(long, value_name = "SIZE", help_heading = "Quotas")]
    pub record_bytes: Option<ByteSize>,
}

/// `NAME=VALUE` of a limit.
#[derive(Debug, Clone, Copy)]
pub struct Ceiling {
    /// Which limit.
    pub limit: &'static LimitField,
    /// In milliseconds, bytes or pieces.
    pub value: u64,
}

impl std::str::FromStr for Ceiling {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, for example memory=256MiB")?;
        let limit = LIMIT_FIELDS.iter().find(|limit| limit.name == name).ok_or_else(|| {
            let names: Vec<&str> = LIMIT_FIELDS.iter().map(|limit| limit.name).collect();
            format!("there is no limit `{name}`; there are {}", names.join(", "))
        })?;
        let value = match limit.unit {
            LimitUnit::Duration => value.parse::<Millis>().map(|value| value.0).map_err(|cause| cause.to_string()),
            LimitUnit::Size => value.parse::<ByteSize>().map(|value| value.0).map_err(|cause| cause.to_string()),
            LimitUnit::Count => {
                value.parse::<u32>().map(u64::from).map_err(|_| format!("`{value}` is no whole number"))
            }
        }?;
        Ok(Self { limit, value })
    }
}

/// A size, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub Option<ByteSize>);

impl std::str::FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            _ => text.parse().map(|size| Self(Some(size))).map_err(|cause| format!("{cause}, or `none`")),
        }
    }
}

/// A number, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota(pub Option<u32>);

impl std::str::FromStr for Quota {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            _ => text.parse().map(|n| Self(Some(n))).map_err(|_| "expected a whole number, or `none`".to_owned()),
        }
    }
}

/// `sidereal tenant`
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant.
    Create {
        /// Its name.
        name: TenantName,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// The tenants there are; with a token of a tenant, that one.
    List,
    /// A tenant's settings and quotas.
    Show {
        /// Which; the one that is acted for where absent.
        name: Option<TenantName>,
    },
    /// Change a tenant's settings or quotas.
    Set {
        /// Which.
        name: TenantName,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Stop serving a tenant's apps, at once. Everything it has is kept.
    Suspend {
        /// Which.
        name: TenantName,
        /// Why; its people are told.
        #[arg(long)]
        reason: String,
    },
    /// Serve a suspended tenant's apps again.
    Resume {
        /// Which.
        name: TenantName,
    },
    /// Delete a tenant: its apps, their data, its secrets and tokens. Its name is never used again.
    Delete {
        /// Which.
        name: TenantName,
        /// Its name once more: nothing is deleted without it.
        #[arg(long, value_name = "NAME")]
        confirm: Option<TenantName>,
    },
    /// Tokens that let people and programs act for the tenant.
    #[command(subcommand)]
    Token(TokenCommand),
}

/// `sidereal tenant token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token. It is shown once, and never again.
    Create {
        /// `viewer` reads, `deployer` also deploys, `owner` also makes tokens and decides whom the tenant trusts.
        #[arg(long)]
        role: Role,
        /// For people: who or what has it.
        #[arg(long, default_value = "")]
        label: String,
        /// When it ends, for example `720h`; never where absent.
        #[arg(long, value_name = "DURATION")]
        expires: Option<Millis>,
        /// Write it to this file, which only you can read, instead of showing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// The tokens there are, and when each was used last.
    List,
    /// End a token, at once and for ever.
    Revoke {
        /// Its id, as `list` shows it.
        id: TokenId,
    },
}

/// `sidereal login`
#[derive(Debug, Args)]
pub struct Login {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_written_as_the_manifest_writes_the_limit() {
        let read = |text: &str| text.parse::<Ceiling>().map(|ceiling| (ceiling.limit.name, ceiling.value));
        assert_eq!(read("memory=256MiB"), Ok(("memory", 256 << 20)));
        assert_eq!(read("cpu=1s"), Ok(("cpu", 1000)));
        assert_eq!(read("concurrency=8"), Ok(("concurrency", 8)));
        for (bad, says) in [
            ("memory", "NAME=VALUE"),
            ("stack=1MiB", "no limit `stack`"),
            ("memory=8", "8"),
            ("handles=4294967296", "whole number"),
        ] {
            let said = read(bad).unwrap_err();
            assert!(said.contains(says), "{bad}: {said}");
        }
    }
}
