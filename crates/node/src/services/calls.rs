//! Calls of one host to every service but key-value: started as they come, answered as they finish, so that a slow one
//! holds up nobody. Each service answers in a file of its own.

use std::sync::Arc;

use api::services::blob::{BlobAnswer, BlobOp};
use api::services::codec::{FrameReader, FrameWriter, WireError};
use api::services::messaging::MessagingAnswer;
use api::services::sql::SqlRequest;
use api::services::{ServiceAnswer, ServiceCall, ServiceFault, ServiceReply, ServiceRequest};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use model::AppName;
use model::sql::MAX_ANSWER;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::blob::BlobSession;
use super::share::{Answers, Room, Share, take};
use super::{Client, Services, secret};
use crate::messaging::Holder;

/// Calls of one connection under way at once; the rest waits in the socket.
const MAX_CALLS: usize = 1024;

pub(super) async fn serve(
    mut reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
    client: Client,
    services: Arc<Services>,
) -> Result<(), WireError> {
    let share = &client.tenant.share;
    let blobs = BlobSession::default();
    let mut answers = Answers::new(writer, share);
    // What this connection takes is given to others when it ends.
    let holder = services.messaging.holder(&client.tenant.name);
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
                    Some((call, room)) => calls.push(reply(&client, &services, &blobs, &holder, call, room)),
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
    let room = share.call(size).await?;
    Ok(reader.next().await?.map(|call| (call, room)))
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

async fn reply(
    client: &Client,
    services: &Services,
    blobs: &BlobSession,
    holder: &Holder,
    call: ServiceCall,
    _room: Room,
) -> ServiceReply {
    let ServiceCall { id, app, request } = call;
    ServiceReply { id, result: answer(client, services, blobs, holder, app, request).await }
}

async fn answer(
    client: &Client,
    services: &Services,
    blobs: &BlobSession,
    holder: &Holder,
    app: AppName,
    request: ServiceRequest,
) -> Result<ServiceAnswer, ServiceFault> {
    let tenant = &client.tenant;
    // What ends something that is open is done for whoever asks: it was begun by an app that was there.
    let ends = |op: &BlobOp| matches!(op, BlobOp::Close { .. } | BlobOp::Abandon { .. });
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
            secret::answer(&client.tenant, &services.secrets, &services.lent, &app, request)
                .await
                .map(ServiceAnswer::Secret)
        }
        ServiceRequest::Blob(request) => {
            Ok(ServiceAnswer::Blob(blobs.answer(&services.folder, tenant, app, request).await))
        }
        ServiceRequest::Messaging(request) => {
            services.messaging.answer(&tenant.name, &app, holder, request).await.map(ServiceAnswer::Messaging)
        }
        ServiceRequest::Sql(SqlRequest { provider, call }) => {
            let _at_work =
                take(&tenant.share.sql, 1).await.map_err(|cause| ServiceFault::Unavailable(cause.to_string()))?;
            Ok(ServiceAnswer::Sql(services.sql.call(&tenant.name, &app, &provider, call).await))
        }
    }
}
