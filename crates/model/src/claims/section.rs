//! Where is the token in a component, or in a core module, and which bytes does its hash cover?
//!
//! The hash is that of wascap: SHA-256, upper-case hex, over the component rebuilt without any token section, at any
//! depth, each section's length written in its shortest form.

use sha2::{Digest as _, Sha256};
use wasmparser::{Encoding, Payload};

use crate::claims::{ClaimsError, TokenFault};
use crate::component::{InspectError, walk_any};

/// The section tokens are written to.
const SECTION: &str = "wasmcloud_jwt";
/// The section wascap before 0.9 wrote; read at the top level only.
const LEGACY_SECTION: &str = "jwt";
/// The longest token, bytes.
pub const MAX_TOKEN: usize = 64 * 1024;

/// A component taken apart.
pub(super) struct Parts<'a> {
    /// The token, not looked at.
    pub(super) token: Option<&'a str>,
    /// The hash of everything else, as tokens write it.
    pub(super) hash: String,
}

fn is_token(name: &str) -> bool {
    name == SECTION || name == LEGACY_SECTION
}

/// Finds the token and computes the hash.
pub(super) fn take_apart(bytes: &[u8]) -> Result<Parts<'_>, ClaimsError> {
    let token = token(bytes)?;
    Ok(Parts { token, hash: hash(&strip(bytes)?) })
}

/// The one token of a component.
pub(super) fn token(bytes: &[u8]) -> Result<Option<&str>, ClaimsError> {
    let mut found = None;
    let mut fault: Option<TokenFault> = None;
    walk_any(bytes, |depth, payload| {
        if let Payload::CustomSection(section) = payload
            && is_token(section.name())
        {
            if depth > 0 {
                fault.get_or_insert(TokenFault::Nested);
            } else if found.replace(section.data()).is_some() {
                fault.get_or_insert(TokenFault::Several);
            }
        }
        Ok(())
    })?;
    if let Some(fault) = fault {
        return Err(fault.into());
    }
    let Some(token) = found else { return Ok(None) };
    if token.len() > MAX_TOKEN {
        return Err(TokenFault::TooLong { size: token.len() }.into());
    }
    std::str::from_utf8(token).map(Some).map_err(|_| TokenFault::Shape.into())
}

/// The component without token sections, rebuilt as wascap does.
pub(super) fn strip(bytes: &[u8]) -> Result<Vec<u8>, InspectError> {
    let mut output = Vec::with_capacity(bytes.len());
    let mut outer: Vec<(u8, Vec<u8>)> = Vec::new();
    walk_any(bytes, |_, payload| {
        match &payload {
            Payload::Version { encoding, .. } => output.extend_from_slice(match encoding {
                Encoding::Component => b"\0asm\x0d\0\x01\0",
                Encoding::Module => b"\0asm\x01\0\0\0",
            }),
            Payload::ModuleSection { .. } => outer.push((1, std::mem::take(&mut output))),
            Payload::ComponentSection { .. } => outer.push((4, std::mem::take(&mut output))),
            Payload::End(_) => {
                if let Some((id, mut parent)) = outer.pop() {
                    append(&mut parent, id, &output);
                    output = parent;
                }
            }
            Payload::CustomSection(section) if is_token(section.name()) => {}
            other => {
                if let Some((id, range)) = other.as_section() {
                    let size = bytes.len();
                    let data = bytes.get(range).ok_or(InspectError::Truncated { size })?;
                    append(&mut output, id, data);
                }
            }
        }
        Ok(())
    })?;
    Ok(output)
}

/// Adds the token as the last section.
pub(super) fn embed(component: &mut Vec<u8>, token: &str) {
    let mut data = Vec::with_capacity(SECTION.len() + token.len() + 4);
    leb128(&mut data, SECTION.len());
    data.extend_from_slice(SECTION.as_bytes());
    data.extend_from_slice(token.as_bytes());
    append(component, 0, &data);
}

pub(super) fn hash(stripped: &[u8]) -> String {
    data_encoding::HEXUPPER.encode(&Sha256::digest(stripped))
}

pub(super) fn append(to: &mut Vec<u8>, id: u8, data: &[u8]) {
    to.push(id);
    leb128(to, data.len());
    to.extend_from_slice(data);
}

fn leb128(to: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        to.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}
