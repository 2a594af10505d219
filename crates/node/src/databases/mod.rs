//! The tenants' SQL databases. Each tenant has a process for its own, started by its first call and ended when nobody asks
//! any more: what its statements take of processor time and memory is the tenant's, and a statement that SQLite itself cannot
//! end is ended with the process. What was acknowledged is on disk by then.

mod process;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::sql::{Answer, Call, SqlError};
use model::{AppName, ProviderName, TenantName};
use store::room::Room;
use store::sql;
use tokio::sync::OwnedSemaphorePermit;

use crate::confine::Confinement;
use process::{LATE, Process};

/// Tenants whose databases are open at once.
const MAX_PROCESSES: usize = 128;

/// How processes of databases are started.
#[derive(Debug, Clone)]
pub struct Starting {
    /// The program that is run as `databases`.
    pub exe: PathBuf,
    /// How it is confined.
    pub confinement: Arc<Confinement>,
    /// Folders that are none of its business, also where they are below one that it may read.
    pub hide: Vec<PathBuf>,
}

/// The databases of all tenants. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Databases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// Counts what they take and removes what is purged. It runs statements only where there is nothing to start.
    files: sql::Databases,
    starting: Option<Starting>,
    running: Mutex<HashMap<TenantName, Arc<Process>>>,
}

impl Databases {
    /// Below `dir`, each tenant's in a process of its own.
    pub fn new(dir: PathBuf, starting: Starting) -> Self {
        Self::of(dir, Some(starting))
    }

    /// Below `dir`, in this process: for programs that are not this one, which only tests have.
    pub fn within(dir: PathBuf) -> Self {
        Self::of(dir, None)
    }

    fn of(dir: PathBuf, starting: Option<Starting>) -> Self {
        Self(Arc::new(Inner { files: sql::Databases::new(&dir), dir, starting, running: Mutex::default() }))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<TenantName, Arc<Process>>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on what the tenant keeps here takes room of `room`, also what there is already. Blocks.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn track(&self, tenant: &TenantName, room: &Arc<Room>) -> std::io::Result<()> {
        self.0.files.track(tenant, room)
    }

    /// One call. A write is on disk when it is answered. A call that is dropped may still happen, and `held` is given back
    /// only when it has.
    ///
    /// # Errors
    /// Any [`SqlError`].
    pub async fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        call: Call,
        held: Vec<OwnedSemaphorePermit>,
    ) -> Result<Answer, SqlError> {
        let Some(starting) = &self.0.starting else { return self.0.files.call(tenant, app, provider, call).await };
        model::sql::check(call.statements())?;
        let account = self.0.files.account(tenant, app, provider);
        let answer = {
            let mut running = self.running();
            match running.get(tenant).filter(|process| !process.is_over()) {
                Some(process) => process.send(app, provider, call, account, held),
                None => {
                    make_room(&mut running, tenant)?;
                    let process = Arc::new(Process::start(starting, &self.0.dir, tenant, LATE)?);
                    let answer = process.send(app, provider, call, account, held);
                    running.insert(tenant.clone(), process);
                    answer
                }
            }
        };
        answer.await.unwrap_or_else(|_| Err(SqlError::Unavailable("the node closed the databases".to_owned())))
    }

    /// Removes the databases of an app that no host has any more. Blocks.
    ///
    /// # Errors
    /// What the file system says; what is left is removed by the next try.
    pub fn purge(&self, tenant: &TenantName, app: &AppName) -> std::io::Result<()> {
        // A call that comes after this is behind it on the way to the process, and opens what is there then.
        if let Some(process) = self.running().get(tenant) {
            process.close(app);
        }
        self.0.files.purge(tenant, app)
    }

    /// Ends the process of a tenant that has no host any more. Returns when it is gone.
    pub async fn end(&self, tenant: &TenantName) {
        let process = self.running().remove(tenant);
        if let Some(process) = process {
            process.end().await;
        }
    }

    /// Ends all of them.
    pub async fn shutdown(&self) {
        let all: Vec<Arc<Process>> = self.running().drain().map(|(_, process)| process).collect();
        futures::future::join_all(all.iter().map(|process| process.end())).await;
    }
}

/// Has room for the process of one more tenant: the one that was not asked for the longest ends, if none of its calls is
/// under way.
fn make_room(running: &mut HashMap<TenantName, Arc<Process>>, tenant: &TenantName) -> Result<(), SqlError> {
    running.retain(|_, process| !process.is_over());
    if running.len() < MAX_PROCESSES || running.contains_key(tenant) {
        return Ok(());
    }
    let idle = running.iter().filter_map(|(name, process)| Some((process.idle_since()?, name)));
    let Some(oldest) = idle.min().map(|(_, name)| name.clone()) else {
        let text = format!("the databases of {MAX_PROCESSES} tenants are in use on this node; try again later");
        return Err(SqlError::Unavailable(text));
    };
    if let Some(process) = running.remove(&oldest) {
        tokio::spawn(async move { process.end().await });
    }
    Ok(())
}
