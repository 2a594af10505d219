//! What one does with an app: deploy it, go back, delete it, ask how it is, call it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use model::{AppName, Revision};

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
    #[command(flatten)]
    pub patience: Patience,
}

/// How long a command waits for what it changed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Patience {
    /// Give up waiting for *serving* after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

impl Patience {
    /// From now on.
    pub fn within(self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

fn revision(text: &str) -> Result<Revision, String> {
    text.parse().map(Revision).map_err(|_| "expected a revision number, for example 3".to_owned())
}

/// `sidereal rollback`
#[derive(Debug, Args)]
pub struct Rollback {
    /// The app.
    pub app: AppName,
    /// The revision to go back to; where absent, what serves in the place of the newest, or what served before it.
    #[arg(value_parser = revision)]
    pub to: Option<Revision>,
    #[command(flatten)]
    pub patience: Patience,
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

/// `sidereal call`
#[derive(Debug, Args)]
pub struct Call {
    /// `app` or `app/component`.
    pub target: String,
    /// Path and query.
    #[arg(default_value = "/")]
    pub path: String,
    /// The method; `GET` where absent, `POST` with a body.
    #[arg(short = 'X', long)]
    pub method: Option<String>,
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
