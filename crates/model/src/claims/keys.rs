//! Who signs, and with what? Keys in the text form of nkeys: `A…` accounts, `M…` modules, `O…` operators, `S…` seeds.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::{Zeroize, Zeroizing};

/// The first five bits of a seed: it reads `S`.
const SEED: u8 = 18 << 3;

/// What a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Owns the accounts of one installation: `O…`.
    Operator,
    /// Signs components: `A…`.
    Account,
    /// Names a component whatever its bytes: `M…`.
    Module,
}

impl KeyKind {
    fn prefix(self) -> u8 {
        match self {
            Self::Operator => 14 << 3,
            Self::Account => 0,
            Self::Module => 12 << 3,
        }
    }

    fn of(prefix: u8) -> Option<Self> {
        [Self::Operator, Self::Account, Self::Module].into_iter().find(|kind| kind.prefix() == prefix)
    }

    /// The letter its public keys begin with.
    pub fn letter(self) -> char {
        match self {
            Self::Operator => 'O',
            Self::Account => 'A',
            Self::Module => 'M',
        }
    }
}

/// Why a text is not a key. Says nothing of the text itself: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not base32, another length, or a wrong checksum.
    #[error("not a key: mistyped or cut off")]
    Text,
    /// A key of a kind that is not used here.
    #[error("not a key of an operator (O), account (A) or module (M)")]
    Kind,
    /// A public key that is no point of the curve.
    #[error("not an Ed25519 key")]
    Point,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    kind: KeyKind,
    key: VerifyingKey,
}

impl PublicKey {
    /// Reads `A…`, `M…` or `O…`, 56 characters.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let raw = decode::<35>(text)?;
        let (prefix, key) = raw.split_first().ok_or(KeyError::Text)?;
        let kind = KeyKind::of(*prefix).ok_or(KeyError::Kind)?;
        let key: &[u8; 32] = key.first_chunk().ok_or(KeyError::Text)?;
        Ok(Self { kind, key: VerifyingKey::from_bytes(key).map_err(|_| KeyError::Point)? })
    }

    /// What it stands for.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Whether `signature` is this key's over `message`, by the strict rules (no small-order keys).
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&[self.kind.prefix()], self.key.as_bytes()))
    }
}

/// A key that can sign. Its memory is cleared when it is dropped; it is never shown by `Debug`.
pub struct KeyPair {
    kind: KeyKind,
    key: SigningKey,
}

impl KeyPair {
    /// A key from 32 bytes of a cryptographic random source, which are cleared.
    pub fn from_entropy(kind: KeyKind, mut entropy: [u8; 32]) -> Self {
        let key = SigningKey::from_bytes(&entropy);
        entropy.zeroize();
        Self { kind, key }
    }

    /// Reads a seed: `S`, the kind's letter, 58 characters in all.
    ///
    /// # Errors
    /// When it is no seed of an account, module or operator.
    pub fn from_seed(text: &str) -> Result<Self, KeyError> {
        let raw = decode::<36>(text)?;
        let (&[first, second], seed) = raw.split_first_chunk::<2>().ok_or(KeyError::Text)?;
        if first & 0xf8 != SEED {
            return Err(KeyError::Kind);
        }
        let kind = KeyKind::of((first & 7) << 5 | second >> 3).ok_or(KeyError::Kind)?;
        let seed: &[u8; 32] = seed.first_chunk().ok_or(KeyError::Text)?;
        Ok(Self { kind, key: SigningKey::from_bytes(seed) })
    }

    /// The seed as text: a secret. Cleared when dropped.
    pub fn seed(&self) -> Zeroizing<String> {
        let prefix = self.kind.prefix();
        let seed = Zeroizing::new(self.key.to_bytes());
        Zeroizing::new(encode(&[SEED | prefix >> 5, (prefix & 31) << 3], seed.as_slice()))
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey { kind: self.kind, key: self.key.verifying_key() }
    }

    /// The public half as text, `A…`, `M…` or `O…`.
    pub fn public_key(&self) -> String {
        self.public().to_string()
    }

    /// What it stands for.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public())
    }
}

/// The `N` bytes of a key's text: prefix, key and checksum, the checksum verified.
fn decode<const N: usize>(text: &str) -> Result<Zeroizing<[u8; N]>, KeyError> {
    let bytes = Zeroizing::new(BASE32_NOPAD.decode(text.as_bytes()).map_err(|_| KeyError::Text)?);
    let raw = Zeroizing::new(<[u8; N]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Text)?);
    let (content, checksum) = raw.split_last_chunk::<2>().ok_or(KeyError::Text)?;
    if crc16(content) != u16::from_le_bytes(*checksum) {
        return Err(KeyError::Text);
    }
    Ok(raw)
}

fn encode(prefix: &[u8], key: &[u8]) -> String {
    let mut raw = Zeroizing::new(Vec::with_capacity(prefix.len() + key.len() + 2));
    raw.extend_from_slice(prefix);
    raw.extend_from_slice(key);
    let checksum = crc16(&raw).to_le_bytes();
    raw.extend_from_slice(&checksum);
    BASE32_NOPAD.encode(&raw)
}

/// CRC-16/XMODEM, the checksum of nkeys.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte) << 8,
            |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_nkeys() {
        for (kind, theirs) in [
            (KeyKind::Operator, nkeys::KeyPairType::Operator),
            (KeyKind::Account, nkeys::KeyPairType::Account),
            (KeyKind::Module, nkeys::KeyPairType::Module),
        ] {
            let ours = KeyPair::from_entropy(kind, [7; 32]);
            let theirs = nkeys::KeyPair::new_from_raw(theirs, [7; 32]).unwrap();
            assert_eq!(ours.public_key(), theirs.public_key());
            assert_eq!(*ours.seed(), theirs.seed().unwrap());
            assert!(ours.public_key().starts_with(kind.letter()));
            assert_eq!(KeyPair::from_seed(&theirs.seed().unwrap()).unwrap().public(), ours.public());
            assert_eq!(PublicKey::parse(&theirs.public_key()).unwrap(), ours.public());
            let signature = ours.sign(b"message");
            theirs.verify(b"message", &signature).unwrap();
            assert!(ours.public().signed(b"message", &signature));
            assert!(!ours.public().signed(b"massage", &signature));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = KeyPair::from_entropy(KeyKind::Account, [1; 32]);
        let public = good.public_key();
        let mistyped = public.replacen(public.chars().nth(9).unwrap(), "2", 1);
        for bad in ["", "A", "é", &public[1..], &mistyped, &public.to_lowercase(), &good.seed()] {
            assert!(PublicKey::parse(bad).is_err(), "{bad}");
        }
        assert!(KeyPair::from_seed(&public).is_err());
        let user = nkeys::KeyPair::new_user();
        assert_eq!(PublicKey::parse(&user.public_key()), Err(KeyError::Kind));
        assert_eq!(KeyPair::from_seed(&user.seed().unwrap()).unwrap_err(), KeyError::Kind);
    }

    #[test]
    fn debug_never_shows_the_seed() {
        let key = KeyPair::from_entropy(KeyKind::Account, [3; 32]);
        assert!(!format!("{key:?}").contains(key.seed().as_str()));
        assert!(format!("{key:?}").contains(&key.public_key()));
    }
}
