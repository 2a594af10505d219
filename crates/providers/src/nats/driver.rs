//! The task that owns the connection: makes it when somebody wants something, keeps it while it lives, and makes it
//! again, with jitter, while there are subscriptions.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::TIMEOUT;
use super::client::{Command, Down, Gone};
use super::connect::{Connected, Door};
use super::error::NatsError;
use super::session::Session;

/// The first pause after a failed connection, doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two tries to connect.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A server that was silent for so long is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(15);
/// The time it has to say so.
const PATIENCE: Duration = Duration::from_secs(3);
/// A connection that held for less counts as one that failed.
const SHORT: Duration = Duration::from_secs(1);
/// No more is taken from callers while so many bytes wait to be written.
const HIGH: usize = 1 << 20;
/// Read at once, bytes.
const READ: usize = 64 << 10;

pub(super) struct Driver {
    door: Door,
    session: Session,
    commands: mpsc::Receiver<Command>,
    gone: mpsc::UnboundedReceiver<Gone>,
    failures: u32,
    /// When to connect for the subscriptions: calls come when their links let them.
    wake: Instant,
    /// Says why there is no connection.
    trouble: watch::Sender<Option<NatsError>>,
    /// Says since when a connection is being made.
    knocks: watch::Sender<Option<std::time::Instant>>,
}

/// What disturbed the connection.
enum Event {
    Asked(Option<Command>),
    Gone(Gone),
    Read(std::io::Result<usize>),
    Wrote(std::io::Result<Written>),
    Silent,
}

/// How a connection ended.
struct Ended {
    why: String,
    /// By nothing at all: the next one may meet the same silence.
    silent: bool,
}

impl Ended {
    fn because(why: impl ToString) -> Option<Self> {
        Some(Self { why: why.to_string(), silent: false })
    }
}

enum Written {
    Some(usize),
    Flushed,
}

impl Driver {
    pub(super) fn new(
        door: Door,
        inbox: String,
        commands: mpsc::Receiver<Command>,
        gone: mpsc::UnboundedReceiver<Gone>,
        trouble: watch::Sender<Option<NatsError>>,
        knocks: watch::Sender<Option<std::time::Instant>>,
    ) -> Self {
        let session = Session::new(inbox);
        Self { door, session, commands, gone, failures: 0, wake: Instant::now(), trouble, knocks }
    }

