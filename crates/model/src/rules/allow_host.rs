//! Where a component may call out to over HTTP: `scheme://host[:port]`, the host exact or `*.suffix`. Names only decide
//! what may be asked for; the address actually dialled is checked again by the node.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::rules::route::host_name;
use crate::rules::{Code, Violation, shown};

/// One entry of `allow-hosts`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowedHost {
    /// Whether the scheme is `https`; else `http`.
    pub https: bool,
    /// The host, or the suffix after `*`, which then starts with a dot. IPv6 addresses are in brackets.
    host: String,
    /// The port; the scheme's own where none is written.
    pub port: u16,
}

impl AllowedHost {
    /// Whether a request to `host` (as in a URL: IPv6 in brackets) on `port` may be made.
    pub fn matches(&self, https: bool, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let name = match self.host.strip_prefix('.') {
            // `*.example.com` covers every depth below, not the name itself.
            Some(_) => host.len() > self.host.len() && host.ends_with(&self.host),
            None => host == self.host,
        };
        name && https == self.https && port == self.port
    }
}

impl FromStr for AllowedHost {
    type Err = Violation;

    fn from_str(text: &str) -> Result<Self, Violation> {
        let bad = |why: &str| {
            Violation::new(Code::AllowHost, format!("`{}` {why}", shown(text)))
                .help("write scheme, host and, if it is not the usual one, port: `https://api.example.com`, `http://*.internal.example:8080`")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("has no scheme"))?;
        let https = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(bad("has a scheme other than `http` and `https`")),
        };
        if rest.contains('@') {
            return Err(Violation::new(Code::AllowHost, "an entry of `allow-hosts` holds a user name or password")
                .help("remove everything between `//` and `@`"));
        }
        if rest.contains(['/', '?', '#']) {
            return Err(bad("has a path; whole hosts are allowed, not paths"));
        }
        let (host, port) = split_port(rest).ok_or_else(|| bad("has a port that is not 1 to 65535"))?;
        let host = match host.strip_prefix('*') {
            Some("") => return Err(bad("allows every host; name the hosts")),
            Some(suffix) => {
                let name = suffix.strip_prefix('.').ok_or_else(|| bad("has a wildcard that is not a leading `*.`"))?;
                host_name(name).map_err(|why| bad(&why))?;
                suffix.to_owned()
            }
            None if is_v6(host) || host.parse::<Ipv4Addr>().is_ok() => host.to_owned(),
            None => {
                host_name(host).map_err(|why| bad(&why))?;
                host.to_owned()
            }
        };
        Ok(Self { https, host, port: port.unwrap_or(if https { 443 } else { 80 }) })
    }
}

fn is_v6(host: &str) -> bool {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).is_some_and(|h| h.parse::<Ipv6Addr>().is_ok())
}

/// Host and port; `None` where the port is no port.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let after_bracket = text.rfind(']').map_or(0, |at| at + 1);
    match text.get(after_bracket..)?.rfind(':') {
        None => Some((text, None)),
        Some(at) => {
            let (host, port) = text.split_at_checked(after_bracket + at)?;
            let digits = port.get(1..).filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
            Some((host, Some(digits.parse().ok().filter(|port| *port != 0)?)))
        }
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let star = if self.host.starts_with('.') { "*" } else { "" };
        write!(f, "{scheme}://{star}{}", self.host)?;
        if self.port == if self.https { 443 } else { 80 } { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_what_is_written() {
        let star: AllowedHost = "https://*.example.com".parse().unwrap();
        assert!(star.matches(true, "a.example.com", 443) && star.matches(true, "A.B.example.com", 443));
        assert!(!star.matches(true, "example.com", 443) && !star.matches(true, "badexample.com", 443));
        assert!(!star.matches(true, ".example.com", 443), "an empty label is no name");
        assert!(!star.matches(false, "a.example.com", 443) && !star.matches(true, "a.example.com", 8443));
        let v6: AllowedHost = "http://[::1]:8080".parse().unwrap();
        assert!(v6.matches(false, "[::1]", 8080) && !v6.matches(false, "[::1]", 80));
    }

    #[test]
    fn entries_round_trip() {
        for text in
            ["https://a.example", "http://*.a.example:8080", "http://127.0.0.1:1", "http://[::1]:8080", "http://x"]
        {
            assert_eq!(text.parse::<AllowedHost>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "a.example",
            "ftp://a",
            "https://",
            "https://*",
            "https://*a.b",
            "https://a.*.b",
            "https://a/",
            "https://a:0",
            "https://a:70000",
            "https://a:",
            "https://u@a",
            "https://A.example",
            "https://[::1",
            "https://a b",
            "https://-a",
            "https://a:+1",
            "https://*.*.a",
        ] {
            assert!(bad.parse::<AllowedHost>().is_err(), "{bad}");
        }
    }
}
