//! Connections by way of the node: it resolves, decides, connects, and hands over the connected socket.

use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use api::services::client::{FileError, FilesClient};
use api::services::{Caller as WireCaller, Dial, FileFault, FileRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
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

    async fn connect(&self, target: Target) -> Result<Dialled, DialError> {
        let caller = match target.caller {
            Caller::Component(name) => WireCaller::Component(name),
            Caller::Provider(name) => WireCaller::Provider(name),
        };
        let dial = Dial { app: target.app, caller, host: target.host, port: target.port };
        let request = FileRequest::Dial(dial);
        let late = DialError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
        let answer = tokio::time::timeout(TIMEOUT, self.files.request(&request)).await.map_err(|_| late)?;
        let (fd, address) = answer.map_err(translate)?;
        let unusable = |cause: std::io::Error| DialError::Unavailable(cause.to_string());
        let stream = StdStream::from(fd);
        stream.set_nonblocking(true).map_err(unusable)?;
        stream.set_nodelay(true).map_err(unusable)?;
        Ok(Dialled { stream: TcpStream::from_std(stream).map_err(unusable)?, address })
    }
}

fn translate(error: FileError) -> DialError {
    match error {
        FileError::Fault(FileFault::Dns { host, cause }) => DialError::Dns { host, cause },
        FileError::Fault(fault @ FileFault::Denied { .. }) => DialError::Denied(fault.to_string()),
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
