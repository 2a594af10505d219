//! What an operator grants: a range of addresses, and of it every port or some. Whoever names ports means what listens at them,
//! so such a range holds for addresses of the machine itself as well; one without is of the network around it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::policy::Cidr;

/// A range of addresses and the ports that are meant: `10.1.0.0/16`, `10.1.0.0/16:20000-32000`, `[fd00::/8]:6379`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    addresses: Cidr,
    /// The first and the last; every port where there are none.
    ports: Option<(u16, u16)>,
}

/// Why a text grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address range: write for example `10.1.0.0/16` or `fd00:1::/32`, with no bits after the prefix, and with \
     ports `10.1.0.0/16:20000-32000` or `[fd00:1::/32]:6379`"
)]
pub struct RangeError(String);

impl Range {
    /// Whether it holds for this place.
    pub fn contains(&self, address: IpAddr, port: u16) -> bool {
        self.addresses.contains(address) && self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
    }

    /// Whether it is of one address alone.
    pub(super) fn is_one_address(&self) -> bool {
        self.addresses.is_one_address()
    }

    /// Whether it holds for addresses of the machine that dials, too.
    pub(super) fn may_be_own(&self) -> bool {
        self.ports.is_some() || self.is_one_address()
    }
}

/// A port as it is written everywhere: `+443` and `0443` are read by some and not by others.
fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port: &u16| *port != 0 && port.to_string() == text)
}

fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

impl FromStr for Range {
    type Err = RangeError;
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let err = || RangeError(text.to_owned());
        let (addresses, of) = match text.strip_prefix('[') {
            Some(rest) => {
                let (addresses, of) = rest.split_once("]:").ok_or_else(err)?;
                // Brackets are for what has colons of its own.
                (Some(addresses).filter(|addresses| addresses.contains(':')).ok_or_else(err)?, Some(of))
            }
            None => match text.split_once(':') {
                Some((addresses, of)) if !of.contains(':') => (addresses, Some(of)),
                _ => (text, None),
            },
        };
        let addresses = addresses.parse().map_err(|_| err())?;
        let ports = of.map(|of| ports(of).ok_or_else(err)).transpose()?;
        Ok(Self { addresses, ports })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, last)) = self.ports else { return self.addresses.fmt(f) };
        match self.addresses.is_ipv6() {
            true => write!(f, "[{}]:{first}", self.addresses)?,
            false => write!(f, "{}:{first}", self.addresses)?,
        }
        if first == last { Ok(()) } else { write!(f, "-{last}") }
    }
}
