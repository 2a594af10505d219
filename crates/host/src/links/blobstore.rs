//! Opens the providers of `wasi:blobstore` and gives their containers to components.

use std::sync::Arc;

use model::{Link, ProviderKind};
use providers::blobstore::external::External;
use providers::blobstore::journal::Journaled;
use providers::blobstore::nats::Nats;
use providers::blobstore::{Backend, BackendError, BlobLinks, S3};
use providers::http_json::SettingsError;
use providers::keyvalue::journal::Journal;
use providers::meter::LinkMeter;
use providers::share::Sharing;

use super::{Means, Wanted, nats};
use crate::error::StartError;
use crate::folder::Folder;

/// One object store of an app.
pub(crate) struct Store {
    backend: Arc<dyn Backend>,
    journal: Arc<Journal>,
    server: Server,
}

/// What can be asked whether it is there.
enum Server {
    /// The node, which is.
    None,
    S3(Arc<S3>),
    Nats(Nats),
    External(External),
}

impl Store {
    fn new(backend: Arc<dyn Backend>, server: Server) -> Self {
        let journal = Arc::new(Journal::default());
        Self { backend: Arc::new(Journaled::new(backend, journal.clone())), journal, server }
    }

    /// What components use.
    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What is written, for as long as somebody copies.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(super) async fn check(&self) -> Result<(), BackendError> {
        match &self.server {
            Server::None => Ok(()),
            Server::S3(s3) => s3.check().await,
            Server::Nats(nats) => nats.check().await,
            Server::External(external) => external.check().await,
        }
    }

    /// Adds what `link` gives: the container of its setting, or the one named like its label.
    pub(super) fn link(&self, links: BlobLinks, link: &Link, meter: Arc<LinkMeter>, sharing: Sharing) -> BlobLinks {
        let container = link.config.get("container").map(String::as_str);
        links.with(&link.label, self.backend.clone(), container, meter, sharing)
    }
}

pub(super) fn open(means: &Means, wanted: &Wanted<'_>) -> Result<Store, StartError> {
    let (app, name) = (wanted.app, wanted.name);
    Ok(match wanted.spec.kind {
        ProviderKind::BlobstoreFolder => {
            Store::new(Arc::new(Folder::new(means.blobs.clone(), app.clone(), name.clone())), Server::None)
        }
        ProviderKind::BlobstoreS3 => {
            let secrets = means.credentials(wanted);
            let s3 = S3::new(&means.tenant, app, name, &wanted.spec.config, secrets, means.dialer.clone());
            let wrong =
                |cause: SettingsError| StartError::Settings { provider: name.clone(), cause: cause.to_string() };
            let s3 = Arc::new(s3.map_err(wrong)?);
            Store::new(s3.clone(), Server::S3(s3))
        }
        ProviderKind::BlobstoreNats => {
            let (client, replicas) = (nats::client(means, wanted)?, nats::replicas(wanted)?);
            let nats = Nats::new(client, nats::domain(wanted), &means.tenant, app, name, replicas);
            let wrong = |cause: BackendError| StartError::Settings { provider: name.clone(), cause: cause.to_string() };
            let nats = nats.map_err(wrong)?;
            Store::new(Arc::new(nats.clone()), Server::Nats(nats))
        }
        ProviderKind::External => {
            let external = External::new(name.clone(), means.connect(wanted));
            Store::new(Arc::new(external.clone()), Server::External(external))
        }
        other => return Err(super::another_contract(name, other)),
    })
}
