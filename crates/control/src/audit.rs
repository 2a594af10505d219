//! Writes the audit log: one task owns the files. A change is begun only after the line that says so is on the disk; where
//! that cannot be, it is refused.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use api::problem::{Code, Problem};
use model::TenantName;
use model::tenant::Rate;
use store::audit::{self, Act, Log, Outcome, Record, Report, Tail};
use store::{Expect, Store, keys};
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::config::ControlError;
use crate::http::{Answer, Refusal};

/// Lines that wait to be written at most.
const ROOM: usize = 256;
/// Lines that are written at once.
const BATCH: usize = 64;
/// Refused attempts of strangers that are written down: so many a second over time, and at once. A stranger must not be
/// able to fill the disk; what is left out is counted in the next line.
const STRANGERS: (u64, u64) = (10, 100);
/// The same of each tenant's tokens together.
const MEMBERS: (u64, u64) = (1, 100);

enum Ask {
    Write(Box<Act>, oneshot::Sender<Result<u64, String>>),
    Measure(oneshot::Sender<Result<Measured, String>>),
}

/// The files of the log as long as they are between two lines, and where it ends by then.
type Measured = (Vec<(PathBuf, u64)>, Option<Tail>);

/// The audit log, for everybody who has something to write.
pub struct Audit {
    ask: mpsc::Sender<Ask>,
    dir: PathBuf,
    since: Instant,
    /// What was written down of refused attempts of each tenant's tokens, and of strangers.
    refused: Mutex<HashMap<Option<TenantName>, Refused>>,
}

#[derive(Default)]
struct Refused {
    paid: u64,
    left_out: u64,
}

impl Refused {
    /// Whether one more attempt is written down, and how many were not since the last one that was. Where there is no room
    /// for any, it is only counted.
    fn take(&mut self, rate: Rate, now: u64, room: bool) -> Option<u64> {
        match rate.take(self.paid, now, 1) {
            Ok(paid) if room => {
                self.paid = paid;
                Some(std::mem::take(&mut self.left_out))
            }
            Ok(_) | Err(_) => {
                self.left_out = self.left_out.saturating_add(1);
                None
            }
        }
    }
}

