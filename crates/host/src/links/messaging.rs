//! Opens the providers of `wasmcloud:messaging`: what components send by, and what their messages come from.

use std::sync::Arc;

use api::services::messaging::BrokerKind;
use model::{AppName, ProviderKind};
use providers::messaging::nats::Nats;
use providers::messaging::{Backend, BackendError, MessagingLink};
use providers::meter::LinkMeter;
use providers::nats::{Client, Login, Options};

use super::{Means, Wanted};
use crate::broker::NodeBroker;
use crate::error::StartError;

/// One message broker of an app.
pub(crate) struct Broker {
    pub(crate) backend: Arc<dyn Backend>,
    /// Which of the node's it is, if it is one.
    pub(crate) of_node: Option<BrokerKind>,
    /// The same where it has a server that can be asked whether it is there.
    server: Option<Arc<Nats>>,
}

impl Broker {
    pub(super) async fn check(&self) -> Result<(), BackendError> {
        match &self.server {
            Some(nats) => nats.check().await,
            None => Ok(()),
        }
    }

    pub(super) fn link(&self, meter: Arc<LinkMeter>) -> MessagingLink {
        MessagingLink::new(self.backend.clone(), meter)
    }
}

/// The broker of the node of this kind.
pub(crate) fn of_node(means: &Means, app: &AppName, kind: BrokerKind) -> Arc<dyn Backend> {
    Arc::new(NodeBroker::new(means.calls.clone(), app.clone(), kind))
}

pub(super) fn open(means: &Means, wanted: &Wanted<'_>) -> Result<Broker, StartError> {
    let bad = |cause: String| StartError::Settings { provider: wanted.name.clone(), cause };
    let local = |kind| Broker { backend: of_node(means, wanted.app, kind), of_node: Some(kind), server: None };
    match wanted.spec.kind {
        ProviderKind::MessagingLocal => Ok(local(BrokerKind::Local)),
        ProviderKind::MessagingDurable => Ok(local(BrokerKind::Durable)),
        ProviderKind::MessagingNats => {
            let url = wanted.spec.config.get("url").map_or("", String::as_str);
            let options = Options {
                tenant: means.tenant.clone(),
                app: wanted.app.clone(),
                provider: wanted.name.clone(),
                endpoint: url.parse().map_err(|cause: providers::nats::EndpointError| bad(cause.to_string()))?,
                login: Login::Secrets {
                    username: wanted.spec.config.get("username").cloned(),
                    secrets: means.credentials(wanted),
                },
                tls: means.tls.clone(),
            };
            let nats = Arc::new(Nats::new(Client::new(options, means.dialer.clone()), means.tenant.clone()));
            Ok(Broker { backend: nats.clone(), of_node: None, server: Some(nats) })
        }
        other => Err(super::another_contract(wanted.name, other)),
    }
}
