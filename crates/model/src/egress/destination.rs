//! Where somebody wants to connect, parsed so strictly that no resolver can read it differently: either an address in
//! its one usual form, or a name that cannot be an address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where somebody wants to connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// An address literal.
    Address(IpAddr),
    /// A lower-case DNS name without its final dot.
    Name(String),
}

/// Why a text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// Longer than a DNS name can be, or with a label that is.
    #[error("the host is longer than a name can be (253 characters, 63 between dots)")]
    TooLong,
    /// A character that no host name has.
    #[error("`{0}` does not belong in a host name; write international names in their `xn--` form")]
    Character(char),
    /// Two dots in a row, a dot in front, or a hyphen at an end of a label.
    #[error("the host name has an empty label, or a label that begins or ends with a hyphen")]
    Label,
    /// A decimal, octal, hexadecimal or shortened IPv4 address.
    #[error("an IPv4 address is written as four decimal numbers without leading zeros")]
    Numeric,
    /// Brackets around anything but an IPv6 address, or a zone.
    #[error("that is not an IPv6 address (zones are not supported)")]
    Bracket,
}

impl Destination {
    /// Parses the host part of a URL or a configured host.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, DestinationError> {
        if text.is_empty() {
            return Err(DestinationError::Empty);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(DestinationError::Bracket)?;
            let address = inner.parse::<Ipv6Addr>().map_err(|_| DestinationError::Bracket)?;
            return Ok(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        if text.contains(':') {
            let address = text.parse::<Ipv6Addr>().map_err(|_| DestinationError::Bracket)?;
            return Ok(Self::Address(address.into()));
        }
        name(text).map(Self::Name)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn name(text: &str) -> Result<String, DestinationError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    // Underscores are no host name by the letter, but names with them are in use and resolve.
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        return Err(DestinationError::Character(bad));
    }
    if text.len() > 253 || text.split('.').any(|label| label.len() > 63) {
        return Err(DestinationError::TooLong);
    }
    if text.split('.').any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-')) {
        return Err(DestinationError::Label);
    }
    // A resolver reads `127.1`, `0x7f000001` and `2130706433` as addresses. No name ends in a number, so whatever
    // does is refused; this is the rule of the URL standard.
    let last = text.rsplit('.').next().unwrap_or(text).to_ascii_lowercase();
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    if hex || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DestinationError::Numeric);
    }
    Ok(text.to_ascii_lowercase())
}
