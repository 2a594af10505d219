//! The command line as types: every flag, its environment variable and its help text.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::secret_files::SecretFile;
use api::agent::LogLevel;
use api::flows::Verdict;
use api::node::Since;
use clap::{Args, Parser, Subcommand, ValueEnum};
use model::access::{Role, TokenId};
use model::unit::ByteSize;
use model::{
    AppName, ComponentName, ConfigName, ContractId, Label, ProviderName, Revision, ScheduleName, SecretName, SecretRef,
    TenantName,
};
use node::confine::{UidRange, Waiver};

/// Run WebAssembly components on one machine, or on many.
#[derive(Debug, Parser)]
#[command(name = "sidereal", version, propagate_version = true, max_term_width = 110)]
#[command(
    after_help = "Start with `sidereal up --demo`. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, \
                        5 denied, 6 unreachable, 7 timed out, 130 interrupted."
)]
pub struct Cli {
    /// What everything else shares.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Result format on stdout.
    #[arg(short = 'o', long, global = true, value_enum, default_value_t = Format::Text, env = "SIDEREAL_OUTPUT")]
    pub output: Format,
    /// Only results and errors; no progress, no hints.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// When to use colour (`NO_COLOR` is honoured).
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, env = "SIDEREAL_COLOR")]
    pub color: Color,
    /// Where keys, state and the running platform's address live.
    #[arg(long, global = true, value_name = "DIR", env = "SIDEREAL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The tenant to act for; where absent, the one the token is of, or `local`.
    #[arg(long, global = true, value_name = "NAME", env = "SIDEREAL_TENANT")]
    pub tenant: Option<TenantName>,
    /// Where the API answers, for example `http://127.0.0.1:8088`; where absent, that of the login or of this machine.
    #[arg(long, global = true, value_name = "URL", env = "SIDEREAL_API")]
    pub api: Option<String>,
    /// The file with the API token. Else `SIDEREAL_TOKEN` holds it, or `sidereal login` kept it.
    #[arg(long, global = true, value_name = "FILE", env = "SIDEREAL_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// Result formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One envelope (`schemas/envelope.schema.json`), or one per line where results stream.
    Json,
}

/// Colour modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the platform on this machine; stop it with Ctrl-C.
    Up(Up),
    /// Make the app in this folder serve.
    Deploy(Deploy),
    /// Show what a deploy would change; exit 0: nothing, 1: something, 255: it would be refused.
    Plan(AppDir),
    /// Go back to an earlier revision, without a rebuild.
    Rollback(Rollback),
    /// Stop an app and forget its routes.
    Delete(Delete),
    /// What runs, where it answers, and why something does not.
    Status(Status),
    /// Calls, errors and latencies of components and links, as they happen.
    Top(Top),
    /// What an app's components wrote.
    Logs(Logs),
    /// What was decided about outgoing connections.
    Flows(Flows),
    /// Links between components and providers.
    #[command(subcommand)]
    Link(LinkCommand),
    /// Providers that links can name.
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// Secrets of a tenant: passwords and keys that providers and components use.
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Configuration that apps of a tenant share by name.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What the clock calls, and what became of it.
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// What the ingress sends where.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Settings of a tenant: trust anchors, revocations, egress grants.
    #[command(subcommand)]
    TenantSettings(SettingsCommand),
    /// Tenants: accounts with their own keys, tokens, quotas and apps.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Keep a token of a tenant, so that commands use it. It is read from stdin, or asked for without echo.
    Login(Login),
    /// Forget the kept token.
    Logout,
    /// Who changed what, and who was refused.
    Audit(Audit),
    /// Send a request to a component without the ingress.
    Call(Call),
    /// Signing keys of this machine.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Sign a component.
    Sign(Sign),
    /// What a component is, imports and claims.
    Inspect(Inspect),
    /// Look for faults on this machine; changes nothing.
    Doctor,
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Runs one tenant's components (started by the node).
    #[command(hide = true)]
    Host(HostArgs),
    /// Limits itself and becomes the program of an external provider (started by the node).
    #[command(hide = true)]
    External {
        /// Whose child it is.
        #[arg(long)]
        parent: i32,
        /// The program.
        #[arg(long)]
        program: PathBuf,
    },
    /// Runs one task of a scheduler on a node of its own (started by a task driver).
    #[command(hide = true)]
    Task {
        /// The directory of the task.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Prints which layers of isolation this machine refuses, and why, as JSON (asked by a task driver).
    #[command(hide = true)]
    Layers,
    /// Compiles a component from stdin to stdout (started by the node).
    #[command(hide = true)]
    Compile {
        /// `p2` or `p3`.
        #[arg(long)]
        world: String,
        /// How it is confined.
        #[command(flatten)]
        stage: Stage,
    },
    /// Is confined and ends (started by the node).
    #[command(hide = true)]
    Confined(Stage),
}

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
    /// A program that apps may run as an external provider, by this name. It runs as this user, outside any sandbox.
    #[arg(long, value_name = "NAME=/PATH", value_parser = program)]
    pub external: Vec<(ProviderName, PathBuf)>,
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

