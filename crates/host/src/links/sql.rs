//! Opens the providers of `sidereal:sql` and gives their databases to components.

use std::sync::Arc;

use model::{Link, ProviderKind};
use providers::http_json::SettingsError;
use providers::meter::LinkMeter;
use providers::share::Sharing;
use providers::sql::external::External;
use providers::sql::{Backend, Postgres, PostgresLink, SqlLinks};

use super::{Means, Wanted};
use crate::error::StartError;
use crate::sql::NodeSql;

/// One database of an app.
pub(crate) struct Store {
    backend: Arc<dyn Backend>,
    /// The same where it can be asked whether it is there.
    server: Option<Server>,
}

/// The providers that can.
enum Server {
    Postgres(Arc<Postgres>),
    External(Arc<External>),
}

impl Store {
    pub(super) async fn check(&self) -> Result<(), model::sql::SqlError> {
        match &self.server {
            Some(Server::Postgres(postgres)) => postgres.check().await,
            Some(Server::External(external)) => external.check().await,
            None => Ok(()),
        }
    }

    /// Adds what `link` gives: the database, under its label.
    pub(super) fn link(&self, links: SqlLinks, link: &Link, meter: Arc<LinkMeter>, sharing: Sharing) -> SqlLinks {
        links.with(&link.label, self.backend.clone(), meter, sharing)
    }

    /// What a link of `wasmcloud:postgres` gives; `None` where no Postgres is behind it.
    pub(super) fn postgres(&self, meter: Arc<LinkMeter>, sharing: Sharing) -> Option<PostgresLink> {
        match &self.server {
            Some(Server::Postgres(postgres)) => Some(PostgresLink::new(postgres.clone(), meter, sharing)),
            Some(Server::External(_)) | None => None,
        }
    }
}

pub(super) fn open(means: &Means, wanted: &Wanted<'_>) -> Result<Store, StartError> {
    let (app, name) = (wanted.app, wanted.name);
    match wanted.spec.kind {
        ProviderKind::SqlSqlite => {
            let backend = Arc::new(NodeSql::new(means.calls.clone(), app.clone(), name.clone()));
            Ok(Store { backend, server: None })
        }
        ProviderKind::SqlPostgres => {
            let secrets = means.credentials(wanted);
            let postgres = Postgres::new(&means.tenant, app, name, &wanted.spec.config, secrets, means.dialer.clone());
            let wrong =
                |cause: SettingsError| StartError::Settings { provider: name.clone(), cause: cause.to_string() };
            let postgres = Arc::new(postgres.map_err(wrong)?);
            Ok(Store { backend: postgres.clone(), server: Some(Server::Postgres(postgres)) })
        }
        ProviderKind::External => {
            let external = Arc::new(External::new(name.clone(), means.connect(wanted)));
            Ok(Store { backend: external.clone(), server: Some(Server::External(external)) })
        }
        other => Err(super::another_contract(name, other)),
    }
}
