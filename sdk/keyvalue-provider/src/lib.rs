//! A component that is a provider of `wasi:keyvalue` should hold what it does and nothing else: here is all that such
//! components have in common. Whatever an author does not write goes on to the component's own link.

mod adapter;
mod own;

#[doc(hidden)]
pub use adapter::Exported;
#[doc(hidden)]
pub use adapter::bindings;
pub use bindings::wasi::keyvalue::store::{Bucket, Error, KeyResponse};
pub use bindings::wasi::keyvalue::{atomics, batch};
pub use own::{config, link, random, secret};

/// What an operation answers.
pub type Result<T> = std::result::Result<T, Error>;

impl From<&str> for Error {
    /// What the caller of the operation is told.
    fn from(text: &str) -> Self {
        Self::Other(text.to_owned())
    }
}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

/// An open bucket of a provider. `store` is the bucket of the same name behind it: of the link that has that label.
///
/// An operation that is not written is passed on, as one call, with its keys by way of `key` and `own` and its values by
/// way of `encode` and `decode`. None is made of another: whoever writes `get` looks at `get_many` as well.
pub trait Provider: Sized + 'static {
    /// Opens the bucket that the caller's link names. An instance answers one call, or several with `reuse`: what has to
    /// last is kept elsewhere.
    ///
    /// # Errors
    /// Why there is no such bucket.
    fn open(bucket: &str) -> Result<Self>;

    /// Under which key the store has what callers call `key`.
    ///
    /// # Errors
    /// Why the caller may not use that key.
    fn key(&self, key: &str) -> Result<String> {
        Ok(key.to_owned())
    }

    /// What callers call a key of the store: the way back. `None`: it is not for them, and not listed.
    fn own(&self, key: String) -> Option<String> {
        Some(key)
    }

    /// What the store gets of a value that is set under `key`, which is the caller's. `increment` does not come here:
    /// the store adds to what it has.
    ///
    /// # Errors
    /// Why the value is not set.
    fn encode(&self, key: &str, value: Vec<u8>) -> Result<Vec<u8>> {
        let _ = key;
        Ok(value)
    }

    /// What the caller gets of a value that the store has: the way back.
    ///
    /// # Errors
    /// Why it cannot be told.
    fn decode(&self, key: &str, value: Vec<u8>) -> Result<Vec<u8>> {
        let _ = key;
        Ok(value)
    }

    /// Called after `key`, the caller's, was or may have been written, and before the caller is told: also where the
    /// store answered with an error.
    ///
    /// # Errors
    /// What the caller is told, although the write happened.
    fn changed(&self, key: &str) -> Result<()> {
        let _ = key;
        Ok(())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn get(&self, store: &Bucket, key: &str) -> Result<Option<Vec<u8>>> {
        store.get(&self.key(key)?)?.map(|value| self.decode(key, value)).transpose()
    }

    /// Sets a key.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn set(&self, store: &Bucket, key: &str, value: Vec<u8>) -> Result<()> {
        let written = store.set(&self.key(key)?, &self.encode(key, value)?);
        written.and(self.changed(key))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn delete(&self, store: &Bucket, key: &str) -> Result<()> {
        let written = store.delete(&self.key(key)?);
        written.and(self.changed(key))
    }

    /// Whether there is such a key.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn exists(&self, store: &Bucket, key: &str) -> Result<bool> {
        store.exists(&self.key(key)?)
    }

    /// A page of keys, and where the next one begins. It may be empty and not the last.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn list_keys(&self, store: &Bucket, cursor: Option<u64>) -> Result<KeyResponse> {
        let page = store.list_keys(cursor)?;
        Ok(KeyResponse { keys: page.keys.into_iter().filter_map(|key| self.own(key)).collect(), ..page })
    }

    /// Adds to a number, and answers with the sum.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn increment(&self, store: &Bucket, key: &str, delta: u64) -> Result<u64> {
        let sum = atomics::increment(store, &self.key(key)?, delta);
        let told = self.changed(key);
        sum.and_then(|sum| told.map(|()| sum))
    }

    /// The values of keys, each with its key, in the order of the keys.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn get_many(&self, store: &Bucket, keys: Vec<String>) -> Result<Vec<Option<(String, Vec<u8>)>>> {
        let theirs = keys.iter().map(|key| self.key(key)).collect::<Result<Vec<_>>>()?;
        let found = batch::get_many(store, &theirs)?.into_iter().zip(keys);
        let decoded = |(pair, key): (Option<(String, Vec<u8>)>, String)| {
            let Some((_, value)) = pair else { return Ok(None) };
            let value = self.decode(&key, value)?;
            Ok(Some((key, value)))
        };
        found.map(decoded).collect()
    }

    /// Sets several keys.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn set_many(&self, store: &Bucket, pairs: Vec<(String, Vec<u8>)>) -> Result<()> {
        let keys: Vec<String> = pairs.iter().map(|(key, _)| key.clone()).collect();
        let encoded = |(key, value): (String, Vec<u8>)| Ok((self.key(&key)?, self.encode(&key, value)?));
        let written = batch::set_many(store, &pairs.into_iter().map(encoded).collect::<Result<Vec<_>>>()?);
        keys.iter().fold(written, |written, key| written.and(self.changed(key)))
    }

    /// Removes several keys.
    ///
    /// # Errors
    /// Those of the store, or of this provider.
    fn delete_many(&self, store: &Bucket, keys: Vec<String>) -> Result<()> {
        let theirs = keys.iter().map(|key| self.key(key)).collect::<Result<Vec<_>>>()?;
        let written = batch::delete_many(store, &theirs);
        keys.iter().fold(written, |written, key| written.and(self.changed(key)))
    }
}

/// Makes the component of a [`Provider`]: `export!(Mine);`.
#[macro_export]
macro_rules! export {
    ($provider:ident) => {
        const _: () = {
            type Exported = $crate::Exported<$provider>;
    $crate::bindings::export_world!(Exported with_types_in $crate::bindings);
        };
    };
}
