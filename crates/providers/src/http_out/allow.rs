//! Which hosts a component may send requests to: `scheme://host[:port]`, the host exact or `*.suffix`. Nothing is
//! allowed that no pattern names. The address that is dialled is decided elsewhere, by the node.

use std::fmt;

use http::Uri;

/// A text of `allow_hosts` that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not an allowed host: {why}")]
pub struct PatternError {
    /// The text.
    pub pattern: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    fn parse(text: &str) -> Option<Self> {
        match text {
            _ if text.eq_ignore_ascii_case("http") => Some(Self::Http),
            _ if text.eq_ignore_ascii_case("https") => Some(Self::Https),
            _ => None,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// Where a request goes: what the patterns are compared with, and what is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// In lower case, an IPv6 literal without brackets.
    pub host: String,
    /// Explicit or the scheme's.
    pub port: u16,
}

impl Origin {
    /// The origin of an absolute URI; `None` where it has none, or names a user, or another scheme.
    pub fn of(uri: &Uri) -> Option<Self> {
        let scheme = Scheme::parse(uri.scheme_str()?)?;
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = match authority.port() {
            Some(port) => Some(port.as_u16()),
            // `host:` and a port out of range have no port that parses, and yet a colon after the host.
            None if authority.as_str().len() == authority.host().len() => Some(scheme.port()),
            None => None,
        }?;
        (!host.is_empty() && port != 0).then_some(Self { scheme, host, port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "{}://[{}]:{}", self.scheme, self.host, self.port),
            false => write!(f, "{}://{}:{}", self.scheme, self.host, self.port),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Exact(String),
    /// With its leading dot.
    Suffix(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    scheme: Scheme,
    host: HostPattern,
    port: u16,
}

/// The parsed `allow_hosts` of one component.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowHosts(Vec<Pattern>);

impl AllowHosts {
    /// Parses every pattern.
    ///
    /// # Errors
    /// The first text that is not one.
    pub fn parse(patterns: &[String]) -> Result<Self, PatternError> {
        patterns.iter().map(|text| Pattern::parse(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether some pattern names the origin.
    pub fn allows(&self, origin: &Origin) -> bool {
        self.0.iter().any(|pattern| pattern.matches(origin))
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let bad = |why| PatternError { pattern: text.to_owned(), why };
        let (scheme, rest) = text.split_once("://").ok_or(bad("write it as https://host or http://host:port"))?;
        if rest.contains('@') || rest.contains(['/', '?', '#']) {
            return Err(bad("it ends after the host and the port"));
        }
        let (rest, suffix) = match rest.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 => (format!("x{suffix}"), true),
            Some(_) => return Err(bad("a wildcard is `*.` and the rest of the name")),
            None => (rest.to_owned(), false),
        };
        if rest.contains('*') {
            return Err(bad("a wildcard is only the first label"));
        }
        let uri: Uri = format!("{scheme}://{rest}").parse().map_err(|_| bad("the host or the port does not parse"))?;
        let origin = Origin::of(&uri).ok_or(bad("only http and https hosts with a port from 1 to 65535 are known"))?;
        let host = match origin.host.strip_prefix('x') {
            Some(rest) if suffix => HostPattern::Suffix(rest.to_owned()),
            _ => HostPattern::Exact(origin.host.clone()),
        };
        Ok(Self { scheme: origin.scheme, host, port: origin.port })
    }

    fn matches(&self, origin: &Origin) -> bool {
        let host = match &self.host {
            HostPattern::Exact(host) => *host == origin.host,
            HostPattern::Suffix(suffix) => origin.host.len() > suffix.len() && origin.host.ends_with(suffix.as_str()),
        };
        host && self.scheme == origin.scheme && self.port == origin.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, uri: &str) -> bool {
        let allow = AllowHosts::parse(&[pattern.to_owned()]).unwrap();
        Origin::of(&uri.parse().unwrap()).is_some_and(|origin| allow.allows(&origin))
    }

    #[test]
    fn scheme_host_and_port_all_count() {
        for (pattern, uri, expected) in [
            ("https://api.example.com", "https://api.example.com/x", true),
            ("https://api.example.com", "https://API.Example.Com:443/", true),
            ("https://api.example.com", "http://api.example.com/", false),
            ("https://api.example.com", "https://api.example.com:8443/", false),
            ("https://api.example.com", "https://api.example.com.evil.test/", false),
            ("https://api.example.com", "https://xapi.example.com/", false),
            ("https://api.example.com", "https://api.example.com@evil.test/", false),
            ("https://api.example.com", "https://evil.test@api.example.com/", false),
            ("https://api.example.com", "https://api.example.com./", false),
            ("http://*.internal.example:8080", "http://a.internal.example:8080/", true),
            ("http://*.internal.example:8080", "http://a.b.internal.example:8080/", true),
            ("http://*.internal.example:8080", "http://internal.example:8080/", false),
            ("http://*.internal.example:8080", "http://.internal.example:8080/", false),
            ("http://*.internal.example:8080", "http://xinternal.example:8080/", false),
            ("http://*.internal.example:8080", "http://a.internal.example/", false),
            ("http://127.0.0.1:99", "http://127.0.0.1:99/", true),
            ("http://[::1]:99", "http://[::1]:99/", true),
            ("http://x.example", "http://x.example/", true),
        ] {
            assert_eq!(allows(pattern, uri), expected, "{pattern} {uri}");
        }
        assert!(!AllowHosts::default().allows(&Origin::of(&"https://a.example/".parse().unwrap()).unwrap()));
    }

    #[test]
    fn what_is_not_a_pattern_is_refused() {
        for bad in [
            "",
            "api.example.com",
            "*",
            "https://*",
            "https://*.",
            "https://a.*.example",
            "https://**.example",
            "ftp://a.example",
            "https://a.example/path",
            "https://u@a.example",
            "https://a.example:0",
            "https://a.example:70000",
            "https://a.example:",
            "https://",
            "https://a b",
        ] {
            assert!(AllowHosts::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
