//! What requests are signed with.

use std::sync::Arc;

use object_store::aws::AwsCredential;
use object_store::client::CredentialProvider;

use crate::secrets::{Credentials, Made};

/// The access key: asked for when it is first needed, and again when some secret was set anew.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) id: Option<String>,
    pub(super) secrets: Credentials,
    pub(super) made: Made<Arc<AwsCredential>>,
}

#[async_trait::async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let round = match self.made.known(|| self.secrets.changes()) {
            Ok(known) => return Ok(known),
            Err(round) => round,
        };
        let unlocked = self.secrets.all().await.map_err(generic)?;
        let text = |setting: &str| match unlocked.bytes(setting) {
            Some(bytes) => String::from_utf8(bytes.to_vec()).map(Some).map_err(generic),
            None => Ok(None),
        };
        let key_id = text("access-key-id")?.or_else(|| self.id.clone()).unwrap_or_default();
        let secret_key = text("secret-access-key")?.unwrap_or_default();
        let key = Arc::new(AwsCredential { key_id, secret_key, token: text("session-token")? });
        self.made.keep(round, key.clone());
        Ok(key)
    }
}

fn generic(cause: impl std::error::Error + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: Box::new(cause) }
}
