//! The node's databases as a backend: the node owns the files, this asks.

use std::sync::Arc;

use api::services::client::{CallError, CallsClient};
use api::services::sql::SqlRequest;
use api::services::{ServiceAnswer, ServiceFault, ServiceRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
use model::sql::{Answer, Call, SqlError};
use model::{AppName, ProviderName};
use providers::sql::Backend;

/// One app's database under one provider.
pub struct NodeSql {
    client: Arc<CallsClient>,
    app: AppName,
    provider: ProviderName,
}

impl NodeSql {
    /// The app's database, by way of `client`, which must wait longer for an answer than a call may take.
    pub fn new(client: Arc<CallsClient>, app: AppName, provider: ProviderName) -> Self {
        Self { client, app, provider }
    }
}

impl Backend for NodeSql {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, SqlError>> {
        async move {
            let request = ServiceRequest::Sql(SqlRequest { provider: self.provider.clone(), call });
            match self.client.call(&self.app, &request).await {
                Ok(ServiceAnswer::Sql(answer)) => answer,
                Ok(_) => Err(SqlError::Unavailable("the node answered another question".to_owned())),
                Err(CallError::Fault(ServiceFault::Refused(why))) | Err(CallError::Unsendable(why)) => {
                    Err(SqlError::TooLarge(why))
                }
                Err(CallError::TimedOut(limit)) => Err(SqlError::TimedOut { ms: limit.as_millis() as u64 }),
                Err(other) => Err(SqlError::Unavailable(other.to_string())),
            }
        }
        .boxed()
    }
}
