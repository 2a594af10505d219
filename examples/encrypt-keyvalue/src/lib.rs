//! A provider of `wasi:keyvalue` that encrypts: the store behind it sees keys and the lengths of values, and no value.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use data_encoding::HEXLOWER_PERMISSIVE;
use keyvalue_provider::{Bucket, Provider, Result, export, random, secret};

/// Bytes of a nonce. So long that drawing them at random never draws one twice.
const NONCE: usize = 24;

struct Encrypted(XChaCha20Poly1305);

impl Provider for Encrypted {
    fn open(_: &str) -> Result<Self> {
        let key = HEXLOWER_PERMISSIVE.decode(&secret("key")?).ok();
        let cipher = key.and_then(|key| XChaCha20Poly1305::new_from_slice(&key).ok());
        Ok(Self(cipher.ok_or("the secret `key` of the provider is not 64 hex digits")?))
    }

    // Each value is bound to its key, so that whoever has the store cannot pass one off as another's.
    fn encode(&self, key: &str, value: Vec<u8>) -> Result<Vec<u8>> {
        let (nonce, payload) = (random(NONCE), Payload { msg: &value, aad: key.as_bytes() });
        let sealed =
            self.0.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| "the value cannot be encrypted")?;
        Ok([nonce, sealed].concat())
    }

    fn decode(&self, key: &str, stored: Vec<u8>) -> Result<Vec<u8>> {
        let (nonce, sealed) = stored.split_at_checked(NONCE).ok_or("the value was not encrypted")?;
        let opened = self.0.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: key.as_bytes() });
        Ok(opened.map_err(|_| "the value was not encrypted under this key, or was changed")?)
    }

    fn increment(&self, _: &Bucket, _: &str, _: u64) -> Result<u64> {
        Err("an encrypted number cannot be incremented".into())
    }
}

export!(Encrypted);
