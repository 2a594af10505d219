//! An object on its way to or from a component that is an object store: one call that goes on for as long as chunks pass.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use runtime::Ctx;
use runtime::wasmtime::component::{Resource, ResourceAny};
use runtime::wasmtime::{self, Store};
use tokio::sync::{mpsc, oneshot};
use wasmtime_wasi::p2::{DynOutputStream, StreamError};

use super::lent::{Going, Lent};
use super::{Guest, Said, another, said};
use crate::blobstore::{Answer, BackendError, CHUNK, Upload};
use crate::exported::Failed;

/// What comes out of a call that reads: first how much there is and how long the call may take, then the bytes; the last
/// ones are what it returns, so that whoever has them all has seen it end.
pub(super) enum Part {
    Size(u64, Duration),
    Bytes(Bytes),
}

/// An object that a component gives.
pub(super) struct Giving {
    parts: mpsc::Receiver<Part>,
    call: Option<Lent<Option<Bytes>>>,
    /// What it ended with, until that is passed on.
    last: Option<Result<Bytes, BackendError>>,
}

impl Giving {
    pub(super) fn new(parts: mpsc::Receiver<Part>, call: Going<Option<Bytes>>) -> Self {
        Self { parts, call: Some(Lent::new(call)), last: None }
    }

    /// Answered when it is known how much there is.
    pub(super) async fn begun(mut self) -> Result<(u64, Self), BackendError> {
        let Some(Part::Size(size, wall)) = self.next().await? else { return Err(another()) };
        if size == 0 {
            // Nobody reads on: the call ends here.
            while self.next().await?.is_some() {}
        }
        if let Some(call) = &mut self.call {
            call.within(wall);
        }
        Ok((size, self))
    }

    /// The next part; `None` after the last one.
    async fn next(&mut self) -> Result<Option<Part>, BackendError> {
        if let Some(call) = &mut self.call {
            let ended = tokio::select! {
                biased;
                Some(part) = self.parts.recv() => return Ok(Some(part)),
                ended = call => ended,
            };
            self.call = None;
            self.last = said(ended).transpose();
        }
        // What it sent before it ended comes before that, also where both were there at once.
        if let Ok(part) = self.parts.try_recv() {
            return Ok(Some(part));
        }
        self.last.take().transpose().map(|last| last.map(Part::Bytes))
    }

    /// The next bytes.
    pub(super) async fn bytes(mut self) -> Result<Option<(Bytes, Self)>, BackendError> {
        match self.next().await? {
            Some(Part::Bytes(bytes)) => Ok(Some((bytes, self))),
            Some(Part::Size(..)) => Err(another()),
            None => Ok(None),
        }
    }
}

/// Opens the object and passes it on, up to its last bytes.
pub(super) async fn give(
    guest: &mut Guest<'_>,
    (name, object): (String, String),
    (start, end): (u64, u64),
    parts: mpsc::Sender<Part>,
) -> wasmtime::Result<Said<Option<Bytes>>> {
    let open = match guest.open(name).await? {
        Ok(open) => open,
        Err(words) => return Ok(Err(words)),
    };
    let got = guest.container.container().call_get_data(&mut *guest.store, open, &object, start, end).await?;
    let last = match got {
        Ok(value) => stream_out(guest, value, parts).await?,
        Err(words) => Err(words),
    };
    guest.close(open).await?;
    Ok(last)
}

async fn stream_out(
    guest: &mut Guest<'_>,
    value: ResourceAny,
    parts: mpsc::Sender<Part>,
) -> wasmtime::Result<Said<Option<Bytes>>> {
    let values = guest.types.incoming_value();
    let mut left = values.call_size(&mut *guest.store, value).await?;
    let stream = match values.call_incoming_value_consume_async(&mut *guest.store, value).await? {
        Ok(stream) => stream,
        Err(words) => return Ok(Err(words)),
    };
    let mut answer = Ok(None);
    let wall = guest.store.data().limits().wall.duration();
    let mut heard = parts.send(Part::Size(left, wall)).await.is_ok();
    while heard && left > 0 {
        match guest.store.data_mut().table().get_mut(&stream)?.blocking_read(CHUNK).await {
            Ok(bytes) => {
                left = left.saturating_sub(bytes.len() as u64);
                match left {
                    0 => answer = Ok(Some(bytes)),
                    _ => heard = parts.send(Part::Bytes(bytes)).await.is_ok(),
                }
            }
            // Too short: whoever knows the size says so.
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(cause)) => {
                answer = Err(cause.to_string());
                break;
            }
            Err(StreamError::Trap(cause)) => return Err(cause),
        }
    }
    guest.store.data_mut().table().delete(stream)?;
    Ok(answer)
}

