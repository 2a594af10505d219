//! Calls of one host to every service but key-value: started as they come, answered as they finish, so that a slow one
//! holds up nobody. Each service answers in a file of its own.

use std::sync::Arc;

use api::services::blob::{BlobAnswer, BlobOp};
use api::services::codec::{FrameReader, FrameWriter, WireError};
use api::services::messaging::{BrokerKind, Handed, MessagingAnswer, MessagingRequest, Settled};
use api::services::sql::SqlRequest;
use api::services::{ServiceAnswer, ServiceCall, ServiceFault, ServiceReply, ServiceRequest};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use model::AppName;
use model::sql::MAX_ANSWER;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;

use super::blob::BlobSession;
use super::share::{Answers, Room, Share, shrink, take};
use super::{Client, Services, secret};
use crate::messaging::Holder;

/// Calls of one connection under way at once; the rest waits in the socket.
const MAX_CALLS: usize = 1024;
/// The most that the lists of a call take in memory beside what is in them, bytes.
const SPREAD: usize = 2 << 20;

pub(super) async fn serve(
    mut reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
    client: Client,
    services: Arc<Services>,
    watching: Arc<Semaphore>,
) -> Result<(), WireError> {
    let share = &client.tenant.share;
    let blobs = BlobSession::default();
    let mut answers = Answers::new(writer, share);
    // What this connection takes is given to others when it ends.
    let holder = services.messaging.holder(&client.tenant.name);
    let line = Line { client: &client, services: &services, blobs: &blobs, holder: &holder, watching: &watching };
    let mut calls = FuturesUnordered::new();
    let mut open = true;
    while open || !calls.is_empty() {
        tokio::select! {
            Some(reply) = calls.next(), if !calls.is_empty() => {
                push(&mut answers, reply).await?;
                while let Some(Some(reply)) = calls.next().now_or_never() {
                    push(&mut answers, reply).await?;
                }
                answers.flush().await?;
            }
            call = next(&mut reader, share), if open && calls.len() < MAX_CALLS => {
                match call? {
                    Some((call, room)) => calls.push(line.reply(call, room)),
                    None => {
                        open = false;
                        holder.leave();
                    }
                }
            }
        }
    }
    Ok(())
}

/// The next call, with room for it.
async fn next(
    reader: &mut FrameReader<OwnedReadHalf>,
    share: &Share,
) -> Result<Option<(ServiceCall, Room)>, WireError> {
    let Some(size) = reader.size().await? else { return Ok(None) };
    let mut room = share.call(size, SPREAD).await?;
    let Some(call) = reader.next::<ServiceCall>().await? else { return Ok(None) };
    // What is above it is refused, by its own service, before it waits for anything.
    shrink(&mut room, size + call.request.spread().min(SPREAD));
    Ok(Some((call, room)))
}

async fn push(answers: &mut Answers<'_>, reply: ServiceReply) -> Result<(), WireError> {
    let bytes = weight(&reply);
    match answers.push(&reply, None, bytes).await {
        Err(WireError::TooLarge(size)) => {
            let fault = ServiceFault::Refused(format!("the answer has {size} bytes; ask for less at once"));
            answers.push(&ServiceReply { id: reply.id, result: Err(fault) }, None, 0).await
        }
        other => other,
    }
}

/// How large an answer may become on its way, bytes, as far as that is worth counting.
fn weight(reply: &ServiceReply) -> usize {
    match &reply.result {
        Ok(ServiceAnswer::Blob(Ok(BlobAnswer::Chunk(chunk)))) => chunk.0.len(),
        Ok(ServiceAnswer::Blob(Ok(BlobAnswer::Names { names, .. }))) => names.iter().map(String::len).sum(),
        Ok(ServiceAnswer::Messaging(MessagingAnswer::Taken(taken))) => {
            taken.iter().map(|one| one.message.body.len() + one.message.subject.len()).sum()
        }
        Ok(ServiceAnswer::Messaging(MessagingAnswer::Answered(message))) => message.body.len(),
        Ok(ServiceAnswer::Sql(Ok(_))) => MAX_ANSWER,
        _ => 0,
    }
}

/// One connection.
#[derive(Clone, Copy)]
struct Line<'a> {
    client: &'a Client,
    services: &'a Services,
    blobs: &'a BlobSession,
    holder: &'a Holder,
    /// One permit for each question of its host for changed secrets.
    watching: &'a Semaphore,
}

/// What ends something that is open is done for whoever asks: it was begun by an app that was there.
fn ends(op: &BlobOp) -> bool {
    matches!(op, BlobOp::Close { .. } | BlobOp::Abandon { .. })
}

