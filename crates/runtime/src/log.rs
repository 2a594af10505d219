//! What a guest writes to standard output, standard error and `wasi:logging`: whole lines to the sink, within the
//! budget of the call.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use model::unit::ByteSize;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStreamKind {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// `wasi:logging` level.
    Trace,
    /// `wasi:logging` level.
    Debug,
    /// `wasi:logging` level.
    Info,
    /// `wasi:logging` level.
    Warn,
    /// `wasi:logging` level.
    Error,
    /// `wasi:logging` level.
    Critical,
}

/// Takes the log of one component. Called on the request path: must not block.
pub trait LogSink: Send + Sync {
    /// Bytes a guest wrote: one or more lines, each ended by `\n` but for a last one that was cut or never ended.
    /// Never a part of two calls' lines. `instance` is the number of the instance that wrote them, never 0 and never given
    /// twice in this process. `context` is that of `wasi:logging`, at most [`MAX_CONTEXT`] bytes, empty
    /// otherwise; it belongs to every line.
    fn write(&self, instance: u64, stream: LogStreamKind, context: &str, bytes: &[u8]);
    /// A call wrote this many bytes more than it may; they are gone.
    fn dropped(&self, bytes: u64);
}

/// Longest context of a `wasi:logging` message, bytes; the rest of it is cut.
pub const MAX_CONTEXT: usize = 256;

/// How many of `bytes` a budget of `left` bytes pays for, and what they cost: every line costs its bytes and the
/// `context` bytes that are kept with each of them, so that many short lines are no way around a budget.
pub fn affordable(bytes: &[u8], context: usize, left: u64) -> (usize, u64) {
    let budget = usize::try_from(left).unwrap_or(usize::MAX);
    if context == 0 {
        let taken = bytes.len().min(budget);
        return (taken, taken as u64);
    }
    let (mut taken, mut spent) = (0, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let rest = (budget - spent).saturating_sub(context).min(line.len());
        if rest == 0 {
            break;
        }
        taken += rest;
        spent += rest + context;
        if rest < line.len() {
            break;
        }
    }
    (taken, spent as u64)
}

/// Longest line held back while its end is awaited.
const LINE: usize = 16 * 1024;
/// Most bytes a guest may write at once.
const PERMIT: usize = 64 * 1024;

/// The number of the next instance that writes something. One that never does has none, and costs nothing.
static INSTANCES: AtomicU64 = AtomicU64::new(1);

/// The log of one instance; its budget starts anew with each call.
pub(crate) struct CallLog {
    sink: Arc<dyn LogSink>,
    instance: u64,
    left: AtomicU64,
    dropped: AtomicU64,
    partial: Mutex<[Vec<u8>; 2]>,
}

impl CallLog {
    pub(crate) fn new(sink: Arc<dyn LogSink>, budget: ByteSize) -> Self {
        Self {
            sink,
            instance: INSTANCES.fetch_add(1, Relaxed),
            left: AtomicU64::new(budget.0),
            dropped: AtomicU64::new(0),
            partial: Mutex::new([Vec::new(), Vec::new()]),
        }
    }

    /// Starts the budget of a new call.
    pub(crate) fn begin(&self, budget: ByteSize) {
        self.left.store(budget.0, Relaxed);
    }

    /// Hands over lines that never ended and says how much was dropped.
    pub(crate) fn end(&self) {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        for (buffer, stream) in partial.iter_mut().zip([LogStreamKind::Stdout, LogStreamKind::Stderr]) {
            if !buffer.is_empty() {
                self.sink.write(self.instance, stream, "", buffer);
                buffer.clear();
            }
        }
        let dropped = self.dropped.swap(0, Relaxed);
        if dropped > 0 {
            self.sink.dropped(dropped);
        }
    }

    /// Takes what the budget allows of `bytes` with `context` bytes to each line; the rest is counted as dropped.
    fn admit<'a>(&self, bytes: &'a [u8], context: usize) -> &'a [u8] {
        let left = self.left.load(Relaxed);
        let (take, spent) = affordable(bytes, context, left);
        self.left.store(left.saturating_sub(spent), Relaxed);
        self.dropped.fetch_add((bytes.len() - take) as u64, Relaxed);
        bytes.get(..take).unwrap_or(bytes)
    }

    /// One message of `wasi:logging`.
    pub(crate) fn message(&self, stream: LogStreamKind, context: &str, text: &[u8]) {
        let context = context.get(..context.floor_char_boundary(MAX_CONTEXT)).unwrap_or_default();
        let text = self.admit(text, context.len());
        if !text.is_empty() {
            self.sink.write(self.instance, stream, context, text);
        }
    }

    /// Bytes of standard output or error.
    fn stream(&self, stream: LogStreamKind, bytes: &[u8]) {
        let bytes = self.admit(bytes, 0);
        if bytes.is_empty() {
            return;
        }
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let [out, err] = &mut *partial;
        let buffer = if stream == LogStreamKind::Stdout { out } else { err };
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let (lines, rest) = bytes.split_at_checked(whole).unwrap_or((bytes, &[]));
        if !lines.is_empty() {
            if buffer.is_empty() {
                self.sink.write(self.instance, stream, "", lines);
            } else {
                buffer.extend_from_slice(lines);
                self.sink.write(self.instance, stream, "", buffer);
                buffer.clear();
            }
        }
        for piece in rest.chunks(LINE) {
            if buffer.len() + piece.len() > LINE {
                self.sink.write(self.instance, stream, "", buffer);
                buffer.clear();
            }
            buffer.extend_from_slice(piece);
        }
    }
}

