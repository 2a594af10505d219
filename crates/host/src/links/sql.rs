//! Opens the providers of `sidereal:sql` and gives their databases to components.

use std::sync::Arc;

use model::{Link, ProviderKind};
use providers::http_json::SettingsError;
use providers::meter::LinkMeter;
use providers::sql::{Backend, Postgres, PostgresLink, SqlLinks};

use super::{Means, Wanted};
use crate::error::StartError;
use crate::sql::NodeSql;

/// One database of an app.
pub(crate) struct Store {
    backend: Arc<dyn Backend>,
    /// The same where it has a server that can be asked whether it is there.
    server: Option<Arc<Postgres>>,
}

impl Store {
    pub(super) async fn check(&self) -> Result<(), model::sql::SqlError> {
        match &self.server {
            Some(postgres) => postgres.check().await,
            None => Ok(()),
        }
    }

    /// Adds what `link` gives: the database, under its label.
    pub(super) fn link(&self, links: SqlLinks, link: &Link, meter: Arc<LinkMeter>) -> SqlLinks {
        links.with(&link.label, self.backend.clone(), meter)
    }

    /// What a link of `wasmcloud:postgres` gives; `None` where no Postgres is behind it.
    pub(super) fn postgres(&self, meter: Arc<LinkMeter>) -> Option<PostgresLink> {
        self.server.clone().map(|server| PostgresLink::new(server, meter))
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
            Ok(Store { backend: postgres.clone(), server: Some(postgres) })
        }
        other => Err(super::another_contract(name, other)),
    }
}
