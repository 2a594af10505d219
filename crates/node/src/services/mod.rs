//! What a host may ask over the connections it was handed. Who asks is known by which connection it is; every answer is
//! limited to that tenant.

mod blob;
mod calls;
mod files;
mod keyvalue;
mod lent;
mod secret;
mod share;
mod standing;

use std::sync::Arc;
use std::time::Duration;

use api::agent::HostInfo;
use api::services::MoreRequest;
use api::services::server::{Accepted, accept};
use api::{Code, Problem};
use arc_swap::ArcSwapOption;
use model::{AppName, TenantName};
use store::data::DataEngine;
use store::folder::{Folder, Trash};
use store::secrets::Secrets;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub use lent::Lent;
pub(crate) use share::Share;

use crate::artifacts::Artifacts;
use crate::confine::Confinement;
use crate::databases::Databases;
use crate::dialer::Dialer;
use crate::external::Externals;
use crate::messaging::Messaging;
use crate::tenant::Tenant;

/// How long a fresh connection may take to say what it is for.
const HELLO: Duration = Duration::from_secs(10);
/// Connections of one host at once: those of [`api::services::client`], and a few that are ending.
const MAX_CONNECTIONS: usize = 128;

/// What the node has to offer to hosts.
#[derive(Debug)]
pub struct Services {
    /// Embedded data.
    pub data: DataEngine,
    /// Objects.
    pub folder: Folder,
    /// Databases.
    pub sql: Databases,
    /// Compiled code.
    pub artifacts: Arc<Artifacts>,
    /// Connections.
    pub dialer: Dialer,
    /// The tenants' secrets.
    pub secrets: Arc<Secrets>,
    /// Messages.
    pub messaging: Arc<Messaging>,
    /// Secrets of providers that data are moved to.
    pub lent: Arc<Lent>,
    /// Processes of external providers.
    pub externals: Arc<Externals>,
    /// What hosts are confined by.
    pub confinement: Arc<Confinement>,
}

impl Services {
    /// Has what the tenant keeps here counted, where it has a quota of that; once.
    ///
    /// # Errors
    /// Why it cannot be counted: nothing more is kept then.
    pub(crate) async fn counted(&self, tenant: &Tenant) -> Result<(), String> {
        let kept = &tenant.kept;
        if kept.room.most().is_none() {
            return Ok(());
        }
        let failed = |cause: &dyn std::fmt::Display| format!("what the tenant keeps cannot be counted: {cause}");
        // Each of them once: what one has counted already is not counted again where another fails.
        let keys = async || self.data.track(&tenant.name, &kept.room).await.map_err(|cause| failed(&cause));
        kept.keys.get_or_try_init(keys).await?;
        let objects = async || {
            let (folder, name, room) = (self.folder.clone(), tenant.name.clone(), kept.room.clone());
            let tracked = tokio::task::spawn_blocking(move || folder.track(&name, &room)).await;
            tracked.map_err(|cause| failed(&cause))?.map_err(|cause| failed(&cause))
        };
        kept.objects.get_or_try_init(objects).await?;
        let databases = async || {
            let (sql, name, room) = (self.sql.clone(), tenant.name.clone(), kept.room.clone());
            let tracked = tokio::task::spawn_blocking(move || sql.track(&name, &room)).await;
            tracked.map_err(|cause| failed(&cause))?.map_err(|cause| failed(&cause))
        };
        kept.databases.get_or_try_init(databases).await?;
        Ok(())
    }

