//! What is asked about tenants: their settings, their tokens, what they did, and how their hosts are.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use model::TenantName;
use model::access::TokenId;
use model::tenant::TenantSettings;

use super::{ClientError, ControlClient, Require};
use crate::agent::HostStatus;
use crate::control::{AuditReport, AuditView, TenantView, TokenMade, TokenRequest, TokenView, WhoAmI};
use crate::metrics::TenantMetrics;

impl ControlClient {
    /// All tenants.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn tenants(&self) -> Result<Vec<TenantView>, ClientError> {
        self.get("/v1/tenants").await
    }

    /// One tenant.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`], as every method here.
    pub async fn tenant(&self, tenant: &TenantName) -> Result<TenantView, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}")).await
    }

    /// Writes a tenant's settings; makes the tenant where it does not exist. They are carried out, unless the view says that this is
    /// [`pending`](TenantView::pending).
    ///
    /// # Errors
    /// `conflict` where `require` does not hold, `request-invalid` where it is [`Require::Any`]; [`ClientError`], as every method here.
    pub async fn put_tenant(
        &self,
        tenant: &TenantName,
        settings: &TenantSettings,
        require: Require,
    ) -> Result<TenantView, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        self.json(Method::PUT, &format!("/v1/tenants/{tenant}"), headers, settings).await
    }

    /// Deletes a tenant and everything it has; whether its data is gone already.
    ///
    /// # Errors
    /// `not-found`, `conflict` where `require` does not hold; [`ClientError`].
    pub async fn delete_tenant(&self, tenant: &TenantName, require: Require) -> Result<bool, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        let path = format!("/v1/tenants/{tenant}");
        let whole = self.open(Method::DELETE, &path, headers, Bytes::new(), None).await?;
        Ok(whole.status() == StatusCode::NO_CONTENT)
    }

    /// Lets other tenants have a host that one gave up a short time ago, and those that overlap with it.
    ///
    /// # Errors
    /// `not-found` where nobody did, `request-invalid` where it is no host; [`ClientError`].
    pub async fn free_host(&self, host: &str) -> Result<(), ClientError> {
        let path = format!("/v1/route-hosts/{host}");
        self.send(Method::DELETE, &path, HeaderMap::new(), Bytes::new(), None).await.map(drop)
    }

    /// Whom the client's token belongs to.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn whoami(&self) -> Result<WhoAmI, ClientError> {
        self.get("/v1/whoami").await
    }

    /// The tenant's tokens, without their secrets.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn tokens(&self, tenant: &TenantName) -> Result<Vec<TokenView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/tokens")).await
    }

    /// Makes a token. Its secret is in this answer and nowhere else.
    ///
    /// # Errors
    /// `quota-exceeded`, `request-invalid`; [`ClientError`].
    pub async fn create_token(&self, tenant: &TenantName, request: &TokenRequest) -> Result<TokenMade, ClientError> {
        self.json(Method::POST, &format!("/v1/tenants/{tenant}/tokens"), HeaderMap::new(), request).await
    }

    /// Ends a token, at once and for ever.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`].
    pub async fn revoke_token(&self, tenant: &TenantName, id: &TokenId) -> Result<TokenView, ClientError> {
        let path = format!("/v1/tenants/{tenant}/tokens/{id}");
        let body = self.send(Method::DELETE, &path, HeaderMap::new(), Bytes::new(), None).await?;
        self.decode(&body)
    }

    /// The last lines of the audit log, oldest first: of a tenant, or all of them.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn audit(&self, tenant: Option<&TenantName>, last: usize) -> Result<Vec<AuditView>, ClientError> {
        match tenant {
            Some(tenant) => self.get(&format!("/v1/tenants/{tenant}/audit?last={last}")).await,
            None => self.get(&format!("/v1/audit?last={last}")).await,
        }
    }

    /// Has the whole audit log read and compared.
    ///
    /// # Errors
    /// `store-unavailable` where it cannot be read; [`ClientError`].
    pub async fn verify_audit(&self) -> Result<AuditReport, ClientError> {
        self.get("/v1/audit/verify").await
    }

    /// What the tenant's hosts report now, in shard order; one that does not answer in time is left out.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn hosts(&self, tenant: &TenantName) -> Result<Vec<HostStatus>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/hosts")).await
    }

    /// What is counted of the tenant's components and links.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn metrics(&self, tenant: &TenantName) -> Result<TenantMetrics, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/metrics")).await
    }
}
