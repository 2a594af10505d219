//! The messages of one queue group: waiting, waiting for their next try, or handed out. Nothing here waits or reads a
//! clock, and what hosts ask often looks at no more messages than it hands out.
//!
//! A message that was in the hands of hosts that ended may be what they ended of. So may any other that they had with it,
//! and they would be counted together until all were put away. So no two of them are out at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::services::messaging::{Handed, WireMessage};

use super::ready::Ready;

/// Messages one group holds at once, and their bytes: senders are told that there is no room.
pub(super) const MAX_MESSAGES: usize = 10_000;
pub(super) const MAX_BYTES: usize = 64 << 20;
/// What is kept around a message, bytes, about.
const AROUND: usize = 256;
/// Bytes of messages that one call takes, about: with one more message it is still a frame.
const MAX_TAKEN: usize = 8 << 20;
/// A message that so many lost who held it is handed out while no other one like it is.
const SUSPECT: u32 = 2;

/// Who holds what is kept: nobody takes with this number.
pub(super) const NOBODY: u64 = 0;
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A message that has not been handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) id: Arc<str>,
    pub(super) message: Arc<WireMessage>,
    /// How often it was tried.
    pub(super) tries: u32,
}

impl Held {
    pub(super) fn bytes(&self) -> usize {
        self.message.subject.len() + self.message.body.len() + self.id.len() + AROUND
    }
}

/// A message in somebody's hands.
#[derive(Debug)]
struct Out {
    held: Held,
    until: Instant,
    holder: u64,
    /// No other one like it is out.
    suspect: bool,
}

/// What becomes of a message that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is gone.
    Gone,
    /// It was tried and comes again after this time.
    Again(Duration),
    /// It was not tried and comes again at once.
    Back,
}

/// One group's messages.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ready: Ready,
    later: BTreeMap<(Instant, Arc<str>), Held>,
    out: HashMap<u64, Out>,
    /// When deliveries that are out are late.
    due: BTreeSet<(Instant, u64)>,
    /// Suspects that are out.
    suspects: usize,
    bytes: usize,
    /// How often who held a message was gone, by its id.
    lost: HashMap<Arc<str>, u32>,
}

impl Queue {
    fn is_suspect(&self, held: &Held) -> bool {
        self.lost.get(&held.id).is_some_and(|times| *times >= SUSPECT)
    }

    /// Takes a delivery out of the hands it is in.
    fn take_back(&mut self, name: u64) -> Option<Out> {
        let out = self.out.remove(&name)?;
        self.due.remove(&(out.until, name));
        self.suspects -= usize::from(out.suspect);
        Some(out)
    }

    /// Takes a message out of hands that are gone, or stuck; it may have been tried.
    fn lose(&mut self, name: u64) {
        if let Some(out) = self.take_back(name) {
            *self.lost.entry(out.held.id.clone()).or_default() += 1;
            match self.is_suspect(&out.held) {
                true => self.ready.push_back(out.held, true),
                false => self.ready.push_front(out.held, false),
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.ready.len() + self.later.len() + self.out.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Bytes of all it holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether something can be taken now.
    pub(super) fn has_ready(&self) -> bool {
        self.ready.has_next(self.suspects > 0)
    }

    /// Whether a message of so many bytes has room.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.has_room_for(1, bytes)
    }

    /// Whether so many messages, of so many bytes together, have room.
    pub(super) fn has_room_for(&self, messages: usize, bytes: usize) -> bool {
        self.count().saturating_add(messages) <= MAX_MESSAGES && self.bytes.saturating_add(bytes) <= MAX_BYTES
    }

    /// Adds a message behind all others. Whoever sends looks for room first; what is on disk already is taken whatever
    /// room there is.
    pub(super) fn push(&mut self, held: Held) {
        self.bytes += held.bytes();
        let suspect = self.is_suspect(&held);
        self.ready.push_back(held, suspect);
    }

    /// Adds what was on disk before the group was known, oldest first, in front of what has come since and behind what
    /// came before; what is here already counts once.
    pub(super) fn restore(&mut self, found: Vec<Held>) {
        let mut known = self.ready.ids();
        known.extend(self.later.values().chain(self.out.values().map(|out| &out.held)).map(|held| held.id.clone()));
        let found: Vec<Held> = found.into_iter().filter(|held| !known.contains(&held.id)).collect();
        self.bytes += found.iter().map(Held::bytes).sum::<usize>();
        self.ready.insert(found);
    }

    /// Hands out at most `max` messages, in the order they became ready. `names` gives a number to each delivery.
    pub(super) fn take(
        &mut self,
        now: Instant,
        max: usize,
        until: Instant,
        holder: u64,
        mut name: impl FnMut() -> u64,
    ) -> Vec<Handed> {
        self.wake(now);
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < max && bytes < MAX_TAKEN {
            let Some((mut held, suspect)) = self.ready.pop(self.suspects > 0) else { break };
            bytes += held.bytes();
            held.tries += 1;
            let delivery = name();
            let (id, message) = (held.id.to_string(), WireMessage::clone(&held.message));
            taken.push(Handed { delivery, id, tries: held.tries, message });
            self.suspects += usize::from(suspect);
            self.due.insert((until, delivery));
            self.out.insert(delivery, Out { held, until, holder, suspect });
        }
        taken
    }

    /// Makes ready what has waited long enough, and what nobody settled in time: whoever held it is gone or stuck.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some(first) = self.later.first_entry().filter(|first| first.key().0 <= now) {
            let held = first.remove();
            let suspect = self.is_suspect(&held);
            self.ready.push_back(held, suspect);
        }
        while let Some((_, name)) = self.due.first().copied().filter(|(until, _)| *until <= now) {
            self.due.pop_first();
            self.lose(name);
        }
    }