/// Where an app is described.
#[derive(Debug, Clone, Args)]
pub struct AppDir {
    /// The folder of the app, or its manifest.
    #[arg(value_name = "DIR", default_value = ".")]
    pub path: PathBuf,
}

/// `sidereal deploy`
#[derive(Debug, Args)]
pub struct Deploy {
    #[command(flatten)]
    pub app: AppDir,
    /// For people reading the history.
    #[arg(short, long)]
    pub message: Option<String>,
    /// Refuse unless this is the current revision.
    #[arg(long, value_name = "REVISION", value_parser = revision)]
    pub expect: Option<Revision>,
    /// Do not sign local builds.
    #[arg(long)]
    pub no_sign: bool,
    /// Give up waiting for *serving* after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
}

fn revision(text: &str) -> Result<Revision, String> {
    text.parse().map(Revision).map_err(|_| "expected a revision number, for example 3".to_owned())
}

/// `sidereal rollback`
#[derive(Debug, Args)]
pub struct Rollback {
    /// The app.
    pub app: AppName,
    /// The revision to go back to; the one before the current where absent.
    #[arg(value_parser = revision)]
    pub to: Option<Revision>,
}

/// `sidereal delete`
#[derive(Debug, Args)]
pub struct Delete {
    /// The app.
    pub app: AppName,
    /// Its name once more: nothing is deleted without it.
    #[arg(long, value_name = "APP")]
    pub confirm: Option<AppName>,
    /// Remove what this machine keeps of it, too: embedded keys, objects in folders, kept messages.
    #[arg(long)]
    pub purge_data: bool,
}

/// `sidereal status`
#[derive(Debug, Args)]
pub struct Status {
    /// Only this app, in detail.
    pub app: Option<AppName>,
}

/// `sidereal top`
#[derive(Debug, Args)]
pub struct Top {
    /// Only this app.
    pub app: Option<AppName>,
    /// How often to look, 250ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: model::unit::Millis,
    /// Go on where stdout is no terminal, and with `-o json`: one result per interval.
    #[arg(short, long)]
    pub follow: bool,
}

fn interval(text: &str) -> Result<model::unit::Millis, String> {
    let every: model::unit::Millis = text.parse().map_err(|e: model::unit::UnitError| e.to_string())?;
    if (250..=60_000).contains(&every.0) { Ok(every) } else { Err("an interval is 250ms to 60s".to_owned()) }
}

