//! What every long-running process needs before its own work: a log on stderr, and the signal to stop.
#![forbid(unsafe_code)]

pub mod schedule;

use std::io::IsTerminal;

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Environment variable with the log filter, in `tracing-subscriber` syntax; default `warn`.
pub const LOG_ENV: &str = "SIDEREAL_LOG";

/// Sends the process's own log to stderr: JSON lines where stderr is no terminal, text where it is, in colour if `colors`.
/// Call once.
pub fn init(colors: bool) {
    let filter = EnvFilter::try_from_env(LOG_ENV).unwrap_or_else(|_| EnvFilter::new("warn"));
    // A line that cannot be written, on a full disk, is lost: to say so on the same standard error would end the process.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colors);
    let builder = builder.log_internal_errors(false);
    let done = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
    if let Err(cause) = done {
        eprintln!("logging is set up already: {cause}");
    }
}

/// A token that is cancelled by SIGTERM, SIGINT or SIGHUP. A second signal exits at once with 130.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let stop = token.clone();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                _ = hup.recv() => {}
            }
            if stop.is_cancelled() {
                std::process::exit(130);
            }
            stop.cancel();
        }
    });
    Ok(token)
}
