//! A task's lines on their way to the FIFOs of its scheduler. A reader that is slow or away loses lines, which is said once
//! it reads again; it never holds up the component. A reader that is replaced finds the FIFO opened anew. What waits for a
//! reader is bounded in bytes. A program waits for a reader that is slow, as at a pipe, and not for one that is gone: agents start a
//! collector of logs that was killed only with their own next start, or the task's.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::Arc;
use std::time::Duration;

use api::task::Place;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::place;

/// What waits for a slow reader, bytes.
const WAITING: usize = 1 << 20;
/// What one line or piece takes of that beside its bytes.
const EACH: usize = 64;
/// The pause between two looks for a reader.
const AGAIN: Duration = Duration::from_millis(50);
/// A reader that has been gone for so long is waited for no longer.
const GONE: Duration = Duration::from_secs(30);

/// One of a task's two outputs.
pub struct Output {
    lines: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
    lost: u64,
    away: Away,
    patience: Duration,
    writer: JoinHandle<()>,
}

/// Since when there is no reader, where there is none.
type Away = watch::Receiver<Option<Instant>>;

/// A line or piece, and the room it has until it is written.
struct Waiting(Vec<u8>, OwnedSemaphorePermit);

/// The room that so many bytes take; one that is larger than all there is has all of it.
fn room(bytes: usize) -> u32 {
    u32::try_from((bytes + EACH).min(WAITING)).unwrap_or(u32::MAX)
}

fn lost(lines: u64) -> String {
    format!("sidereal: {lines} lines were lost: nobody read them\n")
}

impl Output {
    /// Writes to this FIFO or file from now on.
    pub fn to(place: Place) -> Self {
        Self::patient(place, GONE)
    }

    fn patient(place: Place, patience: Duration) -> Self {
        let (lines, coming) = mpsc::unbounded_channel();
        let (tell, away) = watch::channel(None);
        let room = Arc::new(Semaphore::new(WAITING));
        Self { lines, room, lost: 0, away, patience, writer: tokio::spawn(write(place, coming, tell)) }
    }

    /// Writes one line.
    pub fn line(&mut self, text: &str) {
        let mut line = Vec::with_capacity(text.len() + 1);
        if self.lost > 0 {
            line.extend_from_slice(lost(self.lost).as_bytes());
        }
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        match self.room.clone().try_acquire_many_owned(room(line.len())) {
            Ok(room) => {
                self.lost = 0;
                self.send(line, room);
            }
            Err(_) => self.lost += 1,
        }
    }

    /// Writes bytes as they are, and waits where the reader is slow. Where it has been gone for long, what there is no room for is
    /// lost.
    pub async fn bytes(&mut self, bytes: Vec<u8>) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count().max(1);
        let bytes = match self.lost {
            0 => bytes,
            lost => [self::lost(lost).into_bytes(), bytes].concat(),
        };
        let room = self.room.clone().acquire_many_owned(room(bytes.len()));
        tokio::select! {
            biased;
            // Nobody closes it.
            Ok(room) = room => {
                self.lost = 0;
                self.send(bytes, room);
            }
            () = gone(&mut self.away, self.patience) => self.lost += lines as u64,
        }
    }

    fn send(&self, bytes: Vec<u8>, room: OwnedSemaphorePermit) {
        // The writer ends with this alone.
        drop(self.lines.send(Waiting(bytes, room)));
    }

    /// Waits until everything is written; not longer than `patience`.
    pub async fn finish(mut self, patience: Duration) {
        let (mut away, gone_for) = (self.away.clone(), self.patience);
        let written = async move {
            let lost = std::mem::take(&mut self.lost);
            if lost > 0 {
                self.bytes(self::lost(lost).into_bytes()).await;
            }
            drop(self.lines);
            drop(self.writer.await);
            true
        };
        let all = tokio::select! {
            biased;
            all = written => all,
            () = tokio::time::sleep(patience) => false,
            () = gone(&mut away, gone_for) => false,
        };
        if !all {
            tracing::warn!("the last lines of the task are lost: nobody reads them");
        }
    }
}

