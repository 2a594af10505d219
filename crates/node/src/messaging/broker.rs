//! One tenant's broker of one kind: who takes what, and who waits for an answer. The groups are those of the revisions
//! that serve; nothing a host says makes one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
/// Calls that wait for messages of one group at once: each link that shares it has one on each shard, and for some seconds more
/// where a revision replaces another.
pub(super) const MAX_TAKERS: usize = 1024;

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

/// What a revision changes.
pub(super) struct Changed {
    /// Groups that are new, and by what one is told from the next one of its name.
    pub(super) fresh: Vec<(Group, Arc<Notify>)>,
    /// Groups that are gone.
    pub(super) dropped: Vec<Group>,
}

impl State {
    fn is_of_use(&self) -> bool {
        self.active || !self.loaded || self.rest || !self.queue.is_empty()
    }
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
    /// The groups of an app are these from now on. Groups it had keep what they hold as long as a link of it names them,
    /// whichever broker it goes to: its hosts take what is left. What no link names is dropped, as what hosts left of a link
    /// that is gone: nobody would ever take it, and it would take the room of others.
    pub(super) fn declare(
        &mut self,
        app: &AppName,
        wanted: &[&Declared],
        named: &BTreeSet<&Group>,
        on_disk: bool,
    ) -> Changed {
        for (_, state) in self.groups.iter_mut().filter(|(group, _)| group.app == *app) {
            state.active = false;
        }
        let (mut fresh, mut dropped) = (Vec::new(), Vec::new());
        for Declared { group, patterns, lease, in_order, takes, .. } in wanted {
            // What is on disk for it may be from before this process, and has to be looked for.
            if !takes && !on_disk {
                continue;
            }
            let state = self.groups.entry(group.clone()).or_insert_with(|| {
                let changed = Arc::<Notify>::default();
                fresh.push((group.clone(), changed.clone()));
                State {
                    patterns: Vec::new(),
                    active: false,
                    loaded: !on_disk,
                    rest: false,
                    lease: *lease,
                    one_by_one: *in_order,
                    queue: Queue::default(),
                    changed,
                    takers: Arc::new(Semaphore::new(MAX_TAKERS)),
                }
            });
            state.lease = state.lease.max(*lease);
            state.one_by_one = *in_order;
            if *takes {
                state.active = true;
                state.patterns.clone_from(patterns);
            }
        }
        for state in self.groups.values() {
            state.changed.notify_waiters();
        }
        self.groups.retain(|group, state| {
            let is_named = match group.is_untried() {
                true => wanted.iter().any(|one| one.group == *group),
                false => named.contains(group),
            };
            if group.app == *app && !is_named {
                if state.rest || !state.queue.is_empty() {
                    let (in_hands, more_on_disk, name) = (state.queue.in_hands(), state.rest, &group.name);
                    let messages = state.queue.count() - in_hands;
                    tracing::warn!(%app, group = name, messages, in_hands, more_on_disk, "messages that wait are lost, and those in hands if they fail: their link is gone");
                }
                dropped.push(group.clone());
                return false;
            }
            state.is_of_use()
        });
        Changed { fresh, dropped }
    }

    /// Removes a group that takes nothing any more and holds nothing; whoever waits for it hears of it.
    pub(super) fn tidy(&mut self, group: &Group) {
        if let Some(state) = self.groups.get(group).filter(|state| !state.is_of_use()) {
            state.changed.notify_waiters();
            self.groups.remove(group);
        }
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
