//! The command line as types: every flag, its environment variable and its help text. Here is what all commands share, and
//! which there are; what each is told is in the file of what it is about.

mod apps;
mod signing;
mod stored;
mod tenants;
mod up;
mod watch;
mod wiring;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use model::TenantName;

pub use apps::{AppDir, Call, Delete, Deploy, Patience, Rollback, Status};
pub use signing::{Inspect, KeyKind, KeysCommand, Sign};
pub use stored::{ConfigCommand, ScheduleCommand, SecretCommand};
pub use tenants::{Login, QuotaFlags, Settings, SettingsCommand, TenantCommand, TokenCommand};
pub use up::{Allowed, Listen, Up};
pub use watch::{Audit, AuditCommand, Flows, Logs, Top};
pub use wiring::{ExtraKeys, LinkArg, LinkCommand, ProviderCommand, RouteCommand};

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
    Up(Box<Up>),
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
    /// Runs the program of an external provider, confined (started by the node).
    #[command(hide = true)]
    External {
        /// The program.
        #[arg(long)]
        program: PathBuf,
        /// Where it keeps what it keeps.
        #[arg(long)]
        dir: PathBuf,
        /// How it is confined.
        #[command(flatten)]
        stage: Stage,
    },
    /// Runs one task of a scheduler on a node of its own (started by a task driver).
    #[command(hide = true)]
    Task {
        /// The directory of the task.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Brings a component from a registry to stdout (started by a task).
    #[command(hide = true)]
    Pull {
        /// Host name, with a port where it has one.
        #[arg(long)]
        registry: String,
        /// The path below it.
        #[arg(long)]
        repository: String,
        /// The digest of the manifest.
        #[arg(long)]
        digest: model::Digest,
        /// Standard input is the network namespace to ask in.
        #[arg(long)]
        outside: bool,
    },
    /// Prints which tasks this program runs, and which layers of isolation this machine refuses and why, as JSON (asked by a
    /// task driver).
    #[command(hide = true)]
    Layers,
    /// Compiles a component from stdin to stdout (started by the node).
    #[command(hide = true)]
    Compile {
        /// `p2` or `p3`.
        #[arg(long)]
        world: String,
        /// The fingerprint of the engine that it is for; refused where it is not this program's.
        #[arg(long)]
        engine: Option<String>,
        /// How it is confined.
        #[command(flatten)]
        stage: Stage,
    },
    /// Runs the SQL databases of one tenant (started by the node).
    #[command(hide = true)]
    Databases {
        /// The folder of all tenants' databases.
        #[arg(long)]
        dir: PathBuf,
        /// How it is confined.
        #[command(flatten)]
        stage: Stage,
    },
    /// Is confined and ends (started by the node).
    #[command(hide = true)]
    Confined(Stage),
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

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}