    /// Until every handle is dropped.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.wanted().await {
            self.knocks.send_replace(Some(std::time::Instant::now()));
            let opened = self.open().await;
            self.knocks.send_replace(None);
            let began = Instant::now();
            let (why, worked) = match opened {
                Ok(connected) => {
                    self.trouble.send_replace(None);
                    let Some(Ended { why, silent }) = self.serve(connected, first).await else { return };
                    let worked = !silent && began.elapsed() >= SHORT;
                    (self.session.closed(why, worked), worked)
                }
                Err(why) => {
                    if let Some(command) = first {
                        fail(command, why.clone());
                    }
                    // Whoever came meanwhile waited for this try too, and makes none of its own.
                    while let Ok(command) = self.commands.try_recv() {
                        fail(command, unsent(&why));
                    }
                    (why, false)
                }
            };
            self.trouble.send_replace(Some(unsent(&why)));
            self.failures = if worked { 0 } else { self.failures.saturating_add(1) };
            self.wake = Instant::now() + pause(self.failures.max(1), rand::rng().random());
        }
    }

    /// Opens a connection. Calls that come meanwhile wait for it.
    async fn open(&mut self) -> Result<Connected, NatsError> {
        let Self { door, session, gone, .. } = self;
        let late = NatsError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
        let opening = timeout(TIMEOUT, door.open());
        tokio::pin!(opening);
        loop {
            tokio::select! {
                opened = &mut opening => return opened.unwrap_or(Err(late)),
                Some(gone) = gone.recv() => {
                    session.forget(gone, false);
                }
            }
        }
    }

    /// Waits while there is no connection and nobody wants one. `None` once there are no handles.
    async fn wanted(&mut self) -> Option<Option<Command>> {
        loop {
            tokio::select! {
                command = self.commands.recv() => return command.map(Some),
                Some(gone) = self.gone.recv() => {
                    self.session.forget(gone, false);
                }
                () = sleep_until(self.wake), if self.session.listens() => return Some(None),
            }
        }
    }

    /// Runs one connection. Says why it ended; `None` where there are no handles any more.
    async fn serve(&mut self, connected: Connected, first: Option<Command>) -> Option<Ended> {
        let Connected { stream, mut decoder, mut buf, info } = connected;
        let (mut reader, mut writer) = tokio::io::split(stream);
        self.session.opened(info);
        if let Some(first) = first {
            self.session.ask(first);
        }
        let mut alarm = Instant::now() + SILENCE;
        let (mut probed, mut unflushed, mut closing, mut late) = (false, false, false, false);
        loop {
            if std::mem::take(&mut late) && !probed {
                self.session.probe();
                (probed, alarm) = (true, Instant::now() + PATIENCE);
            }
            let idle = self.session.out.is_empty() && !unflushed;
            if closing && idle {
                return None;
            }
            buf.reserve(decoder.missing(&buf).clamp(READ, 16 * READ));
            let event = tokio::select! {
                read = reader.read_buf(&mut buf) => Event::Read(read),
                wrote = write(&mut writer, &self.session.out), if !idle => Event::Wrote(wrote),
                command = self.commands.recv(), if !closing && self.session.out.len() < HIGH => Event::Asked(command),
                Some(gone) = self.gone.recv() => Event::Gone(gone),
                () = sleep_until(alarm) => Event::Silent,
            };
            match event {
                Event::Read(Ok(0)) => return Ended::because("the server closed the connection"),
                Event::Read(Ok(_)) => {
                    (probed, alarm) = (false, Instant::now() + SILENCE);
                    loop {
                        match decoder.decode(&mut buf) {
                            Ok(Some(said)) => self.session.hear(said),
                            Ok(None) => break,
                            Err(cause) => return Ended::because(cause),
                        }
                    }
                }
                Event::Wrote(Ok(Written::Some(0))) => return Ended::because("the server takes nothing any more"),
                Event::Wrote(Ok(Written::Some(count))) => {
                    self.session.out.advance(count);
                    unflushed = true;
                }
                Event::Wrote(Ok(Written::Flushed)) => unflushed = false,
                Event::Read(Err(cause)) | Event::Wrote(Err(cause)) => return Ended::because(cause),
                Event::Asked(Some(command)) => {
                    let mut next = Some(command);
                    // What waits goes out in one write.
                    while let Some(command) = next {
                        // Who left before this was asked gets none of it: a message would be lost with them.
                        while let Ok(gone) = self.gone.try_recv() {
                            late |= self.session.forget(gone, true);
                        }
                        self.session.ask(command);
                        let room = self.session.out.len() < HIGH;
                        next = if room { self.commands.try_recv().ok() } else { None };
                    }
                }
                Event::Asked(None) => (closing, alarm) = (true, Instant::now() + PATIENCE),
                Event::Gone(gone) => late |= self.session.forget(gone, true),
                Event::Silent if closing => return None,
                Event::Silent if probed => {
                    let why = "the server is silent and does not answer `PING`".to_owned();
                    return Some(Ended { why, silent: true });
                }
                Event::Silent => {
                    self.session.probe();
                    (probed, alarm) = (true, Instant::now() + PATIENCE);
                }
            }
        }
    }
}

/// Writes some of `out`, or flushes where there is nothing.
async fn write(writer: &mut (impl AsyncWrite + Unpin), out: &BytesMut) -> std::io::Result<Written> {
    if out.is_empty() {
        return writer.flush().await.map(|()| Written::Flushed);
    }
    writer.write(out).await.map(Written::Some)
}

fn fail(command: Command, why: NatsError) {
    let down = Down { why, worked: false };
    match command {
        Command::Publish { done, .. } | Command::Subscribe { done, .. } => drop(done.send(Err(down))),
        Command::Request { done, .. } => drop(done.send(Err(down))),
        Command::Flush { done } => drop(done.send(Err(down))),
    }
}

/// What went wrong with the connection, said to a call that was never sent.
pub(super) fn unsent(why: &NatsError) -> NatsError {
    match why {
        NatsError::Denied(_) => why.clone(),
        NatsError::Lost(why) | NatsError::Unavailable(why) => NatsError::Unavailable(why.clone()),
        other => NatsError::Unavailable(other.to_string()),
    }
}

/// How long to wait after `failures` failures in a row: between half and all of a doubling time.
fn pause(failures: u32, random: u64) -> Duration {
    let full = MIN_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MAX_PAUSE);
    let half = full / 2;
    half + Duration::from_nanos(random % (half.as_nanos() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        for random in [0, 1, u64::MAX] {
            assert!(pause(1, random) >= MIN_PAUSE / 2 && pause(1, random) <= MIN_PAUSE);
            for failures in [20, u32::MAX] {
                assert!(pause(failures, random) <= MAX_PAUSE && pause(failures, random) >= MAX_PAUSE / 2);
            }
        }
    }

    #[test]
    fn a_call_that_was_not_sent_is_not_called_lost() {
        assert_eq!(unsent(&NatsError::Lost("x".into())), NatsError::Unavailable("x".into()));
        assert_eq!(unsent(&NatsError::Denied("x".into())), NatsError::Denied("x".into()));
    }
}