impl Audit {
    /// Opens the log and starts its task, which ends with the last handle.
    ///
    /// # Errors
    /// [`ControlError::Audit`].
    pub async fn start(dir: PathBuf, store: Arc<dyn Store>) -> Result<Self, ControlError> {
        let unusable = |cause: String| ControlError::Audit { dir: dir.clone(), cause };
        let kept = tail(&*store).await.map_err(unusable)?;
        let opened = {
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || Log::open(&dir, kept, clock::millis())).await
        };
        let log = opened.map_err(|cause| unusable(cause.to_string()))?.map_err(|cause| unusable(cause.to_string()))?;
        if kept != Some(log.tail()) {
            keep(&*store, log.tail()).await.map_err(unusable)?;
        }
        let (ask, asked) = mpsc::channel(ROOM);
        tokio::spawn(run(log, store, asked));
        Ok(Self { ask, dir, since: Instant::now(), refused: Mutex::default() })
    }

    /// Whether there is room for what a tenant's tokens change. The last of the disk is the operator's, who can do something
    /// about it.
    ///
    /// # Errors
    /// `store-unavailable`.
    pub(crate) fn room(&self) -> Answer<()> {
        match audit::Disk::under(&self.dir) {
            Ok(disk) if disk.is_scarce() => Err(Refusal::new(
                Code::StoreUnavailable,
                "the disk of the platform is nearly full: tenants change nothing until it has room",
            )
            .help("ask your operator; `sidereal doctor` tells how much is left")),
            // Where it cannot be looked at, writing the line says why.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Writes a line; answers with its number once it is on the disk.
    ///
    /// # Errors
    /// `store-unavailable`: what it is about must not happen then.
    pub(crate) async fn write(&self, act: Act) -> Answer<u64> {
        let (tell, told) = oneshot::channel();
        let sent = self.ask.send(Ask::Write(Box::new(act), tell)).await.is_ok();
        let written = if sent { told.await.ok() } else { None };
        written.unwrap_or_else(|| Err("the control plane is stopping".to_owned())).map_err(|cause| {
            let text = format!("the audit log cannot be written, so nothing was changed: {cause}");
            Refusal::from(Problem::new(Code::StoreUnavailable, text).help("free some space, then try again"))
        })
    }

    /// Makes a change that no request asks for, as the lines about it say: one on the disk before it, and one about what came
    /// of it.
    ///
    /// # Errors
    /// `store-unavailable`, where it was not begun; else the change's own.
    pub async fn platform<T, E: From<Problem>>(
        &self,
        tenant: &TenantName,
        what: String,
        change: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begin = act(PLATFORM.to_owned(), Some(tenant.clone()), String::new(), what);
        let begun = self.write(begin.clone()).await.map_err(|refusal| refusal.problem)?;
        let made = change.await;
        let outcome = if made.is_ok() { Outcome::Done } else { Outcome::Refused };
        if let Err(cause) = self.write(Act { outcome, begun: Some(begun), ..begin }).await {
            tracing::error!(begun, cause = %cause.problem, "what came of a change is not in the audit log");
        }
        made
    }

    /// Writes down that somebody was refused. That it cannot be written changes nothing for them. The last of the disk is
    /// the operator's: what others were refused is counted then, and the next line about them tells how often.
    pub(crate) async fn refused(&self, act: Act) {
        let room = !audit::Disk::under(&self.dir).is_ok_and(|disk| disk.is_scarce());
        self.refused_with(act, room).await;
    }

    async fn refused_with(&self, mut act: Act, room: bool) {
        // A token's own tenant is who pays, not the one it asked for.
        let whose = match act.who.as_str() {
            NOBODY => Some(None),
            OPERATOR => None,
            _ => Some(act.tenant.clone()),
        };
        if let Some(whose) = whose {
            let now = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let (rate, burst) = if whose.is_some() { MEMBERS } else { STRANGERS };
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            match refused.entry(whose).or_default().take(Rate::new(rate, burst), now, room) {
                Some(left_out) => act.left_out = left_out,
                None => return,
            }
        }
        if let Err(cause) = self.write(act).await {
            tracing::warn!(cause = %cause.problem, "a refused attempt is not in the audit log");
        }
    }

    /// A tenant that is gone has no tokens that could be refused.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(&Some(tenant.clone()));
    }

    /// The last lines that `fits`, newest first, in so many of the newest files.
    pub(crate) async fn last(
        &self,
        most: usize,
        files: usize,
        fits: impl Fn(&Record) -> bool + Send + 'static,
    ) -> Answer<Vec<Record>> {
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || audit::last(&dir, most, files, fits)).await;
        read.map_err(unreadable)?.map_err(unreadable)
    }

    /// Reads all of the log and says what is not as it was written.
    pub(crate) async fn verify(&self) -> Answer<Report> {
        let (tell, told) = oneshot::channel();
        let sent = self.ask.send(Ask::Measure(tell)).await.is_ok();
        let measured = if sent { told.await.ok() } else { None };
        let stopping = || Err("the control plane is stopping".to_owned());
        let (files, kept) = measured.unwrap_or_else(stopping).map_err(unreadable)?;
        // Not in the task: reading takes its time, and changes go on meanwhile.
        let read = tokio::task::spawn_blocking(move || audit::verify_measured(&files, kept)).await;
        read.map_err(unreadable)?.map_err(unreadable)
    }
}

/// Who is named where no token was one.
pub(crate) const NOBODY: &str = "nobody";
/// Who is named where nobody asked for it in this moment.
pub(crate) const PLATFORM: &str = "the platform";
/// Who is named where it was the operator's.
pub(crate) const OPERATOR: &str = "operator";

fn unreadable(cause: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::StoreUnavailable, format!("the audit log cannot be read: {cause}"))
}

