//! One external process: started with nothing inherited and its settings on stdin, ended for certain, also when the
//! node is killed.
//!
//! Between node and program stand two processes of this program: the first leaves the machine's namespaces, the second is the
//! first process of those of the program, is confined, and starts it. Both end when their line is closed, and so does
//! everything in there.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::agent::LogStream;
use rustix::process::{Pid, Signal, kill_process_group};
use sandbox::Spec;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::{AbortHandle, JoinHandle};
use zeroize::Zeroizing;

use super::words::{Words, capture};
use crate::supervisor::describe;

/// How long the last words of a process that ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    words: Arc<Words>,
    /// Reads its stderr.
    listening: Option<JoinHandle<()>>,
    /// Holds its stdin open: that ends when the process is to end.
    feed: AbortHandle,
    /// The process is told to end on it, and ends when it is closed.
    line: UnixStream,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

impl Process {
    /// Starts `program` by way of `exe`, confined, in `dir`, with `settings` as the first line of its stdin.
    pub(super) fn start(
        exe: &Path,
        spec: &Spec,
        program: &Path,
        dir: &Path,
        settings: Zeroizing<Vec<u8>>,
        words: Words,
    ) -> io::Result<Self> {
        let (line, theirs) = UnixStream::pair()?;
        let (input, feed) = io::pipe()?;
        sandbox::handoff::send(&line, &[input.as_fd()])?;
        drop(input);
        let mut child = Command::new(exe)
            .arg("external")
            .arg("--program")
            .arg(program)
            .arg("--dir")
            .arg(dir)
            .args(["--sandbox", &spec.encode()])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let words = Arc::new(words);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(capture(stdout, words.clone(), LogStream::Stdout));
        }
        let stderr = child.stderr.take();
        let listening = stderr.map(|stderr| tokio::spawn(capture(stderr, words.clone(), LogStream::Stderr)));
        let mut stdin = pipe::Sender::from_owned_fd(feed.into())?;
        let feed = tokio::spawn(async move {
            if let Err(cause) = stdin.write_all(&settings).await {
                tracing::debug!(%cause, "an external provider does not read its settings");
            }
            drop(settings);
            std::future::pending::<()>().await;
        });
        Ok(Self { child, words, listening, feed: feed.abort_handle(), line })
    }

    /// The number of the first process between.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end, reaps it and says how it ended.
    pub(super) async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) => told(status),
            Err(cause) => format!("cannot be waited for: {cause}"),
        };
        // What it said before it ended may still be on its way; a child of its own may hold the pipe open for ever.
        if let Some(listening) = self.listening.take() {
            drop(tokio::time::timeout(LAST_WORDS, listening).await);
        }
        let words = self.words.last();
        if words.is_empty() { how } else { format!("{how}: {words}") }
    }

    /// Asks it to end, and ends it where it has not after `patience`.
    pub(super) async fn stop(&mut self, patience: Duration) {
        self.feed.abort();
        if let Err(cause) = (&self.line).write_all(&[sandbox::program::END]) {
            tracing::debug!(%cause, "an external provider cannot be asked to end");
        }
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends it at once, with everything it started, and reaps it.
    pub(super) async fn kill(&mut self) {
        // `id` is `None` once the child was reaped: then its number may be somebody else's.
        let group = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(group) = group
            && let Err(cause) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%cause, "an external provider cannot be killed");
        }
        if let Err(cause) = self.child.kill().await {
            tracing::debug!(%cause, "an external provider ended before it was killed");
        }
    }
}

/// How the process ended, as the end of a sentence. The first process of a pid namespace cannot end by a signal as its child
/// did, and says it as shells do.
fn told(status: std::process::ExitStatus) -> String {
    match status.code() {
        Some(code @ 129..=192) => format!("was ended by signal {}", code - 128),
        _ => describe(status),
    }
}