/// Ends once there has been no reader for so long.
async fn gone(away: &mut Away, patience: Duration) {
    loop {
        let since = *away.borrow_and_update();
        let over = async {
            match since {
                Some(since) => sleep_until(since + patience).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            changed = away.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
            }
        }
    }
}

async fn write(place: Place, mut coming: mpsc::UnboundedReceiver<Waiting>, away: watch::Sender<Option<Instant>>) {
    // Opened before there is a line: a scheduler waits at the end of a task for a reader that could never open its end.
    let (mut sink, mut first) = (None, None);
    tokio::select! {
        biased;
        open = open(&place, &away) => sink = Some(open),
        line = coming.recv() => first = line,
    }
    while let Some(Waiting(line, _room)) = match first.take() {
        Some(line) => Some(line),
        None => coming.recv().await,
    } {
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let to = match &mut sink {
                Some(to) => to,
                None => sink.insert(open(&place, &away).await),
            };
            let written = match to {
                Sink::Pipe(pipe) => pipe.write(rest).await,
                // Whether there was room for it is known only then.
                Sink::File(file) => match file.write(rest).await {
                    Ok(count) => file.flush().await.map(|()| count),
                    Err(cause) => Err(cause),
                },
            };
            match written {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                // The reader is gone, and the next one opens the same path; or a disk is full, and may have room later.
                Err(cause) => {
                    tracing::debug!(path = %place.name().display(), %cause, "an output is opened again");
                    // What the reader that is gone left in a FIFO is there as long as somebody has it open.
                    let before = sink.take().filter(|before| matches!(before, Sink::Pipe(_)));
                    tokio::time::sleep(AGAIN).await;
                    sink = Some(open(&place, &away).await);
                    drop(before);
                }
            }
        }
    }
}

enum Sink {
    Pipe(pipe::Sender),
    File(tokio::fs::File),
}

