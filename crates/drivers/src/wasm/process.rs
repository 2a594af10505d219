//! The process of a task: started in a session of its own, found again by its number and start, watched and ended by a
//! handle of the kernel's, so that a number that was given to somebody else meanwhile is never signalled.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::sync::watch;

/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// The first pause between two looks for them.
const LOOK: Duration = Duration::from_millis(5);
/// A process of a task is never started so long after its end, as far as clocks can be trusted.
const LATE: Duration = Duration::from_secs(5);

/// A process for ever: numbers come again, numbers with their start do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it was started, in ticks since boot.
    pub started: u64,
}

/// One process as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub identity: Identity,
    /// The process that leads its session.
    pub session: i32,
    /// It has ended, and nobody has asked how.
    pub dead: bool,
    /// CPU time in programs and in the kernel, ticks; of ended children too.
    pub ticks: (u64, u64),
}

impl Seen {
    /// Looks at a process; `None` where there is none of the number.
    ///
    /// # Errors
    /// Where it cannot be looked at, which does not say that there is none.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            // A process may call itself anything.
            Ok(stat) => match Self::parse(pid, &String::from_utf8_lossy(&stat)) {
                Some(seen) => Ok(Some(seen)),
                None => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat cannot be understood")))
                }
            },
            Err(cause) if is_none(&cause) => Ok(None),
            Err(cause) => Err(io::Error::new(cause.kind(), format!("/proc/{pid}/stat cannot be read: {cause}"))),
        }
    }

    fn parse(pid: i32, stat: &str) -> Option<Self> {
        // The name is in brackets and may hold anything; the fields after it are counted from the state, which is the third.
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
        let number = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
        let state = *fields.first()?;
        Some(Self {
            identity: Identity { pid, started: number(22)? },
            session: fields.get(6 - 3)?.parse().ok()?,
            dead: matches!(state, "Z" | "X"),
            ticks: (number(14)? + number(16)?, number(15)? + number(17)?),
        })
    }

    /// When it was started, by the clock of now.
    pub fn began(&self) -> Option<SystemTime> {
        let since_boot = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
        let ticks = clock_ticks_per_second().max(1);
        let started = Duration::from_millis(self.identity.started.saturating_mul(1000) / ticks);
        SystemTime::now().checked_sub(since_boot.saturating_sub(started))
    }

    /// The memory that is its own, bytes: what it shares with others through files is not. 0 where it has just ended.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.identity.pid)).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        line.map_or(0, |kib: u64| kib * 1024)
    }

    /// Every process of the machine that has not ended, but those that this user may not look at: they are of others.
    ///
    /// # Errors
    /// Where one cannot be looked at.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match Self::of(pid) {
                Ok(seen) => all.extend(seen.filter(|seen| !seen.dead)),
                Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(all)
    }

    /// Every process that runs in the session this one leads or led.
    ///
    /// # Errors
    /// As [`Seen::all`].
    pub fn session(leader: i32) -> io::Result<Vec<Self>> {
        let mut all = Self::all()?;
        all.retain(|seen| seen.session == leader);
        Ok(all)
    }
}

