//! What happens and what happened, and from when on and how much of it is shown.

use api::agent::LogLevel;
use api::flows::Verdict;
use api::node::Since;
use clap::{Args, Subcommand};
use model::{AppName, ComponentName};

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
