//! How a connection to Postgres comes about: dialled, encrypted, logged in with what the secrets hold now, and set up so
//! that no statement runs for longer than it may.

use std::sync::Arc;

use model::sql::SqlError;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_postgres::{Config, NoTls};
use tokio_rustls::TlsConnector;

use super::error::cannot_connect;
use super::guard::Guarded;
use super::session::Session;
use crate::dial::{DialError, Dialer, Line, Target};
use crate::http_out::Tls;
use crate::secrets::{Credentials, SecretError, Unlocked};

/// Asks a server for TLS: a length of 8, and a number that is no version of the protocol.
const ASK_TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What every connection is made from.
pub(super) struct Connector {
    pub(super) target: Target,
    pub(super) database: String,
    pub(super) username: Option<String>,
    /// How the server's own lists name us.
    pub(super) name: String,
    pub(super) tls: Option<Tls>,
    pub(super) secrets: Credentials,
    pub(super) dialer: Arc<dyn Dialer>,
}

/// A connection, plain or not.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

fn refused(error: SecretError) -> SqlError {
    match error {
        SecretError::TimedOut { ms, .. } => SqlError::TimedOut { ms },
        SecretError::Unavailable { .. } | SecretError::Vault { .. } => SqlError::Unavailable(error.to_string()),
        SecretError::Missing(_)
        | SecretError::Absent { .. }
        | SecretError::NotKept { .. }
        | SecretError::NotGiven { .. }
        | SecretError::Denied { .. }
        | SecretError::Unusable { .. } => SqlError::Denied(error.to_string()),
    }
}

impl Connector {
    /// What the secrets hold now.
    pub(super) async fn unlock(&self) -> Result<Unlocked, SqlError> {
        self.secrets.all().await.map_err(refused)
    }

    /// A connection that is logged in. The caller limits the time.
    pub(super) async fn connect(&self, unlocked: &Unlocked) -> Result<Session, SqlError> {
        let dialled = self.dialer.dial(self.target.clone()).await.map_err(|cause| match cause {
            DialError::Denied(why) => SqlError::Denied(why),
            other => SqlError::Unavailable(other.to_string()),
        })?;
        let stream: Box<dyn Io> = match &self.tls {
            None => Box::new(dialled.stream),
            Some(tls) => self.secure(tls, dialled.stream).await?,
        };
        let (guarded, oversize) = Guarded::new(stream);
        let mut config = Config::new();
        let username = unlocked.text("username").map_err(refused)?.or(self.username.as_deref());
        config.user(username.unwrap_or_default()).dbname(&*self.database).application_name(&*self.name);
        if let Some(password) = unlocked.bytes("password") {
            config.password(password);
        }
        let connected = config.connect_raw(guarded, NoTls).await;
        let (client, connection) = connected.map_err(|cause| cannot_connect(&cause))?;
        Session::new(client, connection, oversize).await
    }

    async fn secure(&self, tls: &Tls, mut stream: Line) -> Result<Box<dyn Io>, SqlError> {
        let lost = |cause: std::io::Error| SqlError::Unavailable(format!("the connection broke: {cause}"));
        stream.write_all(&ASK_TLS).await.map_err(lost)?;
        // One byte and no more: what came with it would be taken for something said after the connection was safe.
        match stream.read_u8().await.map_err(lost)? {
            b'S' => {}
            b'N' => {
                return Err(SqlError::Denied(
                    "the server has no TLS; where the network can be trusted, set `tls = \"off\"`".to_owned(),
                ));
            }
            _ => return Err(SqlError::Unavailable("what answers there is no Postgres".to_owned())),
        }
        let name = ServerName::try_from(self.target.host.clone())
            .map_err(|_| SqlError::Denied("the host of the URL cannot be the name in a certificate".to_owned()))?;
        let secured = TlsConnector::from(tls.config()).connect(name, stream).await;
        Ok(Box::new(secured.map_err(|cause| SqlError::Unavailable(format!("TLS failed: {cause}")))?))
    }
}
