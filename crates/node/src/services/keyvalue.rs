//! Embedded key-value calls of one host. Calls are started as they come and answered as they finish: a write waits for
//! the disk without holding up those behind it, and what finishes together is written together. One task does it all.

use std::sync::Arc;

use api::services::codec::{FrameReader, FrameWriter, WireError};
use api::services::{KvAnswer, KvCall, KvFault, KvOp, KvReply};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use store::data::{Answer, Fault, Op};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::Services;
use crate::tenant::Tenant;

/// Calls of one connection under way at once; the rest waits in the socket.
const MAX_CALLS: usize = 4096;

pub(super) async fn serve(
    mut reader: FrameReader<OwnedReadHalf>,
    mut writer: FrameWriter<OwnedWriteHalf>,
    tenant: Arc<Tenant>,
    services: &Services,
) -> Result<(), WireError> {
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
            call = reader.next::<KvCall>(), if open && calls.len() < MAX_CALLS => {
                let Some(call) = call? else { open = false; continue };
                calls.push(answer(&tenant, services, call));
                while calls.len() < MAX_CALLS && let Some(call) = reader.ready::<KvCall>()? {
                    calls.push(answer(&tenant, services, call));
                }
            }
        }
    }
    Ok(())
}

fn push(writer: &mut FrameWriter<OwnedWriteHalf>, reply: &KvReply) -> Result<(), WireError> {
    match writer.push(reply) {
        Err(WireError::TooLarge(size)) => {
            let fault = KvFault::TooLarge(format!("the answer has {size} bytes; ask for less at once"));
            writer.push(&KvReply { id: reply.id, result: Err(fault) })
        }
        other => other,
    }
}

async fn answer(tenant: &Tenant, services: &Services, call: KvCall) -> KvReply {
    let KvCall { id, scope, op } = call;
    if let Err(cause) = services.counted(tenant).await {
        return KvReply { id, result: Err(KvFault::Unavailable(cause)) };
    }
    let data = &services.data;
    let result = data.call(&tenant.name, &scope.app, &scope.provider, &scope.bucket, operation(op)).await;
    KvReply { id, result: result.map(outcome).map_err(fault) }
}

fn operation(op: KvOp) -> Op {
    match op {
        KvOp::Get { key } => Op::Get { key },
        KvOp::Set { key, value } => Op::Set { key, value },
        KvOp::Delete { key } => Op::Delete { key },
        KvOp::Exists { key } => Op::Exists { key },
        KvOp::ListKeys { cursor, limit } => Op::ListKeys { cursor, limit },
        KvOp::Increment { key, delta } => Op::Increment { key, delta },
        KvOp::CompareAndSet { key, expected, value } => Op::CompareAndSet { key, expected, value },
        KvOp::GetMany { keys } => Op::GetMany { keys },
        KvOp::SetMany { pairs } => Op::SetMany { pairs },
        KvOp::DeleteMany { keys } => Op::DeleteMany { keys },
    }
}

fn outcome(answer: Answer) -> KvAnswer {
    match answer {
        Answer::Done => KvAnswer::Done,
        Answer::Value(value) => KvAnswer::Value(value),
        Answer::Bool(value) => KvAnswer::Bool(value),
        Answer::Number(value) => KvAnswer::Number(value),
        Answer::Keys { keys, cursor } => KvAnswer::Keys { keys, cursor },
        Answer::Values(values) => KvAnswer::Values(values),
    }
}

fn fault(fault: Fault) -> KvFault {
    match fault {
        Fault::NotANumber(key) => KvFault::NotANumber(key),
        Fault::TooLarge(what) => KvFault::TooLarge(what),
        Fault::OverQuota(full) => KvFault::OverQuota(full.to_string()),
        Fault::Unavailable(what) => KvFault::Unavailable(what),
    }
}
