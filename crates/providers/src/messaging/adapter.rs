//! The one place where `wasmcloud:messaging` meets a [`Backend`](super::Backend): what guests send, and how a message is
//! handed to a component that exports the handler.

use std::sync::Arc;
use std::time::Duration;

use runtime::wasmtime::component::{HasData, Linker};
use runtime::{Capability, Ctx, Fault, LogStreamKind, Workload};

use super::{Message, MessagingLink, MessagingLinks};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/messaging",
        world: "imports",
        imports: { default: async | trappable },
    });
}
use bindings::wasmcloud::messaging::{consumer, types};

mod handler {
    wasmtime::component::bindgen!({
        path: "../../wit/messaging",
        world: "messaging-handler",
        imports: { default: async | trappable },
        exports: { default: async },
        with: { "wasmcloud:messaging/types@0.2.0": super::bindings::wasmcloud::messaging::types },
    });
}

/// The capability `wasmcloud:messaging`. How a component sends is in its [`MessagingLinks`] binding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Messaging;

impl Capability for Messaging {
    fn interfaces(&self) -> &'static [&'static str] {
        &["wasmcloud:messaging/types@0.2.0", "wasmcloud:messaging/consumer@0.2.0"]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        types::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        consumer::add_to_linker::<_, Views>(linker, |ctx| View(ctx))
    }
}

struct Views;

impl HasData for Views {
    type Data<'a> = View<'a>;
}

/// The store's data as the contract's functions see it.
struct View<'a>(&'a mut Ctx);

impl View<'_> {
    fn linked(&mut self) -> Result<MessagingLink, String> {
        let links = self.0.binding::<MessagingLinks>().cloned().unwrap_or_default();
        let why = match links.chosen(self.0.chosen_link(model::messaging::CONTRACT)) {
            Ok(link) => return Ok(link.clone()),
            Err(why) => why,
        };
        self.0.log(LogStreamKind::Warn, "wasmcloud:messaging", why.as_bytes());
        Err(why)
    }
}

impl types::Host for View<'_> {}

impl consumer::Host for View<'_> {
    async fn request(
        &mut self,
        subject: String,
        body: Vec<u8>,
        timeout_ms: u32,
    ) -> wasmtime::Result<Result<types::BrokerMessage, String>> {
        let link = match self.linked() {
            Ok(link) => link,
            Err(why) => return Ok(Err(why)),
        };
        let answer = link.request(subject, body, Duration::from_millis(timeout_ms.into())).await;
        Ok(answer.map(guests).map_err(|cause| cause.to_string()))
    }

    async fn publish(&mut self, message: types::BrokerMessage) -> wasmtime::Result<Result<(), String>> {
        let link = match self.linked() {
            Ok(link) => link,
            Err(why) => return Ok(Err(why)),
        };
        let types::BrokerMessage { subject, body, reply_to } = message;
        Ok(link.publish(Message { subject, body, reply_to }).await.map_err(|cause| cause.to_string()))
    }
}

fn guests(message: Message) -> types::BrokerMessage {
    let Message { subject, body, reply_to } = message;
    types::BrokerMessage { subject, body, reply_to }
}

/// Why a message was not handled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// The handler says so; its words, cut.
    #[error("the handler refused the message: {0}")]
    Handler(String),
    /// The call failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The longest text of a handler's refusal that is kept, characters.
const MAX_WORDS: usize = 500;

/// Hands a message to the handler of a component, within the limits of a call.
///
/// # Errors
/// Why it was not handled.
pub async fn handle(work: &Arc<Workload>, message: Message) -> Result<(), HandleError> {
    let indices = handler::MessagingHandlerIndices::new(work.instance_pre()).map_err(|_| Fault::NoHandler)?;
    let message = guests(message);
    let said = work
        .invoke(move |store, instance| {
            Box::pin(async move {
                let exports = indices.load(&mut *store, &instance)?;
                exports.wasmcloud_messaging_handler().call_handle_message(store, &message).await
            })
        })
        .await?;
    said.map_err(|words| HandleError::Handler(words.chars().take(MAX_WORDS).flat_map(char::escape_debug).collect()))
}
