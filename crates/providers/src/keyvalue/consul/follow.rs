//! Changes of a bucket in Consul: a blocking query waits until something below its path has another index, and then
//! each key's own index says what changed. Records lie beside the buckets, under a name that no bucket has.

use std::sync::Arc;

use futures::FutureExt;
use http::{Method, StatusCode};
use model::watch::Keys;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::super::count::Found;
use super::super::escape::{escape, unescape};
use super::super::follow::{Eye, Followed, Follower, State};
use super::{Answer, BackendError, Consul, HttpError, MAX_LIST};
use crate::http_json::Told;

/// How long one query blocks, which with Consul's own jitter is less than a request may take.
const WAIT: &str = "2s";
/// The folder of the records: `~` and no two digits, which [`escape`] never gives.
const RECORDS: &str = "~watch";

/// A key without its value.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    modify_index: u64,
}

impl Consul {
    /// Who is told of changes of `keys` of `bucket`.
    pub fn follow(self: &Arc<Self>, bucket: &str, keys: Keys) -> impl crate::messaging::Backend + use<> {
        Follower::new(self.clone(), bucket, keys)
    }

    fn record(&self, name: &str) -> String {
        format!("{}/{RECORDS}/{}", self.base, escape(name))
    }

    /// An answer of the key-value API that may be about nothing.
    async fn ask(&self, path: &str) -> Result<Told, BackendError> {
        let told = self.send(Method::GET, path, Zeroizing::default(), MAX_LIST).await?;
        match told.status {
            StatusCode::OK => Ok(told),
            StatusCode::NOT_FOUND if told.body.is_empty() => Ok(told),
            _ => Err(self.refused(&told)),
        }
    }
}

impl Followed for Consul {
    fn eye(self: Arc<Self>, bucket: &str, keys: &Keys) -> Box<dyn Eye> {
        let folder = format!("{}/{}/", self.base, escape(bucket));
        let path = match keys {
            Keys::One(key) => format!("{folder}{}", escape(key)),
            Keys::Beginning(text) if text.is_empty() => folder.clone(),
            Keys::Beginning(text) => format!("{folder}{}", escape(text)),
        };
        Box::new(Watched { consul: self, folder, path, keys: keys.clone(), index: 0 })
    }

    fn load<'a>(&'a self, name: &'a str) -> Answer<'a, Found> {
        async move { self.read_at(&self.record(name)).await }.boxed()
    }

    fn swap<'a>(&'a self, name: &'a str, text: String, version: u64) -> Answer<'a, Option<u64>> {
        async move { self.swap_at(&self.record(name), text, version).await }.boxed()
    }
}

struct Watched {
    consul: Arc<Consul>,
    folder: String,
    /// What all the keys begin with.
    path: String,
    keys: Keys,
    index: u64,
}

impl Watched {
    /// The index of everything below the path, and no more names than there must be; where `wait` is set, one that is
    /// not the one that is known, or the same after a while.
    async fn look(&self, wait: Option<u64>) -> Result<u64, BackendError> {
        // Without the last `/`, so that names in the folder are told as one.
        let path = self.path.trim_end_matches('/');
        let block = wait.map_or(String::new(), |index| format!("&index={index}&wait={WAIT}"));
        let told = self.consul.ask(&format!("/v1/kv/{path}?keys&separator=/&consistent{block}")).await?;
        let garbage = || self.consul.failed(HttpError::Garbage("an answer without X-Consul-Index".to_owned()));
        let index = told.headers.get("x-consul-index").and_then(|index| index.to_str().ok()?.parse().ok());
        // 0 would never block.
        index.map(|index: u64| index.max(1)).ok_or_else(garbage)
    }
}

impl Eye for Watched {
    fn state(&mut self) -> Answer<'_, State> {
        async move {
            // First: what changes from here on has another index.
            self.index = self.look(None).await?;
            let told = self.consul.ask(&format!("/v1/kv/{}?recurse&consistent", self.path)).await?;
            if told.status == StatusCode::NOT_FOUND {
                return Ok(State::new());
            }
            let listed: Vec<Listed> = told.json().map_err(|cause| self.consul.failed(cause))?;
            let known = listed.into_iter().filter_map(|one| {
                let key = one.key.strip_prefix(&self.folder).and_then(unescape)?;
                self.keys.has(&key).then_some((key, one.modify_index))
            });
            Ok(known.collect())
        }
        .boxed()
    }

    fn moved(&mut self) -> Answer<'_, ()> {
        async move {
            // An index that became smaller is that of a server that was restored: everything may be another.
            while self.look(Some(self.index)).await? == self.index {}
            Ok(())
        }
        .boxed()
    }
}
