//! The first process of a program's pid namespace: it starts the program once everything is refused that the program may not
//! have, passes on that it is to end, and buries what the program leaves behind. A program in its place would not be ended
//! by a signal it does not know, and would have to bury what it did not start.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, wait};

/// The byte on the line that asks the program to end.
pub const END: u8 = b'e';

/// How long what ended is left unburied: it holds a number, and nothing else.
const BURIALS: Duration = Duration::from_secs(10);

/// Runs `program` in `dir` with `input` as its stdin and no environment, and returns how it ended. `line` says when it is to:
/// [`END`] asks it to, and the end of the line ends it.
///
/// # Errors
/// Where it cannot be run or waited for, or the other end of the line is gone.
pub fn run(program: &Path, dir: &Path, input: OwnedFd, line: BorrowedFd<'_>) -> io::Result<ExitStatus> {
    let mut child = Command::new(program).env_clear().current_dir(dir).stdin(input).spawn()?;
    let ended = watch(&child, line);
    if ended.is_err() {
        drop(child.kill());
        drop(child.wait());
    }
    ended
}

fn watch(child: &Child, line: BorrowedFd<'_>) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the program has no number"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec { tv_sec: BURIALS.as_secs().cast_signed(), tv_nsec: 0 };
    loop {
        let mut both = [PollFd::new(&pidfd, PollFlags::IN), PollFd::from_borrowed_fd(line, PollFlags::IN)];
        match poll(&mut both, Some(&patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        let said = !both.last().is_none_or(|line| line.revents().is_empty());
        while let Some((ended, status)) = wait(WaitOptions::NOHANG)? {
            if ended == pid {
                return Ok(ExitStatus::from_raw(status.as_raw()));
            }
        }
        if said {
            let mut byte = [0];
            match rustix::io::read(line, &mut byte)? {
                0 => return Err(io::Error::other("whoever started this process is gone")),
                _ if byte == [END] => kill_process(pid, Signal::TERM)?,
                _ => {}
            }
        }
    }
}
