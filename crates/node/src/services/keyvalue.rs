//! Embedded key-value calls of one host. Calls are started as they come and answered as they finish: a write waits for
//! the disk without holding up those behind it, and what finishes together is written together. One task does it all.

use std::sync::Arc;

use api::services::codec::{FrameReader, FrameWriter, WireError};
use api::services::{KvAnswer, KvCall, KvFault, KvOp, KvReply};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use store::data::{Answer, Fault, MAX_BYTES, MAX_KEY, MAX_LIST, MAX_VALUE, Op};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::Services;
use super::share::{Answers, Room, Share, shrink};
use crate::tenant::Tenant;

/// Calls of one connection under way at once; the rest waits in the socket.
const MAX_CALLS: usize = 4096;

pub(super) async fn serve(
    mut reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
    tenant: Arc<Tenant>,
    services: &Services,
) -> Result<(), WireError> {
    let share = &tenant.share;
    let mut answers = Answers::new(writer, share);
    let mut calls = FuturesUnordered::new();
    let mut open = true;
    while open || !calls.is_empty() {
        tokio::select! {
            Some(answered) = calls.next(), if !calls.is_empty() => {
                push(&mut answers, answered).await?;
                while let Some(Some(answered)) = calls.next().now_or_never() {
                    push(&mut answers, answered).await?;
                }
                answers.flush().await?;
            }
            call = next(&mut reader, share), if open && calls.len() < MAX_CALLS => {
                let Some((call, room)) = call? else { open = false; continue };
                calls.push(answer(&tenant, services, call, room));
                while calls.len() < MAX_CALLS
                    && let Some(size) = reader.ready_size()?
                    && let Some(room) = share.try_call(size)
                    && let Some(call) = reader.ready::<KvCall>()?
                {
                    calls.push(answer(&tenant, services, call, room));
                }
            }
        }
    }
    Ok(())
}

/// The next call, with room for it.
async fn next(reader: &mut FrameReader<OwnedReadHalf>, share: &Share) -> Result<Option<(KvCall, Room)>, WireError> {
    let Some(size) = reader.size().await? else { return Ok(None) };
    let room = share.call(size).await?;
    Ok(reader.next().await?.map(|call| (call, room)))
}

async fn push(answers: &mut Answers<'_>, (reply, room): (KvReply, Option<Room>)) -> Result<(), WireError> {
    match answers.push(&reply, room, 0).await {
        Err(WireError::TooLarge(size)) => {
            let fault = KvFault::TooLarge(format!("the answer has {size} bytes; ask for less at once"));
            answers.push(&KvReply { id: reply.id, result: Err(fault) }, None, 0).await
        }
        other => other,
    }
}

/// The answer to a call, and the room it takes where that is worth counting.
async fn answer(tenant: &Tenant, services: &Services, call: KvCall, _room: Room) -> (KvReply, Option<Room>) {
    let KvCall { id, scope, op } = call;
    let refused = |cause| (KvReply { id, result: Err(KvFault::Unavailable(cause)) }, None);
    if !tenant.has_data(&scope.app) {
        return refused(format!("no app `{}` of this tenant runs here", scope.app));
    }
    if let Err(cause) = services.counted(tenant).await {
        return refused(cause);
    }
    // A read is made at once, so there is room for its answer before; what that does not take is free again.
    let mut room = match most(&op) {
        0 => None,
        bytes => match tenant.share.answer(bytes).await {
            Ok(room) => Some(room),
            Err(cause) => return refused(cause.to_string()),
        },
    };
    let data = &services.data;
    let result = data.call(&tenant.name, &scope.app, &scope.provider, &scope.bucket, operation(op)).await;
    if let Some(room) = &mut room {
        shrink(room, result.as_ref().map_or(0, size));
    }
    (KvReply { id, result: result.map(outcome).map_err(fault) }, room)
}

/// The largest answer to a read, bytes; 0 for what is answered with a word.
fn most(op: &KvOp) -> usize {
    match op {
        KvOp::Get { .. } => MAX_VALUE,
        KvOp::GetMany { .. } => MAX_BYTES,
        KvOp::ListKeys { limit, .. } => (*limit).min(MAX_LIST) as usize * MAX_KEY,
        _ => 0,
    }
}

/// The size of an answer, bytes.
fn size(answer: &Answer) -> usize {
    match answer {
        Answer::Value(value) => value.as_ref().map_or(0, Vec::len),
        Answer::Keys { keys, .. } => keys.iter().map(String::len).sum(),
        Answer::Values(found) => found.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum(),
        Answer::Done | Answer::Bool(_) | Answer::Number(_) => 0,
    }
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
