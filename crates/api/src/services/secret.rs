//! Secrets of the host's tenant. The node reveals those that a revision of the asking app names, and no others.

use model::{SecretName, SecretValue};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How long the node holds a [`SecretRequest::Changed`] before it answers that nothing changed, seconds.
pub const HOLD_SECONDS: u64 = 15;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretRequest {
    /// The value a secret has now.
    Reveal {
        /// Which.
        secret: SecretName,
    },
    /// Answered once some secret of the tenant is newer than `after`, or after [`HOLD_SECONDS`].
    Changed {
        /// What the last answer said; 0 at first.
        after: u64,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretAnswer {
    /// The value, and a number that no other value of this secret ever has.
    Value {
        /// Another one after every change; it says nothing else.
        version: u64,
        /// What it holds.
        value: WireSecret,
    },
    /// There is no such secret now.
    Missing,
    /// No revision of the app that runs here names this secret.
    NotNamed,
    /// What to ask with next; grows when something changed.
    Changed(u64),
}

/// A value on the wire between a host and its node; the only place where one is written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireSecret(pub SecretValue);

impl Serialize for WireSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for WireSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = WireSecret;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<WireSecret, E> {
                Ok(WireSecret(SecretValue::new(bytes.to_vec())))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
