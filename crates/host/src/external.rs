//! Connections to external providers by way of the node, which runs their processes: a host cannot reach them itself.

use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use api::services::client::{FileError, FilesClient};
use api::services::{External, FileFault, FileRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
use model::{AppName, Digest, ProviderName};
use providers::external::{Connect, NotReady};
use tokio::net::UnixStream;

/// The way to one provider of one app.
pub(crate) struct NodeConnect {
    files: Arc<FilesClient>,
    wanted: FileRequest,
}

impl NodeConnect {
    pub(crate) fn new(files: Arc<FilesClient>, app: AppName, provider: ProviderName, spec: Digest) -> Self {
        Self { files, wanted: FileRequest::External(External { app, provider, spec }) }
    }

    async fn stream(&self) -> Result<UnixStream, NotReady> {
        let (fd, _) = self.files.request(&self.wanted).await.map_err(|error| match error {
            FileError::Fault(FileFault::NotReady { why, soon }) => NotReady { why, soon },
            other => NotReady { why: format!("the node hands over no connection: {other}"), soon: false },
        })?;
        let unusable = |cause: std::io::Error| NotReady { why: cause.to_string(), soon: false };
        let stream = StdStream::from(fd);
        stream.set_nonblocking(true).map_err(unusable)?;
        UnixStream::from_std(stream).map_err(unusable)
    }
}

impl Connect for NodeConnect {
    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, NotReady>> {
        self.stream().boxed()
    }
}
