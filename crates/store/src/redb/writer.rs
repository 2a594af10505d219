//! The one thread that changes anything. It takes all that waits, decides each request in turn on the state the ones
//! before left, writes once, syncs once, shows the result to readers and watchers, and only then answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ::redb::{ReadableTable as _, WriteTransaction};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::feed::Feed;
use super::state::{ENTRIES, Leased, State, decode, encode};
use crate::disk::{Fail, META};
use crate::{Change, Expect, LeaseId, StoreError};

/// The revision up to which numbers may have been given out; a new process starts there, so that none is given twice.
pub(super) const REVISION: &str = "revision";
/// How far ahead of itself the stored revision is set where leases take numbers without writing.
const AHEAD: u64 = 1 << 20;
/// Requests of one transaction.
const BATCH: usize = 1024;

/// What the thread is asked.
#[derive(Debug)]
pub(super) enum Op {
    Put {
        key: Arc<str>,
        value: Bytes,
        expect: Expect,
        lease: Option<LeaseId>,
    },
    Delete {
        key: Arc<str>,
        expect: Expect,
    },
    Grant,
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    /// Its time ran out while it had this generation.
    Expire(LeaseId, u64),
}

/// What it answers.
#[derive(Debug)]
pub(super) enum Done {
    /// The revision after it.
    Revision(u64),
    /// The lease; the receiver sees its generations and its end.
    Granted(LeaseId, watch::Receiver<u64>),
}

/// A request.
#[derive(Debug)]
pub(super) struct Job {
    pub op: Op,
    pub reply: oneshot::Sender<Result<Done, StoreError>>,
}

/// The thread's own.
pub(super) struct Writer {
    pub state: Arc<State>,
    pub feed: Arc<Feed>,
    /// Each lease's generation: how often it was kept alive.
    pub leases: HashMap<LeaseId, watch::Sender<u64>>,
    pub next_lease: u64,
    /// What is stored as [`REVISION`].
    pub ceiling: u64,
}

/// What a batch would change.
struct Draft<'a> {
    revision: u64,
    leased: BTreeMap<Arc<str>, Option<Leased>>,
    granted: Vec<(LeaseId, watch::Sender<u64>)>,
    ended: HashSet<LeaseId>,
    changes: Vec<Change>,
    /// `None`: the disk cannot be written, only leased keys change.
    txn: Option<&'a WriteTransaction>,
}

/// Refused to one caller, or the disk failed all.
enum Stop {
    Refused(StoreError),
    Disk(Fail),
}

impl<E: Into<Fail>> From<E> for Stop {
    fn from(fail: E) -> Self {
        Self::Disk(fail.into())
    }
}

type Answers = Vec<Result<Done, StoreError>>;

