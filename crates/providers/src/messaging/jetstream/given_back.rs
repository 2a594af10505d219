//! Which deliveries of a message were no tries. The server counts every one, also those that were given back untried, and
//! whoever gives a message back is mostly not who gets it next. So the hosts of a group tell each other, over core NATS, which
//! delivery they gave back, and one that joins asks what the others know.
//!
//! The numbers of deliveries are kept and not how many there were: told twice they count once, and where the server takes a
//! delivery back, as it does when whoever asked for it has left, its number comes again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;

use super::group::Group;
use super::{INBOX, Jetstream, lock};
use crate::nats::{Buffer, Message, Outgoing, Subscription};

/// Messages of one group whose deliveries are remembered; of more the oldest are forgotten, and what was given back of them
/// counts as tries.
const MAX_MESSAGES: usize = 10_000;
/// Deliveries of one message that are remembered.
const MAX_DELIVERIES: usize = 1_000;
/// Messages that one who asks is told of: the newest.
const MAX_TOLD: usize = 1_000;
/// Numbers of deliveries that such an answer has, about: a server takes 1 MiB at most.
const MAX_NUMBERS: usize = 50_000;
/// How long one who joins waits for the others. Where there are none the server says so at once.
const PATIENCE: Duration = Duration::from_millis(250);
/// What waits until it is read.
const BUFFER: Buffer = Buffer { messages: 1024, bytes: 4 << 20 };

/// By durable consumer, and by sequence of the stream: the numbers of the deliveries that were given back.
#[derive(Debug, Default)]
pub(super) struct GivenBack(Mutex<HashMap<Arc<str>, Known>>);

/// By sequence, the numbers of deliveries.
type Known = BTreeMap<u64, BTreeSet<u32>>;

/// What hosts tell each other: messages by their sequence, and which deliveries of each were given back. None at all says that
/// the message was handled.
type Told = Vec<(u64, Vec<u32>)>;

impl GivenBack {
    fn note(&self, durable: &Arc<str>, seq: u64, deliveries: impl IntoIterator<Item = u32>) {
        let mut all = lock(&self.0);
        let known = all.entry(durable.clone()).or_default();
        let of = known.entry(seq).or_default();
        of.extend(deliveries);
        while of.len() > MAX_DELIVERIES {
            of.pop_first();
        }
        while known.len() > MAX_MESSAGES {
            known.pop_first();
        }
    }

    /// Whether something was known of it.
    fn forget(&self, durable: &Arc<str>, seq: u64) -> bool {
        lock(&self.0).get_mut(durable).is_some_and(|known| known.remove(&seq).is_some())
    }

    /// Which try the delivery of this number is.
    fn tries(&self, durable: &Arc<str>, seq: u64, delivered: u32) -> u32 {
        let mut all = lock(&self.0);
        let Some(of) = all.get_mut(durable).and_then(|known| known.get_mut(&seq)) else { return delivered.max(1) };
        // The server did not count those, or counts anew.
        drop(of.split_off(&delivered));
        delivered.saturating_sub(u32::try_from(of.len()).unwrap_or(u32::MAX)).max(1)
    }

    fn newest(&self, durable: &Arc<str>) -> Told {
        let all = lock(&self.0);
        let known = all.get(durable).into_iter().flatten().rev().filter(|(_, deliveries)| !deliveries.is_empty());
        let mut numbers = 0;
        let fits = known.take(MAX_TOLD).take_while(|(_, deliveries)| {
            numbers += deliveries.len();
            numbers <= MAX_NUMBERS
        });
        fits.map(|(seq, deliveries)| (*seq, deliveries.iter().copied().collect())).collect()
    }

    fn hear(&self, durable: &Arc<str>, said: &[u8]) {
        // Anybody may write there.
        let Ok(told) = serde_json::from_slice::<Told>(said) else { return };
        for (seq, deliveries) in told.into_iter().take(MAX_TOLD) {
            match deliveries.is_empty() {
                true => drop(self.forget(durable, seq)),
                false => self.note(durable, seq, deliveries),
            }
        }
    }
}

/// Where a group is told, and asked. Below the inboxes: whoever may be answered may hear it.
fn subject(group: &Group, what: &str) -> String {
    format!("{INBOX}sidereal.given-back.{}.{}.{what}", group.stream, group.durable)
}

impl Jetstream {
    /// Which try the delivery of this number is, as far as this host knows.
    pub(super) fn tries(&self, group: &Group, seq: u64, delivered: u32) -> u32 {
        self.0.given_back.tries(&group.durable, seq, delivered)
    }

    /// The delivery of this number was no try. What the server is told after this it hears later than the others do.
    pub(super) async fn give_back(&self, group: &Group, seq: u64, delivered: u32) {
        self.0.given_back.note(&group.durable, seq, [delivered]);
        self.tell(group, &[(seq, vec![delivered])]).await;
    }

