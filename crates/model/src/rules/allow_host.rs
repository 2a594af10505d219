//! Where a component may call out to, over HTTP or over sockets: `scheme://host[:port]`, the host exact or `*.suffix`.
//! Names only decide what may be asked for; the address actually dialled is checked again by the node.

use std::net::Ipv6Addr;

use crate::rules::route::host_name;
use crate::rules::{Code, Violation, shown};

const HELP: &str = "write scheme, host and, if it is not the usual one, port: `https://api.example.com`, `http://*.internal.example:8080`, `tcp://db.example.com:5432`, `udp://10.0.0.2:53`";

/// Checks one entry of `allow-hosts`.
///
/// # Errors
/// `allow-host`, with what to write instead.
pub fn check(text: &str) -> Result<(), Violation> {
    let bad = |why: &str| Violation::new(Code::AllowHost, format!("`{}` {why}", shown(text))).help(HELP);
    if text.contains('@') {
        let message = "an entry of `allow-hosts` holds a user name or password, and settings are stored and shown";
        return Err(Violation::new(Code::AllowHost, message).help("remove everything between `//` and `@`"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let with = format!("https://{text}");
        let violation = bad("has no scheme");
        return Err(if check(&with).is_ok() { violation.help(format!("write \"{with}\"")) } else { violation });
    };
    let sockets = matches!(scheme, "tcp" | "udp");
    if !sockets && scheme != "https" && scheme != "http" {
        return Err(bad("has a scheme other than `http`, `https`, `tcp` and `udp`"));
    }
    if rest.contains(['/', '?', '#']) {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Err(
            bad("has a path; whole hosts are allowed, not paths").help(format!("write \"{scheme}://{}\"", shown(host)))
        );
    }
    let host = without_port(rest).ok_or_else(|| bad("has a port that is not 1 to 65535"))?;
    if sockets && host.len() == rest.len() {
        return Err(bad("has no port, and a socket has no usual one")
            .help(format!("write the port behind the host, for example \"{scheme}://{}:5432\"", shown(rest))));
    }
    if is_v6(host) {
        return Ok(());
    }
    let name = match host.strip_prefix('*') {
        Some("") => return Err(bad("allows every host").help("name each host, or its suffix: `https://*.example.com`")),
        Some(suffix) => suffix.strip_prefix('.').ok_or_else(|| bad("has a `*` that is not its whole first label"))?,
        None => host,
    };
    host_name(name).map_err(|why| bad(&why))
}

fn is_v6(host: &str) -> bool {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).is_some_and(|h| h.parse::<Ipv6Addr>().is_ok())
}

/// The host before a port, if there is one; `None` where the port is no port.
fn without_port(text: &str) -> Option<&str> {
    let after_bracket = text.rfind(']').map_or(0, |at| at + 1);
    let Some(at) = text.get(after_bracket..)?.rfind(':') else { return Some(text) };
    let (host, port) = text.split_at_checked(after_bracket + at)?;
    let digits = port.get(1..).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse::<u16>().is_ok_and(|port| port != 0).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_scheme_host_and_port() {
        for good in [
            "https://a.example",
            "http://*.a.example:8080",
            "http://127.0.0.1:1",
            "http://[::1]:8080",
            "http://[::1]",
            "http://x",
            "tcp://db.example.com:5432",
            "udp://10.0.0.2:53",
            "udp://[fd00::1]:53",
            "tcp://*.a.example:1",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
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
            "https://::1",
            "tcp://a",
            "udp://[::1]",
            "tcp://*:1",
            "tcp://a:1/x",
        ] {
            assert_eq!(check(bad).unwrap_err().code, Code::AllowHost, "{bad}");
        }
    }
}
