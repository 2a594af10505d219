//! Exports `wasi:keyvalue/store` and nothing else of the contract: a store without `atomics` and `batch`, with every key in it
//! and none of them for good.
mod bindings {
    wit_bindgen::generate!({
        path: "../wit/keyvalue",
        inline: "
            package sidereal:store-only;
            world provider {
                export wasi:keyvalue/store@0.2.0-draft;
            }
        ",
        world: "sidereal:store-only/provider",
        generate_all,
    });
}

use bindings::exports::wasi::keyvalue::store::{Bucket, Error, Guest, GuestBucket, KeyResponse};

struct Keys;

impl Guest for Keys {
    type Bucket = Keys;

    fn open(_: String) -> Result<Bucket, Error> {
        Ok(Bucket::new(Keys))
    }
}

impl GuestBucket for Keys {
    fn get(&self, key: String) -> Result<Option<Vec<u8>>, Error> {
        Ok(Some(key.into_bytes()))
    }

    fn set(&self, _: String, _: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    fn delete(&self, _: String) -> Result<(), Error> {
        Ok(())
    }

    fn exists(&self, _: String) -> Result<bool, Error> {
        Ok(true)
    }

    fn list_keys(&self, _: Option<u64>) -> Result<KeyResponse, Error> {
        Ok(KeyResponse { keys: Vec::new(), cursor: None })
    }
}

bindings::export!(Keys with_types_in bindings);
