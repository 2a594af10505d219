//! Between the contract, whose types are made anew on its exporting side, and [`Provider`], which knows only those of the
//! importing side.

use std::marker::PhantomData;

use crate::{Bucket, Provider, link};
use bindings::exports::wasi::keyvalue::{atomics, batch, store};
use bindings::wasi::keyvalue::store as theirs;

#[doc(hidden)]
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: [
            "../../wit/p2/deps/random.wit",
            "../../wit/keyvalue",
            "../../wit/config",
            "../../wit/secrets",
        ],
        inline: "
            package sidereal:keyvalue-provider;
            world provider {
                import wasi:random/random@0.2.12;
                import wasi:config/store@0.2.0-rc.1;
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
                import wasi:keyvalue/batch@0.2.0-draft;
                import wasmcloud:secrets/store@0.1.0-draft;
                import wasmcloud:secrets/reveal@0.1.0-draft;
                export wasi:keyvalue/store@0.2.0-draft;
                export wasi:keyvalue/atomics@0.2.0-draft;
                export wasi:keyvalue/batch@0.2.0-draft;
            }
        ",
        world: "sidereal:keyvalue-provider/provider",
        pub_export_macro: true,
        export_macro_name: "export_world",
        default_bindings_module: "keyvalue_provider::bindings",
        generate_all,
    });
}

/// What the component exports for a provider.
pub struct Exported<P>(PhantomData<P>);

/// A bucket that a caller has open.
pub struct Open<P> {
    provider: P,
    store: Bucket,
}

type Answer<T> = Result<T, store::Error>;

impl From<theirs::Error> for store::Error {
    fn from(error: theirs::Error) -> Self {
        match error {
            theirs::Error::NoSuchStore => Self::NoSuchStore,
            theirs::Error::AccessDenied => Self::AccessDenied,
            theirs::Error::Other(text) => Self::Other(text),
        }
    }
}

impl<P: Provider> store::Guest for Exported<P> {
    type Bucket = Open<P>;

    fn open(bucket: String) -> Answer<store::Bucket> {
        let store = link(&bucket)?;
        Ok(store::Bucket::new(Open { provider: P::open(&bucket)?, store }))
    }
}

impl<P: Provider> store::GuestBucket for Open<P> {
    fn get(&self, key: String) -> Answer<Option<Vec<u8>>> {
        Ok(self.provider.get(&self.store, &key)?)
    }

    fn set(&self, key: String, value: Vec<u8>) -> Answer<()> {
        Ok(self.provider.set(&self.store, &key, value)?)
    }

    fn delete(&self, key: String) -> Answer<()> {
        Ok(self.provider.delete(&self.store, &key)?)
    }

    fn exists(&self, key: String) -> Answer<bool> {
        Ok(self.provider.exists(&self.store, &key)?)
    }

    fn list_keys(&self, cursor: Option<u64>) -> Answer<store::KeyResponse> {
        let page = self.provider.list_keys(&self.store, cursor)?;
        Ok(store::KeyResponse { keys: page.keys, cursor: page.cursor })
    }
}

impl<P: Provider> atomics::Guest for Exported<P> {
    fn increment(bucket: store::BucketBorrow<'_>, key: String, delta: u64) -> Answer<u64> {
        let Open { provider, store } = bucket.get::<Open<P>>();
        Ok(provider.increment(store, &key, delta)?)
    }
}

impl<P: Provider> batch::Guest for Exported<P> {
    fn get_many(bucket: store::BucketBorrow<'_>, keys: Vec<String>) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let Open { provider, store } = bucket.get::<Open<P>>();
        Ok(provider.get_many(store, keys)?)
    }

    fn set_many(bucket: store::BucketBorrow<'_>, pairs: Vec<(String, Vec<u8>)>) -> Answer<()> {
        let Open { provider, store } = bucket.get::<Open<P>>();
        Ok(provider.set_many(store, pairs)?)
    }

    fn delete_many(bucket: store::BucketBorrow<'_>, keys: Vec<String>) -> Answer<()> {
        let Open { provider, store } = bucket.get::<Open<P>>();
        Ok(provider.delete_many(store, keys)?)
    }
}
