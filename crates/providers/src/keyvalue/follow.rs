//! Tells of changes on a server that keeps no log of them. What a component was told of last is kept on the server, one
//! record for each watch; whatever is not as the record says is told, and then recorded. So a notification that was lost,
//! a connection that broke or a host that was killed delays what is told, and never loses it.
//!
//! One host leads each watch: its name stands in a second record that it writes again and again. Whoever sees the record
//! unchanged for a while takes over. No clock of another machine is believed, and who was overtaken cannot write the
//! record of what was told any more.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use model::messaging::Subscription;
use model::watch::Keys;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::count::Found;
use super::{Answer, BackendError};
use crate::messaging::{self, Deliveries, Delivery, Message, Outcome, Settle};

/// Between two signs of life of the host that leads.
const BEAT: Duration = Duration::from_secs(3);
/// Without one for so long another host leads.
const TAKEOVER: Duration = Duration::from_secs(10);
/// Between two looks of a host that does not lead.
const STANDBY: Duration = Duration::from_secs(1);
/// Everything is looked at so often, whatever the server says of changes.
const RESCAN: Duration = Duration::from_secs(60);
/// What was told is recorded at least so often while there is more to tell.
const RECORD: Duration = Duration::from_secs(1);
/// A change that nobody had room for is told again after so long.
const BUSY: Duration = Duration::from_millis(100);
/// The largest record, bytes: what every server takes as one value.
const MAX_RECORD: usize = 256 << 10;

/// Keys, and for each a number that another value of it does not have.
pub(super) type State = BTreeMap<String, u64>;

/// A server that can be asked what it has, and that keeps small records for us.
pub(super) trait Followed: Send + Sync + 'static {
    /// Looks at some keys of a bucket.
    fn eye(self: Arc<Self>, bucket: &str, keys: &Keys) -> Box<dyn Eye>;
    /// A record, which is no key of any bucket.
    fn load<'a>(&'a self, name: &'a str) -> Answer<'a, Found>;
    /// Writes a record whose version still is `version`; the version after that, or `None` where it was another.
    fn swap<'a>(&'a self, name: &'a str, text: String, version: u64) -> Answer<'a, Option<u64>>;
}

/// Sees what keys there are, and when that may have changed.
pub(super) trait Eye: Send {
    /// What is there now.
    fn state(&mut self) -> Answer<'_, State>;
    /// Ends when something may have changed since [`Eye::state`] began. May be dropped and asked again.
    fn moved(&mut self) -> Answer<'_, ()>;
}

/// Changes of some keys of a bucket, as a broker that takes none from anybody.
pub(super) struct Follower {
    server: Arc<dyn Followed>,
    bucket: String,
    keys: Keys,
}

impl Follower {
    /// Follows `keys` of `bucket`.
    pub(super) fn new(server: Arc<dyn Followed>, bucket: &str, keys: Keys) -> Self {
        Self { server, bucket: bucket.to_owned(), keys }
    }
}

impl messaging::Backend for Follower {
    fn publish(&self, _: Message) -> messaging::Answer<'_, ()> {
        refuses()
    }

    fn request(&self, _: String, _: Vec<u8>, _: Duration) -> messaging::Answer<'_, Message> {
        refuses()
    }

    fn subscribe(&self, subscription: Arc<Subscription>) -> messaging::Answer<'_, Box<dyn Deliveries>> {
        async move {
            let mut eye = self.server.clone().eye(&self.bucket, &self.keys);
            // Says at once what would be said later.
            eye.state().await.map_err(broker_says)?;
            let (out, arriving) = mpsc::channel(1);
            let stop = CancellationToken::new();
            let random = RandomState::new();
            let group = &subscription.group.name;
            let task = Task {
                server: self.server.clone(),
                bucket: self.bucket.clone(),
                watched: self.keys.clone(),
                leader: format!("{group}.leader"),
                told: format!("{group}.told"),
                me: format!("{:016x}", random.hash_one(0)),
                random,
                stop: stop.clone(),
                out,
            };
            tokio::spawn(task.run(eye));
            Ok(Box::new(Changes { arriving, stop }) as Box<dyn Deliveries>)
        }
        .boxed()
    }
}

/// The answer to whoever sends to one of whom changes come.
pub(super) fn refuses<T: Send + Sync + 'static>() -> messaging::Answer<'static, T> {
    let why = "changes of keys come from the store, and from nobody else";
    std::future::ready(Err(messaging::BackendError::Refused(why.to_owned()))).boxed()
}

/// What a store says, as a broker would.
pub(super) fn broker_says(cause: BackendError) -> messaging::BackendError {
    match cause {
        BackendError::Denied(_) => messaging::BackendError::Denied(cause.to_string()),
        BackendError::TimedOut { ms } => messaging::BackendError::TimedOut { ms },
        other => messaging::BackendError::Unavailable(other.to_string()),
    }
}

