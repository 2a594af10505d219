//! One host process: started with nothing inherited, its words turned into log events, ended for certain.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::agent::HANDED;
use model::escape;
use sandbox::Spec;
use tokio::io::AsyncRead;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::pace::{self, LineRate};

/// The longest line of a host's own output that is kept, bytes.
const MAX_LINE: usize = 1024;
/// Lines of a host in the node's log, a second over time and at once: nobody's quota pays for that.
const LINES_PER_SECOND: f64 = 5.0;
const LINES_BURST: f64 = 200.0;

/// How long the last words of a host that has ended are read.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running host.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: Option<u32>,
    words: Arc<Words>,
    /// Reads what it says of its end.
    reading: Option<JoinHandle<()>>,
    /// The process ends when this is closed.
    _line: UnixStream,
}

impl Process {
    /// Starts it confined, with these descriptors and the folders that `env` names to it.
    pub(super) fn start(
        exe: &Path,
        spec: &Spec,
        tenant: &str,
        shard: u32,
        env: &[(OsString, OsString)],
        handed: &[BorrowedFd<'_>; HANDED],
        folders: &[OwnedFd],
    ) -> std::io::Result<Self> {
        let (line, theirs) = UnixStream::pair()?;
        sandbox::handoff::send(&line, handed)?;
        for folder in folders {
            sandbox::handoff::send(&line, &[folder.as_fd()])?;
        }
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
        let words = Arc::new(Words::new(Instant::now()));
        let say = |tenant: String| move |text: &str| tracing::warn!(target: "host", tenant, shard, "{text}");
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(capture(stdout, words.clone(), false, say(tenant.to_owned())));
        }
        let stderr = child.stderr.take();
        let reading = stderr.map(|stderr| tokio::spawn(capture(stderr, words.clone(), true, say(tenant.to_owned()))));
        Ok(Self { child, pid, words, reading, _line: line })
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
        // They are there, and may not have been read yet. What it left behind may hold its end open.
        if let Some(reading) = self.reading.take()
            && tokio::time::timeout(LAST_WORDS, reading).await.is_err()
        {
            tracing::debug!("what a host started holds its standard error open");
        }
        let words = self.words.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
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

/// What a host writes itself, of both its outputs.
#[derive(Debug)]
struct Words {
    rate: Mutex<LineRate>,
    /// The last line on stderr.
    last: Mutex<String>,
}

impl Words {
    fn new(now: Instant) -> Self {
        Self { rate: Mutex::new(LineRate::new(now, LINES_PER_SECOND, LINES_BURST)), last: Mutex::default() }
    }

    fn hear(&self, line: &[u8], is_last: bool, say: &mut impl FnMut(&str)) {
        let text = escape::text(String::from_utf8_lossy(line).trim(), MAX_LINE);
        if text.is_empty() {
            return;
        }
        if is_last {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = text.chars().take(300).collect();
        }
        match self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            None => {}
            Some(0) => say(&text),
            Some(lost) => {
                say(&format!("{lost} lines of this host were left out: it writes too fast"));
                say(&text);
            }
        }
    }
}

/// Reads a child's output line by line to its end.
async fn capture(source: impl AsyncRead + Unpin, words: Arc<Words>, is_last: bool, mut say: impl FnMut(&str)) {
    pace::lines(source, MAX_LINE, |line| words.hear(line, is_last, &mut say)).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::pace::{READ_BURST, READ_PER_SECOND};

    #[tokio::test]
    async fn what_a_host_floods_its_outputs_with_is_read_slowly_and_mostly_left_out() {
        let (mut host, output) = tokio::io::duplex(64 << 10);
        let written = Arc::new(AtomicUsize::new(0));
        let counted = written.clone();
        let flood = tokio::spawn(async move {
            let part = b"x\n".repeat(2048);
            while host.write_all(&part).await.is_ok() {
                counted.fetch_add(part.len(), Relaxed);
            }
        });
        let (words, said) = (Arc::new(Words::new(Instant::now())), Arc::new(Mutex::new(Vec::new())));
        let heard = said.clone();
        let reading = capture(output, words.clone(), true, move |text| heard.lock().unwrap().push(text.to_owned()));
        let began = Instant::now();
        assert!(tokio::time::timeout(Duration::from_secs(2), reading).await.is_err(), "it is read to its end");
        flood.abort();
        let (said, written) = (said.lock().unwrap(), written.load(Relaxed));
        // So much at once and so much in each second, of which a busy machine may have made more than two; and what is on its way.
        let seconds = began.elapsed().as_secs() + 1;
        let most = READ_BURST + READ_PER_SECOND * seconds + (1 << 20);
        assert!((written as u64) < most, "{written} bytes; at most {most}");
        let most = 200 + 10 * seconds as usize;
        assert!((200..most).contains(&said.len()), "{} lines; at most {most}", said.len());
        assert!(said.iter().any(|text| text.contains("lines of this host were left out")), "{said:?}");
        assert_eq!(*words.last.lock().unwrap(), "x");
    }

    #[tokio::test]
    async fn what_a_host_says_cannot_change_what_its_operator_sees() {
        let words = Arc::new(Words::new(Instant::now()));
        let output = format!("thread panicked\n  \u{202e}txet\u{1b}[2J\n{}", "y".repeat(100_000));
        let mut said = Vec::new();
        capture(output.as_bytes(), words.clone(), true, |text| said.push(text.to_owned())).await;
        assert_eq!(said[..2], ["thread panicked".to_owned(), "\\u{202e}txet\\u{1b}[2J".to_owned()]);
        assert_eq!((said.len(), said[2].len()), (3, MAX_LINE));
        assert_eq!(words.last.lock().unwrap().len(), 300);
    }
}
