//! The embedded key-value store as a backend: the node owns it, one connection carries every call of this host.

use std::sync::Arc;

use api::services::client::{KvClient, KvError};
use api::services::{KvAnswer, KvFault, KvOp, KvScope, KvWrite};
use futures::FutureExt;
use model::{AppName, ProviderName};
use providers::keyvalue::{Answer, Backend, BackendError, PAGE, Page};

use crate::watches::Queue;

/// One app's keys under one provider.
#[derive(Clone)]
pub struct Embedded {
    client: Arc<KvClient>,
    app: AppName,
    provider: ProviderName,
    /// Who is told of what is written to which bucket.
    watched: Option<Arc<(String, Vec<Queue>)>>,
}

impl Embedded {
    /// The app's keys, by way of `client`.
    pub fn new(client: Arc<KvClient>, app: AppName, provider: ProviderName) -> Self {
        Self { client, app, provider, watched: None }
    }

    /// The same, and these are told of what is written to `bucket`: by the node, together with the write.
    pub(crate) fn telling(&self, bucket: &str, watchers: Vec<Queue>) -> Self {
        Self { watched: Some(Arc::new((bucket.to_owned(), watchers))), ..self.clone() }
    }

    fn watchers(&self, bucket: &str) -> &[Queue] {
        match self.watched.as_deref() {
            Some((watched, watchers)) if watched == bucket => watchers,
            _ => &[],
        }
    }

    async fn write(&self, bucket: &str, write: KvWrite) -> Result<KvAnswer, BackendError> {
        let watchers = self.watchers(bucket);
        let tell = match watchers {
            [] => Vec::new(),
            watchers => watchers.iter().filter_map(|queue| queue.tell(&write.keys())).collect(),
        };
        match self.call(bucket, KvOp::Write { write, tell }).await? {
            KvAnswer::Untold { answer, lost } => {
                let queue = |group: &str| watchers.iter().find(|queue| queue.group == group);
                lost.iter().for_each(|(group, keys)| queue(group).into_iter().for_each(|queue| queue.lost(*keys)));
                Ok(answer.into())
            }
            answer => Ok(answer),
        }
    }

    async fn call(&self, bucket: &str, op: KvOp) -> Result<KvAnswer, BackendError> {
        let scope = KvScope { app: self.app.clone(), provider: self.provider.clone(), bucket: bucket.to_owned() };
        self.client.call(&scope, &op).await.map_err(|error| match error {
            KvError::Fault(KvFault::NotANumber(key)) => BackendError::NotANumber(key),
            KvError::Fault(KvFault::TooLarge(why) | KvFault::OverQuota(why)) => BackendError::TooLarge(why),
            KvError::Unsendable(why) => BackendError::TooLarge(why),
            KvError::TimedOut(limit) => BackendError::TimedOut { ms: limit.as_millis() as u64 },
            other => BackendError::Unavailable(other.to_string()),
        })
    }
}

/// Without the answer: it may hold a value, and errors are shown.
fn wrong() -> BackendError {
    BackendError::Unavailable("the node answered another question".to_owned())
}

macro_rules! expect {
    ($call:expr, $pattern:pat => $value:expr) => {
        match $call.await? {
            $pattern => Ok($value),
            _ => Err(wrong()),
        }
    };
}

impl Backend for Embedded {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        async move { expect!(self.call(bucket, KvOp::Get { key: key.to_owned() }), KvAnswer::Value(value) => value) }
            .boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        async move { expect!(self.write(bucket, KvWrite::Set { key: key.to_owned(), value }), KvAnswer::Done => ()) }
            .boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        async move { expect!(self.write(bucket, KvWrite::Delete { key: key.to_owned() }), KvAnswer::Done => ()) }
            .boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        async move { expect!(self.call(bucket, KvOp::Exists { key: key.to_owned() }), KvAnswer::Bool(there) => there) }
            .boxed()
    }

    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let op = KvOp::ListKeys { cursor: cursor.map(str::to_owned), limit: PAGE };
            expect!(self.call(bucket, op), KvAnswer::Keys { keys, cursor } => Page { keys, cursor })
        }
        .boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        async move {
            let write = KvWrite::Increment { key: key.to_owned(), delta };
            expect!(self.write(bucket, write), KvAnswer::Number(sum) => sum)
        }
        .boxed()
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        async move { expect!(self.call(bucket, KvOp::GetMany { keys }), KvAnswer::Values(values) => values) }.boxed()
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        async move { expect!(self.write(bucket, KvWrite::SetMany { pairs }), KvAnswer::Done => ()) }.boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        async move { expect!(self.write(bucket, KvWrite::DeleteMany { keys }), KvAnswer::Done => ()) }.boxed()
    }
}
