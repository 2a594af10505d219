//! What an entry of `allow-hosts` says about a connection. The scheme is known only to whoever speaks over it: the host
//! process compares whole origins, and the node, which dials for it, compares host and port once more.

/// The host and the port of an entry of `allow-hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    /// In lower case, an IPv6 literal without brackets; of a suffix with its leading dot.
    host: String,
    suffix: bool,
    port: u16,
}

impl AllowedHost {
    /// Reads an entry that the rules accept; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let usual = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let after_bracket = rest.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match rest.get(after_bracket..)?.rfind(':') {
            None => (rest, usual),
            Some(at) => {
                let (host, port) = rest.split_at_checked(after_bracket + at)?;
                (host, port.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?)
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
        whole.then_some(Self { host, suffix, port })
    }

    /// Whether a connection to `host` and `port` is one to this entry.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let named = match self.suffix {
            true => host.len() > self.host.len() && host.ends_with(&self.host),
            false => host == self.host,
        };
        named && port == self.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_count() {
        for (entry, host, port, expected) in [
            ("https://api.example.com", "api.example.com", 443, true),
            ("https://api.example.com", "API.Example.com", 443, true),
            ("https://api.example.com", "api.example.com", 80, false),
            ("https://api.example.com", "xapi.example.com", 443, false),
            ("https://api.example.com", "api.example.com.evil.test", 443, false),
            ("http://api.example.com:8080", "api.example.com", 8080, true),
            ("http://*.internal.example", "a.b.internal.example", 80, true),
            ("http://*.internal.example", "internal.example", 80, false),
            ("http://*.internal.example", ".internal.example", 80, false),
            ("http://*.internal.example", "xinternal.example", 80, false),
            ("http://127.0.0.1:99", "127.0.0.1", 99, true),
            ("http://[::1]:99", "::1", 99, true),
            ("http://[::1]", "[::1]", 80, true),
        ] {
            assert_eq!(AllowedHost::parse(entry).unwrap().covers(host, port), expected, "{entry} {host} {port}");
        }
        for bad in [
            "",
            "a.example",
            "ftp://a.example",
            "https://",
            "https://*",
            "https://*.",
            "http://a:0",
            "http://a:x",
            "https://*.a]",
            "http://[::1",
        ] {
            assert_eq!(AllowedHost::parse(bad), None, "{bad}");
        }
    }
}
