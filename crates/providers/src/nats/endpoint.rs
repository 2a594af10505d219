//! Where a NATS server is: parsed once from the provider's `url`.

use http::Uri;

/// The port of a URL that names none.
const PORT: u16 = 4222;

/// A server: `nats://host[:port]`, or `tls://host[:port]` where TLS is a must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address literal without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Refuse to talk to a server without TLS. A server that asks for TLS gets it either way.
    pub tls: bool,
}

/// Not a URL of NATS. Never holds the URL: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the provider's `url` is not `nats://host[:port]` or `tls://host[:port]`, without user and password")]
pub struct EndpointError;

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse().map_err(|_| EndpointError)?;
        let tls = match uri.scheme_str() {
            Some("nats") => false,
            Some("tls") => true,
            _ => return Err(EndpointError),
        };
        let authority = uri.authority().ok_or(EndpointError)?;
        let plain = !authority.as_str().contains('@') && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = match authority.as_str().get(authority.host().len()..) {
            Some("") => PORT,
            _ => authority.port_u16().filter(|port| *port != 0).ok_or(EndpointError)?,
        };
        if !plain || host.is_empty() {
            return Err(EndpointError);
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_whole_or_refused() {
        let at = |host: &str, port, tls| Ok(Endpoint { host: host.into(), port, tls });
        assert_eq!("nats://bus.example".parse(), at("bus.example", 4222, false));
        assert_eq!("tls://bus.example:1/".parse(), at("bus.example", 1, true));
        assert_eq!("nats://[::1]:7".parse(), at("::1", 7, false));
        for bad in [
            "",
            "bus",
            "nats:",
            "nats://",
            "http://bus",
            "nats://u:hunter2@bus",
            "nats://bus:0",
            "nats://bus:x",
            "nats://bus:",
            "nats://bus/x",
            "nats://bus?x=1",
        ] {
            assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError), "{bad}");
        }
    }
}
