//! Secrets for the apps of one host. Which ones an app may see is what its revisions here say, not what the host says.

use std::time::Duration;

use api::services::ServiceFault;
use api::services::secret::{HOLD_SECONDS, SecretAnswer, SecretRequest, WireSecret};
use model::AppName;
use store::secrets::Secrets;
use tokio::sync::Semaphore;

use super::Lent;
use crate::tenant::Tenant;

/// Questions of one host for changes that are held at once. One of ours has one; each is woken by every tenant's changes.
pub(super) const HELD: usize = 4;

pub(super) async fn answer(
    tenant: &Tenant,
    secrets: &Secrets,
    lent: &Lent,
    held: &Semaphore,
    app: &AppName,
    request: SecretRequest,
) -> Result<SecretAnswer, ServiceFault> {
    match request {
        SecretRequest::Reveal { secret }
            if !tenant.may_reveal(app, &secret) && !lent.has(&tenant.name, app, &secret) =>
        {
            if let Some(left_out) = tenant.may_say() {
                tracing::warn!(tenant = %tenant.name, %app, %secret, left_out, "a host asked for a secret that its app does not name");
            }
            Ok(SecretAnswer::NotNamed)
        }
        SecretRequest::Reveal { secret } => match secrets.reveal(&tenant.name, &secret).await {
            Ok(Some(found)) => Ok(SecretAnswer::Value { version: found.mark, value: WireSecret(found.value) }),
            Ok(None) => Ok(SecretAnswer::Missing),
            Err(cause) => {
                if let Some(left_out) = tenant.may_say() {
                    tracing::error!(tenant = %tenant.name, %app, %secret, %cause, left_out, "a secret cannot be revealed");
                }
                Err(ServiceFault::Unavailable(cause.to_string()))
            }
        },
        SecretRequest::Changed { after } => {
            let Ok(_held) = held.try_acquire() else {
                return Err(ServiceFault::Refused(format!(
                    "{HELD} questions of this host for changed secrets wait already"
                )));
            };
            let changed = tokio::time::timeout(Duration::from_secs(HOLD_SECONDS), secrets.changed(&tenant.name, after));
            Ok(SecretAnswer::Changed(changed.await.unwrap_or(after)))
        }
    }
}
