//! Key-value in a process beside the platform that speaks wRPC: `wrpc:keyvalue@0.2.0-draft`, the contract with the bucket
//! as a name in every call.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use model::ProviderName;
use tokio_util::codec::Decoder;
use wrpc_transport::{Decode, ListDecoder, SyncCodec};

use super::{Answer, Backend, BackendError, Gathered, MAX_BATCH_BYTES, MAX_VALUE, Page};
use crate::external::{
    AT_FIRST, Answered, CallError, Connect, Function, Kind, Params, Patience, Process, SHORT, USUAL, words,
};

const STORE: &str = "wrpc:keyvalue/store@0.2.0-draft";
const ATOMICS: &str = "wrpc:keyvalue/atomics@0.2.0-draft";
const BATCH: &str = "wrpc:keyvalue/batch@0.2.0-draft";

/// As [`SHORT`], with a value.
const VALUE: u64 = MAX_VALUE as u64 + SHORT;
/// As [`SHORT`], with a page of keys.
const KEYS: u64 = 2 << 20;
/// As [`SHORT`], with a batch and what goes around each of its keys.
const MANY: u64 = MAX_BATCH_BYTES as u64 + SHORT;

/// One app's keys in one external process.
pub struct External(Process);

/// The error of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoSuchStore,
    AccessDenied,
    Other(String),
}

/// Reads a [`Refusal`].
#[derive(Default)]
pub(crate) struct RefusalDecoder {
    number: <u32 as Decode>::Decoder,
    text: <String as Decode>::Decoder,
    other: bool,
}

impl Decoder for RefusalDecoder {
    type Item = Refusal;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Refusal>> {
        if !self.other {
            match self.number.decode(src)? {
                None => return Ok(None),
                Some(0) => return Ok(Some(Refusal::NoSuchStore)),
                Some(1) => return Ok(Some(Refusal::AccessDenied)),
                Some(2) => self.other = true,
                Some(n) => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{n} is no error"))),
            }
        }
        let text = self.text.decode(src)?;
        self.other &= text.is_none();
        Ok(text.map(Refusal::Other))
    }
}

impl Decode for Refusal {
    type Decoder = SyncCodec<RefusalDecoder>;
    type ListDecoder = ListDecoder<Self::Decoder>;
}

impl From<CallError> for BackendError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Away(why) => Self::Unavailable(why),
            CallError::TimedOut { ms } => Self::TimedOut { ms },
            CallError::TooLarge(why) => Self::TooLarge(why),
        }
    }
}

impl External {
    /// The keys behind `connect`. Nothing is connected before the first call.
    pub fn new(name: ProviderName, connect: Arc<dyn Connect>) -> Self {
        Self(Process::new(name, connect))
    }

    /// Asks for a key that nobody has: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        let function = Function(STORE, "exists", Kind::Read, SHORT);
        let asked: Result<bool, BackendError> = self.within(AT_FIRST, &function, ("sidereal-health", "health")).await;
        match asked {
            // It answered, and it may have no such bucket.
            Err(BackendError::Unsupported(_) | BackendError::Denied(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn call<P: Params + Clone, R: Answered>(&self, function: Function, params: P) -> Result<R, BackendError> {
        self.within(USUAL, &function, params).await
    }

    async fn within<P: Params + Clone, R: Answered>(
        &self,
        patience: Patience,
        function: &Function,
        params: P,
    ) -> Result<R, BackendError> {
        let name = self.0.name();
        let answered: Result<R, Refusal> = self.0.call(patience, function, params).await?;
        answered.map_err(|refusal| match refusal {
            Refusal::AccessDenied => BackendError::Denied(format!("external provider `{name}` says so")),
            Refusal::NoSuchStore => BackendError::Unsupported(format!("external provider `{name}` has no such bucket")),
            Refusal::Other(text) => BackendError::Unsupported(words(&text)),
        })
    }

    fn garbage(&self, what: &str) -> BackendError {
        BackendError::Unavailable(self.0.garbage(what))
    }
}

impl Backend for External {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        async move {
            let found: Option<Bytes> = self.call(Function(STORE, "get", Kind::Read, VALUE), (bucket, key)).await?;
            Ok(found.map(Vec::from))
        }
        .boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        self.call(Function(STORE, "set", Kind::Write, SHORT), (bucket, key, Bytes::from(value))).boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.call(Function(STORE, "delete", Kind::Write, SHORT), (bucket, key)).boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.call(Function(STORE, "exists", Kind::Read, SHORT), (bucket, key)).boxed()
    }

    /// In the provider's order; its own number is the cursor.
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let cursor: Option<u64> = cursor
                .map(str::parse)
                .transpose()
                .map_err(|_| BackendError::Unsupported("the cursor is not one of this store".to_owned()))?;
            let (keys, cursor): (Vec<String>, Option<u64>) =
                self.call(Function(STORE, "list-keys", Kind::Read, KEYS), (bucket, cursor)).await?;
            Ok(Page { keys, cursor: cursor.map(|cursor| cursor.to_string()) })
        }
        .boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        self.call(Function(ATOMICS, "increment", Kind::Write, SHORT), (bucket, key, delta)).boxed()
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        async move {
            // A short list of keys may name the same large value again and again: each is asked for once.
            let once: Vec<String> = keys.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
            let found: Vec<Option<(String, Bytes)>> =
                self.call(Function(BATCH, "get-many", Kind::Read, MANY), (bucket, once.clone())).await?;
            if found.len() != once.len() {
                return Err(self.garbage("for other keys than those asked for"));
            }
            // In another order they would be the values of other keys.
            if once.iter().zip(&found).any(|(key, one)| one.as_ref().is_some_and(|(of, _)| of != key)) {
                return Err(self.garbage("for other keys than those asked for"));
            }
            let found = found.into_iter().map(|one| one.map(|(_, value)| Vec::from(value)));
            let found: BTreeMap<String, Option<Vec<u8>>> = once.into_iter().zip(found).collect();
            let mut gathered = Gathered::default();
            for key in keys {
                let value = found.get(&key).and_then(Option::as_ref);
                gathered.push(key, value)?;
            }
            Ok(gathered.values)
        }
        .boxed()
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        let pairs: Vec<(String, Bytes)> = pairs.into_iter().map(|(key, value)| (key, value.into())).collect();
        self.call(Function(BATCH, "set-many", Kind::Write, SHORT), (bucket, pairs)).boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        self.call(Function(BATCH, "delete-many", Kind::Write, SHORT), (bucket, keys)).boxed()
    }
}
