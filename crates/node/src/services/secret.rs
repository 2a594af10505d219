//! Secrets for the apps of one host. Which ones an app may see is what its revisions here say, not what the host says.

use std::time::Duration;

use api::services::ServiceFault;
use api::services::secret::{HOLD_SECONDS, SecretAnswer, SecretRequest, WireSecret};
use model::AppName;
use store::secrets::Secrets;

use super::Lent;
use crate::tenant::Tenant;

pub(super) async fn answer(
    tenant: &Tenant,
    secrets: &Secrets,
    lent: &Lent,
    app: &AppName,
    request: SecretRequest,
) -> Result<SecretAnswer, ServiceFault> {
    match request {
        SecretRequest::Reveal { secret }
            if !tenant.may_reveal(app, &secret) && !lent.has(&tenant.name, app, &secret) =>
        {
            tracing::warn!(tenant = %tenant.name, %app, %secret, "a host asked for a secret that its app does not name");
            Ok(SecretAnswer::NotNamed)
        }
        SecretRequest::Reveal { secret } => match secrets.reveal(&tenant.name, &secret).await {
            Ok(Some(found)) => Ok(SecretAnswer::Value { version: found.info.etag, value: WireSecret(found.value) }),
            Ok(None) => Ok(SecretAnswer::Missing),
            Err(cause) => {
                tracing::error!(tenant = %tenant.name, %app, %secret, %cause, "a secret cannot be revealed");
                Err(ServiceFault::Unavailable(cause.to_string()))
            }
        },
        SecretRequest::Changed { after } => {
            let held = tokio::time::timeout(Duration::from_secs(HOLD_SECONDS), secrets.changed(&tenant.name, after));
            Ok(SecretAnswer::Changed(held.await.unwrap_or(after)))
        }
    }
}
