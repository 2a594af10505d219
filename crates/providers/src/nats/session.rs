//! What a connection knows, without its I/O: who waits for what, and which bytes each step puts on the wire.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::BytesMut;

use super::client::{Command, Done, Down, Gone};
use super::connect::{ServerInfo, refused};
use super::error::NatsError;
use super::message::Message;
use super::subscription::Sink;
use super::wire::{self, ServerOp};

/// The subscription that every answer to a request arrives on.
const INBOX_SID: u64 = 1;
/// The first number that others may have.
pub(super) const FIRST_SID: u64 = 2;

/// Subscriptions outlive a connection, everything else ends with it.
#[derive(Default)]
pub(super) struct Session {
    inbox: String,
    info: ServerInfo,
    subscriptions: BTreeMap<u64, Subscribed>,
    requests: HashMap<u64, Requested>,
    pongs: VecDeque<Awaited>,
    /// The last `-ERR`, which often says why the connection ends.
    complaint: Option<NatsError>,
    /// Bytes to write.
    pub(super) out: BytesMut,
}

struct Subscribed {
    subject: String,
    queue: Option<String>,
    sink: Sink,
    /// The server was asked for no more; what it sent before is still taken.
    ending: bool,
    /// Until the server has confirmed it once.
    done: Option<Done<()>>,
}

struct Requested {
    subject: String,
    done: Done<Message>,
}

/// What the next `PONG` means.
enum Awaited {
    Alive,
    Flushed(Done<ServerInfo>),
    Subscribed(u64),
    Drained(u64),
}

impl Session {
    pub(super) fn new(inbox: String) -> Self {
        Self { inbox, ..Self::default() }
    }

    /// Someone wants to hear from the server without asking.
    pub(super) fn listens(&self) -> bool {
        !self.subscriptions.is_empty()
    }

    /// A new connection: every subscription again.
    pub(super) fn opened(&mut self, info: ServerInfo) {
        self.info = info;
        self.out.clear();
        wire::subscribe(&mut self.out, &format!("{}.*", self.inbox), None, INBOX_SID);
        for (sid, known) in &self.subscriptions {
            wire::subscribe(&mut self.out, &known.subject, known.queue.as_deref(), *sid);
        }
    }

    /// The connection is gone, which `worked` until then or did not. `why` where the server did not say.
    pub(super) fn closed(&mut self, why: String, worked: bool) -> NatsError {
        let why = match self.complaint.take() {
            Some(NatsError::Denied(said)) => NatsError::Denied(said),
            Some(NatsError::Unavailable(said)) => NatsError::Lost(said),
            _ => NatsError::Lost(why),
        };
        let down = || Down { why: why.clone(), worked };
        for (_, Requested { done, .. }) in self.requests.drain() {
            drop(done.send(Err(down())));
        }
        for awaited in self.pongs.drain(..) {
            if let Awaited::Flushed(done) = awaited {
                drop(done.send(Err(down())));
            }
        }
        self.subscriptions.retain(|_, known| match known.done.take() {
            Some(done) => done.send(Err(down())).is_err(),
            None => !known.ending,
        });
        self.out.clear();
        why
    }

    /// Puts what is asked on the wire, or answers at once.
    pub(super) fn ask(&mut self, command: Command) {
        match command {
            Command::Publish { message, done, room } => {
                let allowed = self.allowed(&message);
                if allowed.is_ok() && !done.is_closed() {
                    wire::publish(&mut self.out, &message, None);
                }
                drop((done.send(Ok(allowed)), room));
            }
            Command::Request { message, token, done, room } => {
                if done.is_closed() {
                    return;
                }
                if let Err(cause) = self.allowed(&message) {
                    drop(done.send(Ok(Err(cause))));
                    return;
                }
                let reply = format!("{}.{token}", self.inbox);
                let message = super::Outgoing { reply: None, ..message };
                wire::publish(&mut self.out, &message, Some(&reply));
                self.requests.insert(token, Requested { subject: message.subject, done });
                drop(room);
            }
            Command::Subscribe { subject, queue, sid, sink, done } => {
                if done.is_closed() {
                    return;
                }
                wire::subscribe(&mut self.out, &subject, queue.as_deref(), sid);
                self.subscriptions.insert(sid, Subscribed { subject, queue, sink, ending: false, done: Some(done) });
                self.ping(Awaited::Subscribed(sid));
            }
            Command::Flush { done } => self.ping(Awaited::Flushed(done)),
        }
    }

