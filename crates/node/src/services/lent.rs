//! Secrets that an app may see though no revision of it names them yet: those of a provider its data are being moved to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use model::{AppName, SecretName, TenantName};

/// What is lent, by app.
#[derive(Debug, Default)]
pub struct Lent(Mutex<BTreeMap<(TenantName, AppName), BTreeSet<SecretName>>>);

impl Lent {
    /// Lends secrets to an app, in place of those it had.
    pub fn lend(&self, tenant: &TenantName, app: &AppName, secrets: BTreeSet<SecretName>) {
        let mut lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lent.insert((tenant.clone(), app.clone()), secrets);
    }

    /// Takes back what was lent to an app.
    pub fn take_back(&self, tenant: &TenantName, app: &AppName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(tenant.clone(), app.clone()));
    }

    /// Whether the app may see this one.
    pub fn has(&self, tenant: &TenantName, app: &AppName, secret: &SecretName) -> bool {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lent.get(&(tenant.clone(), app.clone())).is_some_and(|secrets| secrets.contains(secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_the_apps_until_it_is_taken_back() {
        let (lent, tenant, app): (_, TenantName, AppName) =
            (Lent::default(), "t".parse().unwrap(), "a".parse().unwrap());
        let secret: SecretName = "token".parse().unwrap();
        lent.lend(&tenant, &app, [secret.clone()].into());
        assert!(lent.has(&tenant, &app, &secret));
        assert!(!lent.has(&tenant, &"b".parse().unwrap(), &secret));
        lent.take_back(&tenant, &app);
        assert!(!lent.has(&tenant, &app, &secret));
    }
}