/// `sidereal logs`
#[derive(Debug, Args)]
pub struct Logs {
    /// The app.
    pub app: AppName,
    /// Go on with new lines.
    #[arg(short, long)]
    pub follow: bool,
    /// Only this component.
    #[arg(long)]
    pub component: Option<ComponentName>,
    /// Only this instance, as the lines name it.
    #[arg(long)]
    pub instance: Option<String>,
    /// Only lines of this level or above: `trace`, `debug`, `info`, `warn`, `error` or `critical`. Standard output and
    /// error count as `info`, the platform's own lines as `warn`.
    #[arg(long, value_parser = level)]
    pub level: Option<LogLevel>,
    /// Only past lines that are not older: `10m`, or a moment such as `2030-01-31T08:00:00Z`.
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<Since>,
    /// Past lines to begin with, 100; 10000 with `--since`.
    #[arg(short = 'n', long)]
    pub last: Option<usize>,
}

/// `sidereal flows`
#[derive(Debug, Args)]
pub struct Flows {
    /// Only of this app.
    pub app: Option<AppName>,
    /// Go on with new records.
    #[arg(short, long)]
    pub follow: bool,
    /// Only with this verdict: `connected`, `denied`, `limited`, `failed` or `revoked`.
    #[arg(long, value_parser = verdict)]
    pub verdict: Option<Verdict>,
    /// Only past records that are not older: `10m`, or a moment such as `2030-01-31T08:00:00Z`.
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<Since>,
    /// Past records to begin with, 100; as many as there are with `--since`.
    #[arg(short = 'n', long)]
    pub last: Option<usize>,
}

fn verdict(text: &str) -> Result<Verdict, String> {
    let names = || Verdict::ALL.map(Verdict::as_str).join(", ");
    Verdict::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| format!("expected one of {}", names()))
}

fn level(text: &str) -> Result<LogLevel, String> {
    let names = || LogLevel::ALL.map(LogLevel::as_str).join(", ");
    LogLevel::ALL.into_iter().find(|level| level.as_str() == text).ok_or_else(|| format!("expected one of {}", names()))
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = text.parse() {
        return Ok(Since::Ago(ago));
    }
    let moment: Option<jiff::Timestamp> = text.parse().ok();
    let moment = moment.and_then(|moment| u64::try_from(moment.as_millisecond()).ok()).map(Since::At);
    moment.ok_or_else(|| "expected a duration such as 10m, or a moment such as 2030-01-31T08:00:00Z".to_owned())
}

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
        copy_data: Option<ExtraKeys>,
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

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected key=value")?;
    Ok((key.to_owned(), value.to_owned()))
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

/// `sidereal secret`
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Set a secret, from stdin or asked for without echo; running apps use it from their next use on.
    Set {
        /// Its name.
        name: SecretName,
        /// Keep every byte of stdin, also a line end at its end.
        #[arg(long)]
        raw: bool,
        /// Refuse unless this is the current version's etag.
        #[arg(long, value_name = "ETAG", conflicts_with = "new")]
        expect: Option<u64>,
        /// Refuse to replace one that is there.
        #[arg(long)]
        new: bool,
    },
    /// Secrets, their versions and what names them. Values are never shown.
    List,
    /// Delete a secret.
    Delete {
        /// Its name.
        name: SecretName,
        /// Also one that an app or provider names: they fail when they next need it.
        #[arg(long)]
        force: bool,
    },
    /// Change the master key that all secrets are sealed under; nothing stops meanwhile.
    RotateKey,
}

/// `sidereal config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Set keys of a config; makes it where there is none. Apps that name it get a new revision each.
    Set {
        /// Its name.
        name: ConfigName,
        /// What is answered for a key: `greeting=hello`. Never secrets.
        #[arg(value_name = "KEY=VALUE", value_parser = pair)]
        values: Vec<(String, String)>,
        /// Take a key out.
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// Take out every key that is not given.
        #[arg(long)]
        replace: bool,
        /// Refuse unless this is its etag.
        #[arg(long, value_name = "ETAG")]
        expect: Option<u64>,
        /// Give up waiting for the apps after this many seconds; 0: do not wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
    },
    /// What a config holds, and the apps that name it.
    Get {
        /// Its name; `env` is the environment of the operator's choice.
        name: ConfigName,
    },
    /// Configs, their versions and the apps that name them.
    List,
    /// Delete a config that no app names.
    Delete {
        /// Its name.
        name: ConfigName,
    },
}

