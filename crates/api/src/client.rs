//! The typed client of the control API, so that the cli and tests speak it without writing a path or a header.
//!
//! HTTP/1.1 over a pooled TCP connection, with the bearer token. Every refusal is the server's own [`Problem`]; a server
//! that does not answer is [`ClientError::Unreachable`] with its address and how to start it, never a bare socket error.

mod stream;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use model::access::TokenId;
use model::app::Revision;
use model::schedule::Ended;
use model::tenant::TenantSettings;
use model::{AppName, ConfigName, Digest, ScheduleName, SecretName, SecretValue, TenantName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::HostStatus;
use crate::control::{
    Accepted, AppView, AuditReport, AuditView, CallRequest, CallResponse, ConfigRequest, ConfigSet, ConfigView,
    ContractView, DeployRequest, IDEMPOTENCY_KEY, KeyRotated, LinkRequest, MAX_BLOB, MoveRequest, NodeView, Plan,
    ProviderView, RevisionView, RollbackRequest, RouteView, ScheduleView, SecretView, TenantView, TokenMade,
    TokenRequest, TokenView, Version, WhoAmI,
};
use crate::copy::CopyView;
use crate::metrics::TenantMetrics;
use crate::problem::{Code, Problem};

pub use stream::{EventQuery, Events, Items};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take; streams are not limited.
const ANSWER: Duration = Duration::from_secs(120);

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The control plane refused; its own words.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// Nobody answers there.
    #[error("the control plane at {address} is not reachable: {cause}; start it with `sidereal up`")]
    Unreachable {
        /// `http://host:port`.
        address: String,
        /// The last cause, in words.
        cause: String,
    },
    /// It answers, but not what the API promises: another program, or another version of this one.
    #[error("the server at {address} does not speak this API: {cause}")]
    Protocol {
        /// `http://host:port`.
        address: String,
        /// What was wrong.
        cause: String,
    },
}

impl ClientError {
    /// The same as a problem: what the cli prints and the code it exits with.
    pub fn problem(self) -> Problem {
        let text = self.to_string();
        match self {
            Self::Refused(problem) => problem,
            Self::Unreachable { address, cause } => {
                Problem::new(Code::Unreachable, format!("the control plane at {address} is not reachable: {cause}"))
                    .help("start it with `sidereal up`")
            }
            Self::Protocol { .. } => Problem::new(Code::Unreachable, text)
                .help("compare `sidereal --version` with the version that runs there"),
        }
    }
}

/// What a write requires of the thing it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Require {
    /// Nothing.
    #[default]
    Any,
    /// It exists.
    Exists,
    /// It does not exist.
    Absent,
    /// Its current revision (apps) or etag (tenants) is this.
    At(u64),
}

impl Require {
    fn apply(self, headers: &mut HeaderMap) {
        match self {
            Self::Any => {}
            Self::Exists => drop(headers.insert(header::IF_MATCH, HeaderValue::from_static("*"))),
            Self::Absent => drop(headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"))),
            Self::At(n) => drop(headers.insert(header::IF_MATCH, HeaderValue::from(n))),
        }
    }
}

/// Speaks to one control plane. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct ControlClient {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    bearer: HeaderValue,
}

impl std::fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlClient").field("base", &self.base).finish_non_exhaustive()
    }
}