    /// Removes what is kept here of an app that no host has any more.
    ///
    /// # Errors
    /// `store-unavailable`: what is left is removed by the next try.
    pub async fn purge(&self, tenant: &TenantName, app: &AppName) -> Result<(), Problem> {
        let failed = |cause: &dyn std::fmt::Display| {
            Problem::new(Code::StoreUnavailable, format!("the data of `{app}` cannot be removed: {cause}"))
        };
        self.externals.purge(tenant, app).await.map_err(|cause| failed(&cause))?;
        self.messaging.forget(tenant, app).await;
        self.data.purge(tenant, app).await.map_err(|cause| failed(&cause))?;
        let (folder, sql, tenant, app) = (self.folder.clone(), self.sql.clone(), tenant.clone(), app.clone());
        let remove = move || {
            sql.purge(&tenant, &app).map_err(|cause| cause.to_string())?;
            folder.purge(&tenant, &app).map(Trash::empty).map_err(|cause| cause.to_string())
        };
        let removed = tokio::task::spawn_blocking(remove).await;
        removed.map_err(|cause| failed(&cause))?.map_err(|cause| failed(&cause))
    }
}

/// One host, as its connections are served.
#[derive(Debug, Clone)]
pub struct Client {
    /// Whose host.
    pub tenant: Arc<Tenant>,
    /// Which of its hosts.
    pub shard: u32,
    /// What the process that listens there now said of itself.
    pub info: Arc<ArcSwapOption<HostInfo>>,
}

/// A connection that counts among those of its host until it is dropped.
type Counted = (UnixStream, OwnedSemaphorePermit);

/// Makes further connections for a host.
#[derive(Debug, Clone)]
struct Maker {
    made: mpsc::Sender<Counted>,
    room: Arc<Semaphore>,
    /// Taken by the one connection on which the host says where it stands.
    standing: Arc<Semaphore>,
    /// Taken by questions of the host for changed secrets, on whichever connection.
    watching: Arc<Semaphore>,
}

/// Serves a host by its first connection and by those it asks for over it, until all have ended or the returned future is
/// dropped.
pub async fn serve(first: UnixStream, client: Client, services: Arc<Services>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (made, mut coming) = mpsc::channel(1);
    let mut connections = tokio::task::JoinSet::new();
    let Ok(permit) = room.clone().acquire_owned().await else { return };
    let permits = |count| Arc::new(Semaphore::new(count));
    let maker = Maker { made, room, standing: permits(1), watching: permits(secret::HELD) };
    connections.spawn(counted((first, permit), client.clone(), services.clone(), maker.clone()));
    loop {
        tokio::select! {
            biased;
            Some(next) = coming.recv() => {
                connections.spawn(counted(next, client.clone(), services.clone(), maker.clone()));
            }
            ended = connections.join_next() => if ended.is_none() {
                return;
            },
        }
    }
}

async fn counted((stream, _permit): Counted, client: Client, services: Arc<Services>, maker: Maker) {
    let (name, shard) = (client.tenant.name.clone(), client.shard);
    if let Err(cause) = connection(stream, client, services, maker).await {
        tracing::debug!(tenant = %name, shard, %cause, "a host's connection ended");
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: UnixStream,
    client: Client,
    services: Arc<Services>,
    maker: Maker,
) -> Result<(), api::services::codec::WireError> {
    let Ok(accepted) = tokio::time::timeout(HELLO, accept(stream)).await else { return Ok(()) };
    match accepted? {
        Accepted::KeyValue(reader, writer) => keyvalue::serve(reader, writer, client.tenant, &services).await,
        Accepted::Calls(reader, writer) => calls::serve(reader, writer, client, services, maker.watching).await,
        Accepted::Files(files) => files::serve(files, client, services).await,
        Accepted::More(mut more) => {
            while let Some(MoreRequest::Connection) = more.next().await? {
                let Ok(permit) = maker.room.clone().acquire_owned().await else { break };
                let made = more.connection()?;
                if maker.made.send((made, permit)).await.is_err() {
                    break;
                }
            }
            Ok(())
        }
        Accepted::Standing(stream) => {
            let Ok(_only) = maker.standing.try_acquire() else { return Ok(()) };
            Ok(standing::serve(stream, &client, &services.confinement).await?)
        }
        Accepted::Alive(mut stream) => {
            let mut byte = [0; 1];
            // Nothing is ever said here; whatever arrives, or the end, ends it.
            let said = stream.read(&mut byte).await?;
            tracing::debug!(said, "the process at the other end is gone");
            Ok(())
        }
    }
}
