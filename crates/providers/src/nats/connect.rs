//! From a dialled connection to one that the server has let in: `INFO`, TLS, `CONNECT`, `PING`, `PONG`.

use std::sync::Arc;

use bytes::BytesMut;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::credentials::Login;
use super::endpoint::Endpoint;
use super::error::NatsError;
use super::wire::{Decoder, ServerOp, WireError};
use crate::dial::{Dialer, Target};

/// A connection, plain or not.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What a server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Its version, for example `2.9.10`.
    pub version: String,
    /// The largest headers and payload it takes together, bytes.
    pub max_payload: usize,
    /// Takes messages with headers.
    pub headers: bool,
    /// Has JetStream.
    pub jetstream: bool,
    pub(super) tls_required: bool,
    pub(super) tls_available: bool,
    pub(super) nonce: Option<String>,
}

impl ServerInfo {
    /// Major and minor version; `(0, 0)` where the server says something else.
    pub fn release(&self) -> (u32, u32) {
        let mut parts = self.version.split('.').map_while(|part| part.parse().ok());
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }
}

/// Everything a connection is made with.
pub(super) struct Door {
    pub(super) endpoint: Endpoint,
    pub(super) target: Target,
    pub(super) name: String,
    pub(super) login: Login,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) dialer: Arc<dyn Dialer>,
}

/// A connection that is open, and what was read past its opening.
pub(super) struct Connected {
    pub(super) stream: Box<dyn Io>,
    pub(super) decoder: Decoder,
    pub(super) buf: BytesMut,
    pub(super) info: ServerInfo,
}

#[derive(Serialize)]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'a str,
    lang: &'a str,
    version: &'a str,
    protocol: u8,
    echo: bool,
    headers: bool,
    no_responders: bool,
    #[serde(flatten)]
    proof: std::collections::BTreeMap<&'static str, &'a str>,
}

/// What is said first. The password is in no buffer but this one, which is large enough for all of it: growing would
/// leave copies behind.
fn hello(connect: &Connect<'_>) -> Result<Zeroizing<Vec<u8>>, NatsError> {
    // A byte of a text is at most six of JSON.
    let texts = connect.proof.values().map(|text| text.len()).sum::<usize>() + connect.name.len();
    let mut hello = Zeroizing::new(Vec::with_capacity(texts * 6 + 1024));
    hello.extend_from_slice(b"CONNECT ");
    serde_json::to_writer(&mut *hello, connect).map_err(|cause| NatsError::Invalid(cause.to_string()))?;
    hello.extend_from_slice(b"\r\nPING\r\n");
    Ok(hello)
}

impl Door {
    /// Opens a connection. The caller limits the time.
    pub(super) async fn open(&self) -> Result<Connected, NatsError> {
        let tcp = self.dialer.dial(self.target.clone()).await?.stream;
        let mut line = Connected {
            stream: Box::new(tcp),
            decoder: Decoder::default(),
            buf: BytesMut::with_capacity(4096),
            info: ServerInfo::default(),
        };
        line.info = match line.next().await? {
            ServerOp::Info(info) => *info,
            ServerOp::Error(why) => return Err(refused(&why)),
            _ => return Err(NatsError::Unavailable("it does not begin with `INFO`: not a NATS server".into())),
        };
        let wants_tls = self.endpoint.tls || line.info.tls_required;
        if self.endpoint.tls && !line.info.tls_required && !line.info.tls_available {
            return Err(NatsError::Denied("the URL asks for TLS and the server has none".into()));
        }
        if wants_tls {
            line = self.secure(line).await?;
        }
        let fields = match self.login.now().await? {
            Some(credentials) => credentials.fields(line.info.nonce.as_deref()),
            None => Ok(Vec::new()),
        };
        let fields = fields.map_err(|cause| NatsError::Denied(cause.to_string()))?;
        let connect = Connect {
            verbose: false,
            pedantic: false,
            tls_required: wants_tls,
            name: &self.name,
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            protocol: 1,
            echo: true,
            headers: line.info.headers,
            no_responders: line.info.headers,
            proof: fields.iter().map(|(name, value)| (*name, value.as_str())).collect(),
        };
        let hello = hello(&connect)?;
        line.stream.write_all(&hello).await.map_err(|cause| broken(&cause))?;
        line.stream.flush().await.map_err(|cause| broken(&cause))?;
        loop {
            match line.next().await? {
                ServerOp::Pong => return Ok(line),
                ServerOp::Info(info) => line.info = *info,
                ServerOp::Error(why) => return Err(refused(&why)),
                ServerOp::Ping => line.stream.write_all(b"PONG\r\n").await.map_err(|cause| broken(&cause))?,
                ServerOp::Ok | ServerOp::Deliver { .. } => {}
            }
        }
    }

