//! How a task ended, written down whatever has become of the disk meanwhile: room for it is taken before the task runs. A batch job
//! whose end is lost is run a second time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use api::task::{EXIT_FILE, TaskExit};

/// What is taken. A longer text has no room for the words of what went wrong.
const ROOM: usize = 16 << 10;

/// Room on the disk for how a task ended.
pub struct Room {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl Room {
    /// Takes it, in the directory of the task.
    ///
    /// # Errors
    /// Where there is none.
    pub fn take(dir: &Path) -> io::Result<Self> {
        let (path, partial) = (dir.join(EXIT_FILE), dir.join(format!("{EXIT_FILE}.partial")));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        // Spaces, which may stand after any text of JSON.
        file.write_all(&[b' '; ROOM])?;
        Ok(Self { file, partial, path })
    }

    /// Writes how the task ended, and gives it its name.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn write(self, exit: &TaskExit) -> io::Result<()> {
        let mut text = serde_json::to_vec(exit)?;
        if text.len() > ROOM {
            let mut short = exit.clone();
            if let Some(problem) = &mut short.problem {
                problem.detail = problem.detail.chars().take(ROOM / 16).collect();
                problem.help = None;
            }
            text = serde_json::to_vec(&short)?;
        }
        self.file.write_all_at(&text, 0)?;
        std::fs::rename(&self.partial, &self.path).or_else(|_| {
            // Something that removes old files has been there.
            std::fs::write(&self.partial, &text)?;
            std::fs::rename(&self.partial, &self.path)
        })
    }
}

#[cfg(test)]
mod tests {
    use api::{Code, Problem};

    use super::*;

    #[test]
    fn an_end_fits_into_the_room_that_was_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let long = Problem::new(Code::ComponentTrapped, "ä\u{1}".repeat(ROOM)).help("h".repeat(ROOM));
        for problem in [None, Some(Problem::new(Code::Internal, "short")), Some(long)] {
            let exit = TaskExit { code: 7, problem: problem.clone(), oom: false, ran: true, ended_ms: 5 };
            Room::take(dir.path()).unwrap().write(&exit).unwrap();
            let written = std::fs::read(dir.path().join(EXIT_FILE)).unwrap();
            assert_eq!(written.len(), ROOM, "no more and no less");
            let read: TaskExit = serde_json::from_slice(&written).unwrap();
            let (told, meant) = (read.problem.map(|problem| problem.detail), problem.map(|problem| problem.detail));
            assert!(meant.unwrap_or_default().starts_with(&told.unwrap_or_default()));
            assert_eq!((read.code, read.ran, dir.path().join("exit.json.partial").exists()), (7, true, false));
        }
    }
}
