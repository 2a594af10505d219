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

/// A token that is cancelled by SIGTERM, SIGINT or SIGHUP. A second SIGTERM or SIGINT exits at once with 130. SIGHUP is left
/// alone where it was ignored at the start (`nohup`), and is never the second one: a terminal that closes sends it to whoever is
/// stopping too.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let stop = token.clone();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let ignored = std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hup(&status));
    let mut hup = if ignored { None } else { Some(signal(SignalKind::hangup())?) };
    tokio::spawn(async move {
        loop {
            let hung_up = async {
                match &mut hup {
                    Some(hup) => drop(hup.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                () = hung_up => {
                    stop.cancel();
                    continue;
                }
            }
            if stop.is_cancelled() {
                std::process::exit(130);
            }
            stop.cancel();
        }
    });
    Ok(token)
}

/// Whether a process with this `/proc/self/status` ignores SIGHUP, which is the first signal of the set.
fn ignores_hup(status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::ignores_hup;

    #[test]
    fn what_nohup_does_is_seen() {
        assert!(ignores_hup("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        for other in ["SigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n", "SigIgn:\tx\n", ""] {
            assert!(!ignores_hup(other), "{other}");
        }
    }
}
