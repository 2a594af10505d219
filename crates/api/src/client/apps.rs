//! What is asked about apps: their revisions, their links, the moves of their data, calls and schedules.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use model::app::Revision;
use model::schedule::Ended;
use model::{AppName, ScheduleName, TenantName};

use super::{ClientError, ControlClient, Require, of};
use crate::control::{
    Accepted, AppView, CallRequest, CallResponse, DeployRequest, IDEMPOTENCY_KEY, LinkRequest, MoveRequest, Plan,
    RevisionView, RollbackRequest, RouteView, ScheduleView,
};
use crate::copy::CopyView;
use crate::problem::{Code, Problem};

impl ControlClient {
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

    /// The routes of the tenant's apps.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn routes(&self, tenant: &TenantName) -> Result<Vec<RouteView>, ClientError> {
        self.get(&format!("/v1/tenants/{tenant}/routes")).await
    }
}
