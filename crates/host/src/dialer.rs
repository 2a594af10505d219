//! Connections by way of the node: it resolves, decides, connects, and hands over the connected socket.

use std::net::TcpStream as StdStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use api::services::client::{FileError, FilesClient};
use api::services::datagram::DatagramEnd;
use api::services::{Caller as WireCaller, Dial, FileFault, FileRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
use model::egress::Transport;
use providers::dial::{Caller, DialError, Dialer, Dialled, Target};
use tokio::net::TcpStream;

/// The node has its own, shorter limit on connecting; this one is for a node that does not answer at all.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct NodeDialer {
    files: Arc<FilesClient>,
}

impl NodeDialer {
    pub(crate) fn new(files: Arc<FilesClient>) -> Self {
        Self { files }
    }

    /// A descriptor from the node, and where it is connected to.
    async fn ask(
        &self,
        transport: Transport,
        target: Target,
    ) -> Result<(OwnedFd, Option<std::net::SocketAddr>), DialError> {
        let caller = match target.caller {
            Caller::Component(name) => WireCaller::Component(name),
            Caller::Provider(name) => WireCaller::Provider(name),
        };
        let dial = Dial { app: target.app, caller, transport, host: target.host, port: target.port };
        let request = FileRequest::Dial(dial);
        let late = DialError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
        let answer = tokio::time::timeout(TIMEOUT, self.files.request(&request)).await.map_err(|_| late)?;
        answer.map_err(translate)
    }

    async fn connect(&self, target: Target) -> Result<Dialled, DialError> {
        let (fd, address) = self.ask(Transport::Tcp, target).await?;
        let stream = StdStream::from(fd);
        stream.set_nonblocking(true).map_err(unusable)?;
        Ok(Dialled { stream: TcpStream::from_std(stream).map_err(unusable)?.into(), address })
    }

    /// Datagrams to and from one address.
    ///
    /// # Errors
    /// As of a dial.
    pub(crate) async fn datagrams(&self, target: Target) -> Result<DatagramEnd, DialError> {
        let (fd, _) = self.ask(Transport::Udp, target).await?;
        DatagramEnd::new(fd).map_err(unusable)
    }
}

fn unusable(cause: std::io::Error) -> DialError {
    DialError::Unavailable(cause.to_string())
}

fn translate(error: FileError) -> DialError {
    match error {
        FileError::Fault(FileFault::Dns { host, cause }) => DialError::Dns { host, cause },
        FileError::Fault(fault @ FileFault::Denied { .. }) => DialError::Denied(fault.to_string()),
        FileError::Fault(fault @ FileFault::Limited { .. }) => DialError::Limited(fault.to_string()),
        FileError::Fault(fault @ FileFault::Connect { .. }) => DialError::Connect(fault.to_string()),
        FileError::Fault(FileFault::TimedOut { ms, .. }) => DialError::TimedOut { ms },
        FileError::Fault(FileFault::NoCode(why) | FileFault::NotReady { why, .. }) => DialError::Unavailable(why),
        FileError::Wire(cause) => DialError::Unavailable(cause.to_string()),
    }
}

impl Dialer for NodeDialer {
    fn dial(&self, target: Target) -> BoxFuture<'_, Result<Dialled, DialError>> {
        self.connect(target).boxed()
    }
}
