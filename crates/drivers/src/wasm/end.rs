//! How a task ended, as its agent is told. It writes that down itself, at its very end; one that was killed, or whose directory is
//! gone, could not, and then its parent knows a part of it, where the plugin is that.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use api::Problem;
use api::task::{EXIT_FILE, TaskExit};
use plugin::driver::ExitResult;

/// The signal of a process that was killed.
const KILLED: i32 = 9;

/// How long this process, or the disk, may be short of something before an end is told without what was written down.
const SHORT: Duration = Duration::from_secs(30);
/// How often it is looked again.
const LOOK: Duration = Duration::from_millis(50);

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// As the agent is told.
    pub result: ExitResult,
    /// In words, where something went wrong.
    pub problem: Option<String>,
    /// When.
    pub at: SystemTime,
}

/// What went wrong with a task, its code, and what to do about it.
pub fn in_words(problem: &Problem) -> String {
    let help = problem.help.as_ref().map_or_else(String::new, |help| format!(" ({help})"));
    format!("{} [{}]{help}", problem.detail, problem.code.as_str())
}

/// What the task of this directory wrote down of its end; `None` where it did not, or not whole.
pub fn written(dir: &Path) -> Option<TaskExit> {
    let read = super::noted::read(&dir.join(EXIT_FILE));
    read.unwrap_or_else(|cause| {
        tracing::error!(%cause, "how a task ended is not known");
        None
    })
}

/// Waits while what the task of this directory wrote down cannot be read, as where descriptors are short for the moment: it is
/// looked at once, and told for ever.
pub async fn readable(dir: &Path) {
    let until = tokio::time::Instant::now() + SHORT;
    while super::noted::read::<TaskExit>(&dir.join(EXIT_FILE)).is_err() && tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
}

impl Ended {
    /// How a process that has ended ended: as it wrote down; where it could not, as its parent was told; else it was killed, or, where
    /// the machine was started again since (`before`), ended with it.
    pub fn of(dir: &Path, before: bool, status: Option<ExitStatus>) -> Self {
        if let Some(exit) = written(dir) {
            let signal = if exit.oom { KILLED } else { 0 };
            return Self {
                result: ExitResult { exit_code: exit.code, signal, oom_killed: exit.oom },
                problem: exit.problem.as_ref().map(in_words),
                at: SystemTime::UNIX_EPOCH + Duration::from_millis(exit.ended_ms),
            };
        }
        let (exit_code, signal, problem) = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => {
                (code, 0, "the task could not write down how it ended; this is its exit code".to_owned())
            }
            Some((None, Some(signal))) if signal != KILLED => {
                (128 + signal, signal, format!("the task's process was ended by signal {signal}"))
            }
            None if before => {
                (128 + KILLED, KILLED, "the task ended with the machine, which was started again".to_owned())
            }
            _ => (128 + KILLED, KILLED, "the task's process was killed".to_owned()),
        };
        let result = ExitResult { exit_code, signal, oom_killed: false };
        Self { result, problem: Some(problem), at: SystemTime::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_was_not_written_down_is_what_its_parent_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let said = |status: Option<i32>| {
            let ended = Ended::of(dir.path(), false, status.map(ExitStatus::from_raw));
            (ended.result.exit_code, ended.result.signal, ended.problem.unwrap())
        };
        assert!(matches!(said(Some(3 << 8)), (3, 0, why) if why.contains("could not write down")));
        assert!(matches!(said(Some(11)), (139, 11, why) if why.contains("ended by signal 11")));
        for status in [Some(9), None] {
            assert!(matches!(said(status), (137, 9, why) if why.contains("was killed")), "{status:?}");
        }
        // A text that is cut off is none.
        std::fs::write(dir.path().join(EXIT_FILE), r#"{"code":"#).unwrap();
        assert_eq!(said(Some(9)).0, 137);
        let problem = Problem::new(api::Code::LimitReached, "it used all its memory").help("raise `memory`");
        let exit = TaskExit { code: 137, problem: Some(problem), oom: true, ran: true, ended_ms: 1 };
        super::super::task::write_whole(&dir.path().join(EXIT_FILE), &serde_json::to_vec(&exit).unwrap()).unwrap();
        assert_eq!(said(None), (137, 9, "it used all its memory [limit-reached] (raise `memory`)".to_owned()));
        std::fs::remove_file(dir.path().join(EXIT_FILE)).unwrap();
        let ended = Ended::of(dir.path(), true, None);
        assert!(ended.problem.is_some_and(|why| why.contains("with the machine")) && ended.result.exit_code == 137);
    }

    /// A descriptor too few at that moment does not make an end another one.
    #[tokio::test]
    async fn an_end_that_cannot_be_read_for_the_moment_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(EXIT_FILE);
        super::super::noted::unreadable(&file);
        let mut waits = Box::pin(readable(dir.path()));
        assert!(futures::poll!(&mut waits).is_pending());
        std::fs::remove_file(&file).unwrap();
        let exit = TaskExit { code: 3, problem: None, oom: false, ran: true, ended_ms: 1 };
        super::super::task::write_whole(&file, &serde_json::to_vec(&exit).unwrap()).unwrap();
        waits.await;
        assert_eq!(Ended::of(dir.path(), false, None).result.exit_code, 3);
        // Where there is none, nothing is waited for.
        std::fs::remove_file(&file).unwrap();
        assert!(futures::poll!(Box::pin(readable(dir.path()))).is_ready());
    }
}
