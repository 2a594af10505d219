//! The node's folder of objects as a backend: chunks over a line of their own, so that a large object holds up no other
//! call to the node.

use std::sync::Arc;

use api::services::blob::{BlobAnswer, BlobFault, BlobOp, BlobRequest, Chunk};
use api::services::client::{CallError, CallsClient};
use api::services::{ServiceAnswer, ServiceFault, ServiceRequest};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use model::{AppName, ProviderName};
use providers::blobstore::{
    Answer, Backend, BackendError, CHUNK, ContainerInfo, ObjectInfo, Page, Reading, Upload, clamp, transfer,
};

/// One app's objects under one provider.
pub struct Folder {
    line: Line,
}

/// Calls on behalf of one provider of one app.
#[derive(Clone)]
struct Line {
    client: Arc<CallsClient>,
    app: AppName,
    provider: ProviderName,
}

impl Folder {
    /// The app's objects, by way of `client`.
    pub fn new(client: Arc<CallsClient>, app: AppName, provider: ProviderName) -> Self {
        Self { line: Line { client, app, provider } }
    }
}

impl Line {
    async fn call(&self, op: BlobOp) -> Result<BlobAnswer, BackendError> {
        let request = ServiceRequest::Blob(BlobRequest { provider: self.provider.clone(), op });
        match self.client.call(&self.app, &request).await {
            Ok(ServiceAnswer::Blob(answer)) => answer.map_err(translate),
            #[allow(unreachable_patterns, reason = "other services have answers too")]
            Ok(other) => Err(BackendError::Unavailable(format!("the node answered another question: {other:?}"))),
            Err(CallError::Fault(ServiceFault::Refused(why))) => Err(BackendError::Misuse(why)),
            Err(CallError::Unsendable(why)) => Err(BackendError::TooLarge(why)),
            Err(CallError::TimedOut(limit)) => Err(BackendError::TimedOut { ms: limit.as_millis() as u64 }),
            Err(other) => Err(BackendError::Unavailable(other.to_string())),
        }
    }

    /// Says something nobody waits for.
    fn tell(&self, op: BlobOp) {
        let line = self.clone();
        // Without a runtime the process is ending, and the node forgets with the connection.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { drop(line.call(op).await) });
        }
    }
}

fn translate(fault: BlobFault) -> BackendError {
    match fault {
        BlobFault::NoContainer(container) => BackendError::NoContainer(container),
        BlobFault::ContainerExists(container) => BackendError::ContainerExists(container),
        BlobFault::NoObject { container, object } => BackendError::NoObject { container, object },
        BlobFault::Damaged { object, why } => BackendError::Damaged { object, why },
        BlobFault::TooLarge(why) | BlobFault::OverQuota(why) => BackendError::TooLarge(why),
        BlobFault::Unavailable(why) | BlobFault::Refused(why) => BackendError::Unavailable(why),
    }
}

fn wrong(answer: &BlobAnswer) -> BackendError {
    BackendError::Unavailable(format!("the node answered another question: {answer:?}"))
}

macro_rules! expect {
    ($call:expr, $pattern:pat => $value:expr) => {
        match $call.await? {
            $pattern => Ok($value),
            other => Err(wrong(&other)),
        }
    };
}

impl Backend for Folder {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        let op = BlobOp::Create { container: container.to_owned() };
        async move { expect!(self.line.call(op), BlobAnswer::Done => ()) }.boxed()
    }

    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        let op = BlobOp::Container { container: container.to_owned() };
        let info = |created_at| ContainerInfo { created_at };
        async move { expect!(self.line.call(op), BlobAnswer::Container(found) => found.map(info)) }.boxed()
    }

    fn containers(&self) -> Answer<'_, Vec<String>> {
        async move { expect!(self.line.call(BlobOp::Containers), BlobAnswer::Names { names, .. } => names) }.boxed()
    }

    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        let op = BlobOp::Delete { container: container.to_owned() };
        async move { expect!(self.line.call(op), BlobAnswer::Done => ()) }.boxed()
    }

    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        let op = BlobOp::Clear { container: container.to_owned() };
        async move { expect!(self.line.call(op), BlobAnswer::Done => ()) }.boxed()
    }

    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        let op = BlobOp::Object { container: container.to_owned(), object: object.to_owned() };
        let info = |(created_at, size)| ObjectInfo { created_at, size };
        async move { expect!(self.line.call(op), BlobAnswer::Object(found) => found.map(info)) }.boxed()
    }

    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        async move {
            let op = BlobOp::Open { container: container.to_owned(), object: object.to_owned() };
            let (reading, size) = expect!(self.line.call(op), BlobAnswer::Opened { reading, size } => (reading, size))?;
            // From here on it is closed whatever happens.
            let open = Open { line: self.line.clone(), reading };
            let (offset, size) = clamp(start, end, size)?;
            let chunks = futures::stream::try_unfold((open, offset, size), |(open, offset, left)| async move {
                if left == 0 {
                    return Ok(None);
                }
                let length = left.min(CHUNK as u64) as u32;
                let op = BlobOp::Read { reading: open.reading, offset, length };
                let chunk: Bytes = expect!(open.line.call(op), BlobAnswer::Chunk(Chunk(bytes)) => bytes)?;
                let got = chunk.len() as u64;
                if got == 0 || got > left {
                    return Err(BackendError::Unavailable(format!("the node sent {got} bytes where {length} are")));
                }
                Ok(Some((chunk, (open, offset + got, left - got))))
            });
            Ok(Reading { size, chunks: chunks.boxed() })
        }
        .boxed()
    }

    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
        async move {
            let op = BlobOp::Begin { container: container.to_owned(), object: object.to_owned() };
            let upload = expect!(self.line.call(op), BlobAnswer::Begun { upload } => upload)?;
            let upload: Box<dyn Upload> = Box::new(Sending { line: self.line.clone(), upload, over: false });
            Ok(upload)
        }
        .boxed()
    }

    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        let op = BlobOp::List { container: container.to_owned(), cursor: cursor.map(str::to_owned) };
        async move { expect!(self.line.call(op), BlobAnswer::Names { names, cursor } => Page { names, cursor }) }
            .boxed()
    }

    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
        let op = BlobOp::Remove { container: container.to_owned(), objects };
        async move { expect!(self.line.call(op), BlobAnswer::Done => ()) }.boxed()
    }

    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        transfer((self, from.0, from.1), (self, to.0, to.1)).boxed()
    }
}

/// An object the node holds open for us.
struct Open {
    line: Line,
    reading: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.line.tell(BlobOp::Close { reading: self.reading });
    }
}

/// An object the node is being sent.
struct Sending {
    line: Line,
    upload: u64,
    over: bool,
}

impl Upload for Sending {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        let op = BlobOp::Write { upload: self.upload, chunk: Chunk(chunk) };
        async move { expect!(self.line.call(op), BlobAnswer::Done => ()) }.boxed()
    }

    fn finish(mut self: Box<Self>) -> Answer<'static, ()> {
        async move {
            self.over = true;
            expect!(self.line.call(BlobOp::Finish { upload: self.upload }), BlobAnswer::Done => ())
        }
        .boxed()
    }

    fn abandon(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            self.over = true;
            // Where it does not reach the node, the node forgets with the connection.
            drop(self.line.call(BlobOp::Abandon { upload: self.upload }).await);
        }
        .boxed()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.over {
            self.line.tell(BlobOp::Abandon { upload: self.upload });
        }
    }
}
