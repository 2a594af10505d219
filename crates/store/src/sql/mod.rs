//! The SQLite databases of apps, one file per tenant, app and provider: `<tenant>/<app>/<provider>.db`.
//!
//! A database that is used has a thread of its own, which alone touches the file; calls wait in line for it, so a slow
//! statement holds up its own database and no other. The thread ends when nobody asked for a while.
//!
//! What a thread is doing inside of one step of SQLite nothing in its process can end: some of its functions take time that
//! grows with the square of what they are given. So the databases of each tenant run in a process of their own, which whoever
//! made it ends where [`Databases::is_stuck`].

mod database;
mod guard;
mod quota;
mod refusal;
mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use model::sql::{Answer, Call, STATEMENT_MS, SqlError};
use model::{AppName, ProviderName, TenantName};
use tokio::sync::oneshot;

use crate::room::Room;
use database::Database;
pub use quota::Account;
use quota::{Share, Sizes};
use watch::Watch;

/// The largest database, bytes.
pub const MAX_DATABASE: u64 = 1 << 30;
/// Databases that are open at once: each has a thread.
const MAX_OPEN: usize = 256;
/// Databases of one tenant among those.
const MAX_OF_TENANT: usize = 32;
/// Calls that wait for one database.
const MAX_WAITING: usize = 256;
/// How long a call waits for the ones before it.
const MAX_WAIT: Duration = Duration::from_millis(STATEMENT_MS);
/// A statement that runs this long sits in one step of SQLite: between two of them it would have been ended.
const STUCK: Duration = Duration::from_millis(STATEMENT_MS + 1000);
/// A database nobody asks for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// How much a statement gives way to everything else on the machine: threads of the node carry requests.
const NICE: i32 = 10;

/// The answer to a call, when it comes; none where the database closed.
pub type Answering = oneshot::Receiver<Result<Answer, SqlError>>;

/// Whose database.
type Key = (TenantName, AppName, ProviderName);

/// All databases of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Databases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    open: Mutex<HashMap<Key, Open>>,
    /// Tenants that have a quota.
    tracked: Mutex<HashMap<TenantName, Arc<Sizes>>>,
    /// Statements that run.
    watch: Watch,
}

/// A database that has a thread.
#[derive(Debug)]
struct Open {
    calls: SyncSender<Job>,
    used: Instant,
    /// Calls that wait or are at work; each of them has a copy.
    busy: Arc<()>,
}

impl Open {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.busy) == 1
    }
}

