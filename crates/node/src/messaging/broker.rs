//! One tenant's broker of one kind: who takes what, and who waits for an answer. The groups are those of the revisions
//! that serve; nothing a host says makes one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::services::messaging::WireMessage;
use model::AppName;
use model::messaging::{Group, Pattern};
use tokio::sync::{Notify, Semaphore, oneshot};

use super::Declared;
use super::queue::Queue;

/// Beginning of the subjects that answers go to; no group takes those.
pub(super) const INBOX: &str = "_INBOX.";
/// Questions of one tenant that wait for their answer at once.
const MAX_INBOXES: usize = 4096;
/// Calls that wait for messages of one group at once: each shard has one, and another one while a revision replaces the one
/// before.
pub(super) const MAX_TAKERS: usize = 256;

/// A group and what it holds.
#[derive(Debug)]
pub(super) struct State {
    patterns: Vec<Pattern>,
    /// Takes new messages; otherwise only what it holds is handed out.
    pub(super) active: bool,
    /// What was on disk has been read.
    pub(super) loaded: bool,
    /// More is on disk than the queue holds at once; until that is read, nothing is added.
    pub(super) rest: bool,
    /// How long a delivery may be out.
    pub(super) lease: Duration,
    /// Hands out one at a time, to whomever.
    pub(super) one_by_one: bool,
    pub(super) queue: Queue,
    /// Told when something may be taken, or nothing ever will.
    pub(super) changed: Arc<Notify>,
    /// Held by each call that waits for its messages.
    pub(super) takers: Arc<Semaphore>,
}

/// One broker.
#[derive(Debug, Default)]
pub(super) struct Broker {
    pub(super) groups: BTreeMap<Group, State>,
    /// Numbers its messages and deliveries: those of other tenants would tell how many messages they have.
    pub(super) numbers: u64,
    /// Held while messages of one of its groups are read from disk: together they hold so much.
    pub(super) loading: Arc<tokio::sync::Mutex<()>>,
    inboxes: HashMap<String, oneshot::Sender<WireMessage>>,
}

impl Broker {
    /// The groups of an app are these from now on. Groups it had and has no more keep what they hold, but for what hosts left
    /// of a link that is gone: nobody would ever take it. Says which are new, and by what one is told from the next one of its
    /// name.
    pub(super) fn declare(&mut self, app: &AppName, wanted: &[&Declared], on_disk: bool) -> Vec<(Group, Arc<Notify>)> {
        for (_, state) in self.groups.iter_mut().filter(|(group, _)| group.app == *app) {
            state.active = false;
        }
        let mut fresh = Vec::new();
        for Declared { group, patterns, lease, in_order, takes, .. } in wanted {
            if !takes {
                continue;
            }
            let state = self.groups.entry(group.clone()).or_insert_with(|| {
                let changed = Arc::<Notify>::default();
                fresh.push((group.clone(), changed.clone()));
                State {
                    patterns: Vec::new(),
                    active: true,
                    loaded: !on_disk,
                    rest: false,
                    lease: *lease,
                    one_by_one: false,
                    queue: Queue::default(),
                    changed,
                    takers: Arc::new(Semaphore::new(MAX_TAKERS)),
                }
            });
            state.active = true;
            state.patterns.clone_from(patterns);
            state.one_by_one = *in_order;
            state.lease = state.lease.max(*lease);
        }
        for state in self.groups.values() {
            state.changed.notify_waiters();
        }
        self.groups.retain(|group, state| {
            let is_left = group.app == *app && group.is_untried() && !wanted.iter().any(|one| one.group == *group);
            if is_left && !state.queue.is_empty() {
                let (messages, name) = (state.queue.count(), &group.name);
                tracing::warn!(%app, group = name, messages, "messages that hosts left are lost: their link is gone");
            }
            !is_left && (state.active || !state.loaded || state.rest || !state.queue.is_empty())
        });
        fresh
    }

    /// The app is gone, and with it what was kept for it.
    pub(super) fn forget(&mut self, app: &AppName) {
        for (_, state) in self.groups.iter().filter(|(group, _)| group.app == *app) {
            state.changed.notify_waiters();
        }
        self.groups.retain(|group, _| group.app != *app);
    }

    /// Bytes of all messages that are here.
    pub(super) fn bytes(&self) -> usize {
        self.groups.values().map(|state| state.queue.bytes()).sum()
    }

    /// The groups that take a message of `subject`.
    pub(super) fn takers(&self, subject: &str) -> Vec<Group> {
        if subject.starts_with(INBOX) {
            return Vec::new();
        }
        let takes = |state: &State| state.active && state.patterns.iter().any(|pattern| pattern.matches(subject));
        self.groups.iter().filter(|(_, state)| takes(state)).map(|(group, _)| group.clone()).collect()
    }

    /// Somebody waits for the answer to come to `inbox`; `None` where too many wait.
    pub(super) fn open(&mut self, inbox: &str) -> Option<oneshot::Receiver<WireMessage>> {
        if self.inboxes.len() >= MAX_INBOXES {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        self.inboxes.insert(inbox.to_owned(), sender);
        Some(answer)
    }

    /// Nobody waits there any more.
    pub(super) fn close(&mut self, inbox: &str) {
        self.inboxes.remove(inbox);
    }

    /// Gives an answer to whoever waits for it; the first one counts.
    pub(super) fn answer(&mut self, message: WireMessage) {
        if let Some(waiting) = self.inboxes.remove(&message.subject) {
            // Who gave up meanwhile needs no answer.
            drop(waiting.send(message));
        }
    }
}