    async fn secure(&self, line: Connected) -> Result<Connected, NatsError> {
        if !line.buf.is_empty() {
            // Said before the connection was safe: not to be taken for something said after.
            return Err(NatsError::Unavailable("the server talks on where TLS should begin".into()));
        }
        let name = ServerName::try_from(self.endpoint.host.clone())
            .map_err(|_| NatsError::Invalid("the host of the URL cannot be the name in a certificate".into()))?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, line.stream).await;
        let tls = tls.map_err(|cause| NatsError::Unavailable(format!("TLS failed: {cause}")))?;
        Ok(Connected { stream: Box::new(tls), ..line })
    }
}

impl Connected {
    async fn next(&mut self) -> Result<ServerOp, NatsError> {
        loop {
            if let Some(op) = self.decoder.decode(&mut self.buf).map_err(|cause| nonsense(&cause))? {
                return Ok(op);
            }
            if self.stream.read_buf(&mut self.buf).await.map_err(|cause| broken(&cause))? == 0 {
                return Err(NatsError::Unavailable("the server closed the connection while it was opened".into()));
            }
        }
    }
}

fn broken(cause: &std::io::Error) -> NatsError {
    NatsError::Unavailable(cause.to_string())
}

fn nonsense(cause: &WireError) -> NatsError {
    NatsError::Unavailable(cause.to_string())
}

/// An `-ERR` that ends a connection, told apart by its words.
pub(super) fn refused(why: &str) -> NatsError {
    let lower = why.to_ascii_lowercase();
    if ["authorization", "authentication", "permissions", "revoked", "expired"].iter().any(|word| lower.contains(word))
    {
        return NatsError::Denied(why.to_owned());
    }
    NatsError::Unavailable(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_far_as_it_goes() {
        let release = |version: &str| ServerInfo { version: version.into(), ..ServerInfo::default() }.release();
        assert_eq!(release("2.9.10"), (2, 9));
        assert_eq!(release("2.12.0-RC.1"), (2, 12));
        assert_eq!(release("x"), (0, 0));
    }

    #[test]
    fn the_buffer_of_a_password_never_grows() {
        let (name, password) = ("app", "\u{1}\"hunter2".repeat(500));
        let connect = Connect {
            verbose: false,
            pedantic: false,
            tls_required: true,
            name,
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            protocol: 1,
            echo: true,
            headers: true,
            no_responders: true,
            proof: [("user", "shop"), ("pass", password.as_str())].into(),
        };
        let said = hello(&connect).unwrap();
        let texts = "shop".len() + password.len() + name.len();
        assert_eq!(said.capacity(), texts * 6 + 1024, "as it was made");
        let json = said.strip_prefix(b"CONNECT ").and_then(|said| said.strip_suffix(b"\r\nPING\r\n")).unwrap();
        let read: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert_eq!((read["pass"].as_str(), read["user"].as_str()), (Some(password.as_str()), Some("shop")));
    }

    #[test]
    fn refusals_are_told_from_troubles() {
        assert!(matches!(refused("Authorization Violation"), NatsError::Denied(_)));
        assert!(matches!(refused("User Authentication Expired"), NatsError::Denied(_)));
        assert!(matches!(refused("maximum connections exceeded"), NatsError::Unavailable(_)));
    }
}