/// Opens the output, however long it takes until somebody reads it.
async fn open(place: &Place, away: &watch::Sender<Option<Instant>>) -> Sink {
    let mut said = false;
    loop {
        let opened = try_open(place).await;
        away.send_if_modified(|since| {
            let before = *since;
            *since = if opened.is_ok() { None } else { before.or_else(|| Some(Instant::now())) };
            *since != before
        });
        match opened {
            Ok(sink) => return sink,
            // ENXIO: nobody has it open for reading.
            Err(cause) if cause.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {}
            Err(cause) if !said => {
                said = true;
                tracing::warn!(path = %place.name().display(), %cause, "an output cannot be opened and is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn try_open(at: &Place) -> io::Result<Sink> {
    let file = place::output(at)?;
    if file.metadata()?.file_type().is_fifo() {
        return pipe::Sender::from_file(file).map(Sink::Pipe);
    }
    Ok(Sink::File(tokio::fs::File::from_std(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_link_is_followed_and_no_file_of_two_names_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let place = |name: &str| Place { root: dir.path().to_owned(), path: name.into() };
        std::fs::write(at("precious"), "").unwrap();
        std::os::unix::fs::symlink(at("precious"), at("link")).unwrap();
        assert!(try_open(&place("link")).await.is_err());
        // The folder of the logs is anybody's in the job.
        std::fs::create_dir_all(at("alloc/logs")).unwrap();
        std::fs::create_dir(at("elsewhere")).unwrap();
        for folder in ["alloc/logs", "elsewhere"] {
            std::fs::write(at(folder).join("out"), "").unwrap();
        }
        assert!(try_open(&place("alloc/logs/out")).await.is_ok());
        std::fs::rename(at("alloc/logs"), at("alloc/old")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("alloc/logs")).unwrap();
        assert!(try_open(&place("alloc/logs/out")).await.is_err());
        std::fs::hard_link(at("precious"), at("second")).unwrap();
        assert!(try_open(&place("second")).await.is_err());
        std::fs::write(at("own"), "").unwrap();
        assert!(matches!(try_open(&place("own")).await, Ok(Sink::File(_))));
        let null = Place { root: "/dev".into(), path: "null".into() };
        assert!(matches!(try_open(&null).await, Ok(Sink::File(_))));
    }

    /// Lines of a component that nobody reads are lost beyond a bound in bytes, and counted; bytes of a program wait.
    #[tokio::test]
    async fn what_nobody_reads_takes_bounded_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let mut output = Output::to(Place { root: dir.path().to_owned(), path: "fifo".into() });
        let long = "x".repeat(16 << 10);
        for _ in 0..100 {
            output.line(&long);
        }
        let kept = (WAITING / (long.len() + 1 + EACH)) as u64;
        assert_eq!(output.lost, 100 - kept);
        let waits = tokio::time::timeout(Duration::from_millis(50), output.bytes(vec![b'y'; 2 * WAITING])).await;
        assert!(waits.is_err(), "there is no room for it");
        let reader = std::thread::spawn(move || std::fs::read_to_string(path).unwrap());
        output.bytes(vec![b'y'; 2 * WAITING]).await;
        while output.room.available_permits() < WAITING {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        output.line("end");
        output.finish(Duration::from_secs(60)).await;
        let read = reader.join().unwrap();
        let lines: Vec<&str> = read.lines().collect();
        let (before, after) = lines.split_at(kept as usize);
        assert!(before.iter().all(|line| *line == long));
        // What was lost is told where it was, before the bytes that waited.
        let [told, bytes] = after else { panic!("{} lines", lines.len()) };
        assert_eq!(*told, lost(100 - kept).trim_end());
        assert!(bytes.len() == 2 * WAITING + 3 && bytes.starts_with('y') && bytes.ends_with("yend"));
    }

    /// A program does not wait for ever for a reader that is gone; one that comes back is told what it missed, and reads on.
    #[tokio::test]
    async fn bytes_that_nobody_will_read_hold_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        for name in ["fifo", "other"] {
            rustix::fs::mknodat(rustix::fs::CWD, dir.path().join(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        let place = |name: &str| Place { root: dir.path().to_owned(), path: name.into() };
        let mut output = Output::patient(place("fifo"), Duration::from_millis(100));
        let full = || [vec![b'y'; WAITING - 2 * EACH], b"\n".to_vec()].concat();
        output.bytes(full()).await;
        for piece in ["a\nb\n", "half a line"] {
            let waited = output.bytes([piece.as_bytes(), &[b'z'; EACH]].concat());
            tokio::time::timeout(Duration::from_secs(60), waited).await.unwrap();
        }
        assert_eq!(output.lost, 3);
        // Its end takes as long, and no longer.
        let unread = Output::patient(place("other"), Duration::from_millis(100));
        unread.send(full(), unread.room.clone().acquire_owned().await.unwrap());
        tokio::time::timeout(Duration::from_secs(60), unread.finish(Duration::MAX)).await.unwrap();
        let path = dir.path().join("fifo");
        let reader = std::thread::spawn(move || std::fs::read_to_string(path).unwrap());
        while output.room.available_permits() < WAITING {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // It waits for one that is there, and slow or not yet back.
        output.bytes(b"end\n".to_vec()).await;
        output.finish(Duration::from_secs(60)).await;
        let read = reader.join().unwrap();
        let lines: Vec<&str> = read.lines().collect();
        assert_eq!(lines[1..], ["sidereal: 3 lines were lost: nobody read them", "end"]);
        assert_eq!(lines[0].len(), WAITING - 2 * EACH);
    }

    /// A collector that is killed leaves what it had not read yet in the FIFO: the next one has it.
    #[tokio::test]
    async fn what_a_reader_left_in_its_pipe_is_the_next_one_s() {
        const LINES: usize = 100;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let reader = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        let mut output = Output::to(Place { root: dir.path().to_owned(), path: "fifo".into() });
        let text = "x".repeat(1000);
        for number in 0..LINES {
            output.line(&format!("{number} {text}"));
        }
        let soon = async |what: &str, so: &dyn Fn() -> bool| {
            let end = Instant::now() + Duration::from_secs(60);
            while !so() {
                assert!(Instant::now() < end, "{what}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the pipe is full", &|| rustix::io::ioctl_fionread(&reader).unwrap() > 60_000).await;
        drop(reader);
        let away = output.away.clone();
        soon("nobody reads, which is seen", &|| away.borrow().is_some()).await;
        let reader = std::thread::spawn(move || std::fs::read_to_string(path).unwrap());
        output.finish(Duration::from_secs(60)).await;
        let read = reader.join().unwrap();
        let wanted: String = (0..LINES).map(|number| format!("{number} {text}\n")).collect();
        assert!(read == wanted, "{} of {LINES} lines", read.lines().count());
    }

    /// What was lost at the very end is told as well.
    #[tokio::test]
    async fn lines_that_were_lost_last_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let mut output = Output::to(Place { root: dir.path().to_owned(), path: "fifo".into() });
        let long = "x".repeat(WAITING - 2 * EACH);
        for _ in 0..3 {
            output.line(&long);
        }
        assert_eq!(output.lost, 2);
        let reader = std::thread::spawn(move || std::fs::read_to_string(path).unwrap());
        output.finish(Duration::from_secs(60)).await;
        let read = reader.join().unwrap();
        assert!(read.ends_with("x\nsidereal: 2 lines were lost: nobody read them\n"), "{}", read.len());
    }

    /// A reader of a task that writes nothing has its end opened, and sees the end of the task; where nobody reads nobody
    /// is waited for.
    #[tokio::test]
    async fn an_output_is_open_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let place = || Place { root: dir.path().to_owned(), path: "fifo".into() };
        let unread = Output::to(place());
        tokio::time::timeout(Duration::from_secs(60), unread.finish(Duration::MAX)).await.unwrap();
        let output = Output::to(place());
        let (opens, opened) = tokio::sync::oneshot::channel();
        let reader = std::thread::spawn(move || {
            let mut file = std::fs::File::open(path).unwrap();
            opens.send(()).unwrap();
            std::io::Read::read_to_end(&mut file, &mut Vec::new()).unwrap()
        });
        tokio::time::timeout(Duration::from_secs(60), opened).await.unwrap().unwrap();
        output.finish(Duration::from_secs(60)).await;
        assert_eq!(reader.join().unwrap(), 0);
    }

    /// A disk that is full is asked for room now and then, and does not take the processor.
    #[tokio::test]
    async fn an_output_that_cannot_be_written_is_tried_again_and_not_all_the_time() {
        use rustix::time::{ClockId, clock_gettime};
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "none"])
            .arg(dir.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("NOT RUN: an output on a full disk: this user mounts none");
            return;
        }
        let (log, full) = (dir.path().join("log"), dir.path().join("full"));
        std::fs::write(&log, "").unwrap();
        let mut file = std::fs::File::create(&full).unwrap();
        while std::io::Write::write_all(&mut file, &[b'x'; 4096]).is_ok() {}
        let used = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(u64::try_from(now.tv_sec).unwrap(), u32::try_from(now.tv_nsec).unwrap())
        };
        let mut output = Output::to(Place { root: dir.path().to_owned(), path: "log".into() });
        let before = used();
        for number in 0..4 {
            output.line(&format!("line {number}"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let took = used() - before;
        drop(file);
        std::fs::remove_file(&full).unwrap();
        output.line("end");
        output.finish(Duration::from_secs(60)).await;
        let read = std::fs::read_to_string(&log).unwrap();
        drop(std::process::Command::new("umount").arg("-l").arg(dir.path()).status());
        assert!(read.ends_with("end\n"), "{read:?}");
        assert!(took < Duration::from_millis(100), "{took:?} of half a second");
    }
}