impl ControlClient {
    /// A client of the control plane at `address`. Connects on the first request.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        // A token with characters no header can carry is no token; the server then answers `unauthorized`.
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        bearer.set_sensitive(true);
        Self { http: Client::builder(TokioExecutor::new()).build(connector), base: format!("http://{address}"), bearer }
    }

    /// Where it sends requests: `http://host:port`.
    pub fn address(&self) -> &str {
        &self.base
    }

    /// The control plane answers at all.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn health(&self) -> Result<(), ClientError> {
        self.send(Method::GET, "/v1/healthz", HeaderMap::new(), Bytes::new(), None).await.map(drop)
    }

    /// Which product answers, and since when.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// The machines.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, ClientError> {
        self.get("/v1/nodes").await
    }

    /// What components may import there, and which provider types answer.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn contracts(&self) -> Result<Vec<ContractView>, ClientError> {
        self.get("/v1/contracts").await
    }

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

    /// Writes a tenant's settings; makes the tenant where it does not exist.
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

    /// A tenant's apps.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn apps(&self, tenant: &TenantName) -> Result<Vec<AppView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/apps")).await
    }

    /// One app.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`], as every method here.
    pub async fn app(&self, tenant: &TenantName, app: &AppName) -> Result<AppView, ClientError> {
        self.get(&of(tenant, app, "")).await
    }

    /// Deletes an app: its routes, its assignments and its history. Its data stays.
    ///
    /// # Errors
    /// `not-found`, `conflict`; [`ClientError`], as every method here.
    pub async fn delete_app(&self, tenant: &TenantName, app: &AppName, require: Require) -> Result<(), ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        self.send(Method::DELETE, &of(tenant, app, ""), headers, Bytes::new(), None).await.map(drop)
    }

    /// As [`ControlClient::delete_app`], and the data that the nodes keep of it goes when its last call has ended; also
    /// that of an app which was deleted before. False where that still takes longer.
    ///
    /// # Errors
    /// `not-found`, `conflict`; [`ClientError`], as every method here.
    pub async fn delete_app_and_data(
        &self,
        tenant: &TenantName,
        app: &AppName,
        require: Require,
    ) -> Result<bool, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        let path = of(tenant, app, "?purge-data=true");
        let response = self.open(Method::DELETE, &path, headers, Bytes::new(), None).await?;
        Ok(response.status() != StatusCode::ACCEPTED)
    }

    /// What a deploy would change, and why it would be refused. Changes nothing.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn plan(&self, tenant: &TenantName, app: &AppName, request: &DeployRequest) -> Result<Plan, ClientError> {
        self.json(Method::POST, &of(tenant, app, "/plan"), HeaderMap::new(), request).await
    }

    /// Records a revision; its artifacts are uploaded already. `key` makes it safe to repeat.
    ///
    /// # Errors
    /// Every reason an app is refused, `conflict`; [`ClientError`].
    pub async fn deploy(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &DeployRequest,
        require: Require,
        key: Option<&str>,
    ) -> Result<Accepted, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        if let Some(key) = key {
            let bad = |_| Problem::new(Code::RequestInvalid, "the idempotency key has characters no header can carry");
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(key).map_err(bad)?);
        }
        self.json(Method::POST, &of(tenant, app, "/revisions"), headers, request).await
    }

    /// The app's history, newest first.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`], as every method here.
    pub async fn revisions(&self, tenant: &TenantName, app: &AppName) -> Result<Vec<RevisionView>, ClientError> {
        self.get(&of(tenant, app, "/revisions")).await
    }

    /// One revision.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`], as every method here.
    pub async fn revision(
        &self,
        tenant: &TenantName,
        app: &AppName,
        revision: Revision,
    ) -> Result<RevisionView, ClientError> {
        self.get(&of(tenant, app, &format!("/revisions/{revision}"))).await
    }

    /// Makes a new revision with an earlier one's content.
    ///
    /// # Errors
    /// `not-found`, `conflict`, every reason an app is refused; [`ClientError`].
    pub async fn rollback(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &RollbackRequest,
        require: Require,
    ) -> Result<Accepted, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        self.json(Method::POST, &of(tenant, app, "/rollback"), headers, request).await
    }

    /// Makes a new revision that differs only in one link's provider.
    ///
    /// # Errors
    /// `not-found`, `conflict`, every reason an app is refused; [`ClientError`].
    pub async fn link(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &LinkRequest,
        require: Require,
    ) -> Result<Accepted, ClientError> {
        let mut headers = HeaderMap::new();
        require.apply(&mut headers);
        self.json(Method::POST, &of(tenant, app, "/links"), headers, request).await
    }

    /// Begins to move an app's data; see [`MoveRequest`].
    ///
    /// # Errors
    /// Every reason a link cannot be set; [`ClientError`].
    pub async fn copy(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &MoveRequest,
    ) -> Result<CopyView, ClientError> {
        self.json(Method::POST, &of(tenant, app, "/copy"), HeaderMap::new(), request).await
    }

    /// How the last move of an app's data stands.
    ///
    /// # Errors
    /// `not-found` where there was none; [`ClientError`].
    pub async fn copied(&self, tenant: &TenantName, app: &AppName) -> Result<CopyView, ClientError> {
        self.get(&of(tenant, app, "/copy")).await
    }

    /// Sends a request to a component without the ingress.
    ///
    /// # Errors
    /// Every reason a call fails; [`ClientError`].
    pub async fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        request: &CallRequest,
    ) -> Result<CallResponse, ClientError> {
        self.json(Method::POST, &of(tenant, app, "/call"), HeaderMap::new(), request).await
    }

    /// The schedules of an app: when each is due, and what became of it so far.
    ///
    /// # Errors
    /// `not-found`; [`ClientError`].
    pub async fn schedules(&self, tenant: &TenantName, app: &AppName) -> Result<Vec<ScheduleView>, ClientError> {
        self.get(&of(tenant, app, "/schedules")).await
    }

    /// Runs a schedule now and waits for its end; a run that failed says so in `error`.
    ///
    /// # Errors
    /// `not-found`, `conflict` where it runs already; `timed-out` where it takes longer than two minutes, and goes on;
    /// [`ClientError`].
    pub async fn run_schedule(
        &self,
        tenant: &TenantName,
        app: &AppName,
        schedule: &ScheduleName,
    ) -> Result<Ended, ClientError> {
        let path = of(tenant, app, &format!("/schedules/{schedule}/run"));
        self.json(Method::POST, &path, HeaderMap::new(), &serde_json::json!({})).await
    }

    /// The providers an app of the tenant can link to, and who does.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn providers(&self, tenant: &TenantName) -> Result<Vec<ProviderView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/providers")).await
    }

    /// The routes of the tenant's apps.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn routes(&self, tenant: &TenantName) -> Result<Vec<RouteView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/routes")).await
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

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.send(Method::GET, path, HeaderMap::new(), Bytes::new(), None).await?;
        self.decode(&body)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        value: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(value).map_err(|cause| self.protocol(cause))?;
        let kind = HeaderValue::from_static("application/json");
        let body = self.send(method, path, headers, body.into(), Some(kind)).await?;
        self.decode(&body)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|cause| self.protocol(cause))
    }

    fn protocol(&self, cause: impl std::fmt::Display) -> ClientError {
        ClientError::Protocol { address: self.base.clone(), cause: cause.to_string() }
    }

    fn unreachable(&self, cause: &(dyn std::error::Error + 'static)) -> ClientError {
        // The outermost text is "client error (Connect)"; people need the innermost one.
        let innermost = std::iter::successors(Some(cause), |e| e.source()).last().unwrap_or(cause);
        ClientError::Unreachable { address: self.base.clone(), cause: innermost.to_string() }
    }

    /// Sends a request and answers with the response once its head is there; a refusal is read whole.
    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        kind: Option<HeaderValue>,
    ) -> Result<http::Response<hyper::body::Incoming>, ClientError> {
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.base).parse().map_err(|cause| self.protocol(cause))?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(header::AUTHORIZATION, self.bearer.clone());
        if let Some(kind) = kind {
            request.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        let answered = match self.http.request(request.clone()).await {
            // A kept connection can have ended meanwhile: what only reads is asked again, on a new one.
            Err(cause) if request.method().is_safe() && !cause.is_connect() => self.http.request(request).await,
            other => other,
        };
        let response = answered.map_err(|cause| self.unreachable(&cause))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(response).await?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.into(),
            Err(_) if status == StatusCode::NOT_FOUND && body.is_empty() => {
                Problem::new(Code::NotFound, format!("{path} does not exist")).into()
            }
            Err(_) => self.protocol(format!("status {status} without a problem document")),
        })
    }

    async fn collect(&self, response: http::Response<hyper::body::Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_BLOB).collect().await;
        body.map(|b| b.to_bytes()).map_err(|cause| self.protocol(cause))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        kind: Option<HeaderValue>,
    ) -> Result<Bytes, ClientError> {
        let whole = async { self.collect(self.open(method, path, headers, body, kind).await?).await };
        tokio::time::timeout(ANSWER, whole).await.unwrap_or_else(|_| {
            Err(Problem::new(Code::TimedOut, format!("{} did not answer within {} s", self.base, ANSWER.as_secs()))
                .into())
        })
    }
}

fn of(tenant: &TenantName, app: &AppName, rest: &str) -> String {
    format!("/v1/tenants/{tenant}/apps/{app}{rest}")
}
