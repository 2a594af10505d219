//! What a program writes, byte for byte, on its way to whoever reads it. A reader that is slow holds the program up, as with
//! any pipe; one that is gone makes its writes fail.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Bytes that wait for the reader; more are not taken.
const ROOM: usize = 64 << 10;

/// Which of a program's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Output, Bytes)>,
    bytes: usize,
    /// The program has ended: nothing more comes.
    ended: bool,
    /// Nobody reads any more.
    unread: bool,
    reader: Option<Waker>,
    writers: Vec<Waker>,
}

impl State {
    fn wake_writers(&mut self) {
        self.writers.drain(..).for_each(Waker::wake);
    }
}

/// Both outputs of one program, in the order in which it wrote.
#[derive(Clone, Default)]
pub(crate) struct Pipe(Arc<Mutex<State>>);

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end a program writes to.
    pub(crate) fn writer(&self, output: Output) -> Writer {
        Writer { pipe: self.clone(), output }
    }

    /// Nothing more comes.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// The next piece; `None` once the program has ended and everything was read.
    pub(crate) async fn next(&self) -> Option<(Output, Bytes)> {
        poll_fn(|cx| {
            let mut state = self.state();
            if let Some((output, bytes)) = state.waiting.pop_front() {
                state.bytes -= bytes.len();
                state.wake_writers();
                return Poll::Ready(Some((output, bytes)));
            }
            if state.ended {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Nobody reads any more.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        state.unread = true;
        state.waiting.clear();
        state.bytes = 0;
        state.wake_writers();
    }

    /// How much may be written now.
    fn room(&self) -> StreamResult<usize> {
        let state = self.state();
        if state.unread { Err(StreamError::Closed) } else { Ok(ROOM.saturating_sub(state.bytes)) }
    }

    /// As [`Pipe::room`], once there is some.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<StreamResult<usize>> {
        match self.room() {
            Ok(0) => {
                self.state().writers.push(cx.waker().clone());
                Poll::Pending
            }
            decided => Poll::Ready(decided),
        }
    }

    fn push(&self, output: Output, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        if state.unread {
            return;
        }
        state.bytes += bytes.len();
        state.waiting.push_back((output, bytes));
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

/// One output of a program; the guest may open it as often as it likes.
#[derive(Clone)]
pub(crate) struct Writer {
    pipe: Pipe,
    output: Output,
}

impl IsTerminal for Writer {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Writer {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        // What is wrong is said by the write.
        drop(poll_fn(|cx| self.pipe.poll_room(cx)).await);
    }
}

impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.pipe.room()?;
        self.pipe.push(self.output, bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        self.pipe.room().map(drop)
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        self.pipe.room()
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.pipe.poll_room(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Poll::Ready(Ok(room)) => {
                let taken = bytes.get(..room).unwrap_or(bytes);
                self.pipe.push(self.output, Bytes::copy_from_slice(taken));
                Poll::Ready(Ok(taken.len()))
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn order_is_kept_and_a_full_pipe_holds_its_writer_up() {
        let pipe = Pipe::default();
        let (mut out, mut err) = (pipe.writer(Output::Stdout), pipe.writer(Output::Stderr));
        out.write(Bytes::from_static(b"a")).unwrap();
        err.write(Bytes::from_static(b"b")).unwrap();
        out.write(Bytes::from(vec![b'c'; ROOM - 2])).unwrap();
        assert_eq!(out.check_write().unwrap(), 0);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut err).poll_write(&mut cx, b"d").is_pending());
        let read = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let first = (pipe.next().await.unwrap(), pipe.next().await.unwrap());
            assert!(matches!(Pin::new(&mut err).poll_write(&mut cx, b"dddd"), Poll::Ready(Ok(2))));
            pipe.end();
            let third = pipe.next().await.unwrap().1.len();
            (first, third, pipe.next().await, pipe.next().await)
        });
        let (first, third, last, none) = read;
        assert_eq!(first, ((Output::Stdout, Bytes::from_static(b"a")), (Output::Stderr, Bytes::from_static(b"b"))));
        assert_eq!((third, last, none), (ROOM - 2, Some((Output::Stderr, Bytes::from_static(b"dd"))), None));
    }

    #[test]
    fn nobody_writes_to_a_pipe_that_nobody_reads() {
        let pipe = Pipe::default();
        let mut out = pipe.writer(Output::Stdout);
        out.write(Bytes::from(vec![0; ROOM])).unwrap();
        pipe.leave();
        assert!(matches!(out.check_write(), Err(StreamError::Closed)));
        assert!(out.write(Bytes::from_static(b"x")).is_err());
    }
}
