//! Opens the providers of `wasmcloud:messaging`: what components send by, and what their messages come from.

use std::sync::Arc;

use api::services::messaging::BrokerKind;
use model::ProviderKind;
use providers::messaging::{Backend, BackendError, MessagingLink};
use providers::meter::LinkMeter;

use super::{Means, Wanted};
use crate::broker::NodeBroker;
use crate::error::StartError;

/// One message broker of an app.
pub(crate) struct Broker {
    pub(crate) backend: Arc<dyn Backend>,
    /// Which of the node's it is, if it is one.
    pub(crate) of_node: Option<BrokerKind>,
}

impl Broker {
    pub(super) async fn check(&self) -> Result<(), BackendError> {
        Ok(())
    }

    pub(super) fn link(&self, meter: Arc<LinkMeter>) -> MessagingLink {
        MessagingLink::new(self.backend.clone(), meter)
    }
}

/// The broker of the node of this kind.
pub(crate) fn of_node(means: &Means, app: &model::AppName, kind: BrokerKind) -> Arc<dyn Backend> {
    Arc::new(NodeBroker::new(means.calls.clone(), app.clone(), kind))
}

pub(super) fn open(means: &Means, wanted: &Wanted<'_>) -> Result<Broker, StartError> {
    let local = |kind| Broker { backend: of_node(means, wanted.app, kind), of_node: Some(kind) };
    match wanted.spec.kind {
        ProviderKind::MessagingDurable => Ok(local(BrokerKind::Durable)),
        _ => Ok(local(BrokerKind::Local)),
    }
}
