//! What an operator says when the platform starts: where it listens, what apps may reach, how tenants are kept apart.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use model::ProviderName;
use model::unit::ByteSize;
use node::confine::{UidRange, Waiver};

use crate::secret_files::SecretFile;

/// `sidereal up`
#[derive(Debug, Args)]
pub struct Up {
    /// Deploy the counter example and print where it answers.
    #[arg(long)]
    pub demo: bool,
    /// Where the ingress listens; another port is chosen, and said, where this one is taken.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", env = "SIDEREAL_LISTEN")]
    pub listen: SocketAddr,
    /// Where the API listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8088", env = "SIDEREAL_API_LISTEN")]
    pub api_listen: SocketAddr,
    /// Where Prometheus can read metrics, without a token; `off`: nowhere. Another port is chosen, and said, where this
    /// one is taken.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8089", env = "SIDEREAL_METRICS_LISTEN")]
    pub metrics_listen: Listen,
    /// Host processes of each new tenant.
    #[arg(long, value_name = "N", env = "SIDEREAL_SHARDS")]
    pub shards: Option<u32>,
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
    /// Address ranges outside the public internet that apps may connect to.
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
