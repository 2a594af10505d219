//! What is asked about what apps of a tenant share: artifacts, providers, secrets and configs.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use model::{ConfigName, Digest, SecretName, SecretValue, TenantName};

use super::{ClientError, ControlClient, Require};
use crate::control::{ConfigRequest, ConfigSet, ConfigView, KeyRotated, ProviderView, SecretView};
use crate::problem::Code;

impl ControlClient {
    /// The tenant has sent this artifact already.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn has_blob(&self, tenant: &TenantName, digest: &Digest) -> Result<bool, ClientError> {
        let path = format!("/v1/tenants/{tenant}/blobs/{digest}");
        match self.send(Method::HEAD, &path, HeaderMap::new(), Bytes::new(), None).await {
            Ok(_) => Ok(true),
            Err(ClientError::Refused(problem)) if problem.code == Code::NotFound => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Uploads an artifact of the tenant.
    ///
    /// # Errors
    /// `artifact-missing` where the bytes are not those of the digest, `too-large`; [`ClientError`].
    pub async fn put_blob(&self, tenant: &TenantName, digest: &Digest, bytes: Bytes) -> Result<(), ClientError> {
        let kind = HeaderValue::from_static("application/octet-stream");
        let path = format!("/v1/tenants/{tenant}/blobs/{digest}");
        self.send(Method::PUT, &path, HeaderMap::new(), bytes, Some(kind)).await.map(drop)
    }

    /// The providers an app of the tenant can link to, and who does.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn providers(&self, tenant: &TenantName) -> Result<Vec<ProviderView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/providers")).await
    }

    /// The tenant's secrets, without their values.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn secrets(&self, tenant: &TenantName) -> Result<Vec<SecretView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/secrets")).await
    }

    /// Sets a secret.
    ///
    /// # Errors
    /// `conflict` where `require` does not hold, `too-large`; [`ClientError`].
    pub async fn put_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        value: SecretValue,
        require: Require,
    ) -> Result<SecretView, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        let kind = HeaderValue::from_static("application/octet-stream");
        let path = format!("/v1/tenants/{tenant}/secrets/{name}");
        let body = self.send(Method::PUT, &path, headers, Bytes::from_owner(value), Some(kind)).await?;
        self.decode(&body)
    }

    /// Deletes a secret; one that an app names only with `force`.
    ///
    /// # Errors
    /// `not-found`, `conflict` where it is named or `require` does not hold; [`ClientError`].
    pub async fn delete_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        force: bool,
        require: Require,
    ) -> Result<(), ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        let path = format!("/v1/tenants/{tenant}/secrets/{name}?force={force}");
        self.send(Method::DELETE, &path, headers, Bytes::new(), None).await.map(drop)
    }

    /// The configs that apps of the tenant share, and the operator's `env`.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn configs(&self, tenant: &TenantName) -> Result<Vec<ConfigView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/configs")).await
    }

    /// One config.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`], as every method here.
    pub async fn config(&self, tenant: &TenantName, name: &ConfigName) -> Result<ConfigView, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/configs/{name}")).await
    }

    /// Sets a config whole; the apps that name it get new revisions.
    ///
    /// # Errors
    /// `conflict` where `require` does not hold, `request-invalid`, `too-large`; [`ClientError`].
    pub async fn put_config(
        &self,
        tenant: &TenantName,
        name: &ConfigName,
        request: &ConfigRequest,
        require: Require,
    ) -> Result<ConfigSet, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        self.json(Method::PUT, &format!("/v1/tenants/{tenant}/configs/{name}"), headers, request).await
    }

    /// Deletes a config that no app names.
    ///
    /// # Errors
    /// `not-found`, `config-in-use`, `conflict` where `require` does not hold; [`ClientError`].
    pub async fn delete_config(
        &self,
        tenant: &TenantName,
        name: &ConfigName,
        require: Require,
    ) -> Result<(), ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        let path = format!("/v1/tenants/{tenant}/configs/{name}");
        self.send(Method::DELETE, &path, headers, Bytes::new(), None).await.map(drop)
    }

    /// Changes the master key of all secrets.
    ///
    /// # Errors
    /// `store-unavailable`; [`ClientError`].
    pub async fn rotate_secrets_key(&self) -> Result<KeyRotated, ClientError> {
        let body = self.send(Method::POST, "/v1/secrets/rotate-key", HeaderMap::new(), Bytes::new(), None).await?;
        self.decode(&body)
    }
}
