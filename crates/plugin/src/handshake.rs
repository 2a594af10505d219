//! What host and plugin say before they speak gRPC: the host proves by a cookie that it is one, says by environment what it
//! can do, and reads one line on stdout. Pure; [`crate::run`] acts on it.

use std::fmt;
use std::path::PathBuf;

/// Proves that a Nomad agent launched us, not a person. The same since 1.0.
pub const COOKIE_NAME: &str = "NOMAD_PLUGIN_MAGIC_COOKIE";
/// Its value; no secret.
pub const COOKIE: &str = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255";

/// Version of the handshake itself.
const CORE_PROTOCOL: u32 = 1;
/// Version of Nomad's plugin protocol: gRPC.
const APP_PROTOCOL: u32 = 2;

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// The host's certificate, PEM: it wants TLS in both directions.
    pub client_cert: Option<String>,
    /// The host understands the seventh field.
    pub multiplexed: bool,
    /// Where the socket goes.
    pub socket_dir: Option<PathBuf>,
    /// Group that may connect, by name or number.
    pub socket_group: Option<String>,
    /// Ports for tcp, first and last. A host that sets them wants tcp only where there are no unix sockets.
    pub ports: Option<(u16, u16)>,
}

/// Why the program does not become a plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Started by hand.
    #[error(
        "this program is a Nomad plugin and is started by a Nomad agent, not by hand: put it into the agent's plugin_dir \
         and name it in a `plugin` block (docs/nomad.md)"
    )]
    NoCookie,
    /// A host of another protocol.
    #[error("the host speaks plugin protocols {0}, and this plugin only {APP_PROTOCOL}")]
    Protocol(String),
    /// A variable that cannot be read.
    #[error("{name} is `{value}`, which is {why}")]
    Variable {
        /// Which.
        name: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Request {
    /// Reads the host's environment.
    ///
    /// # Errors
    /// When there is no host, or one that speaks otherwise.
    pub fn read(get: impl Fn(&'static str) -> Option<String>) -> Result<Self, Refusal> {
        if get(COOKIE_NAME).as_deref() != Some(COOKIE) {
            return Err(Refusal::NoCookie);
        }
        let get = |name| get(name).filter(|value| !value.is_empty());
        if let Some(versions) = get("PLUGIN_PROTOCOL_VERSIONS")
            && !versions.split(',').any(|version| version.trim() == APP_PROTOCOL.to_string())
        {
            return Err(Refusal::Protocol(versions));
        }
        let port = |name| {
            let wrong = |value: &str| Refusal::Variable { name, value: value.to_owned(), why: "no port" };
            get(name).map(|value| value.parse::<u16>().map_err(|_| wrong(&value))).transpose()
        };
        let ports = match (port("PLUGIN_MIN_PORT")?, port("PLUGIN_MAX_PORT")?) {
            (Some(first), Some(last)) if first <= last => Some((first, last)),
            _ => None,
        };
        let truth = |value: String| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
        Ok(Self {
            client_cert: get("PLUGIN_CLIENT_CERT"),
            multiplexed: get("PLUGIN_MULTIPLEX_GRPC").is_some_and(truth),
            socket_dir: get("PLUGIN_UNIX_SOCKET_DIR").map(PathBuf::from),
            socket_group: get("PLUGIN_UNIX_SOCKET_GROUP"),
            ports,
        })
    }
}

/// Where we listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// Loopback.
    Tcp(std::net::SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix|{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp|{address}"),
        }
    }
}

/// The line, without its end: `1|2|unix|/tmp/plugin.sock|grpc|`, with our certificate (base64 without padding) where TLS is
/// on. The seventh field says that we do not multiplex, to hosts that understand it: they then open further connections.
pub fn line(address: &Address, certificate: &str, request: &Request) -> String {
    let mux = if request.multiplexed { "|false" } else { "" };
    format!("{CORE_PROTOCOL}|{APP_PROTOCOL}|{address}|grpc|{certificate}{mux}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&'static str, &str)]) -> Result<Request, Refusal> {
        Request::read(|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn only_a_nomad_agent_starts_it() {
        assert_eq!(read(&[]), Err(Refusal::NoCookie));
        assert_eq!(read(&[(COOKIE_NAME, "other")]), Err(Refusal::NoCookie));
        let asked = read(&[
            (COOKIE_NAME, COOKIE),
            ("PLUGIN_PROTOCOL_VERSIONS", "2"),
            ("PLUGIN_MIN_PORT", "10000"),
            ("PLUGIN_MAX_PORT", "25000"),
        ]);
        assert_eq!(asked, Ok(Request { ports: Some((10000, 25000)), ..Request::default() }));
        let other = read(&[(COOKIE_NAME, COOKIE), ("PLUGIN_PROTOCOL_VERSIONS", "3,4")]);
        assert_eq!(other, Err(Refusal::Protocol("3,4".into())));
        let bad = read(&[(COOKIE_NAME, COOKIE), ("PLUGIN_MIN_PORT", "x")]);
        assert!(matches!(bad, Err(Refusal::Variable { name: "PLUGIN_MIN_PORT", .. })));
    }

    #[test]
    fn the_line_has_the_fields_the_host_counts() {
        let unix = Address::Unix("/tmp/a.sock".into());
        assert_eq!(line(&unix, "", &Request::default()), "1|2|unix|/tmp/a.sock|grpc|");
        let tcp = Address::Tcp(([127, 0, 0, 1], 1234).into());
        let mux = Request { multiplexed: true, ..Request::default() };
        assert_eq!(line(&tcp, "QUJD", &mux), "1|2|tcp|127.0.0.1:1234|grpc|QUJD|false");
    }
}
