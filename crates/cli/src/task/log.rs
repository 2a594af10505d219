//! The log of a task's process: for whoever looks why a task does not run, and no way to fill the client's disk. What is in it may
//! be brought about by whoever a task talks to.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, ftruncate};
use rustix::io::Result;

/// A log that is larger is emptied, bytes.
const MOST: i64 = 1 << 20;
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps standard error small for as long as this process runs.
pub async fn keep_small() {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(cause) = empty(std::io::stderr()) {
            tracing::debug!(%cause, "the log cannot be emptied");
        }
    }
}

/// Empties a log that has become too large. One that is written by appending goes on at its beginning; no other is one of ours.
fn empty(log: impl AsFd) -> Result<()> {
    let found = fstat(&log)?;
    let ours =
        FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && fcntl_getfl(&log)?.contains(OFlags::APPEND);
    if ours && found.st_size > MOST {
        ftruncate(&log, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_is_emptied_before_it_fills_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        for (append, left) in [(true, 4), (false, MOST + 5)] {
            let path = dir.path().join(append.to_string());
            let mut log = std::fs::File::options().create(true).append(append).write(true).open(&path).unwrap();
            let size = || i64::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
            log.set_len(u64::try_from(MOST).unwrap()).unwrap();
            empty(&log).unwrap();
            assert_eq!(size(), MOST, "not yet");
            log.set_len(u64::try_from(MOST).unwrap() + 1).unwrap();
            empty(&log).unwrap();
            if append {
                log.write_all(b"more").unwrap();
            } else {
                log.set_len(u64::try_from(MOST).unwrap() + 5).unwrap();
            }
            assert_eq!(size(), left);
        }
    }
}
