//! What logs in to Vault, from the secrets that the settings of a provider name.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Hidden, Login, LoginSource, VaultError};
use crate::secrets::{Credentials, SecretError};

/// A login with the secrets `token`, or `role_id` and `secret_id`, or `jwt`.
pub struct FromSecrets {
    credentials: Credentials,
    role: Option<String>,
}

impl FromSecrets {
    /// A login with these secrets; `role` goes with `jwt`.
    pub fn new(credentials: Credentials, role: Option<String>) -> Self {
        Self { credentials, role }
    }

    async fn read(&self) -> Result<Login, VaultError> {
        let unlocked = self.credentials.all().await.map_err(no_credential)?;
        let text = |setting| {
            let text = unlocked.text(setting).map_err(no_credential)?;
            // A file that a secret was set from often ends in a line break, which is no part of it.
            Ok(text.map(|text| Hidden::new(text.trim_end_matches(['\r', '\n']).to_owned())))
        };
        match (text("token")?, text("role_id")?, text("secret_id")?, text("jwt")?) {
            (Some(token), None, None, None) => Ok(Login::Token(token)),
            (None, Some(role_id), Some(secret_id), None) => Ok(Login::AppRole { role_id, secret_id }),
            (None, None, None, Some(jwt)) => Ok(Login::Jwt { role: self.role.clone(), jwt }),
            _ => Err(VaultError::NoCredential {
                cause:
                    "the provider names no one way to log in to Vault: `token`, or `role_id` and `secret_id`, or `jwt`"
                        .to_owned(),
                passing: false,
            }),
        }
    }
}

impl LoginSource for FromSecrets {
    fn login(&self) -> BoxFuture<'_, Result<Login, VaultError>> {
        self.read().boxed()
    }
}

fn no_credential(cause: SecretError) -> VaultError {
    let passing = cause.is_away();
    VaultError::NoCredential { cause: cause.to_string(), passing }
}