impl Writer {
    /// Works until every sender is gone.
    pub(super) fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(job) = jobs.try_recv()
            {
                batch.push(job);
            }
            let (ops, replies): (Vec<Op>, Vec<_>) = batch.into_iter().map(|job| (job.op, job.reply)).unzip();
            for (reply, answer) in replies.into_iter().zip(self.batch(&ops)) {
                // Nobody waits any more: the change counts all the same.
                let _ = reply.send(answer);
            }
        }
    }

    fn batch(&mut self, ops: &[Op]) -> Answers {
        let durable = ops.iter().any(|op| self.needs_disk(op)) || self.state.revision() + BATCH as u64 > self.ceiling;
        if !durable {
            return self.leases_only(ops, None);
        }
        let mut ceiling = self.ceiling;
        let this = &*self;
        let written = self.state.disk.commit(|txn| {
            let (answers, draft) = this.decide(ops, Some(txn))?;
            let ahead = if this.leases.is_empty() && draft.granted.is_empty() { 0 } else { AHEAD };
            if draft.revision > ceiling || (ahead > 0 && draft.revision + ahead / 2 > ceiling) {
                ceiling = draft.revision + ahead;
                txn.open_table(META)?.insert(REVISION, ceiling)?;
            }
            Ok((answers, draft.detach()))
        });
        match written {
            Ok((answers, draft)) => {
                self.ceiling = ceiling;
                self.publish(draft, true);
                answers
            }
            Err(fail @ Fail::Unknown(_)) => {
                let durable: Vec<bool> = ops.iter().map(|op| self.needs_disk(op)).collect();
                self.recover(&fail);
                self.untold(ops, &durable, fail)
            }
            Err(fail) => {
                self.recover(&fail);
                self.leases_only(ops, Some(fail))
            }
        }
    }

    /// The file was opened again: readers need the new snapshot. Where the batch may be in it, watchers must look too.
    fn recover(&mut self, fail: &Fail) {
        let mut revision = self.state.revision();
        if matches!(fail, Fail::Unknown(_)) {
            self.ceiling = self.state.stored(REVISION).unwrap_or(0).max(self.ceiling);
            revision = revision.max(self.ceiling);
            self.feed.forget(revision);
        }
        self.state.publish(revision, BTreeMap::new(), true);
    }

    /// Whether what had to be written is kept is unknown, so nobody is told what would become of it now: one whose own write is
    /// there would be told that somebody else was faster. What needs no disk goes on.
    fn untold(&mut self, ops: &[Op], durable: &[bool], fail: Fail) -> Answers {
        let others: Vec<&Op> = ops.iter().zip(durable).filter(|(_, durable)| !**durable).map(|(op, _)| op).collect();
        let mut others = self.leases_only(others, Some(fail.clone())).into_iter();
        let mut answer = |durable: &bool| if *durable { None } else { others.next() };
        let unknown = || Err(fail.clone().explain(self.state.disk.path()));
        durable.iter().map(|durable| answer(durable).unwrap_or_else(unknown)).collect()
    }

    /// Leases and their keys need no disk: nodes go on reporting when it is full.
    fn leases_only<'o>(
        &mut self,
        ops: impl IntoIterator<Item = &'o Op, IntoIter: ExactSizeIterator>,
        fail: Option<Fail>,
    ) -> Answers {
        let ops = ops.into_iter();
        let many = ops.len();
        let fail = fail.unwrap_or_else(|| Fail::Disk("a durable write was not expected".into()));
        let explain = |fail: &Fail| fail.clone().explain(self.state.disk.path());
        match self.decide(ops, None) {
            Ok((answers, draft)) => {
                let answers = answers.into_iter().map(|answer| match answer {
                    Err(StoreError::CannotWrite { .. }) => Err(explain(&fail)),
                    other => other,
                });
                let answers = answers.collect();
                self.publish(draft, false);
                answers
            }
            Err(second) => (0..many).map(|_| Err(explain(&second))).collect(),
        }
    }

    /// Whether a request may have to write the file.
    fn needs_disk(&self, op: &Op) -> bool {
        match op {
            Op::Put { lease: None, .. } => true,
            // A leased key may take the place of a durable one.
            Op::Put { key, .. } | Op::Delete { key, .. } => {
                !self.state.leased(|keys| keys.contains_key(key))
                    && !matches!((self.state.durable_revision(key), op), (Ok(None), Op::Put { .. }))
            }
            Op::Grant | Op::KeepAlive(_) | Op::Revoke(_) | Op::Expire(..) => false,
        }
    }

    fn publish(&mut self, draft: Draft<'_>, durable: bool) {
        // Numbers of leases that ended at once are not given out again either.
        self.next_lease += draft.granted.len() as u64;
        self.leases.extend(draft.granted);
        self.leases.retain(|lease, _| !draft.ended.contains(lease));
        self.state.publish(draft.revision, draft.leased, durable);
        self.feed.publish(draft.changes);
    }

    fn decide<'a, 'o>(
        &self,
        ops: impl IntoIterator<Item = &'o Op>,
        txn: Option<&'a WriteTransaction>,
    ) -> Result<(Answers, Draft<'a>), Fail> {
        let mut draft = Draft {
            revision: self.state.revision(),
            leased: BTreeMap::new(),
            granted: Vec::new(),
            ended: HashSet::new(),
            changes: Vec::new(),
            txn,
        };
        let mut answers = Vec::new();
        for op in ops {
            answers.push(match self.one(op, &mut draft) {
                Ok(done) => Ok(done),
                Err(Stop::Refused(error)) => Err(error),
                Err(Stop::Disk(fail)) => return Err(fail),
            });
        }
        Ok((answers, draft))
    }

    fn one(&self, op: &Op, draft: &mut Draft<'_>) -> Result<Done, Stop> {
        match op {
            Op::Put { key, value, expect, lease } => {
                let current = self.current(key, draft)?;
                met(key, *expect, current)?;
                match lease {
                    Some(lease) => {
                        self.alive(*lease, draft)?;
                        self.unwrite(key, draft)?;
                        draft.revision += 1;
                        let leased = Leased { value: value.clone(), revision: draft.revision, lease: *lease };
                        draft.leased.insert(key.clone(), Some(leased));
                    }
                    None => {
                        let txn = self.transaction(draft)?;
                        draft.revision += 1;
                        txn.open_table(ENTRIES)?.insert(&**key, encode(key, draft.revision, value).as_slice())?;
                        if self.leased(key, draft).is_some() {
                            draft.leased.insert(key.clone(), None);
                        }
                    }
                }
                draft.change(key, Some(value.clone()));
            }
            Op::Delete { key, expect } => {
                let current = self.current(key, draft)?;
                met(key, *expect, current)?;
                if current.is_some() {
                    if self.leased(key, draft).is_some() {
                        draft.leased.insert(key.clone(), None);
                    } else {
                        self.unwrite(key, draft)?;
                    }
                    draft.revision += 1;
                    draft.change(key, None);
                }
            }
            Op::Grant => {
                let id = LeaseId(self.next_lease + draft.granted.len() as u64);
                let (generation, seen) = watch::channel(0);
                draft.granted.push((id, generation));
                return Ok(Done::Granted(id, seen));
            }
            Op::KeepAlive(lease) => self.alive(*lease, draft)?.send_modify(|generation| *generation += 1),
            Op::Revoke(lease) => {
                self.alive(*lease, draft)?;
                self.end(*lease, draft);
            }
            Op::Expire(lease, generation) => {
                // Kept alive in the meantime, or ended by somebody: nothing to do.
                if self.alive(*lease, draft).is_ok_and(|now| *now.borrow() == *generation) {
                    self.end(*lease, draft);
                }
            }
        }
        Ok(Done::Revision(draft.revision))
    }

    fn leased(&self, key: &str, draft: &Draft<'_>) -> Option<(u64, LeaseId)> {
        match draft.leased.get(key) {
            Some(drafted) => drafted.as_ref().map(|leased| (leased.revision, leased.lease)),
            None => self.state.leased(|keys| keys.get(key).map(|leased| (leased.revision, leased.lease))),
        }
    }

    /// The revision of a key as the requests before left it.
    fn current(&self, key: &str, draft: &Draft<'_>) -> Result<Option<u64>, Stop> {
        if let Some((revision, _)) = self.leased(key, draft) {
            return Ok(Some(revision));
        }
        let Some(txn) = draft.txn else {
            return self.state.durable_revision(key).map_err(Stop::Refused);
        };
        let table = txn.open_table(ENTRIES)?;
        let stored = table.get(key)?;
        // A damaged value is this key's trouble only; writing it again heals it.
        Ok(stored.map(|stored| decode(key, stored.value()).map_or(0, |(revision, _)| revision)))
    }

    /// Removes a durable key, where it is one.
    fn unwrite(&self, key: &str, draft: &Draft<'_>) -> Result<(), Stop> {
        if draft.txn.is_none() && self.state.durable_revision(key).map_err(Stop::Refused)?.is_none() {
            return Ok(());
        }
        self.transaction(draft)?.open_table(ENTRIES)?.remove(key)?;
        Ok(())
    }

    fn transaction<'a>(&self, draft: &Draft<'a>) -> Result<&'a WriteTransaction, Stop> {
        draft
            .txn
            .ok_or_else(|| Stop::Refused(Fail::Disk("it cannot be written".into()).explain(self.state.disk.path())))
    }

    fn alive<'a>(&'a self, lease: LeaseId, draft: &'a Draft<'_>) -> Result<&'a watch::Sender<u64>, Stop> {
        let granted = || draft.granted.iter().find(|(id, _)| *id == lease).map(|(_, generation)| generation);
        self.leases
            .get(&lease)
            .or_else(granted)
            .filter(|_| !draft.ended.contains(&lease))
            .ok_or(Stop::Refused(StoreError::LeaseEnded(lease)))
    }

    fn end(&self, lease: LeaseId, draft: &mut Draft<'_>) {
        draft.ended.insert(lease);
        let mut gone: Vec<Arc<str>> = self.state.leased(|keys| {
            let own = keys.iter().filter(|(key, leased)| leased.lease == lease && !draft.leased.contains_key(*key));
            own.map(|(key, _)| key.clone()).collect()
        });
        let drafted = draft.leased.iter().filter(|(_, leased)| leased.as_ref().is_some_and(|l| l.lease == lease));
        gone.extend(drafted.map(|(key, _)| key.clone()));
        gone.sort();
        for key in gone {
            draft.leased.insert(key.clone(), None);
            draft.revision += 1;
            draft.change(&key, None);
        }
    }
}

impl Draft<'_> {
    /// The same, for after the transaction.
    fn detach(self) -> Draft<'static> {
        let Self { revision, leased, granted, ended, changes, txn: _ } = self;
        Draft { revision, leased, granted, ended, changes, txn: None }
    }

    fn change(&mut self, key: &str, value: Option<Bytes>) {
        self.changes.push(Change { key: key.to_owned(), value, revision: self.revision });
    }
}

fn met(key: &str, expect: Expect, current: Option<u64>) -> Result<(), Stop> {
    let met = match expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::Revision(revision) => current == Some(revision),
    };
    if met { Ok(()) } else { Err(Stop::Refused(StoreError::Conflict { key: key.to_owned(), current })) }
}
