//! The SQLite databases of apps, one file per tenant, app and provider: `<tenant>/<app>/<provider>.db`.
//!
//! A database that is used has a thread of its own, which alone touches the file; calls wait in line for it, so a slow
//! statement holds up its own database and no other. The thread ends when nobody asked for a while.

mod database;
mod guard;
mod quota;
mod refusal;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use model::sql::{Answer, Call, STATEMENT_MS, SqlError};
use model::{AppName, ProviderName, TenantName};
use tokio::sync::oneshot;

use crate::room::Room;
use database::Database;
use quota::{Share, Sizes};

/// The largest database, bytes.
pub const MAX_DATABASE: u64 = 1 << 30;
/// Databases that are open at once: each has a thread.
const MAX_OPEN: usize = 256;
/// Calls that wait for one database.
const MAX_WAITING: usize = 256;
/// How long a call waits for the ones before it.
const MAX_WAIT: Duration = Duration::from_millis(STATEMENT_MS);
/// A database nobody asks for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// How much a statement gives way to everything else on the machine: threads of the node carry requests.
const NICE: i32 = 10;

/// Whose database.
type Key = (TenantName, AppName, ProviderName);

/// All databases of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Databases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    open: Mutex<HashMap<Key, SyncSender<Job>>>,
    /// Tenants that have a quota.
    tracked: Mutex<HashMap<TenantName, Arc<Sizes>>>,
}

impl Inner {
    fn share(&self, (tenant, app, provider): &Key) -> Option<Share> {
        let sizes = lock(&self.tracked).get(tenant).cloned()?;
        Some(Share::new(sizes, app.clone(), provider.clone()))
    }
}

/// One call on its way to its database.
struct Job {
    call: Call,
    since: Instant,
    reply: oneshot::Sender<Result<Answer, SqlError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Databases {
    /// Databases below `dir`, which is made with the first of them.
    pub fn new(dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref().to_owned();
        Self(Arc::new(Inner { dir, open: Mutex::default(), tracked: Mutex::default() }))
    }

    /// From now on what the tenant keeps here takes room of `room`, also what there is already. Blocks.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn track(&self, tenant: &TenantName, room: &Arc<Room>) -> std::io::Result<()> {
        let sizes = Sizes::of(&self.0.dir.join(tenant.as_str()), room)?;
        lock(&self.0.tracked).insert(tenant.clone(), Arc::new(sizes));
        Ok(())
    }

    /// One call. A write is on disk when it is answered. A call that is dropped may still happen.
    ///
    /// # Errors
    /// Any [`SqlError`].
    pub async fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        call: Call,
    ) -> Result<Answer, SqlError> {
        model::sql::check(call.statements())?;
        let answer = self.send((tenant.clone(), app.clone(), provider.clone()), call)?;
        answer.await.unwrap_or_else(|_| Err(SqlError::Unavailable("the node closed the database".to_owned())))
    }

    /// Removes the databases of an app that no host has any more. Blocks.
    ///
    /// # Errors
    /// What the file system says; what is left is removed by the next try.
    pub fn purge(&self, tenant: &TenantName, app: &AppName) -> std::io::Result<()> {
        // Their threads end; what those still have open goes with them.
        lock(&self.0.open).retain(|(of, owner, _), _| (of, owner) != (tenant, app));
        let of_tenant = self.0.dir.join(tenant.as_str());
        match std::fs::remove_dir_all(of_tenant.join(app.as_str())) {
            Ok(()) => crate::disk::sync_dir(&of_tenant)?,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
        if let Some(sizes) = lock(&self.0.tracked).get(tenant) {
            sizes.forget(app);
        }
        Ok(())
    }

    fn send(&self, key: Key, call: Call) -> Result<oneshot::Receiver<Result<Answer, SqlError>>, SqlError> {
        let (reply, answer) = oneshot::channel();
        let mut job = Job { call, since: Instant::now(), reply };
        // Nothing here waits: a thread takes this lock only to leave.
        let mut open = lock(&self.0.open);
        if let Some(calls) = open.get(&key) {
            match calls.try_send(job) {
                Ok(()) => return Ok(answer),
                Err(TrySendError::Full(_)) => {
                    return Err(SqlError::Unavailable(format!("{MAX_WAITING} calls wait for this database already")));
                }
                // Its thread failed.
                Err(TrySendError::Disconnected(back)) => job = back,
            }
        } else if open.len() >= MAX_OPEN {
            return Err(SqlError::Unavailable(format!(
                "{MAX_OPEN} databases of this node are in use; try again later"
            )));
        }
        let (calls, received) = sync_channel(MAX_WAITING);
        let sent = calls.try_send(job);
        let (inner, dir, of) = (Arc::downgrade(&self.0), self.0.dir.clone(), key.clone());
        let thread = std::thread::Builder::new().name("sql".to_owned());
        let spawned = thread.spawn(move || serve(&inner, &dir, &of, &received));
        if let (Ok(_), Ok(())) = (spawned, sent) {
            open.insert(key, calls);
            return Ok(answer);
        }
        open.remove(&key);
        Err(SqlError::Unavailable("the node has no thread for the database".to_owned()))
    }
}

