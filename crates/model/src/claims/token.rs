//! The token itself: `header.claims.signature`, each base64url without padding. Strict where wascap is lax: one header
//! shape, two names of one algorithm, no key taken from the token, no name twice.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::claims::{Claims, KeyPair, PublicKey, TokenFault};

/// Written: RFC 8037's name of Ed25519 signatures.
const HEADER: &str = r#"{"typ":"jwt","alg":"EdDSA"}"#;
/// Read: that, and wascap's own name.
const ALGORITHMS: [&str; 2] = ["EdDSA", "Ed25519"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    typ: String,
    alg: String,
}

/// A token that has been read. Nothing is verified.
pub(super) struct Token<'a> {
    pub(super) claims: Claims,
    message: &'a str,
    signature: [u8; 64],
}

impl Token<'_> {
    pub(super) fn signed_by(&self, key: &PublicKey) -> bool {
        key.signed(self.message.as_bytes(), &self.signature)
    }
}

/// Reads a token.
pub(super) fn decode(token: &str) -> Result<Token<'_>, TokenFault> {
    let (message, signature) = token.rsplit_once('.').ok_or(TokenFault::Shape)?;
    let (header, claims) = message.split_once('.').ok_or(TokenFault::Shape)?;
    let segment = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenFault::Shape);
    let header: Header = json(&segment(header)?)?;
    if !ALGORITHMS.contains(&header.alg.as_str()) {
        return Err(TokenFault::Algorithm { name: header.alg.chars().take(20).flat_map(char::escape_debug).collect() });
    }
    if !header.typ.eq_ignore_ascii_case("jwt") {
        return Err(TokenFault::Shape);
    }
    let claims = json(&segment(claims)?)?;
    let signature = segment(signature)?.try_into().map_err(|_| TokenFault::Shape)?;
    Ok(Token { claims, message, signature })
}

/// Writes and signs a token.
pub(super) fn encode(claims: &Claims, key: &KeyPair) -> Result<String, serde_json::Error> {
    let header = BASE64URL_NOPAD.encode(HEADER.as_bytes());
    let message = format!("{header}.{}", BASE64URL_NOPAD.encode(&serde_json::to_vec(claims)?));
    let signature = BASE64URL_NOPAD.encode(&key.sign(message.as_bytes()));
    Ok(format!("{message}.{signature}"))
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, TokenFault> {
    let fault = |error: serde_json::Error| TokenFault::Json { reason: error.to_string() };
    serde_json::from_slice::<Unique>(bytes).map_err(fault)?;
    serde_json::from_slice(bytes).map_err(fault)
}

/// Any JSON in which no object has a name twice: two readers must not see two different tokens in one.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Unique)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
        Ok(Unique)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
        Ok(Unique)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
        Ok(Unique)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
        Ok(Unique)
    }
    fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
        Ok(Unique)
    }
    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Unique, A::Error> {
        while list.next_element::<Unique>()?.is_some() {}
        Ok(Unique)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut seen = std::collections::BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name) {
                // The rest is read so that the error is about the name, not about what follows it.
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Err(A::Error::custom("a name appears twice"));
            }
            map.next_value::<Unique>()?;
        }
        Ok(Unique)
    }
}
