//! The agent's part that has code made again for what was put back, and knows until when: its calls wait that long in the
//! hosts, so the node has not settled before, and what it reports says why.

use api::Problem;
use model::{AppName, Revision, TenantName};

use super::Agent;
use crate::bring::{News, Progress};
use crate::recompile::{Uncompiled, make};

impl Agent {
    /// A host has come whose engine has no code of these.
    pub(super) fn recompile(&mut self, tenant: &TenantName, uncompiled: Vec<Uncompiled>) {
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        if !uncompiled.is_empty() {
            tracing::info!(%tenant, apps = uncompiled.len(), "the engine of a host has no code of these: it is made again");
        }
        for wanted in uncompiled {
            let app = account.apps.get_mut(&wanted.app);
            // What is being brought up has it made itself, and what leaves needs it no more.
            let Some(app) = app.filter(|app| app.actual.serving == Some(wanted.revision)) else { continue };
            app.compiling.push(wanted.revision);
            self.untold.insert((tenant.clone(), wanted.app.clone()));
            let (artifacts, tenant, news) = (self.setup.artifacts.clone(), account.shared.clone(), self.news.clone());
            tokio::spawn(async move {
                let made = tokio::select! {
                    made = make(&artifacts, &tenant, &wanted) => made,
                    () = news.closed() => return,
                };
                let Uncompiled { app, revision, .. } = wanted;
                drop(news.send(News { tenant, app, revision, what: Progress::Compiled(made) }));
            });
        }
    }

    /// The code is there, or cannot be: then the engine has changed under what served, as where a host refuses it.
    pub(super) fn recompiled(
        &mut self,
        tenant: &TenantName,
        name: &AppName,
        revision: Revision,
        made: Result<(), Problem>,
    ) {
        let app = self.accounts.get_mut(tenant).and_then(|account| account.apps.get_mut(name));
        let Some(app) = app else { return };
        if let Some(at) = app.compiling.iter().position(|one| *one == revision) {
            app.compiling.swap_remove(at);
        }
        if let Err(problem) = made {
            self.refused(tenant, name, revision, &problem);
        }
    }
}
