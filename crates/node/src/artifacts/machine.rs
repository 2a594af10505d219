//! Turns of compilations on a machine where several nodes share a folder of compiled code: each is the node of one task, and
//! knows of no other. A turn is a locked file, so one whose node was killed is free.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use super::turns::AT_ONCE;

/// The pause between two looks for a free turn. A compilation takes far longer.
const LOOK: Duration = Duration::from_millis(20);

/// The turns of a machine.
#[derive(Debug)]
pub(super) struct MachineTurns(PathBuf);

impl MachineTurns {
    /// Those that are kept in this folder.
    pub(super) fn of(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Waits for a turn; the next one's when it is dropped.
    pub(super) async fn take(&self) -> io::Result<File> {
        super::make_dir(&self.0)?;
        loop {
            for number in 0..AT_ONCE {
                if let Some(turn) = self.try_take(number)? {
                    return Ok(turn);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn try_take(&self, number: usize) -> io::Result<Option<File>> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.0.join(number.to_string()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(cause)) => Err(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nodes_that_know_nothing_of_each_other_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let node = || MachineTurns::of(dir.path().join("turns"));
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(node().take().await.unwrap());
        }
        let waiting = node();
        let mut next = Box::pin(waiting.take());
        assert!(tokio::time::timeout(LOOK * 3, &mut next).await.is_err(), "there is none left");
        turns.pop();
        tokio::time::timeout(Duration::from_secs(60), next).await.unwrap().unwrap();
    }
}
