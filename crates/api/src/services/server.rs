//! The node's end of a host's connections: what a fresh one is for, and typed reading and answering of it.

use std::os::fd::{AsFd as _, BorrowedFd};

use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::codec::{FrameReader, FrameWriter, WireError};
use super::exchange::Exchange;
use super::{FileReply, FileRequest, Hello, MoreRequest};

/// The largest request that is answered with a descriptor, and the largest [`Hello`], bytes: names, a host and a digest.
const MAX_REQUEST: usize = 16 << 10;

/// A connection whose [`Hello`] was read.
#[derive(Debug)]
pub enum Accepted {
    /// Read [`super::KvCall`]s (`next`, then `ready` for those that came together), write [`super::KvReply`]s.
    KeyValue(FrameReader<OwnedReadHalf>, FrameWriter<OwnedWriteHalf>),
    /// The same with [`super::ServiceCall`]s and [`super::ServiceReply`]s.
    Calls(FrameReader<OwnedReadHalf>, FrameWriter<OwnedWriteHalf>),
    /// Answer [`FileRequest`]s one by one.
    Files(FilesConnection),
    /// Hold it; its end is the host's end.
    Alive(UnixStream),
    /// Answer [`MoreRequest`]s one by one.
    More(MoreConnection),
    /// Read [`super::Standing`]s, of which the last one counts.
    Standing(UnixStream),
}

/// Reads the first frame of a connection. The caller bounds the time.
///
/// # Errors
/// Any [`WireError`]; [`WireError::Closed`] where nothing was said.
pub async fn accept(stream: UnixStream) -> Result<Accepted, WireError> {
    let mut reader = FrameReader::new(stream).limited(MAX_REQUEST);
    let hello: Hello = reader.next().await?.ok_or(WireError::Closed)?;
    let (stream, rest) = reader.into_parts();
    Ok(match hello {
        Hello::KeyValue => {
            let (read, write) = stream.into_split();
            Accepted::KeyValue(FrameReader::with_buffer(read, rest), FrameWriter::new(write))
        }
        Hello::Calls => {
            let (read, write) = stream.into_split();
            Accepted::Calls(FrameReader::with_buffer(read, rest), FrameWriter::new(write))
        }
        Hello::Files => Accepted::Files(FilesConnection(Exchange::new(stream, rest, MAX_REQUEST)?)),
        Hello::Alive => Accepted::Alive(stream),
        Hello::Standing => Accepted::Standing(stream),
        Hello::More => Accepted::More(MoreConnection(Exchange::new(stream, rest, MAX_REQUEST)?)),
    })
}

/// A connection for [`FileRequest`]s, the node's end.
#[derive(Debug)]
pub struct FilesConnection(Exchange);

impl FilesConnection {
    /// The next request; `None` where the host hung up.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub async fn next(&mut self) -> Result<Option<FileRequest>, WireError> {
        self.0.next().await
    }

    /// Answers the request read last. The descriptor is given exactly with [`FileReply::Ready`]; the caller still owns
    /// its copy.
    ///
    /// # Errors
    /// Any [`WireError`], also where the host asked on without reading its answers; the connection is of no more use then.
    pub fn reply(&mut self, reply: &FileReply, fd: Option<BorrowedFd<'_>>) -> Result<(), WireError> {
        self.0.say_with_fd(reply, fd)
    }
}

/// The connection over which a host asks for others, the node's end.
#[derive(Debug)]
pub struct MoreConnection(Exchange);

impl MoreConnection {
    /// The next request; `None` where the host hung up.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub async fn next(&mut self) -> Result<Option<MoreRequest>, WireError> {
        self.0.next().await
    }

    /// Answers the request read last with a new connection, whose other end is returned.
    ///
    /// # Errors
    /// As of [`FilesConnection::reply`].
    pub fn connection(&mut self) -> Result<UnixStream, WireError> {
        let (ours, theirs) = UnixStream::pair()?;
        self.0.say_with_fd(&FileReply::Ready { address: None }, Some(theirs.as_fd()))?;
        Ok(ours)
    }
}