async fn tail(store: &dyn Store) -> Result<Option<Tail>, String> {
    let entry = store.get(&keys::audit_tail()).await.map_err(|cause| cause.to_string())?;
    entry.map(|entry| serde_json::from_slice(&entry.value).map_err(|cause| cause.to_string())).transpose()
}

async fn keep(store: &dyn Store, tail: Tail) -> Result<(), String> {
    let value = serde_json::to_vec(&tail).map_err(|cause| cause.to_string())?;
    let put = store.put(&keys::audit_tail(), value.into(), Expect::Any, None).await;
    put.map(drop).map_err(|cause| cause.to_string())
}

async fn run(log: Log, store: Arc<dyn Store>, mut asked: mpsc::Receiver<Ask>) {
    let mut log = Some(log);
    let mut batch = Vec::with_capacity(BATCH);
    while asked.recv_many(&mut batch, BATCH).await > 0 {
        let (mut acts, mut waiting, mut measuring) = (Vec::new(), Vec::new(), Vec::new());
        for ask in batch.drain(..) {
            match ask {
                Ask::Write(act, tell) => {
                    acts.push(*act);
                    waiting.push(tell);
                }
                Ask::Measure(tell) => measuring.push(tell),
            }
        }
        if !acts.is_empty() {
            let written = append(&mut log, acts, &*store).await;
            for (at, tell) in (0..).zip(waiting) {
                let number = written.clone().map(|first| first.saturating_add(at));
                // Whoever asked may have hung up; the line is there all the same.
                drop(tell.send(number));
            }
        }
        for tell in measuring {
            let measured = match (&log, tail(&*store).await) {
                (Some(log), Ok(kept)) => {
                    let files = audit::measured(log.dir()).map_err(|cause| cause.to_string());
                    files.map(|files| (files, kept))
                }
                (None, _) => Err(LOST.to_owned()),
                (_, Err(cause)) => Err(cause),
            };
            drop(tell.send(measured));
        }
    }
}

/// Why nothing is written any more.
const LOST: &str = "its writer ended badly; restart the platform";

/// Writes lines, then where the log ends into the store: a line counts when both are done.
async fn append(log: &mut Option<Log>, acts: Vec<Act>, store: &dyn Store) -> Result<u64, String> {
    let mut own = log.take().ok_or(LOST)?;
    let work = move || {
        let written = own.append(&acts, clock::millis());
        (own, written)
    };
    let (own, written) = tokio::task::spawn_blocking(work).await.map_err(|cause| cause.to_string())?;
    let tail = own.tail();
    *log = Some(own);
    let first = written.map_err(|cause| cause.to_string())?;
    keep(store, tail).await?;
    Ok(first)
}

/// A line about a request; what came of it is still open.
pub(crate) fn act(who: String, tenant: Option<model::TenantName>, from: String, what: String) -> Act {
    Act { who, tenant, from, what, outcome: Outcome::Begun, status: None, code: None, begun: None, left_out: 0 }
}

#[cfg(test)]
mod tests {
    use store::redb::RedbStore;

    use super::*;

    #[tokio::test]
    async fn on_a_scarce_disk_refused_attempts_are_counted_and_not_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let audit = Audit::start(dir.path().join("audit"), store).await.unwrap();
        let tenant: TenantName = "t".parse().unwrap();
        let attempt = |who: &str| {
            let of = (who != NOBODY).then(|| tenant.clone());
            Act { outcome: Outcome::Refused, ..act(who.to_owned(), of, "::1".to_owned(), "GET /".to_owned()) }
        };
        for _ in 0..3 {
            audit.refused_with(attempt(NOBODY), false).await;
            audit.refused_with(attempt("ci"), false).await;
        }
        audit.refused_with(attempt(OPERATOR), false).await;
        audit.refused_with(attempt(NOBODY), true).await;
        audit.refused_with(attempt("ci"), true).await;
        let lines = audit.last(100, 10, |_| true).await.unwrap();
        let lines: Vec<_> = lines.iter().map(|line| (line.act.who.as_str(), line.act.left_out)).collect();
        assert_eq!(lines, [("ci", 3), (NOBODY, 3), (OPERATOR, 0)], "newest first");
    }
}
