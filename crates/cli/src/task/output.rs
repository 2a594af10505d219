//! A task's lines on their way to the FIFOs of its scheduler. A reader that is slow or away loses lines, which is said once
//! it reads again; it never holds up the component. A reader that is replaced finds the FIFO opened anew.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

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
    pub fn to(path: PathBuf) -> Self {
        let (lines, coming) = mpsc::channel(WAITING);
        Self { lines, lost: 0, writer: tokio::spawn(write(path, coming)) }
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

async fn write(path: PathBuf, mut coming: mpsc::Receiver<Vec<u8>>) {
    let mut sink = None;
    while let Some(line) = coming.recv().await {
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let open = match &mut sink {
                Some(open) => open,
                None => sink.insert(open(&path).await),
            };
            let written = match open {
                Sink::Pipe(pipe) => pipe.write(rest).await,
                Sink::File(file) => file.write(rest).await,
            };
            match written {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                // The reader is gone; the next one opens the same path.
                Err(cause) => {
                    tracing::debug!(path = %path.display(), %cause, "an output is opened again");
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
async fn open(path: &Path) -> Sink {
    let mut said = false;
    loop {
        match try_open(path).await {
            Ok(sink) => return sink,
            // ENXIO: nobody has it open for reading.
            Err(cause) if cause.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {}
            Err(cause) if !said => {
                said = true;
                tracing::warn!(path = %path.display(), %cause, "an output cannot be opened and is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn try_open(path: &Path) -> io::Result<Sink> {
    if tokio::fs::metadata(path).await?.file_type().is_fifo() {
        return pipe::OpenOptions::new().open_sender(path).map(Sink::Pipe);
    }
    tokio::fs::OpenOptions::new().append(true).open(path).await.map(Sink::File)
}
