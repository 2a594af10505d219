//! What a provider asks the platform for, on its own behalf. What is not called is not imported by the component.

use crate::adapter::bindings::wasi;
use crate::adapter::bindings::wasmcloud::secrets;
use crate::{Bucket, Result};

/// The bucket of the link of this component that has the label.
///
/// # Errors
/// When there is no such link.
pub fn link(label: &str) -> Result<Bucket> {
    wasi::keyvalue::store::open(label)
}

/// A value of this component's config.
///
/// # Errors
/// When there is none.
pub fn config(name: &str) -> Result<String> {
    match wasi::config::store::get(name) {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(format!("the provider lacks `{name}` in its config").into()),
        Err(error) => Err(format!("the provider cannot read `{name}` of its config: {error:?}").into()),
    }
}

/// A secret that a link of this component names.
///
/// # Errors
/// When there is none, or it cannot be read now.
pub fn secret(name: &str) -> Result<Vec<u8>> {
    match secrets::store::get(name).map(|secret| secrets::reveal::reveal(&secret)) {
        Ok(secrets::store::SecretValue::String(text)) => Ok(text.into_bytes()),
        Ok(secrets::store::SecretValue::Bytes(bytes)) => Ok(bytes),
        Err(error) => Err(format!("the provider cannot read its secret `{name}`: {error:?}").into()),
    }
}

/// Random bytes, fit for keys and nonces.
pub fn random(length: usize) -> Vec<u8> {
    wasi::random::random::get_random_bytes(length as u64)
}