/// Whether that says that there is no such process: it may end between the two steps in which a file of it is read.
fn is_none(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotFound || cause.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// A task's process.
#[derive(Debug)]
pub struct Process {
    /// Which.
    pub identity: Identity,
    handle: AsyncFd<OwnedFd>,
    /// How it ended, where it is a child of this one.
    status: Option<watch::Receiver<Option<ExitStatus>>>,
}

impl Process {
    /// Starts `sidereal task` for this directory, whose lock goes over to it: from the moment it is there it holds it.
    ///
    /// # Errors
    /// When it cannot be started; nothing of it runs then.
    pub async fn start(sidereal: &Path, dir: &Path, lock: File) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("log"))?;
        let passed = std::env::var_os(telemetry::LOG_ENV).map(|filter| (telemetry::LOG_ENV, filter));
        // It raises the limit of open files for itself, so what the plugin took of them is not given back.
        let child = tokio::process::Command::new(sidereal)
            .arg("task")
            .arg("--dir")
            .arg(dir)
            .env_clear()
            .envs(passed)
            // Of a huge page a small process uses little, and holds all of it: two thirds of an idle task's memory.
            .env("MIMALLOC_ALLOW_THP", "0")
            .current_dir("/")
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        Self::keep(child, pid, Self::find(pid)).await
    }

    /// A child as the kernel's handle of it was found. One that there is none of would be nobody's: it is ended.
    async fn keep(mut child: Child, pid: i32, found: io::Result<Option<Self>>) -> io::Result<Self> {
        let why = match found {
            Ok(Some(found)) => {
                // It is ours to bury as long as we live.
                let (tell, status) = watch::channel(None);
                tokio::spawn(async move { tell.send_replace(child.wait().await.ok()) });
                return Ok(Self { status: Some(status), ..found });
            }
            Ok(None) => io::Error::new(io::ErrorKind::NotFound, "it ended at once"),
            Err(cause) => cause,
        };
        // Until it is buried its number, and that of its session, is nobody else's.
        let leader = Self::led_by(pid).await;
        if let Err(cause) = child.start_kill() {
            tracing::debug!(%cause, "a task's process has ended already");
        }
        if let Some(leader) = leader {
            clear(leader, None).await;
        }
        drop(child.wait().await);
        Err(why)
    }

    /// Which process a child is that was not buried, also where this process is short of something for the moment.
    async fn led_by(pid: i32) -> Option<Identity> {
        let until = tokio::time::Instant::now() + GONE;
        loop {
            match Seen::of(pid) {
                Ok(seen) => return seen.map(|seen| seen.identity),
                Err(cause) if tokio::time::Instant::now() > until => {
                    tracing::error!(pid, %cause, "what a task's process started is not known, and may stay");
                    return None;
                }
                Err(_) => tokio::time::sleep(LOOK * 20).await,
            }
        }
    }

    /// The process of this number; `None` where there is none.
    ///
    /// # Errors
    /// When the kernel gives no handle, or does not say which process it is.
    fn find(pid: i32) -> io::Result<Option<Self>> {
        let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
        let handle = match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(cause) => return Err(cause.into()),
        };
        // Looked at while the handle holds the number.
        let Some(seen) = Seen::of(pid)? else { return Ok(None) };
        #[allow(deprecated, reason = "what replaces it is unsafe; this handle is owned here and never exchanged")]
        let handle = AsyncFd::with_interest(handle, tokio::io::Interest::READABLE)?;
        Ok(Some(Self { identity: seen.identity, handle, status: None }))
    }

    /// The very process that was started as this one; `None` where it has ended.
    ///
    /// # Errors
    /// When the kernel gives no handle.
    pub fn again(identity: Identity) -> io::Result<Option<Self>> {
        Ok(Self::find(identity.pid)?.filter(|found| found.identity == identity))
    }

    /// Waits until it has ended; how it did, where it is a child of this process.
    pub async fn ended(&self) -> Option<ExitStatus> {
        if let Err(cause) = self.handle.readable().await {
            tracing::error!(%cause, "a task's process cannot be waited for");
        }
        let mut status = self.status.clone()?;
        // Whoever waits for the child ends with this alone.
        let seen = status.wait_for(Option::is_some).await.ok()?;
        *seen
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        if let Err(cause) = pidfd_send_signal(self.handle.get_ref(), signal) {
            tracing::debug!(%cause, "a task's process has ended already");
        }
    }
}