    /// The message is handled, or put away.
    pub(super) async fn forget(&self, group: &Group, seq: u64) {
        if self.0.given_back.forget(&group.durable, seq) {
            self.tell(group, &[(seq, Vec::new())]).await;
        }
    }

    async fn tell(&self, group: &Group, told: &[(u64, Vec<u32>)]) {
        let Ok(said) = serde_json::to_vec(told) else { return };
        if let Err(cause) = self.client().publish(Outgoing::new(subject(group, "told"), said)).await {
            tracing::debug!(%cause, consumer = &*group.durable, "other hosts are not told of a message that was given back");
        }
    }
}

/// The other hosts of a group.
pub(super) struct Peers {
    broker: Jetstream,
    group: Group,
    told: Option<Subscription>,
    asked: Option<Subscription>,
}

impl Peers {
    /// Hears the others from now on, and what they know. Where the server does not permit it, each host knows what it gave
    /// back itself.
    pub(super) async fn join(broker: &Jetstream, group: &Group) -> Self {
        let (told_at, asked_at) = (subject(group, "told"), subject(group, "ask"));
        let told = broker.client().subscribe(&told_at, None, BUFFER).await;
        if let Err(cause) = &told {
            tracing::debug!(%cause, consumer = &*group.durable, "what other hosts give back is not heard");
        }
        if let Ok(known) = broker.client().request(Outgoing::new(&*asked_at, Vec::new()), PATIENCE).await {
            broker.0.given_back.hear(&group.durable, &known.payload);
        }
        // Only now: it would answer itself.
        let asked = broker.client().subscribe(&asked_at, None, BUFFER).await.ok();
        Self { broker: broker.clone(), group: group.clone(), told: told.ok(), asked }
    }

    /// Hears what has come.
    pub(super) fn hear(&mut self) {
        while let Some(told) = next(&mut self.told).now_or_never() {
            self.broker.0.given_back.hear(&self.group.durable, &told.payload);
        }
    }

    /// Hears what comes, and answers. Cancel safe; never ends.
    pub(super) async fn serve(&mut self) {
        loop {
            tokio::select! {
                told = next(&mut self.told) => self.broker.0.given_back.hear(&self.group.durable, &told.payload),
                asked = next(&mut self.asked) => self.answer(asked),
            }
        }
    }

    fn answer(&self, asked: Message) {
        let known = serde_json::to_vec(&self.broker.0.given_back.newest(&self.group.durable));
        let (Some(reply), Ok(known)) = (asked.reply, known) else { return };
        let client = self.broker.client().clone();
        tokio::spawn(async move { client.publish(Outgoing::new(reply, known)).await.ok() });
    }
}

async fn next(of: &mut Option<Subscription>) -> Message {
    loop {
        match of {
            Some(subscription) => match subscription.next().await {
                Ok(message) => return message,
                Err(_) => *of = None,
            },
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_no_try_whoever_did_and_however_often_it_is_told() {
        let (known, durable): (_, Arc<str>) = (GivenBack::default(), "d".into());
        assert_eq!((known.tries(&durable, 7, 0), known.tries(&durable, 7, 3)), (1, 3));
        known.note(&durable, 7, [1, 2]);
        known.hear(&durable, b"[[7,[2,4]],[8,[1]]]");
        assert_eq!((known.tries(&durable, 7, 3), known.tries(&durable, 8, 2)), (1, 1));
        known.hear(&durable, b"[[7,[4]]]");
        assert_eq!(known.tries(&durable, 7, 5), 2, "the third was one");
        // The server took the fourth back, and gave it out again.
        assert_eq!((known.tries(&durable, 7, 4), known.tries(&durable, 7, 5)), (2, 3));
        // The consumer was made anew.
        assert_eq!((known.tries(&durable, 7, 1), known.tries(&durable, 7, 2)), (1, 2));
        for bad in [&b""[..], b"x", b"{}", b"[[7]]", b"[[-1,[2]]]"] {
            known.hear(&durable, bad);
        }
        assert_eq!(known.newest(&durable), [(8, vec![1])]);
        known.hear(&durable, b"[[8,[]]]");
        assert!(!known.forget(&durable, 8) && known.forget(&durable, 7));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (known, durable): (_, Arc<str>) = (GivenBack::default(), "d".into());
        known.note(&durable, 1, 1..=2_000);
        assert_eq!(known.tries(&durable, 1, 2_001), 1_001);
        for seq in 0..MAX_MESSAGES as u64 + 10 {
            known.note(&durable, seq, [1]);
        }
        assert_eq!(known.newest(&durable).len(), MAX_TOLD);
        assert_eq!((known.tries(&durable, 9, 2), known.tries(&durable, 10, 2)), (2, 1), "the oldest go");
        for seq in 0..100 {
            known.note(&durable, 1 << 40 | seq, 1_000_000..1_001_000);
        }
        let told = known.newest(&durable);
        assert_eq!(told.len(), MAX_NUMBERS / MAX_DELIVERIES);
        assert!(serde_json::to_vec(&told).unwrap().len() < 1 << 20);
    }
}
