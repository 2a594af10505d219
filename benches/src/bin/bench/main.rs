//! `cargo xtask bench`: us and the twins in one run, one table. Every figure is a ratio to a twin where there is one.
#![forbid(unsafe_code)]

mod apps;
mod callees;
mod contracts;
mod egress;
mod isolation;
mod languages;
mod metering;
mod neighbours;
mod providers;
mod recovery;
mod start;
mod swap;
mod table;
mod task;
mod throughput;
mod us;
mod watchers;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

use crate::table::Table;

/// Measures Sidereal and its twins on this machine.
#[derive(Debug, Clone, Parser)]
struct Args {
    /// Seconds of each load.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Distinct apps of the density measures; the goal speaks of 10000.
    #[arg(long, default_value_t = 1000)]
    apps: usize,
    /// Also measure this server: a program that takes a component and prints the address it listens on.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Only measures whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// `text` or `json`.
    #[arg(short, long, default_value = "text")]
    output: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut table = Table::new();
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| name.contains(only));
    if wanted("start") {
        start::run(&args, &mut table).context("start")?;
    }
    if wanted("task") {
        task::run(&args, &mut table).context("task")?;
    }
    if wanted("throughput") {
        throughput::run(&args, &mut table).context("throughput")?;
    }
    if wanted("isolation") {
        isolation::run(&args, &mut table).context("isolation")?;
    }
    if wanted("egress") {
        egress::run(&mut table).context("egress")?;
    }
    if wanted("neighbours") {
        neighbours::run(&args, &mut table).context("neighbours")?;
    }
    if wanted("recovery") {
        recovery::run(&mut table).context("recovery")?;
    }
    if wanted("callees") {
        callees::run(&mut table).context("callees")?;
    }
    if wanted("providers") {
        providers::run(&args, &mut table).context("providers")?;
    }
    if wanted("watchers") {
        watchers::run(&args, &mut table).context("watchers")?;
    }
    if wanted("metering") {
        metering::run(&args, &mut table).context("metering")?;
    }
    if wanted("swap") {
        swap::run(&args, &mut table).context("swap")?;
    }
    if wanted("languages") {
        languages::run(&args, &mut table).context("languages")?;
    }
    if wanted("apps") {
        apps::run(&args, &mut table).context("apps")?;
    }
    if args.output == "json" {
        println!("{}", serde_json::to_string(&table)?);
    } else {
        println!("{table}");
    }
    Ok(())
}