    fn allowed(&self, message: &super::Outgoing) -> Result<(), NatsError> {
        let (bytes, limit) = (message.size(), self.info.max_payload);
        if bytes > limit {
            return Err(NatsError::TooLarge { bytes, limit });
        }
        if !message.headers.is_empty() && !self.info.headers {
            return Err(NatsError::Invalid("this NATS server takes no headers; it needs version 2.2 or later".into()));
        }
        Ok(())
    }

    fn ping(&mut self, awaited: Awaited) {
        self.out.extend_from_slice(b"PING\r\n");
        self.pongs.push_back(awaited);
    }

    /// Asks the server whether it is there.
    pub(super) fn probe(&mut self) {
        self.ping(Awaited::Alive);
    }

    /// Someone gave up. `true` where an answer is late.
    pub(super) fn forget(&mut self, gone: Gone, connected: bool) -> bool {
        match gone {
            Gone::Subscription(sid) => {
                let Some(known) = self.subscriptions.remove(&sid) else { return false };
                if connected {
                    wire::unsubscribe(&mut self.out, sid);
                }
                // The server owes the word that it has it.
                connected && known.done.is_some()
            }
            Gone::Draining(sid) => {
                if connected && let Some(known) = self.subscriptions.get_mut(&sid).filter(|known| !known.ending) {
                    known.ending = true;
                    wire::unsubscribe(&mut self.out, sid);
                    self.ping(Awaited::Drained(sid));
                } else if !connected {
                    self.subscriptions.remove(&sid);
                }
                false
            }
            Gone::Request(token) => self.requests.remove(&token).is_some(),
            Gone::Flush => true,
        }
    }

    /// The server said something.
    pub(super) fn hear(&mut self, said: ServerOp) {
        match said {
            ServerOp::Deliver { sid: INBOX_SID, message } => {
                let token = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
                // An answer that nobody waits for any more is dropped.
                if let Some(waiting) = token.and_then(|token: u64| self.requests.remove(&token)) {
                    drop(waiting.done.send(Ok(Ok(message))));
                }
            }
            ServerOp::Deliver { sid, message } => {
                let read = self.subscriptions.get(&sid).is_some_and(|known| known.sink.put(message));
                if !read {
                    self.forget(Gone::Subscription(sid), true);
                }
            }
            ServerOp::Ping => self.out.extend_from_slice(b"PONG\r\n"),
            ServerOp::Pong => match self.pongs.pop_front() {
                Some(Awaited::Flushed(done)) => drop(done.send(Ok(Ok(self.info.clone())))),
                Some(Awaited::Subscribed(sid)) => {
                    if let Some(done) = self.subscriptions.get_mut(&sid).and_then(|known| known.done.take()) {
                        drop(done.send(Ok(Ok(()))));
                    }
                }
                Some(Awaited::Drained(sid)) => drop(self.subscriptions.remove(&sid)),
                Some(Awaited::Alive) | None => {}
            },
            ServerOp::Info(info) => self.info = *info,
            ServerOp::Ok => {}
            ServerOp::Error(why) => self.complain(&why),
        }
    }

    fn complain(&mut self, why: &str) {
        tracing::debug!(why, "the NATS server complains");
        let subject = why.split('"').nth(1).unwrap_or_default();
        let denied = NatsError::Denied(why.to_owned());
        if why.starts_with("Permissions Violation for Subscription") {
            let these = self.subscriptions.extract_if(.., |_, known| known.subject == subject);
            for (_, known) in these.collect::<Vec<_>>() {
                if let Some(done) = known.done {
                    drop(done.send(Ok(Err(denied.clone()))));
                }
                known.sink.end(denied.clone());
            }
        } else if why.starts_with("Permissions Violation for Publish") {
            let these = self.requests.extract_if(|_, known| known.subject == subject);
            for (_, known) in these.collect::<Vec<_>>() {
                drop(known.done.send(Ok(Err(denied.clone()))));
            }
        } else {
            self.complaint = Some(refused(why));
        }
    }
}
