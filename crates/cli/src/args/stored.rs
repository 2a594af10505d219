//! What a tenant keeps beside its apps and they refer to by name: secrets, shared configs, and the schedules of the clock.

use clap::Subcommand;
use model::{AppName, ConfigName, ScheduleName, SecretName};

use super::pair;

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
