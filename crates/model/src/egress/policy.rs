//! The decision: which of a tenant's connections may reach which address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::app::{ProviderKind, ProviderSpec};
use crate::name::ProviderName;
use crate::rules::http_server;
use crate::rules::nats;
use crate::rules::postgres;
use crate::tenant::TenantSettings;

use super::address::{Class, classify};
use super::destination::Destination;
use super::range::{Range, RangeError};

/// An address range, `10.1.0.0/16` or `fd00::/8`; a bare address is the range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address range: write for example `10.1.0.0/16` or `fd00:1::/32`, with no bits after the prefix"
)]
pub struct CidrError(String);

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

/// The first `prefix` bits of a 128-bit number.
fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl Cidr {
    /// Whether `address` is in the range. An IPv4 address is never in an IPv6 range, nor the other way round.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (mine, width) = bits(self.address);
        let (theirs, other) = bits(address);
        width == other && (mine ^ theirs) & mask(self.prefix) == 0
    }

    pub(super) fn is_one_address(&self) -> bool {
        bits(self.address).1 == self.prefix
    }

    pub(super) fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let err = || CidrError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| err())?;
        let (value, width) = bits(address);
        let prefix = match prefix {
            // `+8` and `08` are numbers to the parser, but not to people.
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0')) => {
                text.parse().map_err(|_| err())?
            }
            Some(_) => return Err(err()),
            None => width,
        };
        if prefix > width || value & !mask(prefix) != 0 {
            return Err(err());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Why an address may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// It is public.
    Public,
    /// It lies in a range the operator granted to the tenant.
    Range(Range),
    /// The operator declared the provider that dials with exactly this host and port.
    Operator,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grant::Public => f.write_str("public"),
            Grant::Range(range) => write!(f, "range {range}"),
            Grant::Operator => f.write_str("operator's provider"),
        }
    }
}

/// The address that may not be reached, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{address} ({class}) is not granted")]
pub struct Denied {
    /// The address.
    pub address: IpAddr,
    /// What it is.
    pub class: Class,
}

/// What one tenant's connections may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    ranges: Vec<Range>,
    providers: Vec<(ProviderName, Destination, u16)>,
}

impl Policy {
    /// The policy in a tenant's settings, and what in them cannot be read: an unreadable range grants nothing.
    pub fn of(settings: &TenantSettings) -> (Self, Vec<RangeError>) {
        let mut policy = Self::default();
        let mut errors = Vec::new();
        for range in &settings.egress {
            match range.parse() {
                Ok(range) => policy.ranges.push(range),
                Err(cause) => errors.push(cause),
            }
        }
        for (name, spec) in &settings.providers {
            if let Some((host, port)) = endpoint_of(spec) {
                policy.providers.push((name.clone(), host, port));
            }
        }
        (policy, errors)
    }

    /// Whether a connection may be made. `addresses` are all that `destination` resolves to: one that is denied denies
    /// them all, for a name that mixes public and internal addresses is an attack or a mistake. `provider` is the
    /// provider that dials, if one does; `own` are those among them that the machine itself has.
    ///
    /// # Errors
    /// The first address that is denied.
    pub fn decide(
        &self,
        provider: Option<&ProviderName>,
        destination: &Destination,
        port: u16,
        addresses: &[IpAddr],
        own: &[IpAddr],
    ) -> Result<Grant, Denied> {
        let declared = provider.is_some_and(|name| {
            self.providers.iter().any(|(n, host, p)| n == name && host == destination && *p == port)
        });
        let mut grant = if declared { Grant::Operator } else { Grant::Public };
        for address in addresses {
            let one = self.one(declared, *address, port, own)?;
            if matches!(one, Grant::Range(_)) {
                grant = one;
            }
        }
        Ok(grant)
    }

    fn one(&self, declared: bool, address: IpAddr, port: u16, own: &[IpAddr]) -> Result<Grant, Denied> {
        let class = match classify(address) {
            class if class.may_be_own() && own.contains(&address) => Class::Own,
            class => class,
        };
        let denied = Denied { address, class };
        let range = |may: fn(&Range) -> bool| {
            let fits = |range: &&Range| range.contains(address, port) && may(range);
            self.ranges.iter().find(fits).copied().map(Grant::Range).ok_or(denied)
        };
        match class {
            Class::Public => Ok(Grant::Public),
            // Nobody has a reason to connect there: a TCP connection to them reaches this machine or nothing.
            Class::Unspecified | Class::Multicast | Class::Broadcast => Err(denied),
            // A range that happens to hold credentials grants them only when it names just them.
            Class::Metadata => range(Range::is_one_address),
            // Both the wrapping and what is wrapped must be reachable: a grant of a NAT64 prefix is no way around.
            Class::Wrapped(inner) => {
                let outer = range(|_| true)?;
                self.one(false, inner.into(), port, own).map_err(|_| denied)?;
                Ok(outer)
            }
            _ if declared => Ok(Grant::Operator),
            // Nor does the range of a network grant the machine itself: its API and what else listens there. One that names ports
            // says what it is for.
            Class::Own => range(Range::may_be_own),
            _ => range(|_| true),
        }
    }
}

/// The host and port a provider's settings name; `None` for a provider that dials nowhere, or settings that cannot be
/// read (which grant nothing).
pub fn endpoint_of(spec: &ProviderSpec) -> Option<(Destination, u16)> {
    match spec.kind {
        ProviderKind::KeyvalueMemory
        | ProviderKind::KeyvalueEmbedded
        | ProviderKind::BlobstoreFolder
        | ProviderKind::MessagingLocal
        | ProviderKind::MessagingDurable
        | ProviderKind::SecretsEmbedded
        // What its process connects to is not ours to dial.
        | ProviderKind::External
        | ProviderKind::SqlSqlite
        | ProviderKind::Component => None,
        ProviderKind::SqlPostgres => {
            let url = spec.config.get("url")?;
            postgres::SCHEMES.iter().find_map(|scheme| place_of(url, scheme, postgres::PORT))
        }
        ProviderKind::BlobstoreS3 => {
            let url = url::Url::parse(spec.config.get("url")?).ok()?;
            let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
            Some((Destination::parse(host).ok()?, url.port_or_known_default()?))
        }
        ProviderKind::KeyvalueRedis => {
            let url = spec.config.get("url")?;
            ["redis://", "rediss://"].iter().find_map(|scheme| place_of(url, scheme, 6379))
        }
        ProviderKind::KeyvalueVault | ProviderKind::SecretsVault | ProviderKind::KeyvalueConsul => {
            let url = spec.config.get("url")?;
            http_server::SCHEMES.iter().find_map(|(scheme, port)| place_of(url, scheme, *port))
        }
        ProviderKind::KeyvalueNats
        | ProviderKind::BlobstoreNats
        | ProviderKind::MessagingNats
        | ProviderKind::MessagingJetstream => {
            let url = spec.config.get("url")?;
            nats::SCHEMES.iter().find_map(|scheme| place_of(url, scheme, nats::PORT))
        }
    }
}

/// Host and port of a URL of this scheme.
fn place_of(url: &str, scheme: &str, usual: u16) -> Option<(Destination, u16)> {
    let rest = url.strip_prefix(scheme)?;
    let authority = rest.split(['/', '?', '#']).next()?;
    // The last `@`: a password may hold one that is not escaped.
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (place, usual),
    };
    Some((Destination::parse(host).ok()?, port))
}