/// What is done of a request of an app that is suspended: it ends what is open, and sends nothing.
fn ending(request: ServiceRequest) -> Option<ServiceRequest> {
    match request {
        ServiceRequest::Blob(request) if ends(&request.op) => Some(ServiceRequest::Blob(request)),
        // It would be sent to another subject; it comes again when the app does.
        ServiceRequest::Messaging(MessagingRequest::Settle {
            broker,
            group,
            delivery,
            outcome: Settled::PutAway { subject: Some(_) },
        }) => {
            let outcome = Settled::GivenBack;
            Some(ServiceRequest::Messaging(MessagingRequest::Settle { broker, group, delivery, outcome }))
        }
        ServiceRequest::Messaging(request @ (MessagingRequest::Settle { .. } | MessagingRequest::Leave { .. })) => {
            Some(ServiceRequest::Messaging(request))
        }
        _ => None,
    }
}

impl Line<'_> {
    async fn reply(self, call: ServiceCall, room: Room) -> ServiceReply {
        let ServiceCall { id, app, request } = call;
        ServiceReply { id, result: self.answer(app, request, room).await }
    }

    /// Nobody tried what was taken.
    async fn give_back(self, app: &AppName, (broker, group): (BrokerKind, String), taken: Vec<Handed>) {
        let tenant = &self.client.tenant;
        for Handed { delivery, .. } in taken {
            let group = group.clone();
            let back = MessagingRequest::Settle { broker, group, delivery, outcome: Settled::GivenBack };
            if let Err(cause) = self.services.messaging.answer(&tenant.name, app, self.holder, back).await
                && let Some(left_out) = tenant.may_say()
            {
                tracing::warn!(tenant = %tenant.name, %app, %cause, left_out, "a message for a suspended app comes back when its lease ends");
            }
        }
    }

    async fn answer(self, app: AppName, request: ServiceRequest, room: Room) -> Result<ServiceAnswer, ServiceFault> {
        let Line { client, services, blobs, holder, watching } = self;
        let tenant = &client.tenant;
        if let ServiceRequest::Sql(request) = &request
            && let Err(refused) = model::sql::check(request.call.statements())
        {
            return Ok(ServiceAnswer::Sql(Err(refused)));
        }
        // What is open may be ended; everything else waits until the app may run again.
        let request = match tenant.is_barred(&app) {
            true => ending(request).ok_or_else(|| ServiceFault::Refused(format!("the app `{app}` is suspended")))?,
            false => request,
        };
        let of_app = match &request {
            ServiceRequest::Sql(_) => true,
            ServiceRequest::Blob(request) => !ends(&request.op),
            // Secrets and groups of messages are those that a revision names.
            ServiceRequest::Secret(_) | ServiceRequest::Messaging(_) => false,
        };
        if of_app && !tenant.has_data(&app) {
            return Err(ServiceFault::Refused(format!("no app `{app}` of this tenant runs here")));
        }
        if !matches!(request, ServiceRequest::Secret(_)) {
            services.counted(tenant).await.map_err(ServiceFault::Unavailable)?;
        }
        match request {
            ServiceRequest::Secret(request) => {
                secret::answer(tenant, &services.secrets, &services.lent, watching, &app, request)
                    .await
                    .map(ServiceAnswer::Secret)
            }
            ServiceRequest::Blob(request) => {
                Ok(ServiceAnswer::Blob(blobs.answer(&services.folder, tenant, app, request).await))
            }
            ServiceRequest::Messaging(request) => {
                let from = match &request {
                    MessagingRequest::Take { broker, group, .. } => Some((*broker, group.clone())),
                    _ => None,
                };
                let answer = services.messaging.answer(&tenant.name, &app, holder, request).await?;
                match (from, answer) {
                    // It was suspended while it waited.
                    (Some(from), MessagingAnswer::Taken(taken)) if tenant.is_barred(&app) => {
                        self.give_back(&app, from, taken).await;
                        Ok(ServiceAnswer::Messaging(MessagingAnswer::Taken(Vec::new())))
                    }
                    (_, answer) => Ok(ServiceAnswer::Messaging(answer)),
                }
            }
            ServiceRequest::Sql(SqlRequest { provider, call }) => {
                let at_work =
                    take(&tenant.share.sql, 1).await.map_err(|cause| ServiceFault::Unavailable(cause.to_string()))?;
                Ok(ServiceAnswer::Sql(
                    services.sql.call(&tenant.name, &app, &provider, call, vec![room, at_work]).await,
                ))
            }
        }
    }
}