/// The thread of one database.
fn serve(inner: &Weak<Inner>, dir: &Path, key: &Key, calls: &Receiver<Job>) {
    if let Err(cause) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%cause, "a database's thread keeps its priority");
    }
    let mut database = None;
    loop {
        match calls.recv_timeout(IDLE) {
            Ok(job) => work(&mut database, inner, dir, key, job),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let Some(inner) = inner.upgrade() else { return };
                let mut open = lock(&inner.open);
                // Whoever sends holds the lock, so nothing comes between these two.
                match calls.try_recv() {
                    Ok(job) => {
                        drop(open);
                        work(&mut database, &Arc::downgrade(&inner), dir, key, job);
                    }
                    Err(_) => {
                        open.remove(key);
                        return;
                    }
                }
            }
        }
    }
}

fn work(database: &mut Option<Database>, inner: &Weak<Inner>, dir: &Path, key: &Key, job: Job) {
    if job.reply.is_closed() {
        return;
    }
    let result = if job.since.elapsed() > MAX_WAIT {
        Err(SqlError::Unavailable("the calls before this one took too long".to_owned()))
    } else {
        answer(database, inner, dir, key, &job.call)
    };
    if let Err(SqlError::Unavailable(cause)) = &result {
        let (tenant, app, provider) = key;
        tracing::warn!(%tenant, %app, %provider, %cause, "a database cannot be used");
    }
    // Whoever asked may be gone by now.
    drop(job.reply.send(result));
}

fn answer(
    slot: &mut Option<Database>,
    inner: &Weak<Inner>,
    dir: &Path,
    key: &Key,
    call: &Call,
) -> Result<Answer, SqlError> {
    let mut database = match slot.take() {
        Some(open) => open,
        None => Database::open(&place(dir, key)?)?,
    };
    let share = inner.upgrade().and_then(|inner| inner.share(key));
    let result = database.call(call, share.as_ref());
    // One that failed is opened anew: it may be better then, and never has half a transaction.
    if !matches!(result, Err(SqlError::Unavailable(_))) && database.is_at_rest() {
        *slot = Some(database);
    }
    result
}

/// The file of a database, its directory durably there. The names are typed: none leads elsewhere.
fn place(dir: &Path, (tenant, app, provider): &Key) -> Result<PathBuf, SqlError> {
    let made = || {
        let mut at = dir.to_owned();
        if !at.is_dir() {
            std::fs::create_dir_all(&at)?;
            at.parent().map_or(Ok(()), crate::disk::sync_dir)?;
        }
        for name in [tenant.as_str(), app.as_str()] {
            let parent = at.clone();
            at.push(name);
            match std::fs::create_dir(&at) {
                Ok(()) => crate::disk::sync_dir(&parent)?,
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(cause),
            }
        }
        at.push(format!("{provider}.db"));
        Ok(at)
    };
    made().map_err(|cause: std::io::Error| SqlError::Unavailable(format!("its directory cannot be made: {cause}")))
}
