//! `sidereal`: the one binary. Chooses the command, and the exit code; nothing else is decided here.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod compile;
mod confined;
mod context;
mod credentials;
mod databases;
mod demo;
mod follow;
mod home;
mod keys;
mod oci;
mod output;
mod programs;
mod project;
mod secret_files;
mod task;
mod top;

use std::process::ExitCode;

use anyhow::Context as _;
use args::{Cli, Command};
use clap::{CommandFactory as _, Parser as _};
use context::Context;
use output::{Output, problem_of};

/// Gives memory of unloaded components back to the system; the C library's keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads that serve: what one tenant keeps busy for a moment leaves others, also where there is one core.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2))
}

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

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
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

/// What a wrong command line gets: help and version as asked for; else one sentence and what to do, in the envelope where
/// programs read.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    const USAGE: u8 = 2;
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        output::stdout(error.render().ansi().to_string().trim_end());
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut root = Cli::command();
    root.build();
    let command = words(&root, &args);
    let text = error.render().to_string();
    // clap's first paragraph says what is wrong; the usage below it is for `--help`.
    let more = ["Usage:", "For more information"];
    let said = text.lines().take_while(|line| !more.iter().any(|word| line.starts_with(word))).map(str::trim);
    let said: Vec<&str> = said.filter(|line| !line.is_empty()).collect();
    let said = said.join(" ").trim_start_matches("error: ").to_owned();
    let problem = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand if command.is_empty() => {
            api::Problem::new(api::Code::RequestInvalid, "no command was given")
                .help("start with `sidereal up --demo`; `sidereal --help` lists the commands")
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let name = command.join(" ");
            let asked = command.iter().try_fold(&root, |at, word| at.find_subcommand(word));
            let known = asked.into_iter().flat_map(|at| at.get_subcommands()).filter(|sub| sub.get_name() != "help");
            let known: Vec<String> = known.map(|sub| format!("`sidereal {name} {}`", sub.get_name())).collect();
            api::Problem::new(api::Code::RequestInvalid, format!("`sidereal {name}` needs to know what to do"))
                .help(if known.is_empty() { "`sidereal --help`".to_owned() } else { known.join(", ") })
        }
        _ => {
            let name: String = command.iter().flat_map(|word| [" ", *word]).collect();
            api::Problem::new(api::Code::RequestInvalid, said)
                .help(format!("`sidereal{name} --help` shows what it takes"))
        }
    };
    let asked = args
        .windows(2)
        .any(|pair| matches!(pair, [flag, value] if (flag == "-o" || flag == "--output") && value == "json"))
        || args.iter().any(|arg| arg == "-ojson" || arg == "--output=json" || arg == "-o=json")
        || std::env::var("SIDEREAL_OUTPUT").is_ok_and(|value| value == "json");
    Output::of(asked).failure(&problem);
    ExitCode::from(USAGE)
}

/// The words of a command line that name the command, whatever flags stand before or between them.
fn words<'a>(root: &clap::Command, args: &'a [String]) -> Vec<&'a str> {
    let (mut at, mut words) = (root, Vec::new());
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        if let Some(flag) = arg.strip_prefix('-') {
            let named = |known: &&clap::Arg| match flag.strip_prefix('-') {
                Some(long) => known.get_long() == Some(long),
                None => known.get_short().is_some_and(|short| flag.strip_prefix(short) == Some("")),
            };
            // Its value is the next word; one that is written together with it has no other name.
            if at.get_arguments().find(named).is_some_and(|known| known.get_action().takes_values()) {
                args.next();
            }
            continue;
        }
        match at.find_subcommand(arg) {
            Some(found) => {
                at = found;
                words.push(arg);
            }
            None => break,
        }
    }
    words
}

/// A core file would hold every secret that is in memory at that moment.
fn no_core_files() {
    let none = rustix::process::Rlimit { current: Some(sandbox::NO_CORE), maximum: Some(sandbox::NO_CORE) };
    if let Err(cause) = rustix::process::setrlimit(rustix::process::Resource::Core, none) {
        tracing::warn!(%cause, "a crash may leave a core file that holds secrets");
    }
}

