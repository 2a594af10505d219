//! A task's lines on their way to the FIFOs of its scheduler. A reader that is slow or away loses lines, which is said once
//! it reads again; it never holds up the component. A reader that is replaced finds the FIFO opened anew.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::time::Duration;

use api::task::Place;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::place;

/// Lines that wait for a slow reader.
const WAITING: usize = 4096;
/// The pause between two looks for a reader.
const AGAIN: Duration = Duration::from_millis(50);

/// One of a task's two outputs.
pub struct Output {
    lines: mpsc::Sender<Vec<u8>>,
    lost: u64,
    writer: JoinHandle<()>,
}

impl Output {
    /// Writes to this FIFO or file from now on.
    pub fn to(place: Place) -> Self {
        let (lines, coming) = mpsc::channel(WAITING);
        Self { lines, lost: 0, writer: tokio::spawn(write(place, coming)) }
    }

    /// Writes one line.
    pub fn line(&mut self, text: &str) {
        let mut line = Vec::with_capacity(text.len() + 1);
        if self.lost > 0 {
            line.extend_from_slice(format!("sidereal: {} lines were lost: nobody read them\n", self.lost).as_bytes());
        }
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        match self.lines.try_send(line) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += 1,
        }
    }

    /// Writes bytes as they are, and waits where the reader is slow.
    pub async fn bytes(&mut self, bytes: Vec<u8>) {
        // The writer ends with this alone.
        drop(self.lines.send(bytes).await);
    }

    /// Waits until everything is written; not longer than `patience`.
    pub async fn finish(self, patience: Duration) {
        drop(self.lines);
        if tokio::time::timeout(patience, self.writer).await.is_err() {
            tracing::warn!("the last lines of the task are lost: nobody reads them");
        }
    }
}

async fn write(place: Place, mut coming: mpsc::Receiver<Vec<u8>>) {
    let mut sink = None;
    while let Some(line) = coming.recv().await {
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let open = match &mut sink {
                Some(open) => open,
                None => sink.insert(open(&place).await),
            };
            let written = match open {
                Sink::Pipe(pipe) => pipe.write(rest).await,
                Sink::File(file) => file.write(rest).await,
            };
            match written {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                // The reader is gone; the next one opens the same path.
                Err(cause) => {
                    tracing::debug!(path = %place.name().display(), %cause, "an output is opened again");
                    sink = None;
                }
            }
        }
    }
    if let Some(Sink::File(file)) = &mut sink {
        drop(file.flush().await);
    }
}

enum Sink {
    Pipe(pipe::Sender),
    File(tokio::fs::File),
}

/// Opens the output, however long it takes until somebody reads it.
async fn open(place: &Place) -> Sink {
    let mut said = false;
    loop {
        match try_open(place).await {
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

/// The folder is everybody's in the job's group: what stands under the name may be a link that leads elsewhere by now, so
/// what was opened is looked at, and no link is followed on the way.
async fn try_open(at: &Place) -> io::Result<Sink> {
    let file = place::output(at)?;
    let found = file.metadata()?;
    let kind = found.file_type();
    if kind.is_fifo() {
        return pipe::Sender::from_file(file).map(Sink::Pipe);
    }
    if kind.is_char_device() || kind.is_file() && found.nlink() == 1 {
        return Ok(Sink::File(tokio::fs::File::from_std(file)));
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a FIFO nor a file of its own"))
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
}
