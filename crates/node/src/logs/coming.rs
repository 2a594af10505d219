//! Lines as they come, for somebody who follows an app: whoever is too slow misses some and is told how many.

use std::sync::Arc;

use api::agent::{LogLine, LogStream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Lines as they come, for one follower.
pub(super) struct Coming {
    pub(super) receiver: broadcast::Receiver<Arc<LogLine>>,
    /// Lines it missed since the last one.
    pub(super) lost: u64,
    /// The line after those that it missed, while it is told of them.
    pub(super) next: Option<Arc<LogLine>>,
}

impl Coming {
    /// The next line that fits; where some were missed before it, one that says so.
    pub(super) async fn next(mut self, fits: impl Fn(&Arc<LogLine>) -> bool) -> Option<(LogLine, Self)> {
        if let Some(line) = self.next.take() {
            return Some((line.as_ref().clone(), self));
        }
        loop {
            match self.receiver.recv().await {
                Ok(line) if !fits(&line) => {}
                Ok(line) if self.lost == 0 => return Some((line.as_ref().clone(), self)),
                Ok(line) => {
                    let text = format!("{} lines were lost here: they came faster than they were read", self.lost);
                    let told = LogLine { stream: LogStream::Platform, text, ..line.as_ref().clone() };
                    (self.lost, self.next) = (0, Some(line));
                    return Some((told, self));
                }
                Err(RecvError::Lagged(lines)) => self.lost = self.lost.saturating_add(lines),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
