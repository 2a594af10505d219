//! What a process writes, line by line into its app's log, at a bounded rate. It is read as slowly as a host: one that writes
//! more waits, and costs the node nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::agent::{LogLine, LogStream};
use model::{AppName, ComponentName, Revision, TenantName, escape};
use tokio::io::AsyncRead;

use crate::logs::Logs;
use crate::pace::{self, LineRate};

/// The longest line that is kept, bytes.
const MAX_LINE: usize = 4096;
/// Lines a second over time, and at once.
const LINES_PER_SECOND: f64 = 20.0;
const LINES_BURST: f64 = 100.0;

/// How fast lines of one process are kept.
pub(super) fn rate() -> LineRate {
    LineRate::new(Instant::now(), LINES_PER_SECOND, LINES_BURST)
}

/// Where the lines of one process go.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) logs: Arc<Logs>,
    pub(super) tenant: TenantName,
    pub(super) app: AppName,
    pub(super) revision: Revision,
    /// The provider's name: it stands where lines of components have theirs.
    pub(super) component: Option<ComponentName>,
    pub(super) rate: Mutex<LineRate>,
    /// The last line on stderr.
    pub(super) last: Mutex<String>,
}

impl Words {
    /// What it said last on stderr.
    pub(super) fn last(&self) -> String {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say(&self, line: &[u8], stream: LogStream) {
        let text = escape::text(String::from_utf8_lossy(line).trim_end(), MAX_LINE);
        if text.is_empty() {
            return;
        }
        if stream == LogStream::Stderr {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = text.trim().chars().take(300).collect();
        }
        match self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            None => {}
            Some(0) => self.push(text, stream),
            Some(lost) => {
                self.push(format!("{lost} lines of this provider were left out: it writes too fast"), LogStream::Warn);
                self.push(text, stream);
            }
        }
    }

    fn push(&self, text: String, stream: LogStream) {
        let Some(component) = self.component.clone() else { return };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = LogLine {
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            app: self.app.clone(),
            component,
            revision: self.revision,
            shard: 0,
            instance: String::new(),
            stream,
            context: String::new(),
            text,
        };
        self.logs.push(&self.tenant, line);
    }
}

/// Reads a stream of the process to its end.
pub(super) async fn capture(source: impl AsyncRead + Unpin, words: Arc<Words>, stream: LogStream) {
    pace::lines(source, MAX_LINE, |line| words.say(line, stream)).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use api::node::LogQuery;
    use futures::StreamExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::pace::{READ_BURST, READ_PER_SECOND};

    fn words(logs: &Arc<Logs>) -> Arc<Words> {
        Arc::new(Words {
            logs: logs.clone(),
            tenant: "t".parse().unwrap(),
            app: "a".parse().unwrap(),
            revision: Revision(1),
            component: Some("p".parse().unwrap()),
            rate: Mutex::new(rate()),
            last: Mutex::default(),
        })
    }

    #[tokio::test]
    async fn what_a_program_floods_its_outputs_with_is_read_slowly() {
        let (mut program, output) = tokio::io::duplex(64 << 10);
        let written = Arc::new(AtomicUsize::new(0));
        let counted = written.clone();
        let flood = tokio::spawn(async move {
            let part = b"x\n".repeat(2048);
            while program.write_all(&part).await.is_ok() {
                counted.fetch_add(part.len(), Relaxed);
            }
        });
        let words = words(&Arc::default());
        let began = Instant::now();
        let reading = capture(output, words.clone(), LogStream::Stderr);
        assert!(tokio::time::timeout(Duration::from_secs(2), reading).await.is_err(), "it is read to its end");
        flood.abort();
        let most = READ_BURST + READ_PER_SECOND * (began.elapsed().as_secs() + 1) + (1 << 20);
        assert!((written.load(Relaxed) as u64) < most, "{written:?} bytes; at most {most}");
        assert_eq!(words.last(), "x");
    }

    #[tokio::test]
    async fn what_a_program_says_cannot_change_what_people_see() {
        let logs = Arc::<Logs>::default();
        let words = words(&logs);
        let output = format!("one\r\n\ttwo \u{202e}txet\u{1b}[2J\n{}", "y".repeat(100_000));
        capture(output.as_bytes(), words.clone(), LogStream::Stderr).await;
        assert_eq!(words.last().len(), 300);
        let query = LogQuery { last: 10, ..LogQuery::default() };
        let said: Vec<_> = logs.query(&words.tenant, &words.app, query).map(|line| line.text).collect().await;
        assert_eq!(said[..2], ["one".to_owned(), "\ttwo \\u{202e}txet\\u{1b}[2J".to_owned()]);
        assert_eq!((said.len(), said[2].len()), (3, MAX_LINE));
    }
}
