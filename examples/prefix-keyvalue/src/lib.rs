//! A provider of `wasi:keyvalue` that is a component: it puts a prefix before every key and passes the call on to its own
//! link. Caching or encrypting would take its place in the same few lines.

wit_bindgen::generate!({
    path: ["../../wit/keyvalue", "../../wit/config"],
    inline: "
        package sidereal:prefixer;
        world prefixer {
            import wasi:config/store@0.2.0-rc.1;
            import wasi:keyvalue/store@0.2.0-draft;
            import wasi:keyvalue/atomics@0.2.0-draft;
            export wasi:keyvalue/store@0.2.0-draft;
            export wasi:keyvalue/atomics@0.2.0-draft;
        }
    ",
    world: "sidereal:prefixer/prefixer",
    generate_all,
});

use exports::wasi::keyvalue::{atomics, store as ours};
use wasi::keyvalue::{atomics as count, store as theirs};

struct Prefixer;

/// A bucket of its own link, and what stands before each key in it.
struct Bucket {
    inner: theirs::Bucket,
    prefix: String,
}

impl Bucket {
    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

fn refused(error: theirs::Error) -> ours::Error {
    match error {
        theirs::Error::NoSuchStore => ours::Error::NoSuchStore,
        theirs::Error::AccessDenied => ours::Error::AccessDenied,
        theirs::Error::Other(text) => ours::Error::Other(text),
    }
}

impl ours::GuestBucket for Bucket {
    fn get(&self, key: String) -> Result<Option<Vec<u8>>, ours::Error> {
        self.inner.get(&self.key(&key)).map_err(refused)
    }

    fn set(&self, key: String, value: Vec<u8>) -> Result<(), ours::Error> {
        self.inner.set(&self.key(&key), &value).map_err(refused)
    }

    fn delete(&self, key: String) -> Result<(), ours::Error> {
        self.inner.delete(&self.key(&key)).map_err(refused)
    }

    fn exists(&self, key: String) -> Result<bool, ours::Error> {
        self.inner.exists(&self.key(&key)).map_err(refused)
    }

    fn list_keys(&self, cursor: Option<u64>) -> Result<ours::KeyResponse, ours::Error> {
        let page = self.inner.list_keys(cursor).map_err(refused)?;
        let own = |key: String| key.strip_prefix(&self.prefix).map(str::to_owned);
        Ok(ours::KeyResponse { keys: page.keys.into_iter().filter_map(own).collect(), cursor: page.cursor })
    }
}

impl ours::Guest for Prefixer {
    type Bucket = Bucket;

    fn open(identifier: String) -> Result<ours::Bucket, ours::Error> {
        let inner = theirs::open(&identifier).map_err(refused)?;
        let prefix = match wasi::config::store::get("prefix") {
            Ok(prefix) => prefix.unwrap_or_default(),
            Err(error) => return Err(ours::Error::Other(format!("the prefix cannot be read: {error:?}"))),
        };
        Ok(ours::Bucket::new(Bucket { inner, prefix }))
    }
}

impl atomics::Guest for Prefixer {
    fn increment(bucket: ours::BucketBorrow<'_>, key: String, delta: u64) -> Result<u64, ours::Error> {
        let bucket = bucket.get::<Bucket>();
        count::increment(&bucket.inner, &bucket.key(&key), delta).map_err(refused)
    }
}

export!(Prefixer);
