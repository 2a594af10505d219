//! Sealing: XChaCha20-Poly1305 with a fresh random nonce, bound to what is sealed. A value of one tenant, name or
//! version does not open as another's, and nothing opens that was changed.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use data_encoding::BASE64;
use model::{SecretName, TenantName};
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const KEY: usize = 32;
/// Bytes of a nonce: long enough to be drawn at random for ever.
const NONCE: usize = 24;

/// Bytes that the cipher adds to what it seals.
const TAG: usize = 16;

/// The length of the text that so many bytes are sealed to.
pub(super) fn sealed_size(bytes: usize) -> usize {
    bytes.saturating_add(NONCE + TAG).div_ceil(3).saturating_mul(4)
}

/// A key. Wiped when dropped; prints as nothing.
pub(super) struct Key(Zeroizing<[u8; KEY]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What a sealed text belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound<'a> {
    /// A tenant's data key under the master key of this id.
    DataKey { tenant: &'a TenantName, master: &'a str },
    /// One version of a secret.
    Secret { tenant: &'a TenantName, name: &'a SecretName, version: u64 },
}

impl Bound<'_> {
    /// Each part behind its length, so that no two give the same bytes.
    fn bytes(self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut part = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        match self {
            Self::DataKey { tenant, master } => {
                part(b"sidereal data key 1");
                part(tenant.as_str().as_bytes());
                part(master.as_bytes());
            }
            Self::Secret { tenant, name, version } => {
                part(b"sidereal secret 1");
                part(tenant.as_str().as_bytes());
                part(name.as_str().as_bytes());
                part(&version.to_le_bytes());
            }
        }
        out
    }
}

impl Key {
    /// A new one.
    pub(super) fn random() -> Self {
        let mut bytes = Zeroizing::new([0; KEY]);
        rand::fill(&mut bytes[..]);
        Self(bytes)
    }

    /// One that was kept.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    pub(super) fn expose(&self) -> &[u8] {
        &self.0[..]
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    /// Nonce and sealed bytes, as text. `None` where `plain` is larger than the cipher takes, which is far above any
    /// secret.
    pub(super) fn seal(&self, bound: Bound<'_>, plain: &[u8]) -> Option<String> {
        let nonce: [u8; NONCE] = rand::random();
        let aad = bound.bytes();
        let sealed = self.cipher().encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: &aad }).ok()?;
        Some(BASE64.encode(&[&nonce[..], &sealed].concat()))
    }

    /// What was sealed for `bound` under this key; `None` for everything else.
    pub(super) fn open(&self, bound: Bound<'_>, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = BASE64.decode(sealed.as_bytes()).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE>()?;
        let aad = bound.bytes();
        let plain = self.cipher().decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &aad }).ok()?;
        Some(Zeroizing::new(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_under_the_same_key_opens() {
        let (tenant, other): (TenantName, TenantName) = ("t".parse().unwrap(), "u".parse().unwrap());
        let (name, second): (SecretName, SecretName) = ("n".parse().unwrap(), "m".parse().unwrap());
        let key = Key::random();
        let bound = Bound::Secret { tenant: &tenant, name: &name, version: 7 };
        let sealed = key.seal(bound, b"value").unwrap();
        assert_eq!(key.open(bound, &sealed).unwrap().as_slice(), b"value");
        assert_eq!(sealed.len(), sealed_size(5));
        assert_ne!(key.seal(bound, b"value").unwrap(), sealed, "every nonce is new");
        for wrong in [
            Bound::Secret { tenant: &other, name: &name, version: 7 },
            Bound::Secret { tenant: &tenant, name: &second, version: 7 },
            Bound::Secret { tenant: &tenant, name: &name, version: 8 },
            Bound::DataKey { tenant: &tenant, master: "n" },
        ] {
            assert!(key.open(wrong, &sealed).is_none(), "{wrong:?}");
        }
        assert!(Key::random().open(bound, &sealed).is_none());
        let bytes = BASE64.decode(sealed.as_bytes()).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(key.open(bound, &BASE64.encode(&bad)).is_none(), "byte {at}");
            assert!(key.open(bound, &BASE64.encode(&bytes[..at])).is_none(), "cut at {at}");
        }
    }
}