/// Ends everything in the session of a task and waits until it is gone. Returns what is still there in the end. Where it is
/// known when the task ended, what began later is somebody's whose session has the number now and who left it.
pub async fn clear(leader: Identity, ended: Option<SystemTime>) -> usize {
    let theirs = |seen: &Seen| ended.is_some_and(|ended| seen.began().is_some_and(|began| began > ended + LATE));
    let until = tokio::time::Instant::now() + GONE;
    let mut pause = LOOK;
    loop {
        let mut left = match Seen::session(leader.pid) {
            Ok(left) => left,
            // Of what could not be looked at nobody says that it is gone.
            Err(cause) if tokio::time::Instant::now() > until => {
                tracing::error!(%cause, "it is not known what is left of a task");
                return 1;
            }
            Err(_) => {
                tokio::time::sleep(LOOK * 20).await;
                continue;
            }
        };
        left.retain(|seen| !theirs(seen));
        // The number leads another session by now.
        let reused = left.iter().any(|seen| seen.identity.pid == leader.pid && seen.identity != leader);
        if left.is_empty() || reused {
            return 0;
        }
        for seen in &left {
            let found = Process::again(seen.identity);
            match found {
                Ok(Some(process)) => process.kill(),
                Ok(None) => {}
                Err(cause) => tracing::warn!(pid = seen.identity.pid, %cause, "a process of a task cannot be ended"),
            }
        }
        if tokio::time::Instant::now() > until {
            return left.len();
        }
        // Each look is at every process of the machine.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK * 20);
    }
}

/// The last words of a task's process, for a person.
pub fn last_words(dir: &Path) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    const TAIL: u64 = 4096;
    let mut file = File::open(dir.join("log")).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail).into_owned();
    let last = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(last.chars().take(400).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process whose session is led by nobody any more, and its leader's number.
    fn orphan() -> (i32, i32) {
        let script = "sleep 60 & echo $$ $!";
        let mut shell = std::process::Command::new("setsid");
        shell.args(["--wait", "sh", "-c", script]).stdout(Stdio::piped());
        let mut out = shell.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out.stdout.take().unwrap()), &mut line).unwrap();
        out.wait().unwrap();
        let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    #[tokio::test]
    async fn strangers_with_the_number_of_a_task_that_ended_before_they_began_are_left_alone() {
        let (leader, stranger) = orphan();
        let identity = Identity { pid: leader, started: 1 };
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        assert_eq!(clear(identity, Some(hour_ago)).await, 0);
        assert!(Seen::of(stranger).unwrap().is_some_and(|seen| !seen.dead && seen.session == leader));
        // What was there when the task ended is its own.
        assert_eq!(clear(identity, Some(SystemTime::now())).await, 0);
        assert!(Seen::of(stranger).unwrap().is_none_or(|seen| seen.dead));
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a ) b) S 1 7 9 0 -1 4194560 1 0 0 0 11 12 1 2 20 0 1 0 555 1000 42 18446744073709551615";
        let seen = Seen::parse(7, stat).unwrap();
        assert_eq!(seen.identity, Identity { pid: 7, started: 555 });
        assert_eq!((seen.session, seen.dead, seen.ticks), (9, false, (12, 14)));
        assert_eq!(Seen::parse(7, "7 (a) S"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Seen::of(own).unwrap().unwrap().identity.pid, own);
    }

    /// A descriptor too few does not make a process that runs one that has ended.
    #[test]
    fn what_cannot_be_looked_at_has_not_ended() {
        for cause in [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOMEM] {
            assert!(!is_none(&cause.into()), "{cause}");
        }
        assert!(is_none(&rustix::io::Errno::NOENT.into()) && is_none(&rustix::io::Errno::SRCH.into()));
        assert_eq!(Seen::of(i32::MAX).unwrap(), None);
    }

    /// Nobody else would ever find it: it would keep its port from whoever comes next.
    #[tokio::test]
    async fn a_process_that_the_kernel_gives_no_handle_of_is_ended_with_all_it_started() {
        for found in [Err(io::Error::from_raw_os_error(24)), Ok(None)] {
            let child =
                tokio::process::Command::new("setsid").args(["sh", "-c", "sleep 600 & sleep 600"]).spawn().unwrap();
            let pid = i32::try_from(child.id().unwrap()).unwrap();
            let until = std::time::Instant::now() + Duration::from_secs(60);
            while Seen::session(pid).unwrap().len() < 2 {
                assert!(std::time::Instant::now() < until, "they do not come up");
                tokio::time::sleep(LOOK).await;
            }
            let wanted = found.as_ref().err().map_or(io::ErrorKind::NotFound, io::Error::kind);
            assert_eq!(Process::keep(child, pid, found).await.unwrap_err().kind(), wanted);
            assert_eq!((Seen::session(pid).unwrap(), Seen::of(pid).unwrap()), (Vec::new(), None));
        }
    }
}