    /// Whether something is in somebody's hands.
    pub(super) fn has_out(&self) -> bool {
        self.in_hands() > 0
    }

    /// How many are in somebody's hands.
    pub(super) fn in_hands(&self) -> usize {
        self.out.len()
    }

    /// When [`Queue::take`] will have something that it does not have now.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let later = self.later.first_key_value().map(|((at, _), _)| *at);
        later.into_iter().chain(self.due.first().map(|(until, _)| *until)).min()
    }

    /// The message of a delivery that is out.
    pub(super) fn handed(&self, delivery: u64) -> Option<&Held> {
        self.out.get(&delivery).map(|out| &out.held)
    }

    /// Takes a delivery out of the hands it is in, and into nobody's: it is not handed out again. Whether it was out.
    pub(super) fn keep(&mut self, delivery: u64, now: Instant) -> bool {
        let Some(out) = self.take_back(delivery) else { return false };
        self.lost.remove(&out.held.id);
        let until = now + FOR_EVER;
        self.due.insert((until, delivery));
        self.out.insert(delivery, Out { until, holder: NOBODY, suspect: false, ..out });
        true
    }

    /// Ends a delivery; `None` where it was not out any more.
    pub(super) fn settle(&mut self, delivery: u64, fate: Fate, now: Instant) -> Option<Held> {
        let mut held = self.take_back(delivery)?.held;
        if fate != Fate::Back {
            // Whoever says so is there.
            self.lost.remove(&held.id);
        }
        match fate {
            Fate::Gone => self.bytes = self.bytes.saturating_sub(held.bytes()),
            Fate::Again(pause) => {
                self.later.insert((now + pause, held.id.clone()), held.clone());
            }
            Fate::Back => {
                held.tries = held.tries.saturating_sub(1);
                self.ready.push_front(held.clone(), self.is_suspect(&held));
            }
        }
        Some(held)
    }

    /// Whoever took with this number is gone: what it held is ready again. It may have been tried.
    pub(super) fn gone(&mut self, holder: u64) -> bool {
        let names: Vec<u64> = self.out.iter().filter(|(_, out)| out.holder == holder).map(|(name, _)| *name).collect();
        names.iter().for_each(|name| self.lose(*name));
        !names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(id: &str) -> Held {
        let message = WireMessage { subject: "s".into(), body: vec![0; 10], reply_to: None, trace: None };
        Held { id: id.into(), message: Arc::new(message), tries: 0 }
    }

    fn take(queue: &mut Queue, now: Instant, holder: u64) -> Vec<(String, u32, u64)> {
        let mut names = holder * 100..;
        let taken = queue.take(now, 10, now + Duration::from_secs(5), holder, || names.next().unwrap());
        taken.into_iter().map(|one| (one.id, one.tries, one.delivery)).collect()
    }

    #[test]
    fn a_message_is_out_until_it_is_settled_and_then_gone() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(held("a"));
        queue.push(held("b"));
        assert_eq!(take(&mut queue, now, 1), [("a".into(), 1, 100), ("b".into(), 1, 101)]);
        assert!(take(&mut queue, now, 2).is_empty() && !queue.is_empty());
        assert!(queue.settle(100, Fate::Gone, now).is_some());
        assert!(queue.settle(100, Fate::Gone, now).is_none(), "once");
        queue.settle(101, Fate::Gone, now).unwrap();
        assert!(queue.is_empty());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_failed_one_comes_again_later_and_a_returned_one_at_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(held("a"));
        take(&mut queue, now, 1);
        queue.settle(100, Fate::Again(Duration::from_secs(1)), now).unwrap();
        assert!(take(&mut queue, now, 2).is_empty());
        assert_eq!(queue.next_due(), Some(now + Duration::from_secs(1)));
        let then = now + Duration::from_secs(1);
        assert_eq!(take(&mut queue, then, 2), [("a".into(), 2, 200)]);
        queue.settle(200, Fate::Back, then).unwrap();
        assert_eq!(take(&mut queue, then, 3), [("a".into(), 2, 300)], "not counted");
    }

    #[test]
    fn what_somebody_held_who_is_gone_or_stuck_comes_again() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(held("a"));
        take(&mut queue, now, 1);
        assert!(!queue.gone(2) && queue.gone(1));
        assert_eq!(take(&mut queue, now, 2), [("a".into(), 2, 200)]);
        assert_eq!(take(&mut queue, now + Duration::from_secs(5), 3), [("a".into(), 3, 300)], "nobody settled it");
        assert!(queue.settle(200, Fate::Gone, now).is_none(), "who was too late has no say");
    }

    #[test]
    fn what_hosts_may_have_ended_of_is_handed_out_alone() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for id in ["poison", "a", "b"] {
            queue.push(held(id));
        }
        for holder in 1..=2 {
            assert_eq!(take(&mut queue, now, holder).len(), 3);
            queue.gone(holder);
        }
        queue.push(held("new"));
        let mut lost = 0;
        for holder in 3.. {
            let taken = take(&mut queue, now, holder);
            assert_eq!(taken.iter().filter(|(id, _, _)| id != "new").count(), 1, "{taken:?}");
            assert!(take(&mut queue, now, 100).is_empty() && !queue.has_ready());
            if taken.iter().any(|(id, _, _)| id == "poison") && lost < 5 {
                queue.gone(holder);
                lost += 1;
            } else {
                taken.iter().for_each(|(_, _, delivery)| drop(queue.settle(*delivery, Fate::Gone, now).unwrap()));
            }
            if queue.is_empty() {
                break;
            }
        }
        assert_eq!((lost, queue.lost.len(), queue.bytes), (5, 0, 0));
    }

    #[test]
    fn those_that_wait_for_one_like_them_hold_up_no_other_and_keep_their_place() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        ["a", "b", "c"].into_iter().for_each(|id| queue.push(held(id)));
        for holder in 1..=2 {
            assert_eq!(take(&mut queue, now, holder).len(), 3);
            queue.gone(holder);
        }
        let standing: Vec<String> = queue.ready.iter().map(|held| held.id.to_string()).collect();
        queue.push(held("d"));
        queue.restore(vec![held("aa"), held("d")]);
        let mut order = Vec::new();
        for holder in 3..8 {
            let taken = take(&mut queue, now, holder);
            assert!(!queue.has_ready() && queue.due.len() == taken.len(), "{taken:?}");
            for (id, _, delivery) in taken {
                order.push(id);
                queue.settle(delivery, Fate::Gone, now).unwrap();
            }
        }
        assert_eq!(order.len(), 5, "{order:?}");
        let at = |id: &str| order.iter().position(|known| known == id).unwrap();
        assert!(at("aa") < at("d"), "{order:?}");
        let suspects: Vec<_> = order.into_iter().filter(|id| standing.contains(id)).collect();
        assert_eq!(suspects, standing);
        assert_eq!((queue.suspects, queue.due.len(), queue.bytes(), queue.lost.len()), (0, 0, 0, 0));
    }

    #[test]
    fn room_is_bounded_and_what_was_on_disk_comes_first_and_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        assert!(queue.has_room(MAX_BYTES) && !queue.has_room(MAX_BYTES + 1));
        queue.push(held("c"));
        queue.restore(vec![held("a"), held("b"), held("c")]);
        let ids: Vec<_> = take(&mut queue, now, 1).into_iter().map(|(id, _, _)| id).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        for n in 0..MAX_MESSAGES {
            queue.push(held(&n.to_string()));
        }
        assert!(!queue.has_room(0));
    }

    #[test]
    fn what_is_read_from_disk_later_takes_its_place_by_its_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.restore(Vec::new());
        queue.push(held("f"));
        queue.restore(vec![held("a"), held("b")]);
        assert_eq!(queue.take(now, 1, now + Duration::from_secs(5), 1, || 7).len(), 1);
        queue.restore(vec![held("a"), held("c"), held("e"), held("f")]);
        assert_eq!((queue.count(), queue.bytes()), (5, 5 * held("a").bytes()), "one is out, and is not there twice");
        let ids: Vec<_> = take(&mut queue, now, 2).into_iter().map(|(id, _, _)| id).collect();
        assert_eq!(ids, ["b", "c", "e", "f"]);
    }
}
