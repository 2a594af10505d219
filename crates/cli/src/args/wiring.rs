//! Which provider answers a component's import, and which component answers a request. A setting, a secret's place and an
//! edge are written in words of their own, which are parsed here once.

use clap::Subcommand;
use model::rules::route::check_host;
use model::{AppName, ComponentName, ContractId, Label, ProviderName, SecretRef};

use super::{Patience, pair};

/// `sidereal link`
#[derive(Debug, Subcommand)]
pub enum LinkCommand {
    /// Move a link to another provider while traffic flows.
    Set {
        /// The app.
        app: AppName,
        /// `contract[#label]=provider`, for example `wasi:keyvalue=redis`.
        link: LinkArg,
        /// Whose import, where several components have such a link.
        #[arg(long)]
        component: Option<ComponentName>,
        /// First copy the app's keys or objects to the new provider, and lose no write on the way. Those that only the new
        /// provider has: `refuse` (the default), `remove` or `keep`.
        #[arg(long, value_name = "EXTRA", num_args = 0..=1, require_equals = true, default_missing_value = "refuse")]
        #[arg(conflicts_with = "timeout")]
        copy_data: Option<ExtraKeys>,
        #[command(flatten)]
        patience: Patience,
    },
    /// The links of an app, or of all apps.
    List {
        /// The app.
        app: Option<AppName>,
    },
}

/// What becomes of keys that only the new provider has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExtraKeys {
    /// Copy nothing where there are any.
    Refuse,
    /// Remove them.
    Remove,
    /// Leave them.
    Keep,
}

/// `contract[#label]=provider`
#[derive(Debug, Clone)]
pub struct LinkArg {
    /// The contract.
    pub contract: ContractId,
    /// The label.
    pub label: Option<Label>,
    /// The provider.
    pub provider: ProviderName,
}

impl std::str::FromStr for LinkArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (edge, provider) =
            text.split_once('=').ok_or("expected contract[#label]=provider, for example wasi:keyvalue=redis")?;
        let (contract, label) = match edge.split_once('#') {
            Some((contract, label)) => {
                (contract, Some(label.parse().map_err(|e: model::name::NameError| e.to_string())?))
            }
            None => (edge, None),
        };
        Ok(Self {
            contract: contract.parse().map_err(|_| {
                format!("`{contract}` is not a contract: write namespace:package, for example wasi:keyvalue")
            })?,
            label,
            provider: provider.parse().map_err(|e: model::name::NameError| e.to_string())?,
        })
    }
}

/// `sidereal provider`
#[derive(Debug, Subcommand)]
pub enum ProviderCommand {
    /// Providers, what they answer and who links to them.
    List {
        /// Instead: the contracts the platform offers, their versions, and what each provider type promises.
        #[arg(long)]
        contracts: bool,
    },
    /// Offer a provider to every app of the tenant; the address it names is granted to it.
    Add {
        /// Its name.
        name: ProviderName,
        /// For example `keyvalue-redis`, `keyvalue-nats`, `keyvalue-vault` or `keyvalue-consul`.
        #[arg(long = "type")]
        kind: String,
        /// For example `redis://127.0.0.1:6379`.
        #[arg(long)]
        url: Option<String>,
        /// Another setting, `key=value`.
        #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
        settings: Vec<(String, String)>,
        /// A setting that is a secret of the tenant, for example `password=cache-password`; `password=cache@vault` and
        /// `password=cache@vault/FIELD` for one that the provider `vault` keeps.
        #[arg(long = "secret", value_name = "KEY=NAME[@PROVIDER[/FIELD]]", value_parser = secret_pair)]
        secrets: Vec<(String, SecretRef)>,
    },
    /// Withdraw an offered provider that nothing links to.
    Remove {
        /// Its name.
        name: ProviderName,
    },
}

fn secret_pair(text: &str) -> Result<(String, SecretRef), String> {
    // What was written may be the secret itself: not repeated.
    let expected = "expected key=NAME, NAME being a secret's name as `sidereal secret list` shows it, or key=NAME@PROVIDER[/FIELD]";
    let (key, rest) = text.split_once('=').ok_or(expected)?;
    let (name, source) = rest.split_once('@').map_or((rest, None), |(name, source)| (name, Some(source)));
    let mut reference = SecretRef::new(name.parse().map_err(|_| expected)?);
    if let Some(source) = source {
        let (from, field) = source.split_once('/').map_or((source, None), |(from, field)| (from, Some(field)));
        reference.from = Some(from.parse().map_err(|_| expected)?);
        reference.field = field.map(|field| field.parse().map_err(|_| expected)).transpose()?;
    }
    Ok((key.to_owned(), reference))
}

/// `sidereal route`
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Hosts, paths and methods, and which component answers.
    List {
        /// Only this app.
        app: Option<AppName>,
    },
    /// Let other tenants have a host that one gave up less than 24 hours ago.
    Free {
        /// A host name, or `*.` and a suffix; what overlaps with it is freed too.
        #[arg(value_parser = host)]
        host: String,
    },
}

fn host(text: &str) -> Result<String, String> {
    check_host(text).map(|()| text.to_owned()).map_err(|bad| match bad.help {
        Some(help) => format!("{}: {help}", bad.message),
        None => bad.message,
    })
}
