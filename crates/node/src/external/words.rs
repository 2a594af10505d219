//! What a process writes, line by line into its app's log, at a bounded rate: it may write as fast as it likes and is
//! never made to wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::agent::{LogLine, LogStream};
use model::{AppName, ComponentName, Revision, TenantName};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::logs::Logs;
use crate::pace::LineRate;

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
        let text = String::from_utf8_lossy(line);
        let text: String = text.trim_end().chars().filter(|c| !c.is_control() || *c == '\t').collect();
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
pub(super) async fn capture(mut source: impl AsyncRead + Unpin, words: Arc<Words>, stream: LogStream) {
    let mut line = Vec::new();
    let mut chunk = vec![0; 16 << 10];
    while let Ok(count @ 1..) = source.read(&mut chunk).await {
        for byte in chunk.iter().take(count) {
            if *byte == b'\n' {
                words.say(&line, stream);
                line.clear();
            } else if line.len() < MAX_LINE {
                line.push(*byte);
            }
        }
    }
    words.say(&line, stream);
}
