//! Embedded key-value calls of one host. Calls are started as they come and answered as they finish: a write waits for
//! the disk without holding up those behind it, and what finishes together is written together. One task does it all, and
//! the thread it runs on serves other tenants too: after some calls, those have their turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::services::codec::{FrameReader, FrameWriter, WireError};
use api::services::{
    KvAnswer, KvCall, KvFault, KvOp, KvReply, KvScope, KvTell, KvWrite, KvWritten, MAX_KEYS, MAX_TELL, MAX_TOLD,
};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use store::data::{Answer, Fault, MAX_BYTES, MAX_KEY, MAX_LIST, MAX_VALUE, Op};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::Services;
use super::share::{Answers, Room, Share, shrink, take};
use crate::tenant::Tenant;

/// Calls of one connection under way at once; the rest waits in the socket.
const MAX_CALLS: usize = 4096;
/// Calls that are begun or answered before others have the thread.
const MAX_AT_ONCE: usize = 64;
/// Who has more than this under way waits until it is its tenant's turn: others of its tenant's connections have theirs before.
const FEW: usize = 8;
/// So long others wait for the thread, about, where the disk is slow.
const LONG: Duration = Duration::from_millis(2);
/// The most that the lists of a call take in memory beside what is in them, bytes.
const SPREAD: usize =
    MAX_KEYS * size_of::<(String, Vec<u8>)>() + MAX_TELL * (size_of::<KvTell>() + MAX_KEYS * size_of::<u16>());

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
    let mut done = Vec::new();
    while open || !calls.is_empty() {
        tokio::select! {
            Some(answered) = calls.next(), if !calls.is_empty() => done.push(answered),
            call = next(&mut reader, share), if open && calls.len() < MAX_CALLS => {
                let Some((call, room)) = call? else { open = false; continue };
                calls.push(answer(&tenant, services, call, room));
                let mut begun = 1;
                while begun < MAX_AT_ONCE && calls.len() < MAX_CALLS
                    && let Some(size) = reader.ready_size()?
                    && let Some(mut room) = share.try_call(size, SPREAD)
                    && let Some(call) = reader.ready::<KvCall>()?
                {
                    shrink(&mut room, size + call.op.spread());
                    calls.push(answer(&tenant, services, call, room));
                    begun += 1;
                }
            }
        }
        // Most reads are made while their call is looked at here.
        let turn = if calls.len() > FEW { share.turns.acquire().await.ok() } else { None };
        let began = Instant::now();
        while done.len() < MAX_AT_ONCE
            && began.elapsed() < LONG
            && let Some(Some(answered)) = calls.next().now_or_never()
        {
            done.push(answered);
        }
        drop(turn);
        if done.is_empty() {
            continue;
        }
        let many = done.len() > FEW;
        for answered in done.drain(..) {
            push(&mut answers, answered).await?;
        }
        answers.flush().await?;
        if many {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// The next call, with room for it.
async fn next(reader: &mut FrameReader<OwnedReadHalf>, share: &Share) -> Result<Option<(KvCall, Room)>, WireError> {
    let Some(size) = reader.size().await? else { return Ok(None) };
    let mut room = share.call(size, SPREAD).await?;
    let Some(call) = reader.next::<KvCall>().await? else { return Ok(None) };
    shrink(&mut room, size + call.op.spread());
    Ok(Some((call, room)))
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
async fn answer(tenant: &Tenant, services: &Services, call: KvCall, held: Room) -> (KvReply, Option<Room>) {
    let KvCall { id, scope, op } = call;
    let refused = |cause| (KvReply { id, result: Err(KvFault::Unavailable(cause)) }, None);
    // A read that is made at once waits for nothing that would have others go on.
    tokio::task::coop::consume_budget().await;
    if !tenant.has_data(&scope.app) {
        return refused(format!("no app `{}` of this tenant runs here", scope.app));
    }
    let KvScope { app, provider, .. } = &scope;
    if !tenant.has_keys(app, provider) {
        if let Some(left_out) = tenant.may_say() {
            tracing::warn!(tenant = %tenant.name, %app, %provider, left_out, "a host asked for keys of a provider that its app does not have");
        }
        return refused(format!("no revision of `{app}` here has a provider `{provider}` whose keys the node keeps"));
    }
    if let Err(cause) = services.counted(tenant).await {
        return refused(cause);
    }
    let op = match op {
        KvOp::Write { write, tell } if !tell.is_empty() => {
            return (KvReply { id, result: telling(tenant, services, scope, write, tell, held).await }, None);
        }
        op => op,
    };
    // A read is made at once, so there is room for its answer before; what that does not take is free again.
    let mut room = match most(&op) {
        0 => None,
        bytes => match tenant.share.answer(bytes).await {
            Ok(room) => Some(room),
            Err(cause) => return refused(cause.to_string()),
        },
    };
    let data = &services.data;
    let (reads, app, provider) = (&tenant.share.reads, &scope.app, &scope.provider);
    let result = data.call_within(reads, &tenant.name, app, provider, &scope.bucket, operation(op)).await;
    if let Some(room) = &mut room {
        shrink(room, result.as_ref().map_or(0, size));
    }
    (KvReply { id, result: result.map(outcome).map_err(fault) }, room)
}

/// A write of which watchers are told. That it may happen is on disk for them before it does, and a task of its own ends
/// what was begun: whoever asked may be gone.
async fn telling(
    tenant: &Tenant,
    services: &Services,
    scope: KvScope,
    write: KvWrite,
    tell: Vec<KvTell>,
    held: Room,
) -> Result<KvAnswer, KvFault> {
    let keys = tell.iter().map(|told| told.keys.len()).sum::<usize>();
    if keys > MAX_TOLD {
        return Err(KvFault::TooLarge(format!("a write tells its watchers of {keys} keys; at most {MAX_TOLD}")));
    }
    let places = u32::try_from(keys.max(1)).unwrap_or(u32::MAX);
    let place = take(&tenant.share.told, places).await.map_err(|cause| KvFault::Unavailable(cause.to_string()))?;
    let (data, messaging, tenant) = (services.data.clone(), services.messaging.clone(), tenant.name.clone());
    let task = tokio::spawn(async move {
        let _held = (held, place);
        let announced = {
            let keys = write.keys();
            // Where one is too long nothing is written.
            let tell: &[KvTell] = if keys.iter().any(|key| key.len() > MAX_KEY) { &[] } else { &tell };
            messaging.announce(&tenant, &scope.app, &keys, tell).await
        };
        let written = data.call(&tenant, &scope.app, &scope.provider, &scope.bucket, change(write)).await;
        let lost = match &written {
            // Of what is not available it is not known whether it happened.
            Ok(_) | Err(Fault::Unavailable(_)) => messaging.told(&tenant, announced).await,
            Err(Fault::NotANumber(_) | Fault::TooLarge(_) | Fault::OverQuota(_)) => {
                messaging.not_told(&tenant, announced).await;
                Vec::new()
            }
        };
        let answer = written.map_err(fault)?;
        Ok(match (lost.is_empty(), &answer) {
            (false, Answer::Done) => KvAnswer::Untold { answer: KvWritten::Done, lost },
            (false, Answer::Bool(set)) => KvAnswer::Untold { answer: KvWritten::Bool(*set), lost },
            (false, Answer::Number(value)) => KvAnswer::Untold { answer: KvWritten::Number(*value), lost },
            _ => outcome(answer),
        })
    });
    task.await.unwrap_or_else(|cause| Err(KvFault::Unavailable(format!("the node failed: {cause}"))))
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

/// What the engine does.
fn operation(op: KvOp) -> Op {
    match op {
        KvOp::Get { key } => Op::Get { key },
        KvOp::Exists { key } => Op::Exists { key },
        KvOp::ListKeys { cursor, limit } => Op::ListKeys { cursor, limit },
        KvOp::GetMany { keys } => Op::GetMany { keys },
        KvOp::Write { write, .. } => change(write),
    }
}

/// The same of what changes something.
fn change(write: KvWrite) -> Op {
    match write {
        KvWrite::Set { key, value } => Op::Set { key, value },
        KvWrite::Delete { key } => Op::Delete { key },
        KvWrite::Increment { key, delta } => Op::Increment { key, delta },
        KvWrite::CompareAndSet { key, expected, value } => Op::CompareAndSet { key, expected, value },
        KvWrite::SetMany { pairs } => Op::SetMany { pairs },
        KvWrite::DeleteMany { keys } => Op::DeleteMany { keys },
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