struct Changes {
    arriving: mpsc::Receiver<Result<Delivery, messaging::BackendError>>,
    stop: CancellationToken,
}

impl Deliveries for Changes {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, messaging::BackendError>>> {
        self.arriving.recv().boxed()
    }

    fn stop(&mut self) {
        self.stop.cancel();
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Who leads.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Leader {
    /// Nobody, where it is empty.
    holder: String,
    beat: u64,
}

/// What was told.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    bucket: String,
    /// Which keys of it, as the setting is written.
    watched: String,
    keys: State,
}

impl Told {
    /// What a watch of `watched` starts from: of keys that were watched before it goes on from what was told, so that a
    /// revision that watches others loses nothing of those that both watch. Of the rest, what is there now is not told.
    fn going_on(known: Option<Self>, bucket: &str, watched: &Keys, state: &State) -> Self {
        let known = known.filter(|known| known.bucket == bucket);
        let before = known.as_ref().map(|known| Keys::of(&known.watched));
        let new = state.iter().filter(|(key, _)| before.as_ref().is_none_or(|before| !before.has(key)));
        let mut keys: State = new.map(|(key, version)| (key.clone(), *version)).collect();
        keys.extend(known.into_iter().flat_map(|known| known.keys).filter(|(key, _)| watched.has(key)));
        Self { bucket: bucket.to_owned(), watched: watched.to_string(), keys }
    }
}

/// What leading takes.
struct Lead {
    version: u64,
    beat: u64,
    next: Instant,
}

/// Why telling ended, where nothing failed.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Stopped,
    /// Another host leads.
    Overtaken,
}

struct Task {
    server: Arc<dyn Followed>,
    bucket: String,
    watched: Keys,
    /// Names of the two records.
    leader: String,
    told: String,
    me: String,
    random: RandomState,
    stop: CancellationToken,
    out: mpsc::Sender<Result<Delivery, messaging::BackendError>>,
}

impl Task {
    async fn run(self, mut eye: Box<dyn Eye>) {
        loop {
            let mut lead = match self.lead().await {
                Ok(Some(lead)) => lead,
                Ok(None) => return,
                Err(cause) => return self.lost(cause).await,
            };
            let end = self.tell(&mut *eye, &mut lead).await;
            if end != Ok(End::Overtaken) {
                // Where this fails another host waits until it takes over.
                let nobody = Leader { holder: String::new(), beat: lead.beat };
                self.write(&self.leader, &nobody, lead.version).await.ok();
            }
            match end {
                Ok(End::Overtaken) => {}
                Ok(End::Stopped) => return,
                Err(cause) => return self.lost(cause).await,
            }
        }
    }

    async fn lost(&self, cause: BackendError) {
        // Fails only where nobody listens any more.
        self.out.send(Err(broker_says(cause))).await.ok();
    }

    async fn write(&self, name: &str, record: &impl Serialize, version: u64) -> Result<Option<u64>, BackendError> {
        let text = serde_json::to_string(record).map_err(|cause| BackendError::Unavailable(cause.to_string()))?;
        if text.len() > MAX_RECORD {
            return Err(BackendError::TooLarge(format!(
                "the watched keys are too many to be followed: what was told of them takes {} bytes, at most {MAX_RECORD}; watch fewer keys",
                text.len()
            )));
        }
        self.server.swap(name, text, version).await
    }

