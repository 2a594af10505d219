//! What an entry of `allow-hosts` says about a connection. The scheme says how the connection may be used, and only who
//! speaks over it knows that: the host process compares whole entries, and the node, which dials for it, compares
//! transport, host and port once more.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::destination::Destination;

/// How bytes travel over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A stream of bytes.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an entry of `allow-hosts` is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Outgoing HTTP, over TCP.
    Http,
    /// Sockets.
    Sockets(Transport),
}

/// The use, the host and the port of an entry of `allow-hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    used: Use,
    /// In lower case, an IPv6 literal without brackets; of a suffix with its leading dot.
    host: String,
    suffix: bool,
    port: u16,
}

impl AllowedHost {
    /// Reads an entry that the rules accept; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (used, usual) = match scheme {
            "http" => (Use::Http, Some(80)),
            "https" => (Use::Http, Some(443)),
            "tcp" => (Use::Sockets(Transport::Tcp), None),
            "udp" => (Use::Sockets(Transport::Udp), None),
            _ => return None,
        };
        let after_bracket = rest.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match rest.get(after_bracket..)?.rfind(':') {
            None => (rest, usual?),
            Some(at) => {
                let (host, port) = rest.split_at_checked(after_bracket + at)?;
                let digits = port.strip_prefix(':')?;
                // As it is written everywhere: `+443` and `0443` are read by some and not by others.
                (host, digits.parse().ok().filter(|port: &u16| *port != 0 && port.to_string() == digits)?)
            }
        };
        let (host, suffix) = host.strip_prefix('*').map_or((host, false), |suffix| (suffix, true));
        let host = match host.strip_prefix('[') {
            Some(inside) => inside.strip_suffix(']')?,
            None => host,
        };
        if host.contains(['[', ']']) {
            return None;
        }
        let host = host.to_ascii_lowercase();
        let whole = if suffix { host.len() > 1 && host.starts_with('.') } else { !host.is_empty() };
        whole.then_some(Self { used, host, suffix, port })
    }

    /// Whether a connection of this transport to `host` and `port` is one to this entry, whatever it is used for.
    pub fn covers(&self, transport: Transport, host: &str, port: u16) -> bool {
        let carried = match self.used {
            Use::Http => Transport::Tcp,
            Use::Sockets(own) => own,
        };
        transport == carried && port == self.port && self.names(host)
    }

    /// Whether the entry lets a component open a socket of this transport to `host` and `port`.
    pub fn opens(&self, transport: Transport, host: &str, port: u16) -> bool {
        self.used == Use::Sockets(transport) && self.covers(transport, host, port)
    }

    /// The one host it is about, and the port; `None` where it is about the names below one.
    pub fn place(&self) -> Option<(Destination, u16)> {
        let host = Destination::parse(&self.host).ok().filter(|_| !self.suffix)?;
        Some((host, self.port))
    }

    /// Whether it is about sockets, and not about outgoing HTTP.
    pub fn is_for_sockets(&self) -> bool {
        matches!(self.used, Use::Sockets(_))
    }

    /// Whether the entry is about `host`, on whichever port.
    pub fn names(&self, host: &str) -> bool {
        let host = bare(host);
        match self.suffix {
            true => host.len() > self.host.len() && host.ends_with(&self.host),
            false => host == self.host,
        }
    }
}

/// In the form that is compared.
fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_host_and_port_count() {
        use Transport::{Tcp, Udp};
        for (entry, transport, host, port, expected) in [
            ("https://api.example.com", Tcp, "api.example.com", 443, true),
            ("https://api.example.com", Udp, "api.example.com", 443, false),
            ("https://api.example.com", Tcp, "API.Example.com", 443, true),
            ("https://api.example.com", Tcp, "api.example.com", 80, false),
            ("https://api.example.com", Tcp, "xapi.example.com", 443, false),
            ("https://api.example.com", Tcp, "api.example.com.evil.test", 443, false),
            ("http://api.example.com:8080", Tcp, "api.example.com", 8080, true),
            ("http://*.internal.example", Tcp, "a.b.internal.example", 80, true),
            ("http://*.internal.example", Tcp, "internal.example", 80, false),
            ("http://*.internal.example", Tcp, ".internal.example", 80, false),
            ("http://*.internal.example", Tcp, "xinternal.example", 80, false),
            ("http://127.0.0.1:99", Tcp, "127.0.0.1", 99, true),
            ("http://[::1]:99", Tcp, "::1", 99, true),
            ("http://[::1]", Tcp, "[::1]", 80, true),
            ("tcp://db.example.com:5432", Tcp, "db.example.com", 5432, true),
            ("tcp://db.example.com:5432", Udp, "db.example.com", 5432, false),
            ("udp://*.example.com:53", Udp, "ns.example.com", 53, true),
            ("udp://[fd00::1]:53", Udp, "fd00::1", 53, true),
        ] {
            let covers = AllowedHost::parse(entry).unwrap().covers(transport, host, port);
            assert_eq!(covers, expected, "{entry} {transport} {host} {port}");
        }
        for bad in [
            "",
            "a.example",
            "ftp://a.example",
            "https://",
            "https://*",
            "https://*.",
            "http://a:0",
            "http://a:0443",
            "http://a:+443",
            "http://a:x",
            "https://*.a]",
            "http://[::1",
            "tcp://a",
            "udp://a",
            "udp://[::1]",
        ] {
            assert_eq!(AllowedHost::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_granted_for_http_is_no_socket() {
        let entry = |text: &str| AllowedHost::parse(text).unwrap();
        assert!(!entry("https://a.example").opens(Transport::Tcp, "a.example", 443));
        assert!(entry("tcp://a.example:443").opens(Transport::Tcp, "a.example", 443));
        assert!(!entry("tcp://a.example:443").opens(Transport::Udp, "a.example", 443));
        assert!(entry("udp://a.example:443").names("A.example") && entry("udp://a.example:1").is_for_sockets());
        let home = Destination::Address(std::net::Ipv6Addr::LOCALHOST.into());
        assert_eq!(entry("tcp://[::1]:443").place(), Some((home, 443)));
        assert_eq!(entry("http://a.example").place(), Some((Destination::Name("a.example".to_owned()), 80)));
        assert_eq!(entry("http://*.a.example").place(), None);
    }
}
