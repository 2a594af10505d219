//! Opens the providers of `wasmcloud:messaging`: what components send by, and what their messages come from.

use std::sync::Arc;

use api::services::messaging::BrokerKind;
use model::messaging::Subscription;
use model::stream::StreamSettings;
use model::{AppName, ProviderKind};
use providers::messaging::external::External;
use providers::messaging::jetstream::Jetstream;
use providers::messaging::nats::Nats;
use providers::messaging::{Backend, BackendError, MessagingLink};
use providers::meter::LinkMeter;

use super::{Means, Wanted, nats};
use crate::broker::NodeBroker;
use crate::error::StartError;

/// One message broker of an app.
pub(crate) struct Broker {
    pub(crate) backend: Arc<dyn Backend>,
    /// Which of the node's it is, if it is one.
    pub(crate) of_node: Option<BrokerKind>,
    server: Server,
}

/// What can be asked whether it is there.
enum Server {
    /// The node, which is.
    None,
    Nats(Nats),
    Jetstream(Jetstream),
    External(External),
}

impl Broker {
    /// Fails where what the links take could not be had.
    pub(super) async fn check(&self, subscriptions: &[Subscription]) -> Result<(), BackendError> {
        match &self.server {
            Server::None => Ok(()),
            Server::Nats(nats) => nats.check().await,
            Server::Jetstream(jetstream) => jetstream.check(subscriptions).await,
            Server::External(external) => external.check().await,
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
    let local = |kind| Broker { backend: of_node(means, wanted.app, kind), of_node: Some(kind), server: Server::None };
    let config = &wanted.spec.config;
    match wanted.spec.kind {
        ProviderKind::MessagingLocal => Ok(local(BrokerKind::Local)),
        ProviderKind::MessagingDurable => Ok(local(BrokerKind::Durable)),
        ProviderKind::MessagingNats => {
            let nats = Nats::new(nats::client(means, wanted)?, means.tenant.clone());
            Ok(Broker { backend: Arc::new(nats.clone()), of_node: None, server: Server::Nats(nats) })
        }
        ProviderKind::MessagingJetstream => {
            let settings =
                StreamSettings::read(config).map_err(|(setting, cause)| bad(format!("`{setting}`: {cause}")))?;
            let (client, replicas) = (nats::client(means, wanted)?, nats::replicas(wanted)?);
            let jetstream = Jetstream::new(client, nats::domain(wanted), means.tenant.clone(), settings, replicas);
            let jetstream = jetstream.map_err(|cause| bad(cause.to_string()))?;
            Ok(Broker { backend: Arc::new(jetstream.clone()), of_node: None, server: Server::Jetstream(jetstream) })
        }
        ProviderKind::External => {
            let external = External::new(wanted.name.clone(), means.connect(wanted));
            let backend = Arc::new(external.clone());
            Ok(Broker { backend, of_node: None, server: Server::External(external) })
        }
        other => Err(super::another_contract(wanted.name, other)),
    }
}
