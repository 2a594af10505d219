//! The one writer of the audit log. A line counts once it is on the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use model::Digest;

use super::read::{files, lines, whole};
use super::{Act, Outcome, Record, Tail};

/// A file that has this many bytes is followed by the next.
const FULL: u64 = 16 << 20;

/// The log, open for writing.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    file: File,
    length: u64,
    full: u64,
    tail: Tail,
    /// A line may be half written: the file has to be cut before anything else is written.
    torn: bool,
}

impl Log {
    /// Opens the log in a folder, which is made where there is none. `kept` is where the log ends as the store knows it.
    /// A log that ends elsewhere, or that goes on after it, gets a line that says so for ever; then it goes on.
    ///
    /// # Errors
    /// Where the files cannot be read or written.
    pub fn open(dir: &Path, kept: Option<Tail>, now_ms: u64) -> io::Result<Self> {
        Self::open_with(dir, kept, now_ms, FULL)
    }

    /// As [`Log::open`], with another size of files.
    ///
    /// # Errors
    /// Where the files cannot be read or written.
    pub fn open_with(dir: &Path, kept: Option<Tail>, now_ms: u64, full: u64) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let (mut tail, mut path, mut seen) = (Tail::none(), name(dir, 1), kept.is_none_or(|kept| kept.number == 0));
        let (mut length, mut unknown) = (0, None::<(u64, u64)>);
        let mut newest = files(dir)?;
        // A crash can leave a new file without a line, and the store one line behind: in the file before.
        for file in newest.split_off(newest.len().saturating_sub(2)) {
            let bytes = std::fs::read(&file)?;
            // What has no line end was never acknowledged.
            let whole = whole(&bytes);
            for line in lines(whole) {
                if let Ok(record) = serde_json::from_slice::<Record>(line) {
                    tail = Tail { number: record.number, hash: Digest::of(line) };
                    if seen {
                        let first = unknown.map_or(record.number, |(first, _)| first);
                        unknown = Some((first, record.number));
                    }
                    seen |= kept == Some(tail);
                }
            }
            length = whole.len() as u64;
            path = file;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.set_len(length)?;
        let mut log = Self { dir: dir.to_owned(), file, length, full, tail, torn: false };
        File::open(dir)?.sync_all()?;
        if !seen {
            let kept = kept.map_or(0, |kept| kept.number);
            let what = format!("the log ended at line {} and not at line {kept}, as the store says", tail.number);
            // Numbers never mean two things: those that are lost are skipped.
            log.tail.number = log.tail.number.max(kept);
            log.append(&[own(what, Outcome::Broken)], now_ms)?;
        } else if let Some((first, last)) = unknown {
            // A crash leaves the last lines so; whoever adds lines while nothing runs cannot have them pass for others.
            let what = format!("lines {first} to {last} were here at a start, and the store did not know of them");
            log.append(&[own(what, Outcome::Found)], now_ms)?;
        }
        Ok(log)
    }

    /// Where it ends.
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds lines; they are on the disk when this returns. Answers with the number of the first. Where it fails, none of
    /// them is in the log.
    ///
    /// # Errors
    /// The system's.
    pub fn append(&mut self, acts: &[Act], now_ms: u64) -> io::Result<u64> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        if self.length >= self.full {
            self.next()?;
        }
        let (mut bytes, mut tail) = (Vec::new(), self.tail);
        let first = tail.number.saturating_add(1);
        for act in acts {
            let record =
                Record { number: tail.number.saturating_add(1), time_ms: now_ms, prev: tail.hash, act: act.clone() };
            let line = serde_json::to_vec(&record)?;
            tail = Tail { number: record.number, hash: Digest::of(&line) };
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
        }
        self.torn = true;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.torn = false;
        self.length = self.length.saturating_add(bytes.len() as u64);
        self.tail = tail;
        Ok(first)
    }

    fn next(&mut self) -> io::Result<()> {
        let path = name(&self.dir, self.tail.number.saturating_add(1));
        self.file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        self.length = 0;
        File::open(&self.dir)?.sync_all()
    }
}

/// How full the disk under the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size, bytes.
    pub size: u64,
    /// What of it is free for whoever runs the platform, bytes.
    pub free: u64,
}

impl Disk {
    /// The disk that a folder is on, as it is now.
    ///
    /// # Errors
    /// The system's.
    pub fn under(dir: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok(Self { size: bytes(disk.f_blocks), free: bytes(disk.f_bavail) })
    }

    /// Nearly full: less than a twentieth of it, and less than 1 GiB, is free.
    pub fn is_scarce(&self) -> bool {
        self.free < (self.size / 20).min(1 << 30)
    }
}

/// What the log says of itself.
fn own(what: String, outcome: Outcome) -> Act {
    Act {
        who: "the platform".to_owned(),
        tenant: None,
        from: String::new(),
        what,
        outcome,
        status: None,
        code: None,
        begun: None,
        left_out: 0,
    }
}

/// The file that begins with a line.
fn name(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.jsonl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_scarce_by_its_own_size_and_a_large_one_below_a_gibibyte() {
        let scarce = |size: u64, free: u64| Disk { size, free }.is_scarce();
        assert!(!scarce(1000, 50) && scarce(1000, 49));
        assert!(!scarce(1 << 40, 1 << 30) && scarce(1 << 40, (1 << 30) - 1));
    }
}