    /// Waits until this host leads; `None` where it is stopped before.
    async fn lead(&self) -> Result<Option<Lead>, BackendError> {
        let mut seen: Option<(u64, Instant)> = None;
        for turn in 1_u64.. {
            let (leader, version) = self.leader().await?;
            let since = match seen {
                Some((known, since)) if known == version => since,
                _ => seen.insert((version, Instant::now())).1,
            };
            if leader.holder.is_empty() || leader.holder == self.me || since.elapsed() >= TAKEOVER {
                let beat = leader.beat.wrapping_add(1);
                let mine = Leader { holder: self.me.clone(), beat };
                if let Some(version) = self.write(&self.leader, &mine, version).await? {
                    return Ok(Some(Lead { version, beat, next: Instant::now() + BEAT }));
                }
            }
            let pause = crate::breaker::pause(0, STANDBY, STANDBY, self.random.hash_one(turn));
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(None)
    }

    /// Does `work` and shows signs of life meanwhile; `None` where another host leads.
    async fn leading<T>(&self, lead: &mut Lead, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = tokio::time::sleep_until(lead.next) => {}
            }
            let mine = Leader { holder: self.me.clone(), beat: lead.beat.wrapping_add(1) };
            match self.write(&self.leader, &mine, lead.version).await {
                Ok(Some(version)) => *lead = Lead { version, beat: mine.beat, next: Instant::now() + BEAT },
                // An earlier sign may have arrived without its answer.
                Ok(None) => match self.leader().await {
                    Ok((leader, version)) if leader.holder == self.me => {
                        *lead = Lead { version, beat: leader.beat, next: Instant::now() };
                    }
                    Ok(_) => return None,
                    Err(_) => lead.next = Instant::now() + STANDBY,
                },
                Err(_) => lead.next = Instant::now() + STANDBY,
            }
        }
    }

    /// Who leads, and the version of the record that says so.
    async fn leader(&self) -> Result<(Leader, u64), BackendError> {
        let Found { value, version } = self.server.load(&self.leader).await?;
        Ok((value.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default(), version))
    }

    /// Tells of what changes until it is stopped.
    async fn tell(&self, eye: &mut dyn Eye, lead: &mut Lead) -> Result<End, BackendError> {
        let mut state = eye.state().await?;
        let Found { value, version: mut recorded } = self.server.load(&self.told).await?;
        let known = value.and_then(|text| serde_json::from_slice::<Told>(&text).ok());
        let mut told = Told::going_on(known, &self.bucket, &self.watched, &state);
        let mut later: BTreeMap<String, (Instant, u32)> = BTreeMap::new();
        // Written also where it says nothing new: who led before cannot write it any more.
        let mut dirty = true;
        let mut written = Instant::now();
        loop {
            for (key, now) in differences(&told.keys, &state) {
                if dirty && written.elapsed() >= RECORD {
                    let Some(version) = self.write(&self.told, &told, recorded).await? else {
                        return Ok(End::Overtaken);
                    };
                    (recorded, dirty, written) = (version, false, Instant::now());
                }
                if self.stop.is_cancelled() {
                    break;
                }
                let (due, tries) = later.get(&key).copied().unwrap_or((Instant::now(), 0));
                if due > Instant::now() {
                    continue;
                }
                let handed = self.hand(&key, told.keys.get(&key).copied(), now, tries + 1);
                let Some(outcome) = self.leading(lead, handed).await else { return Ok(End::Overtaken) };
                match outcome {
                    Outcome::Done | Outcome::PutAway { .. } => {
                        later.remove(&key);
                        match now {
                            Some(now) => drop(told.keys.insert(key, now)),
                            None => drop(told.keys.remove(&key)),
                        }
                        dirty = true;
                    }
                    Outcome::Again(pause) => drop(later.insert(key, (Instant::now() + pause, tries + 1))),
                    Outcome::GivenBack => drop(later.insert(key, (Instant::now() + BUSY, tries))),
                }
            }
            if dirty {
                let Some(version) = self.write(&self.told, &told, recorded).await? else { return Ok(End::Overtaken) };
                (recorded, dirty, written) = (version, false, Instant::now());
            }
            let due = later.values().map(|(due, _)| *due).min();
            let rescan = Instant::now() + RESCAN;
            let wait = async {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => Ok(false),
                    moved = eye.moved() => moved.map(|()| true),
                    () = tokio::time::sleep_until(due.map_or(rescan, |due| due.min(rescan))) => Ok(true),
                }
            };
            let Some(goes_on) = self.leading(lead, wait).await else { return Ok(End::Overtaken) };
            if !goes_on? {
                return Ok(End::Stopped);
            }
            state = eye.state().await?;
            let differing = |key: &String| told.keys.get(key) != state.get(key);
            later.retain(|key, _| differing(key));
        }
    }

    /// Hands one change out and waits for what becomes of it.
    async fn hand(&self, key: &str, was: Option<u64>, now: Option<u64>, tries: u32) -> Outcome {
        let (settle, settled) = oneshot::channel();
        let number = |version: Option<u64>| version.map_or("none".to_owned(), |version| format!("{version:x}"));
        let delivery = Delivery {
            id: format!("{key}@{}-{}", number(was), number(now)),
            tries,
            message: Message { subject: "watch".to_owned(), body: key.as_bytes().to_vec(), reply_to: None },
            trace: None,
            settle: Box::new(Settled(settle)),
        };
        if self.out.send(Ok(delivery)).await.is_err() {
            return Outcome::GivenBack;
        }
        settled.await.unwrap_or(Outcome::GivenBack)
    }
}

/// What is to be told: each key that is not as it was told, with what it is now.
fn differences(told: &State, now: &State) -> Vec<(String, Option<u64>)> {
    let gone = told.keys().filter(|key| !now.contains_key(*key)).map(|key| (key.clone(), None));
    let new = now.iter().filter(|(key, version)| told.get(*key) != Some(version));
    gone.chain(new.map(|(key, version)| (key.clone(), Some(*version)))).collect()
}

struct Settled(oneshot::Sender<Outcome>);

impl Settle for Settled {
    fn settle(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, Result<(), messaging::BackendError>> {
        // Nobody waits where the watch has ended: then it is told again.
        let gone = || messaging::BackendError::Unavailable("the watch has ended".to_owned());
        std::future::ready(self.0.send(outcome).map_err(|_| gone())).boxed()
    }
}

#[cfg(test)]
mod tests;
