//! What an operator says when the platform starts: where it listens, what apps may reach, how tenants are kept apart.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use model::ProviderName;
use model::tenant::TenantSettings;
use model::unit::{ByteSize, Millis};
use node::confine::{UidRange, Waiver};

use crate::secret_files::SecretFile;

/// `sidereal up`
#[derive(Debug, Args)]
pub struct Up {
    /// Deploy the counter example where there is no app `counter` yet, and print where it answers.
    #[arg(long)]
    pub demo: bool,
    /// Where the ingress listens; another port is chosen, and said, where this one is taken.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", env = "SIDEREAL_LISTEN")]
    pub listen: SocketAddr,
    /// Where the API listens; another port is chosen, and said, where this one is taken. It has no TLS: elsewhere than on
    /// this machine, something that has it belongs before it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8088", env = "SIDEREAL_API_LISTEN")]
    pub api_listen: SocketAddr,
    /// A name or address that others call the API by; it answers to no other beside the one it listens on, and
    /// `localhost`.
    #[arg(long = "api-name", value_name = "NAME", value_parser = host_name)]
    pub api_names: Vec<String>,
    /// Where Prometheus can read metrics, without a token; `off`: nowhere. Another port is chosen, and said, where this
    /// one is taken.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8089", env = "SIDEREAL_METRICS_LISTEN")]
    pub metrics_listen: Listen,
    /// Host processes of the tenant, 1 to 64.
    #[arg(long, value_name = "N", value_parser = shards, env = "SIDEREAL_SHARDS")]
    pub shards: Option<u32>,
    /// How long calls in flight may take to finish when the platform stops; what is left then is cut, and counted. A second
    /// Ctrl-C waits for nothing.
    #[arg(long, value_name = "DURATION", default_value = "30s", env = "SIDEREAL_DRAIN")]
    pub drain: Millis,
    /// Compiled code that each host process keeps in memory; beyond it, what was idle longest is unloaded.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = budget, env = "SIDEREAL_CODE_BUDGET")]
    pub code_budget: ByteSize,
    /// Isolate tenants without these layers, each a risk: `uid`, `user`, `pid`, `root`, `net`, `ipc`, `uts`, `caps`,
    /// `landlock`, `seccomp`, `cgroup`, or `missing` for whatever this machine refuses. `status` names them.
    #[arg(long, value_name = "LAYER,…", env = "SIDEREAL_WAIVE")]
    pub waive: Option<Waiver>,
    /// User ids that tenants are given, one each and never another's; nobody else on this machine may have them.
    #[arg(long, value_name = "FIRST-LAST", env = "SIDEREAL_UID_RANGE")]
    pub uid_range: Option<UidRange>,
    /// Run unsigned components too: a development policy, named in `status`.
    #[arg(long, env = "SIDEREAL_ALLOW_UNSIGNED")]
    pub allow_unsigned: bool,
    /// Address ranges outside the public internet that apps may connect to, all their ports or some: `10.1.0.0/16:6379`.
    #[arg(long, value_name = "CIDR")]
    pub allow_egress: Vec<String>,
    /// The nameserver that names of outgoing connections are resolved by, port 53 where none is said. Where it is absent, the
    /// system resolves them, as this machine is set up.
    #[arg(long, value_name = "ADDR", value_parser = nameserver, env = "SIDEREAL_RESOLVER")]
    pub resolver: Option<SocketAddr>,
    /// A program that apps may run as an external provider, by this name. It runs confined: a user of its own, the system for
    /// reading, a folder for writing, no network.
    #[arg(long, value_name = "NAME=/PATH", value_parser = program)]
    pub external: Vec<(ProviderName, PathBuf)>,
    /// What the external program of this name may have beside that: `network`, the machine's, where nobody decides on its
    /// connections; or the path of a file or folder that it may read.
    #[arg(long, value_name = "NAME=network|/PATH", value_parser = grant)]
    pub external_allow: Vec<(ProviderName, Allowed)>,
    /// Offer this variable of the platform's environment to apps that say `config-from = ["env"]`; no other is offered.
    #[arg(long, value_name = "NAME")]
    pub config_env: Vec<String>,
    /// As `--config-env`, for all variables whose name begins so.
    #[arg(long, value_name = "PREFIX")]
    pub config_env_prefix: Vec<String>,
    /// A secret of the tenant that is in a file of this machine: set at the start, and again whenever the file changes.
    #[arg(long = "secret-file", value_name = "NAME=PATH")]
    pub secret_files: Vec<SecretFile>,
}

/// `NAME=/path/to/program`.
fn program(text: &str) -> Result<(ProviderName, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=/path/to/program")?;
    let name = name.parse::<ProviderName>().map_err(|cause| cause.to_string())?;
    Ok((name, PathBuf::from(path)))
}

/// What an operator lets an external program have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// The machine's network.
    Network,
    /// A file or folder, for reading.
    Read(PathBuf),
}

/// `NAME=network` or `NAME=/path`.
fn grant(text: &str) -> Result<(ProviderName, Allowed), String> {
    let expected = "expected NAME=network, or NAME=/path of what it may read";
    let (name, what) = text.split_once('=').ok_or(expected)?;
    let name = name.parse::<ProviderName>().map_err(|cause| cause.to_string())?;
    match what {
        "network" => Ok((name, Allowed::Network)),
        path if path.starts_with('/') => Ok((name, Allowed::Read(PathBuf::from(path)))),
        _ => Err(expected.to_owned()),
    }
}

/// `ADDRESS` or `ADDRESS:PORT`.
fn nameserver(text: &str) -> Result<SocketAddr, String> {
    let usual = || text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53));
    text.parse().or_else(|_| usual()).map_err(|_| "expected an address such as 10.0.0.2 or 10.0.0.2:5353".to_owned())
}

/// What the tenant's settings take, said before anything is started.
fn shards(text: &str) -> Result<u32, String> {
    let may = TenantSettings::SHARDS;
    let count = text.parse().ok().filter(|count| may.contains(count));
    count.ok_or_else(|| format!("expected {} to {}", may.start(), may.end()))
}

/// `NAME` or `NAME:PORT`, as a request's `Host` has it.
fn host_name(text: &str) -> Result<String, String> {
    match text.parse::<http::uri::Authority>() {
        Ok(authority) if !authority.host().is_empty() && !text.contains(['@', '*']) => Ok(text.to_owned()),
        _ => Err("expected a name or an address, such as api.example or 10.0.0.5:8088".to_owned()),
    }
}

fn budget(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|cause| format!("{cause}"))?;
    if size.0 == 0 { Err("expected more than nothing, for example 512MiB".to_owned()) } else { Ok(size) }
}

/// A listener one can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// None.
    Off,
    /// This one.
    At(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At).map_err(|_| "expected an address such as 127.0.0.1:8089, or `off`".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_as_many_hosts_as_its_settings_may_say() {
        assert_eq!((shards("1"), shards("64")), (Ok(1), Ok(64)));
        for bad in ["0", "65", "100", "-1", "two", ""] {
            assert_eq!(shards(bad).unwrap_err(), "expected 1 to 64", "{bad}");
        }
    }

    #[test]
    fn a_name_of_the_api_is_what_a_host_field_has() {
        for good in ["api.example", "api.example:8088", "10.0.0.5", "[fd00::5]:8088"] {
            assert_eq!(host_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "http://api.example", "a b", "user@api.example", "api.example/v1", "*.example"] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
    }
}
