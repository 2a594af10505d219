//! What the control plane wants of this node, and until when.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use model::{AppName, TenantName};
use store::keys::{self, Assignment};

use super::Agent;
use crate::converge::Wanted;
use crate::watch::Seen;

/// The wall clock can jump and the machine can sleep: expiry is looked at this often at least.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

impl Agent {
    /// What the control plane wants.
    pub(super) fn assigned(&mut self, seen: Seen) {
        match seen {
            Seen::All(entries) => {
                let mut gone: BTreeSet<_> = self
                    .accounts
                    .iter()
                    .flat_map(|(tenant, account)| account.apps.keys().map(|app| (tenant.clone(), app.clone())))
                    .collect();
                for entry in entries {
                    if let Some((tenant, app)) = self.want(&entry.key, Some(&entry.value)) {
                        gone.remove(&(tenant, app));
                    }
                }
                for (tenant, app) in gone {
                    self.set_wanted(&tenant, &app, None);
                }
            }
            Seen::One(change) => {
                self.want(&change.key, change.value.as_ref());
            }
        }
    }

    fn want(&mut self, key: &str, value: Option<&Bytes>) -> Option<(TenantName, AppName)> {
        let (tenant, app) = names(key)?;
        let wanted = match value {
            None => None,
            Some(value) => match serde_json::from_slice::<Assignment>(value) {
                Ok(Assignment { revision, suspended, expiry, older }) => {
                    Some(Wanted { revision, suspended, expiry, older })
                }
                Err(cause) => {
                    // Whatever runs goes on: an assignment nobody can read is no reason to end an app.
                    tracing::error!(key, %cause, "an assignment cannot be read");
                    return Some((tenant, app));
                }
            },
        };
        self.set_wanted(&tenant, &app, wanted);
        Some((tenant, app))
    }

    fn set_wanted(&mut self, tenant: &TenantName, app: &AppName, wanted: Option<Wanted>) {
        let known = self.account(tenant).apps.entry(app.clone()).or_default();
        if known.wanted == wanted && known.told.is_some() {
            return;
        }
        let same_revision = known.wanted.as_ref().map(|w| w.revision) == wanted.as_ref().map(|w| w.revision);
        if !same_revision {
            known.tries = 0;
        }
        let (old, new) = (expiries(known.wanted.as_ref()), expiries(wanted.as_ref()));
        known.wanted = wanted;
        for at in old.into_iter().flatten() {
            self.expiries.remove(&(at, tenant.clone(), app.clone()));
        }
        self.expiries.extend(new.into_iter().flatten().map(|at| (at, tenant.clone(), app.clone())));
        self.dirty.insert((tenant.clone(), app.clone()));
    }

    /// How long until the next app expires, or until the clock is to be looked at again.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        let (at, _, _) = self.expiries.first()?;
        Some(Duration::from_secs(at.saturating_sub(seconds())).min(CLOCK_CHECK))
    }

    /// Looks at the apps whose time is over.
    pub(super) fn expire(&mut self) {
        let now = seconds();
        while self.expiries.first().is_some_and(|(at, _, _)| *at <= now)
            && let Some((_, tenant, app)) = self.expiries.pop_first()
        {
            self.dirty.insert((tenant, app));
        }
    }
}

/// When the claims end of what is wanted, and of what serves in its place.
fn expiries(wanted: Option<&Wanted>) -> [Option<u64>; 2] {
    let own = wanted.and_then(|wanted| wanted.expiry.as_ref());
    let older = wanted.and_then(|wanted| wanted.older.as_ref()?.expiry.as_ref());
    [own, older].map(|expiry| expiry.map(|expiry| expiry.at))
}

/// The wall clock, seconds since 1970.
pub(super) fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The tenant and the app in a key such as `assigned/<node>/<tenant>/<app>`.
pub(super) fn names(key: &str) -> Option<(TenantName, AppName)> {
    let mut parts = keys::parts(key).skip(1);
    let names = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(names)
}
