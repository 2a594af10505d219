//! Secrets as providers ask for them: revealed by the node, for the app that names them. Nothing is kept here.

use std::sync::Arc;
use std::time::Duration;

use api::services::client::{CallError, CallsClient};
use api::services::secret::{HOLD_SECONDS, SecretAnswer, SecretRequest};
use api::services::{ServiceAnswer, ServiceFault, ServiceRequest};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::{AppName, SecretRef};
use providers::secrets::{Resolver, Revealed, SecretError};
use tokio::sync::watch;

/// How long the node may take to reveal a secret.
const REVEAL: Duration = Duration::from_secs(5);
/// How long a node that does not say whether something changed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// The node as a [`Resolver`].
pub struct NodeSecrets {
    calls: Arc<CallsClient>,
    changes: Arc<watch::Sender<u64>>,
    /// Started when somebody first wants to know of changes.
    watching: std::sync::Once,
}

impl NodeSecrets {
    /// Secrets by way of `calls`, which must wait longer for an answer than the node may hold a question.
    pub fn new(calls: Arc<CallsClient>) -> Arc<Self> {
        Arc::new(Self { calls, changes: Arc::new(watch::Sender::new(0)), watching: std::sync::Once::new() })
    }

    async fn ask(&self, app: &AppName, secret: &SecretRef) -> Result<Revealed, SecretError> {
        let name = || secret.secret.to_string();
        let unavailable = |cause: String| SecretError::Unavailable { secret: name(), cause };
        let timed_out = |limit: Duration| SecretError::TimedOut {
            secret: name(),
            ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        };
        let request = ServiceRequest::Secret(SecretRequest::Reveal { secret: secret.secret.clone() });
        let asked = tokio::time::timeout(REVEAL, self.calls.call(app, &request));
        match asked.await.map_err(|_| timed_out(REVEAL))? {
            Ok(ServiceAnswer::Secret(SecretAnswer::Value { version, value })) => {
                Ok(Revealed { value: value.0, version })
            }
            Ok(ServiceAnswer::Secret(SecretAnswer::Missing)) => Err(SecretError::Missing(name())),
            Ok(ServiceAnswer::Secret(SecretAnswer::NotNamed)) => {
                Err(SecretError::Denied { secret: name(), cause: "the app does not name it".to_owned() })
            }
            Ok(_) => Err(unavailable("the node answered another question".to_owned())),
            Err(CallError::Fault(ServiceFault::Refused(cause))) => Err(SecretError::Denied { secret: name(), cause }),
            Err(CallError::TimedOut(limit)) => Err(timed_out(limit)),
            Err(other) => Err(unavailable(other.to_string())),
        }
    }
}

impl Resolver for NodeSecrets {
    fn reveal<'a>(&'a self, app: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        self.ask(app, secret).boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.watching.call_once(|| {
            tokio::spawn(follow(self.calls.clone(), Arc::downgrade(&self.changes)));
        });
        self.changes.subscribe()
    }
}

/// Asks the node again and again whether something changed; it holds each question until then.
async fn follow(calls: Arc<CallsClient>, changes: std::sync::Weak<watch::Sender<u64>>) {
    // The tenant is the socket's; the question is about no app.
    let Ok(nobody) = "secrets".parse::<AppName>() else { return };
    let mut after = 0;
    while let Some(changes) = changes.upgrade() {
        let request = ServiceRequest::Secret(SecretRequest::Changed { after });
        let limit = Duration::from_secs(HOLD_SECONDS) + REVEAL;
        match tokio::time::timeout(limit, calls.call(&nobody, &request)).await {
            Ok(Ok(ServiceAnswer::Secret(SecretAnswer::Changed(now)))) => {
                if now != after {
                    after = now;
                    changes.send_replace(now);
                }
            }
            other => {
                tracing::debug!(answer = ?other.map(|answer| answer.err()), "the node does not say which secrets changed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
