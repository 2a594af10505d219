//! `cargo xtask <command>`: what a developer or CI runs.
#![forbid(unsafe_code)]

mod guests;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the components of guests/ into target/guests.
    Guests,
}

fn main() -> anyhow::Result<()> {
    let root = root()?;
    match Cli::parse().command {
        Task::Guests => {
            for path in guests::build(&root, &root.join("target/guests"))? {
                println!("{} {}", path.display(), std::fs::metadata(&path)?.len());
            }
        }
    }
    Ok(())
}

/// The repository's folder.
fn root() -> anyhow::Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?.to_owned())
}
