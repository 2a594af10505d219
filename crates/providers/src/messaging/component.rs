//! A component that exports `wasmcloud:messaging/consumer` as what other components send by. Each message is one call of
//! it. It delivers none: messages come to the handler of a component, and nothing calls that but the platform.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use model::messaging::Subscription;
use runtime::wasmtime;
use runtime::wasmtime::component::InstancePre;
use runtime::{Callee, Ctx};

use super::{Answer, Backend, BackendError, Deliveries, Message, check};
use crate::exported::{Exported, Failed, Functions};
use bindings::exports::wasmcloud::messaging::consumer;
use bindings::wasmcloud::messaging::types::BrokerMessage;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/messaging",
        inline: "
            package sidereal:exported;
            world provider {
                export wasmcloud:messaging/consumer@0.2.0;
            }
        ",
        world: "sidereal:exported/provider",
        exports: { default: async },
        require_store_data_send: true,
    });
}

/// Where a component has the functions of the contract.
struct Indices(consumer::GuestIndices);

impl Functions for Indices {
    fn of(pre: &InstancePre<Ctx>) -> wasmtime::Result<Self> {
        consumer::GuestIndices::new(pre).map(Self)
    }
}

/// A component of the app by which others send.
pub struct ComponentSender {
    exported: Exported<Indices>,
}

impl ComponentSender {
    /// What `callee` exports.
    pub fn new(callee: Arc<dyn Callee>) -> Self {
        Self { exported: Exported::new(callee) }
    }
}

impl From<Failed> for BackendError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::TimedOut { ms } => Self::TimedOut { ms },
            Failed::TooLarge(why) => Self::Refused(why),
            Failed::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl Backend for ComponentSender {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        async move {
            let Message { subject, body, reply_to } = message;
            let message = BrokerMessage { subject, body, reply_to };
            let called = self.exported.call(move |store, instance, indices| {
                Box::pin(async move { indices.0.load(&mut *store, &instance)?.call_publish(store, &message).await })
            });
            called.await?.map_err(BackendError::Refused)
        }
        .boxed()
    }

    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Answer<'_, Message> {
        async move {
            let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            let called = self.exported.call(move |store, instance, indices| {
                Box::pin(async move {
                    let consumer = indices.0.load(&mut *store, &instance)?;
                    consumer.call_request(store, &subject, &body, ms).await
                })
            });
            // Whatever the component makes of the time it was told.
            let late = || BackendError::TimedOut { ms: ms.into() };
            let called = tokio::time::timeout(timeout, called).await.map_err(|_| late())?;
            let BrokerMessage { subject, body, reply_to } = called?.map_err(BackendError::Refused)?;
            check(&subject, &body)?;
            Ok(Message { subject, body, reply_to })
        }
        .boxed()
    }

    fn subscribe(&self, _: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>> {
        let why = "a component behind a link sends, and brings no messages".to_owned();
        std::future::ready(Err(BackendError::Refused(why))).boxed()
    }
}