/// An object that a component takes.
pub(super) struct Taking {
    chunks: mpsc::Sender<Bytes>,
    call: Lent<()>,
}

impl Taking {
    pub(super) fn new(chunks: mpsc::Sender<Bytes>, call: Going<()>) -> Self {
        Self { chunks, call: Lent::new(call) }
    }

    /// Answered when the component takes the first chunk.
    pub(super) async fn begun(mut self, begun: oneshot::Receiver<Duration>) -> Result<Self, BackendError> {
        let wall = tokio::select! {
            biased;
            ended = &mut self.call => return Err(Self::early(ended)),
            Ok(wall) = begun => wall,
        };
        self.call.within(wall);
        Ok(self)
    }

    /// Why it takes no more, though nobody said that this is all.
    fn early(ended: Result<Said<()>, Failed>) -> BackendError {
        said(ended).err().unwrap_or_else(another)
    }
}

impl Upload for Taking {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        async move {
            tokio::select! {
                biased;
                ended = &mut self.call => Err(Self::early(ended)),
                sent = self.chunks.send(chunk) => sent.map_err(|_| another()),
            }
        }
        .boxed()
    }

    fn finish(self: Box<Self>) -> Answer<'static, ()> {
        let Self { chunks, call } = *self;
        drop(chunks);
        async move { said(call.await) }.boxed()
    }

    fn abandon(self: Box<Self>) -> BoxFuture<'static, ()> {
        // With the call its instance ends, and what that was writing is dropped before its end.
        drop(self);
        std::future::ready(()).boxed()
    }
}

/// Opens the object and writes to it whatever comes.
pub(super) async fn take(
    guest: &mut Guest<'_>,
    (name, object): (String, String),
    ready: oneshot::Sender<Duration>,
    chunks: mpsc::Receiver<Bytes>,
) -> wasmtime::Result<Said<()>> {
    let open = match guest.open(name).await? {
        Ok(open) => open,
        Err(words) => return Ok(Err(words)),
    };
    let value = guest.types.outgoing_value().call_new_outgoing_value(&mut *guest.store).await?;
    let written = guest.container.container().call_write_data(&mut *guest.store, open, &object, value).await?;
    let streamed = match written {
        Ok(()) => stream_in(guest, value, ready, chunks).await?,
        Err(words) => Err(words),
    };
    let finished = match streamed {
        Ok(()) => guest.types.outgoing_value().call_finish(&mut *guest.store, value).await?,
        Err(words) => {
            guest.close(value).await?;
            Err(words)
        }
    };
    guest.close(open).await?;
    Ok(finished)
}

async fn stream_in(
    guest: &mut Guest<'_>,
    value: ResourceAny,
    ready: oneshot::Sender<Duration>,
    mut chunks: mpsc::Receiver<Bytes>,
) -> wasmtime::Result<Said<()>> {
    let body = guest.types.outgoing_value().call_outgoing_value_write_body(&mut *guest.store, value).await?;
    let Ok(body) = body else {
        return Ok(Err("the component behind the link gives no stream to write to".to_owned()));
    };
    // Nobody is there to hear it where the upload was given up meanwhile.
    ready.send(guest.store.data().limits().wall.duration()).ok();
    let mut poured = Ok(());
    while let Some(chunk) = chunks.recv().await {
        poured = pour(guest.store, &body, chunk).await?;
        if poured.is_err() {
            break;
        }
    }
    // The contract wants it gone before the end.
    guest.store.data_mut().table().delete(body)?;
    Ok(poured)
}

async fn pour(
    store: &mut Store<Ctx>,
    body: &Resource<DynOutputStream>,
    mut chunk: Bytes,
) -> wasmtime::Result<Said<()>> {
    while !chunk.is_empty() {
        let stream = store.data_mut().table().get_mut(body)?;
        let written = match stream.write_ready().await {
            Ok(0) => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(room) => stream.write(chunk.split_to(chunk.len().min(room))),
            Err(cause) => Err(cause),
        };
        match written {
            Ok(()) => {}
            Err(StreamError::Closed) => return Ok(Err("the stream was closed before its end".to_owned())),
            Err(StreamError::LastOperationFailed(cause)) => return Ok(Err(cause.to_string())),
            Err(StreamError::Trap(cause)) => return Err(cause),
        }
    }
    Ok(Ok(()))
}
