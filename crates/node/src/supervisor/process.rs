//! One host process: started with nothing inherited, its words turned into log events, ended for certain.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use api::agent::HANDED;
use sandbox::Spec;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// The longest line of a host's own output that is kept, bytes.
const MAX_LINE: usize = 4096;

/// A running host.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: Option<u32>,
    last_words: Arc<Mutex<String>>,
    /// The process ends when this is closed.
    _line: UnixStream,
}

impl Process {
    /// Starts it confined, with these descriptors.
    pub(super) fn start(
        exe: &Path,
        spec: &Spec,
        tenant: &str,
        shard: u32,
        env: &[(OsString, OsString)],
        handed: &[BorrowedFd<'_>; HANDED],
    ) -> std::io::Result<Self> {
        let (line, theirs) = UnixStream::pair()?;
        sandbox::handoff::send(&line, handed)?;
        let mut child = Command::new(exe)
            .arg("host")
            .args(["--tenant", tenant, "--shard", &shard.to_string(), "--sandbox", &spec.encode()])
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id();
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(capture(stdout, tenant.to_owned(), shard, Arc::default()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(capture(stderr, tenant.to_owned(), shard, last_words.clone()));
        }
        Ok(Self { child, pid, last_words, _line: line })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Waits for its end, reaps it and says how it ended.
    pub(super) async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) => describe(status),
            Err(cause) => format!("cannot be waited for: {cause}"),
        };
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if words.is_empty() { how } else { format!("{how}: {words}") }
    }

    /// Ends it at once, with everything it started, and reaps it.
    pub(super) async fn kill(&mut self) {
        // `id` is `None` once the child was reaped: then its number may be somebody else's.
        let group = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group
            && let Err(cause) = rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
        {
            tracing::debug!(%cause, "cannot kill the process group of a host");
        }
        if let Err(cause) = self.child.kill().await {
            tracing::debug!(%cause, "a host ended before it was killed");
        }
    }
}

/// How a process ended, as the end of a sentence.
pub(crate) fn describe(status: ExitStatus) -> String {
    match std::os::unix::process::ExitStatusExt::signal(&status) {
        Some(signal) => format!("was ended by signal {signal}"),
        None => format!("ended with status {}", status.code().unwrap_or(-1)),
    }
}

/// Reads a child's output line by line to its end, so that the child never waits for us.
async fn capture(mut source: impl AsyncRead + Unpin, tenant: String, shard: u32, last: Arc<Mutex<String>>) {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = source.read(&mut chunk).await {
        for byte in chunk.iter().take(count) {
            if *byte != b'\n' {
                if line.len() < MAX_LINE {
                    line.push(*byte);
                }
                continue;
            }
            say(&line, &tenant, shard, &last);
            line.clear();
        }
    }
    say(&line, &tenant, shard, &last);
}

fn say(line: &[u8], tenant: &str, shard: u32, last: &Mutex<String>) {
    let text = String::from_utf8_lossy(line);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() {
        return;
    }
    tracing::warn!(target: "host", tenant, shard, "{text}");
    *last.lock().unwrap_or_else(PoisonError::into_inner) = text.chars().take(300).collect();
}
