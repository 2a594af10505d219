//! A process that is confined and ends: whether it can be is known before there is a tenant to confine.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sandbox::{Layer, Spec};
use tokio::process::Command;

/// It does nothing, so it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why it did not.
#[derive(Debug)]
pub(super) enum Failed {
    /// A layer, and the kernel's answer.
    Refused(Layer, String),
    /// Something else.
    Other(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(layer, why) => write!(f, "{layer}: {why}, although it is waived"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// Starts one and waits for its end.
pub(super) async fn run(exe: &Path, spec: &Spec) -> Result<(), Failed> {
    let other = |cause: std::io::Error| Failed::Other(cause.to_string());
    let (_line, theirs) = UnixStream::pair().map_err(other)?;
    let mut command = Command::new(exe);
    command
        .args(["confined", "--sandbox", &spec.encode()])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = ended.map_err(|_| Failed::Other(format!("it did not end within {PATIENCE:?}")))?.map_err(other)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim();
    Err(match sandbox::refused(words) {
        Some((layer, why)) => Failed::Refused(layer, why.to_owned()),
        None => Failed::Other(format!("{}: {words}", output.status)),
    })
}