/// `sidereal schedule`
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// When each schedule is due next, and how its last run ended.
    List {
        /// Whose; every app's where absent.
        app: Option<AppName>,
    },
    /// Run a schedule now and wait for its end; exit 1 where it fails.
    Run {
        /// Whose.
        app: AppName,
        /// Which.
        schedule: ScheduleName,
    },
}

/// `sidereal route`
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Hosts, paths and methods, and which component answers.
    List {
        /// Only this app.
        app: Option<AppName>,
    },
}

/// `sidereal tenant-settings`
#[derive(Debug, Subcommand)]
pub enum SettingsCommand {
    /// The settings.
    Show,
    /// Every tenant.
    List,
    /// Change settings; creates the tenant where it does not exist.
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
    /// Grant an address range outside the public internet.
    #[arg(long, value_name = "CIDR")]
    pub allow_egress: Vec<String>,
    /// Take a granted range back, for new connections.
    #[arg(long, value_name = "CIDR")]
    pub deny_egress: Vec<String>,
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
        expires: Option<model::unit::Millis>,
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

/// `sidereal audit`
#[derive(Debug, Args)]
pub struct Audit {
    /// At most this many lines, the newest.
    #[arg(short = 'n', long, default_value_t = 100)]
    pub last: usize,
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
}

/// `sidereal audit verify`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Read the whole log and find what was edited, removed, moved or cut off; exit 1 where something was.
    Verify,
}

/// `sidereal call`
#[derive(Debug, Args)]
pub struct Call {
    /// `app` or `app/component`.
    pub target: String,
    /// Path and query.
    #[arg(default_value = "/")]
    pub path: String,
    /// The method.
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: String,
    /// A header field, `name: value`.
    #[arg(short = 'H', long = "header")]
    pub headers: Vec<String>,
    /// The body; `@file` reads a file, `@-` reads stdin.
    #[arg(short, long)]
    pub data: Option<String>,
    /// Show status and header fields too.
    #[arg(short, long)]
    pub include: bool,
}

/// `sidereal keys`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Public keys of this machine. Seeds are never shown.
    List,
    /// Make a key.
    Generate {
        /// What it is for.
        #[arg(value_enum)]
        kind: KeyKind,
        /// Under which name it is kept.
        name: String,
    },
}

/// Kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyKind {
    /// Signs components (`A…`).
    Account,
    /// Identifies a component over its versions (`M…`).
    Module,
    /// Signs accounts (`O…`).
    Operator,
}

/// `sidereal sign`
#[derive(Debug, Args)]
pub struct Sign {
    /// The component.
    pub file: PathBuf,
    /// Where to write; the file itself where absent.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Which account key of this machine signs.
    #[arg(long, value_name = "NAME", default_value = "account")]
    pub key: String,
    /// The component's name in its claims; the file's name where absent.
    #[arg(long)]
    pub name: Option<String>,
    /// Valid for this long, for example `720h`; for ever where absent.
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<model::unit::Millis>,
    /// An interface or contract to grant; what it imports where absent.
    #[arg(long, value_name = "INTERFACE")]
    pub grant: Vec<String>,
}

/// `sidereal inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// The component.
    pub file: PathBuf,
}

/// `sidereal host`
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Which of the tenant's hosts.
    #[arg(long)]
    pub shard: u32,
    /// How it is confined.
    #[command(flatten)]
    pub stage: Stage,
}

/// What a process that confines itself is told.
#[derive(Debug, Args)]
pub struct Stage {
    /// The layers, user and control groups.
    #[arg(long)]
    pub sandbox: String,
    /// The second of two processes: the one that is confined.
    #[arg(long)]
    pub inner: bool,
}
