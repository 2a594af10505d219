//! Keys, and what is signed with them: who vouches for a component is decided on the machine that has the key.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

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
