//! Calls of one host to every service but key-value: started as they come, answered as they finish, so that a slow one
//! holds up nobody. Each service answers in a file of its own.

use std::sync::Arc;

use api::services::codec::{FrameReader, FrameWriter, WireError};
use api::services::sql::SqlRequest;
use api::services::{ServiceAnswer, ServiceCall, ServiceFault, ServiceReply, ServiceRequest};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use model::AppName;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::blob::BlobSession;
use super::{Client, Services, secret};
use crate::messaging::Holder;

/// Calls of one connection under way at once; the rest waits in the socket.
const MAX_CALLS: usize = 1024;

pub(super) async fn serve(
    mut reader: FrameReader<OwnedReadHalf>,
    mut writer: FrameWriter<OwnedWriteHalf>,
    client: Client,
    services: Arc<Services>,
) -> Result<(), WireError> {
    let blobs = BlobSession::default();
    // What this connection takes is given to others when it ends.
    let holder = services.messaging.holder(&client.tenant.name);
    let mut calls = FuturesUnordered::new();
    let mut open = true;
    while open || !calls.is_empty() {
        tokio::select! {
            Some(reply) = calls.next(), if !calls.is_empty() => {
                push(&mut writer, &reply)?;
                while let Some(Some(reply)) = calls.next().now_or_never() {
                    push(&mut writer, &reply)?;
                }
                writer.flush().await?;
            }
            call = reader.next::<ServiceCall>(), if open && calls.len() < MAX_CALLS => {
                match call? {
                    Some(call) => calls.push(reply(&client, &services, &blobs, &holder, call)),
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

fn push(writer: &mut FrameWriter<OwnedWriteHalf>, reply: &ServiceReply) -> Result<(), WireError> {
    match writer.push(reply) {
        Err(WireError::TooLarge(size)) => {
            let fault = ServiceFault::Refused(format!("the answer has {size} bytes; ask for less at once"));
            writer.push(&ServiceReply { id: reply.id, result: Err(fault) })
        }
        other => other,
    }
}

async fn reply(
    client: &Client,
    services: &Services,
    blobs: &BlobSession,
    holder: &Holder,
    call: ServiceCall,
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
            Ok(ServiceAnswer::Blob(blobs.answer(&services.folder, &client.tenant.name, app, request).await))
        }
        ServiceRequest::Messaging(request) => {
            services.messaging.answer(&tenant.name, &app, holder, request).await.map(ServiceAnswer::Messaging)
        }
        ServiceRequest::Sql(SqlRequest { provider, call }) => {
            Ok(ServiceAnswer::Sql(services.sql.call(&tenant.name, &app, &provider, call).await))
        }
    }
}