/// Standard output or error of one instance.
#[derive(Clone)]
pub(crate) struct Stdio {
    pub(crate) log: Arc<CallLog>,
    pub(crate) stream: LogStreamKind,
}

impl IsTerminal for Stdio {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stdio {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Stdio {
    async fn ready(&mut self) {}
}

impl OutputStream for Stdio {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.log.stream(self.stream, &bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.log.stream(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>, AtomicU64);
    impl LogSink for Seen {
        fn write(&self, _: u64, stream: LogStreamKind, _: &str, bytes: &[u8]) {
            self.0.lock().unwrap().push(format!("{stream:?}:{}", String::from_utf8_lossy(bytes)));
        }
        fn dropped(&self, bytes: u64) {
            self.1.fetch_add(bytes, Relaxed);
        }
    }

    #[test]
    fn lines_stay_whole_and_the_budget_holds() {
        let seen = Arc::new(Seen::default());
        let log = CallLog::new(seen.clone(), ByteSize(20));
        log.stream(LogStreamKind::Stdout, b"one\ntw");
        log.stream(LogStreamKind::Stderr, b"err\n");
        log.stream(LogStreamKind::Stdout, b"o\n");
        log.stream(LogStreamKind::Stdout, b"0123456789\n");
        log.end();
        assert_eq!(*seen.0.lock().unwrap(), ["Stdout:one\n", "Stderr:err\n", "Stdout:two\n", "Stdout:01234567"]);
        assert_eq!(seen.1.load(Relaxed), 3);
    }

    #[derive(Default)]
    struct Kept(AtomicU64, AtomicU64, Mutex<String>);
    impl LogSink for Kept {
        fn write(&self, _: u64, _: LogStreamKind, context: &str, bytes: &[u8]) {
            let kept: usize = bytes.split_inclusive(|b| *b == b'\n').map(|line| line.len() + context.len()).sum();
            self.0.fetch_add(kept as u64, Relaxed);
            *self.2.lock().unwrap() = context.to_owned();
        }
        fn dropped(&self, bytes: u64) {
            self.1.fetch_add(bytes, Relaxed);
        }
    }

    #[test]
    fn the_context_is_cut_and_every_line_pays_for_it() {
        let kept = Arc::new(Kept::default());
        let log = CallLog::new(kept.clone(), ByteSize(10_000));
        log.message(LogStreamKind::Info, &"\u{20ac}".repeat(1000), b"text");
        // 85 characters of three bytes; the 86th would be cut apart.
        assert_eq!(*kept.2.lock().unwrap(), "\u{20ac}".repeat(85));
        log.message(LogStreamKind::Info, &"c".repeat(1 << 20), &[b'\n'; 5000]);
        log.message(LogStreamKind::Info, "c", &[b'\n'; 5000]);
        log.end();
        assert_eq!(kept.0.load(Relaxed), 255 + 4 + 37 * 257 + 2 * 116);
        assert!(kept.0.load(Relaxed) <= 10_000);
        assert_eq!(kept.1.load(Relaxed), 10_000 - 37 - 116);
    }

    #[test]
    fn a_budget_pays_for_whole_lines_and_a_cut_one() {
        assert_eq!(affordable(b"ab\ncd\n", 0, 4), (4, 4));
        assert_eq!(affordable(b"ab\ncd\n", 2, 9), (5, 9));
        assert_eq!(affordable(b"ab\ncd\n", 2, 7), (3, 5));
        assert_eq!(affordable(b"ab\ncd\n", 2, 2), (0, 0));
        assert_eq!(affordable(b"ab\ncd\n", 2, u64::MAX), (6, 10));
    }

    #[derive(Default)]
    struct Whose(Mutex<Vec<u64>>);
    impl LogSink for Whose {
        fn write(&self, instance: u64, _: LogStreamKind, _: &str, _: &[u8]) {
            self.0.lock().unwrap().push(instance);
        }
        fn dropped(&self, _: u64) {}
    }

    #[test]
    fn lines_say_which_instance_wrote_them() {
        let whose = Arc::new(Whose::default());
        for _ in 0..2 {
            let log = CallLog::new(whose.clone(), ByteSize(1000));
            log.stream(LogStreamKind::Stdout, b"one\npart");
            log.begin(ByteSize(1000));
            log.message(LogStreamKind::Info, "", b"two");
            log.end();
        }
        let seen = whose.0.lock().unwrap();
        assert_eq!(seen.len(), 6);
        assert!(seen[..3].iter().all(|n| *n == seen[0]) && seen[3..].iter().all(|n| *n == seen[3]));
        assert!(seen[0] > 0 && seen[0] != seen[3], "{seen:?}");
    }

    #[test]
    fn a_line_without_end_is_handed_over_in_pieces() {
        let seen = Arc::new(Seen::default());
        let log = CallLog::new(seen.clone(), ByteSize::mib(1));
        for _ in 0..5 {
            log.stream(LogStreamKind::Stdout, &[b'x'; 10_000]);
        }
        let held: usize = seen.0.lock().unwrap().iter().map(|l| l.len() - "Stdout:".len()).sum();
        assert!(held >= 50_000 - LINE, "{held}");
    }
}
