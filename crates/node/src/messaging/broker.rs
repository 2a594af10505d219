//! One tenant's broker of one kind: who takes what, and who waits for an answer. The groups are those of the revisions
//! that serve; nothing a host says makes one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::services::messaging::WireMessage;
use model::AppName;
use model::messaging::{Group, Pattern, Subscription};
use tokio::sync::{Notify, oneshot};

use super::queue::Queue;

/// Beginning of the subjects that answers go to; no group takes those.
pub(super) const INBOX: &str = "_INBOX.";
/// Questions of one tenant that wait for their answer at once.
const MAX_INBOXES: usize = 4096;

/// A group and what it holds.
#[derive(Debug)]
pub(super) struct State {
    patterns: Vec<Pattern>,
    /// Takes new messages; otherwise only what it holds is handed out.
    pub(super) active: bool,
    /// What was on disk has been read.
    pub(super) loaded: bool,
    /// How long a delivery may be out.
    pub(super) lease: Duration,
    /// Hands out one at a time, to whomever.
    pub(super) one_by_one: bool,
    pub(super) queue: Queue,
    /// Told when something may be taken, or nothing ever will.
    pub(super) changed: Arc<Notify>,
}

/// One broker.
#[derive(Debug, Default)]
pub(super) struct Broker {
    pub(super) groups: BTreeMap<Group, State>,
    inboxes: HashMap<String, oneshot::Sender<WireMessage>>,
}

impl Broker {
    /// The groups of an app are these from now on, each with the time a delivery may be out. Groups it had and has no
    /// more keep what they hold. Says which are new.
    pub(super) fn declare(&mut self, app: &AppName, wanted: &[(Subscription, Duration)], on_disk: bool) -> Vec<Group> {
        for (_, state) in self.groups.iter_mut().filter(|(group, _)| group.app == *app) {
            state.active = false;
        }
        let mut fresh = Vec::new();
        for (subscription, lease) in wanted {
            let state = self.groups.entry(subscription.group.clone()).or_insert_with(|| {
                fresh.push(subscription.group.clone());
                State {
                    patterns: Vec::new(),
                    active: true,
                    loaded: !on_disk,
                    lease: *lease,
                    one_by_one: false,
                    queue: Queue::default(),
                    changed: Arc::default(),
                }
            });
            state.active = true;
            state.patterns.clone_from(&subscription.patterns);
            // A group without subjects is that of a watch: its changes are told in their order.
            state.one_by_one = subscription.patterns.is_empty();
            state.lease = state.lease.max(*lease);
        }
        for state in self.groups.values() {
            state.changed.notify_waiters();
        }
        self.groups.retain(|_, state| state.active || !state.loaded || !state.queue.is_empty());
        fresh
    }

    /// The app is gone, and with it what was kept for it.
    pub(super) fn forget(&mut self, app: &AppName) {
        for (_, state) in self.groups.iter().filter(|(group, _)| group.app == *app) {
            state.changed.notify_waiters();
        }
        self.groups.retain(|group, _| group.app != *app);
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
