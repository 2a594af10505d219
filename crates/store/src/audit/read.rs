//! Reading the audit log: its last lines, and whether all of it is as it was written.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use model::Digest;

use super::{Outcome, Record, Tail};

/// Problems that a report holds at most; there may be more.
const MAX_PROBLEMS: usize = 20;

/// What a look at the whole log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Lines that were read.
    pub lines: u64,
    /// Files they are in.
    pub files: u64,
    /// Where the log ends.
    pub tail: Tail,
    /// What is not as it was written, one sentence each; the first ones. Empty: all of it is.
    pub problems: Vec<String>,
    /// Lines that were in the files at a start and that the store did not know of: a crash leaves the last few so, and so
    /// does whoever adds some while nothing runs. The first ones.
    pub found: Vec<String>,
}

/// The files of the log, oldest first.
pub(super) fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// As far as the last line end.
pub(super) fn whole(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.get(..end).unwrap_or_default()
}

pub(super) fn lines(bytes: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// The last lines that `fits`, newest first, at most `most`, in the newest `within` files.
///
/// # Errors
/// Where a file cannot be read.
pub fn last(dir: &Path, most: usize, within: usize, fits: impl Fn(&Record) -> bool) -> io::Result<Vec<Record>> {
    let mut found = Vec::new();
    for file in files(dir)?.into_iter().rev().take(within) {
        let bytes = std::fs::read(file)?;
        let records = lines(whole(&bytes)).rev().filter_map(|line| serde_json::from_slice::<Record>(line).ok());
        found.extend(records.filter(|record| fits(record)).take(most.saturating_sub(found.len())));
        if found.len() >= most {
            break;
        }
    }
    Ok(found)
}

/// The files of the log as long as they are now, oldest first.
///
/// # Errors
/// Where they cannot be looked at.
pub fn measured(dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    files(dir)?.into_iter().map(|path| std::fs::metadata(&path).map(|meta| (path, meta.len()))).collect()
}

/// Reads all of the log and compares it with where the store says that it ends.
///
/// # Errors
/// Where a file cannot be read.
pub fn verify(dir: &Path, kept: Option<Tail>) -> io::Result<Report> {
    verify_measured(&measured(dir)?, kept)
}

/// The same of files as long as they were: what is added to them meanwhile is left alone.
///
/// # Errors
/// Where a file cannot be read.
pub fn verify_measured(measured: &[(PathBuf, u64)], kept: Option<Tail>) -> io::Result<Report> {
    let mut report = Report { lines: 0, files: 0, tail: Tail::none(), problems: Vec::new(), found: Vec::new() };
    let mut problems = Vec::new();
    for (file, length) in measured {
        report.files += 1;
        let mut bytes = Vec::new();
        File::open(file)?.take(*length).read_to_end(&mut bytes)?;
        for line in lines(&bytes) {
            report.lines += 1;
            let Ok(record) = serde_json::from_slice::<Record>(line) else {
                problems.push(format!("after line {}: a line that cannot be read", report.tail.number));
                continue;
            };
            let (number, expected) = (record.number, report.tail.number.saturating_add(1));
            if record.act.outcome == Outcome::Broken {
                problems.push(format!("line {number}: {}", record.act.what));
            } else if number != expected {
                problems.push(format!("line {number} stands where line {expected} belongs"));
            }
            if record.act.outcome == Outcome::Found {
                report.found.push(format!("line {number}: {}", record.act.what));
            }
            if record.prev != report.tail.hash {
                problems.push(format!("line {number} does not follow the line before it: one of them was changed"));
            }
            report.tail = Tail { number, hash: Digest::of(line) };
        }
    }
    let kept = kept.unwrap_or_else(Tail::none);
    if report.tail.number != kept.number {
        let (last, kept) = (report.tail.number, kept.number);
        problems.push(format!("the log ends at line {last}, and at line {kept} as the store says"));
    } else if report.tail.hash != kept.hash {
        problems.push(format!("line {}, the last one, is not as it was written", kept.number));
    }
    problems.truncate(MAX_PROBLEMS);
    report.found.truncate(MAX_PROBLEMS);
    report.problems = problems;
    Ok(report)
}