fn run(cli: Cli) -> anyhow::Result<u8> {
    no_core_files();
    match cli.command {
        Command::Host(args) => {
            let tenant = cli.global.tenant.unwrap_or_else(model::TenantName::local);
            return confined::host(tenant, args.shard, &args.stage);
        }
        Command::Compile { world, engine, stage } => return confined::compiler(&world, engine.as_deref(), &stage),
        Command::Databases { dir, stage } => {
            let tenant = cli.global.tenant.unwrap_or_else(model::TenantName::local);
            return confined::databases(&dir, tenant, &stage);
        }
        Command::Confined(stage) => return confined::nothing(&stage),
        Command::Task { dir } => {
            telemetry::init(output::colors());
            raise_file_limit();
            return task::run(&dir);
        }
        Command::Pull { registry, repository, digest, outside } => {
            let reference = model::manifest::OciReference { registry, repository, tag: None, digest };
            return task::pull(&reference, outside);
        }
        Command::External { program, dir, stage } => return confined::program(&program, &dir, &stage),
        Command::Layers => return task::layers(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sidereal", &mut script);
            let script = String::from_utf8_lossy(&script).trim_end().to_owned();
            Output::new(&cli.global).result(&script, || script.clone());
            return Ok(0);
        }
        _ => {}
    }
    let daemon = matches!(cli.command, Command::Up(_));
    let context = Context::new(&cli.global, daemon)?;
    let mut builder = if daemon {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.worker_threads(workers()).enable_all().build().context("cannot start the async runtime")?;
    if daemon {
        telemetry::init(output::colors());
        raise_file_limit();
        let code = runtime.block_on(dispatch(&context, cli.command));
        // A blocking read of a dying disk must not keep the process from ending.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        return code;
    }
    // Somebody who has seen enough has interrupted nothing.
    let interrupted = if matches!(cli.command, Command::Top(_)) { 0 } else { api::Code::Interrupted.exit() };
    runtime.block_on(async {
        tokio::select! {
            done = dispatch(&context, cli.command) => done,
            _ = tokio::signal::ctrl_c() => {
                if context.out.json() && interrupted != 0 {
                    let what = api::Problem::new(api::Code::Interrupted, "the command was interrupted");
                    context.out.failure(&what.help("what the platform had begun goes on: `sidereal status` shows it"));
                }
                Ok(interrupted)
            }
        }
    })
}

async fn dispatch(context: &Context, command: Command) -> anyhow::Result<u8> {
    let ok = |(): ()| 0;
    let yes = |fine: bool| u8::from(!fine);
    match command {
        Command::Up(args) => commands::up::up(context, *args).await.map(ok),
        Command::Deploy(args) => commands::deploy::deploy(context, args).await.map(ok),
        Command::Plan(args) => commands::deploy::plan(context, &args).await,
        Command::Rollback(args) => commands::apps::rollback(context, args).await.map(ok),
        Command::Delete(args) => commands::apps::delete(context, args).await.map(ok),
        Command::Status(args) => commands::status::status(context, args).await.map(ok),
        Command::Top(args) => commands::top::top(context, args).await.map(ok),
        Command::Logs(args) => commands::talk::logs(context, args).await.map(ok),
        Command::Flows(args) => commands::flows::flows(context, args).await.map(ok),
        Command::Call(args) => commands::talk::call(context, args).await.map(yes),
        Command::Link(command) => commands::wiring::link(context, command).await.map(ok),
        Command::Provider(command) => commands::wiring::provider(context, command).await.map(ok),
        Command::Secret(command) => commands::secrets::secret(context, command).await.map(ok),
        Command::Config(command) => commands::config::config(context, command).await.map(ok),
        Command::Schedule(command) => commands::schedules::schedule(context, command).await.map(yes),
        Command::Route(command) => commands::wiring::route(context, command).await.map(ok),
        Command::TenantSettings(command) => commands::tenant::settings(context, command).await.map(ok),
        Command::Tenant(command) => commands::tenant::tenant(context, command).await.map(ok),
        Command::Login(args) => commands::login::login(context, &args).await.map(ok),
        Command::Logout => commands::login::logout(context).map(ok),
        Command::Audit(args) => commands::audit::audit(context, args).await.map(yes),
        Command::Keys(command) => commands::signing::keys(context, command).map(ok),
        Command::Sign(args) => commands::signing::sign(context, &args).map(ok),
        Command::Inspect(args) => commands::signing::inspect(context, &args).map(ok),
        Command::Doctor => commands::doctor::doctor(context).await.map(yes),
        // Handled before there was a runtime.
        Command::Host(_)
        | Command::Compile { .. }
        | Command::Databases { .. }
        | Command::Confined(_)
        | Command::Task { .. }
        | Command::Pull { .. }
        | Command::Layers
        | Command::External { .. }
        | Command::Completions { .. } => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_found_behind_flags() {
        let mut root = Cli::command();
        root.build();
        for (line, found) in [
            ("link", "link"),
            ("-o json link", "link"),
            ("--output=json link set", "link set"),
            ("-ojson --tenant status tenant token", "tenant token"),
            ("--quiet rollback --to 3", "rollback"),
            ("deploy --bogus examples/counter", "deploy"),
            ("status BAD_NAME", "status"),
            ("-o json", ""),
            ("", ""),
        ] {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(words(&root, &args).join(" "), found, "{line}");
        }
    }
}
