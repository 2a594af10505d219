//! What the node tells the control plane: of its apps once the routes are as it says, of itself, and that it has settled.

use store::keys;

use super::Agent;
use super::tenant::Account;
use super::wanted::seconds;
use crate::publisher::Said;

impl Agent {
    /// Tells the control plane what is new, after the routes say so too.
    pub(super) fn tell(&mut self) {
        if self.routes_dirty {
            return;
        }
        for (tenant, name) in std::mem::take(&mut self.untold) {
            let Some(account) = self.accounts.get_mut(&tenant) else { continue };
            let health = account.health();
            let Some(wanted) = account.wanted(&name) else { continue };
            // What is being resumed is told of when its hosts have it.
            let app = account.apps.get_mut(&name).filter(|app| app.resuming == 0);
            let Some(seen) = app.and_then(|app| app.news(&wanted, &health, seconds())) else { continue };
            match serde_json::to_vec(&seen) {
                Ok(value) => {
                    let key = keys::observed(&self.setup.name, &tenant, &name);
                    self.say(Said::Report(key, value.into()));
                }
                Err(cause) => tracing::error!(%cause, "a report cannot be written"),
            }
        }
    }

    pub(super) fn say(&self, said: Said) {
        if self.setup.said.send(said).is_err() {
            tracing::debug!("the publisher has ended");
        }
    }

    pub(super) fn say_record(&self) {
        match serde_json::to_vec(&self.setup.record) {
            Ok(value) => self.say(Said::Report(keys::node(&self.setup.name), value.into())),
            Err(cause) => tracing::error!(%cause, "the node's record cannot be written"),
        }
    }

    /// Says, once, that everything that was wanted at the start is there or has failed.
    pub(super) fn settle(&mut self) {
        if *self.setup.settled.borrow() || self.routes_dirty {
            return;
        }
        if self.accounts.values().all(Account::is_settled) {
            self.setup.settled.send_replace(true);
        }
    }
}
