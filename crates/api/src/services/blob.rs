//! Objects in the node's folder: what is asked and answered. An object goes through in chunks, by the number of an
//! upload or a reading that lives as long as the connection it was begun on: what a host that died had begun is gone
//! with it.

use std::fmt;

use bytes::Bytes;
use model::ProviderName;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// The largest chunk either way, bytes.
pub const MAX_CHUNK: usize = 1 << 20;
/// The most names in one answer or one removal.
pub const MAX_NAMES: usize = 1000;

/// One call to the objects of one provider of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRequest {
    /// The provider of the app: two of them share nothing.
    pub provider: ProviderName,
    /// What.
    pub op: BlobOp,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobOp {
    /// Makes an empty container.
    Create { container: String },
    /// Whether there is a container.
    Container { container: String },
    /// Removes a container and everything in it.
    Delete { container: String },
    /// Removes everything in a container.
    Clear { container: String },
    /// Whether there is an object.
    Object { container: String, object: String },
    /// Opens an object for reading.
    Open { container: String, object: String },
    /// Some bytes of what was opened, at most [`MAX_CHUNK`]; fewer only at its end.
    Read { reading: u64, offset: u64, length: u32 },
    /// Nothing more is read.
    Close { reading: u64 },
    /// Begins to write an object.
    Begin { container: String, object: String },
    /// The next bytes of it, at most [`MAX_CHUNK`].
    Write { upload: u64, chunk: Chunk },
    /// It is whole: on disk and in its place when this is answered.
    Finish { upload: u64 },
    /// Nothing of it stays.
    Abandon { upload: u64 },
    /// Names after `cursor`, at most [`MAX_NAMES`].
    List { container: String, cursor: Option<String> },
    /// Removes objects, at most [`MAX_NAMES`].
    Remove {
        container: String,
        #[serde(deserialize_with = "model::listed::at_most::<_, _, MAX_NAMES>")]
        objects: Vec<String>,
    },
    /// The names of all containers.
    Containers,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobAnswer {
    /// Done.
    Done,
    /// Container: seconds since 1970 when it was made.
    Container(Option<u64>),
    /// Object: seconds since 1970 when it was written, and its bytes.
    Object(Option<(u64, u64)>),
    /// Open: its number, and the size of the object in bytes.
    Opened { reading: u64, size: u64 },
    /// Read.
    Chunk(Chunk),
    /// Begin: its number.
    Begun { upload: u64 },
    /// List, Containers: the names and where to go on.
    Names { names: Vec<String>, cursor: Option<String> },
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum BlobFault {
    /// There is no such container.
    #[error("there is no container `{0}`")]
    NoContainer(String),
    /// The container to be made is there.
    #[error("the container `{0}` is there already")]
    ContainerExists(String),
    /// There is no such object.
    #[error("there is no object `{object}` in the container `{container}`")]
    NoObject { container: String, object: String },
    /// The object's file is not what was written.
    #[error("the object `{object}` is damaged: {why}")]
    Damaged { object: String, why: String },
    /// Something above its limit.
    #[error("{0}")]
    TooLarge(String),
    /// The disk is full, read-only or broken, or too much is under way.
    #[error("{0}")]
    Unavailable(String),
    /// The number of an upload or reading that is not there.
    #[error("{0}")]
    Refused(String),
    /// The tenant keeps as much as it may.
    #[error("{0}")]
    OverQuota(String),
}

/// Bytes that are sent as bytes, not one by one.
#[derive(Clone, PartialEq, Eq)]
pub struct Chunk(pub Bytes);

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Chunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Chunk;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Chunk, E> {
                Ok(Chunk(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_costs_its_bytes_and_comes_back() {
        let op = BlobOp::Write { upload: 3, chunk: Chunk(Bytes::from(vec![200; MAX_CHUNK])) };
        let wire = postcard::to_stdvec(&op).unwrap();
        assert!(wire.len() < MAX_CHUNK + 16, "{}", wire.len());
        assert_eq!(postcard::from_bytes::<BlobOp>(&wire).unwrap(), op);
    }
}