/// One call on its way to its database.
struct Job {
    call: Call,
    /// Who counts what the database takes, where that is counted.
    account: Option<Arc<dyn Account>>,
    since: Instant,
    reply: oneshot::Sender<Result<Answer, SqlError>>,
    busy: Arc<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Databases {
    /// Databases below `dir`, which is made with the first of them.
    pub fn new(dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref().to_owned();
        Self(Arc::new(Inner { dir, open: Mutex::default(), tracked: Mutex::default(), watch: Watch::default() }))
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
        let answer = self.send(tenant, app, provider, call, self.account(tenant, app, provider))?;
        answer.await.unwrap_or_else(|_| Err(SqlError::Unavailable("the node closed the database".to_owned())))
    }

    /// As [`Databases::call`]; the call is in the line of its database when this returns. `account` counts what it takes.
    ///
    /// # Errors
    /// Any [`SqlError`].
    pub fn send(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        call: Call,
        account: Option<Arc<dyn Account>>,
    ) -> Result<Answering, SqlError> {
        model::sql::check(call.statements())?;
        self.line_up((tenant.clone(), app.clone(), provider.clone()), call, account)
    }

    /// Who counts what a database takes here; `None` where its tenant has no quota.
    pub fn account(&self, tenant: &TenantName, app: &AppName, provider: &ProviderName) -> Option<Arc<dyn Account>> {
        let sizes = lock(&self.0.tracked).get(tenant).cloned()?;
        Some(Arc::new(Share::new(sizes, app.clone(), provider.clone())))
    }

    /// Whether a statement runs that should have ended by itself a while ago. Nothing but the end of the process ends it.
    pub fn is_stuck(&self) -> bool {
        self.0.watch.longest().is_some_and(|time| time > STUCK)
    }

    /// Closes the databases of an app: the next call opens what is there then.
    pub fn close(&self, tenant: &TenantName, app: &AppName) {
        // Their threads end; what those still have open goes with them.
        lock(&self.0.open).retain(|(of, owner, _), _| (of, owner) != (tenant, app));
    }

    /// Removes the databases of an app that no host has any more. Blocks.
    ///
    /// # Errors
    /// What the file system says; what is left is removed by the next try.
    pub fn purge(&self, tenant: &TenantName, app: &AppName) -> std::io::Result<()> {
        self.close(tenant, app);
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

    fn line_up(&self, key: Key, call: Call, account: Option<Arc<dyn Account>>) -> Result<Answering, SqlError> {
        let (reply, answer) = oneshot::channel();
        let (since, busy) = (Instant::now(), Arc::new(()));
        let mut job = Job { call, account, since, reply, busy: busy.clone() };
        // Nothing here waits: a thread takes this lock only to leave.
        let mut open = lock(&self.0.open);
        if let Some(known) = open.get_mut(&key) {
            job.busy = known.busy.clone();
            known.used = since;
            match known.calls.try_send(job) {
                Ok(()) => return Ok(answer),
                Err(TrySendError::Full(_)) => {
                    return Err(SqlError::Unavailable(format!("{MAX_WAITING} calls wait for this database already")));
                }
                // Its thread failed.
                Err(TrySendError::Disconnected(back)) => job = Job { busy: busy.clone(), ..back },
            }
        } else {
            make_room(&mut open, &key.0)?;
        }
        let (calls, received) = sync_channel(MAX_WAITING);
        let sent = calls.try_send(job);
        let (inner, dir, of) = (Arc::downgrade(&self.0), self.0.dir.clone(), key.clone());
        let thread = std::thread::Builder::new().name("sql".to_owned());
        let spawned = thread.spawn(move || serve(&inner, &dir, &of, &received));
        if let (Ok(_), Ok(())) = (spawned, sent) {
            open.insert(key, Open { calls, used: since, busy });
            return Ok(answer);
        }
        open.remove(&key);
        Err(SqlError::Unavailable("the node has no thread for the database".to_owned()))
    }
}

/// Has room for one more database of the tenant: where there is none, the one that was not asked for the longest closes,
/// of its own where it has as many as it may, else of all.
fn make_room(open: &mut HashMap<Key, Open>, tenant: &TenantName) -> Result<(), SqlError> {
    let own = open.keys().filter(|(of, ..)| of == tenant).count();
    if own < MAX_OF_TENANT && open.len() < MAX_OPEN {
        return Ok(());
    }
    let may_close = |(of, ..): &Key| own < MAX_OF_TENANT || of == tenant;
    let idle = open.iter().filter(|(key, one)| may_close(key) && one.is_idle());
    let oldest = idle.min_by_key(|(_, one)| one.used).map(|(key, _)| key.clone());
    let Some(oldest) = oldest else {
        let (count, whose) = if own < MAX_OF_TENANT { (MAX_OPEN, "node") } else { (MAX_OF_TENANT, "tenant") };
        return Err(SqlError::Unavailable(format!("{count} databases of this {whose} are in use; try again later")));
    };
    // Its thread ends when it sees that nobody can send to it any more.
    open.remove(&oldest);
    Ok(())
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
                    Err(TryRecvError::Empty) => {
                        open.remove(key);
                        return;
                    }
                    // It was closed to make room, and may have been opened anew.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        }
    }
}

fn work(database: &mut Option<Database>, inner: &Weak<Inner>, dir: &Path, key: &Key, job: Job) {
    let Job { call, account, since, reply, busy } = job;
    if reply.is_closed() {
        return;
    }
    let result = if since.elapsed() > MAX_WAIT {
        Err(SqlError::Unavailable("the calls before this one took too long".to_owned()))
    } else {
        answer(database, inner, dir, key, &call, account.as_ref())
    };
    if let Err(SqlError::Unavailable(cause)) = &result {
        let (tenant, app, provider) = key;
        tracing::warn!(%tenant, %app, %provider, %cause, "a database cannot be used");
    }
    drop(busy);
    // Whoever asked may be gone by now.
    drop(reply.send(result));
}

fn answer(
    slot: &mut Option<Database>,
    inner: &Weak<Inner>,
    dir: &Path,
    key: &Key,
    call: &Call,
    account: Option<&Arc<dyn Account>>,
) -> Result<Answer, SqlError> {
    let mut database = match slot.take() {
        Some(open) => open,
        None => Database::open(&place(dir, key)?)?,
    };
    let inner = inner.upgrade().ok_or_else(|| SqlError::Unavailable("the databases are closed".to_owned()))?;
    let result = database.call(call, account, &inner.watch);
    drop(inner);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Databases that are open, in the order they were asked for; those with a second handle are at work.
    fn open(all: &[(&str, usize)]) -> (HashMap<Key, Open>, Vec<Arc<()>>) {
        let began = Instant::now();
        let mut open = HashMap::new();
        let mut handles = Vec::new();
        for (tenant, count) in all {
            for n in 0..*count {
                let key = (tenant.parse().unwrap(), format!("a{n}").parse().unwrap(), "sqlite".parse().unwrap());
                let used = began + Duration::from_millis(open.len() as u64);
                let busy = Arc::new(());
                handles.push(busy.clone());
                open.insert(key, Open { calls: sync_channel(1).0, used, busy });
            }
        }
        (open, handles)
    }

    fn of(open: &HashMap<Key, Open>, tenant: &str) -> usize {
        open.keys().filter(|(of, ..)| of.as_str() == tenant).count()
    }

    #[test]
    fn a_tenant_makes_room_among_its_own_and_all_of_them_among_all() {
        let (acme, late): (TenantName, TenantName) = ("acme".parse().unwrap(), "late".parse().unwrap());
        // It has as many as it may: another one of its own closes, and nobody else's.
        let (mut some, mut handles) = open(&[("early", 3), ("acme", MAX_OF_TENANT)]);
        assert!(make_room(&mut some, &acme).is_err_and(|why| why.to_string().contains("of this tenant are in use")));
        handles.clear();
        make_room(&mut some, &acme).unwrap();
        assert_eq!((of(&some, "early"), of(&some, "acme")), (3, MAX_OF_TENANT - 1));
        assert!(!some.keys().any(|(of, app, _)| of == &acme && app.as_str() == "a0"), "the oldest of them");
        make_room(&mut some, &acme).unwrap();
        assert_eq!(of(&some, "acme"), MAX_OF_TENANT - 1, "there is room already");
        // The node has as many as it may: the oldest idle one of all closes.
        let full: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
        let full: Vec<(&str, usize)> = full.iter().map(|name| (name.as_str(), MAX_OF_TENANT)).collect();
        let (mut all, mut handles) = open(&full);
        assert!(make_room(&mut all, &late).is_err_and(|why| why.to_string().contains("of this node are in use")));
        handles.remove(MAX_OF_TENANT * 5);
        make_room(&mut all, &late).unwrap();
        assert_eq!((all.len(), of(&all, "t5")), (MAX_OPEN - 1, MAX_OF_TENANT - 1));
    }
}
