//! One external process: started with nothing inherited and its settings on stdin, ended for certain, also when the
//! node is killed.
//!
//! Between node and program stands `sidereal external`, which asks the system to be killed with its parent, limits
//! itself and becomes the program. The system means the thread that started it: so there is one that lives as long as
//! the node.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::agent::LogStream;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use zeroize::Zeroizing;

use super::words::{Words, capture};
use crate::supervisor::{describe, lower_priority};

/// How long the last words of a process that ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

type Order = (Command, oneshot::Sender<io::Result<Child>>);

/// The thread that starts processes.
#[derive(Debug)]
pub(super) struct Spawner(std::sync::mpsc::Sender<Order>);

impl Spawner {
    pub(super) fn start() -> io::Result<Self> {
        let (ask, orders) = std::sync::mpsc::channel::<Order>();
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        std::thread::Builder::new().name("externals".to_owned()).spawn(move || {
            let _inside = runtime.enter();
            while let Ok((mut command, tell)) = orders.recv() {
                // Where nobody waits any more the child is dropped, and killed with that.
                drop(tell.send(command.spawn()));
            }
        })?;
        Ok(Self(ask))
    }

    async fn spawn(&self, command: Command) -> io::Result<Child> {
        let gone = || io::Error::other("the thread that starts processes is gone");
        let (tell, told) = oneshot::channel();
        self.0.send((command, tell)).map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }
}

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    words: Arc<Words>,
    /// Reads its stderr.
    listening: Option<JoinHandle<()>>,
    /// Holds its stdin open: that ends when the process is to end.
    feed: AbortHandle,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

impl Process {
    /// Starts `program` by way of `exe`, in `dir`, with `settings` as the first line of its stdin.
    pub(super) async fn start(
        spawner: &Spawner,
        exe: &Path,
        program: &Path,
        dir: &Path,
        settings: Zeroizing<Vec<u8>>,
        words: Words,
    ) -> io::Result<Self> {
        let mut command = Command::new(exe);
        command
            .args(["external", "--parent", &std::process::id().to_string(), "--program"])
            .arg(program)
            .env_clear()
            .current_dir(dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = spawner.spawn(command).await?;
        lower_priority(child.id());
        let words = Arc::new(words);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(capture(stdout, words.clone(), LogStream::Stdout));
        }
        let stderr = child.stderr.take();
        let listening = stderr.map(|stderr| tokio::spawn(capture(stderr, words.clone(), LogStream::Stderr)));
        let stdin = child.stdin.take();
        let feed = tokio::spawn(async move {
            let Some(mut stdin) = stdin else { return };
            if let Err(cause) = stdin.write_all(&settings).await {
                tracing::debug!(%cause, "an external provider does not read its settings");
            }
            drop(settings);
            std::future::pending::<()>().await;
        });
        Ok(Self { child, words, listening, feed: feed.abort_handle() })
    }

    /// Its number.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end, reaps it and says how it ended.
    pub(super) async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) => describe(status),
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
        self.signal(Signal::TERM);
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends it at once, with everything it started, and reaps it.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Err(cause) = self.child.kill().await {
            tracing::debug!(%cause, "an external provider ended before it was killed");
        }
    }

    fn signal(&self, signal: Signal) {
        // `id` is `None` once the child was reaped: then its number may be somebody else's.
        let group = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(group) = group
            && let Err(cause) = kill_process_group(group, signal)
        {
            tracing::debug!(%cause, "cannot signal an external provider");
        }
    }
}
