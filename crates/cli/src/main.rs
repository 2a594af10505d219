//! `sidereal`: the one binary. Chooses the command, and the exit code; nothing else is decided here.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod compile;
mod context;
mod demo;
mod follow;
mod home;
mod keys;
mod oci;
mod output;
mod project;

use std::process::ExitCode;

use anyhow::Context as _;
use args::{Cli, Command};
use clap::{CommandFactory as _, Parser as _};
use context::Context;
use output::{Output, problem_of};

/// As many open files as the system lets this process have: every connection is one, and shells start with few.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%cause, "cannot raise the limit of open files");
    }
}

/// Exit code of an interrupted command.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Output::new(&cli.global);
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let problem = problem_of(&error);
            out.failure(&problem);
            ExitCode::from(problem.code.exit())
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<u8> {
    match cli.command {
        Command::Host(args) => {
            telemetry::init();
            raise_file_limit();
            host::run(host::HostArgs { dir: args.dir, tenant: cli.global.tenant, shard: args.shard })?;
            return Ok(0);
        }
        Command::Compile { world } => return compile::run(&world).map(|()| 0),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sidereal", &mut std::io::stdout());
            return Ok(0);
        }
        _ => {}
    }
    let context = Context::new(&cli.global)?;
    let daemon = matches!(cli.command, Command::Up(_));
    let mut builder = if daemon {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.worker_threads(2).enable_all().build().context("cannot start the async runtime")?;
    if daemon {
        telemetry::init();
        raise_file_limit();
        let code = runtime.block_on(dispatch(&context, cli.command));
        // A blocking read of a dying disk must not keep the process from ending.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        return code;
    }
    runtime.block_on(async {
        tokio::select! {
            done = dispatch(&context, cli.command) => done,
            _ = tokio::signal::ctrl_c() => Ok(INTERRUPTED),
        }
    })
}

async fn dispatch(context: &Context, command: Command) -> anyhow::Result<u8> {
    let ok = |(): ()| 0;
    let yes = |fine: bool| u8::from(!fine);
    match command {
        Command::Up(args) => commands::up::up(context, args).await.map(ok),
        Command::Deploy(args) => commands::deploy::deploy(context, args).await.map(ok),
        Command::Plan(args) => commands::deploy::plan(context, &args).await,
        Command::Rollback(args) => commands::apps::rollback(context, args).await.map(ok),
        Command::Delete(args) => commands::apps::delete(context, args).await.map(ok),
        Command::Status(args) => commands::apps::status(context, args).await.map(ok),
        Command::Logs(args) => commands::talk::logs(context, args).await.map(ok),
        Command::Call(args) => commands::talk::call(context, args).await.map(yes),
        Command::Link(command) => commands::wiring::link(context, command).await.map(ok),
        Command::Provider(command) => commands::wiring::provider(context, command).await.map(ok),
        Command::Route(command) => commands::wiring::route(context, command).await.map(ok),
        Command::TenantSettings(command) => commands::wiring::tenant(context, command).await.map(ok),
        Command::Keys(command) => commands::signing::keys(context, command).map(ok),
        Command::Sign(args) => commands::signing::sign(context, &args).map(ok),
        Command::Inspect(args) => commands::signing::inspect(context, &args).map(ok),
        Command::Doctor => commands::doctor::doctor(context).await.map(yes),
        // Handled before there was a runtime.
        Command::Host(_) | Command::Compile { .. } | Command::Completions { .. } => Ok(0),
    }
}
