//! An object's description, the JSON that every client of the NATS object store reads and writes.

use data_encoding::BASE64URL;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the digest begins with.
const SHA_256: &str = "SHA-256=";

/// The fields that we know; other clients may write more, which mean nothing to us.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) options: Option<Options>,
    pub(super) bucket: String,
    /// Tells the chunks of this content from those of another.
    #[serde(default)]
    pub(super) nuid: String,
    #[serde(default)]
    pub(super) size: u64,
    /// Some clients write it and some take the time of the message.
    #[serde(default)]
    pub(super) mtime: String,
    #[serde(default)]
    pub(super) chunks: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) digest: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) deleted: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Options {
    /// An object that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) link: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_chunk_size: Option<u64>,
}

impl Meta {
    /// Stands for another object.
    pub(super) fn is_link(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.link.is_some())
    }

    /// The SHA-256 that the content has; `None` where the description does not say one that we can read.
    pub(super) fn sha256(&self) -> Option<Vec<u8>> {
        let text = self.digest.strip_prefix(SHA_256)?;
        // Not every client writes the padding.
        let padded =
            format!("{}{}", text.trim_end_matches('='), "=".repeat((4 - text.trim_end_matches('=').len() % 4) % 4));
        BASE64URL.decode(padded.as_bytes()).ok()
    }
}

/// A digest as the description says it.
pub(super) fn digest(sha256: &[u8]) -> String {
    format!("{SHA_256}{}", BASE64URL.encode(sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_clients_write_is_read() {
        let go = r#"{"name":"a","options":{"max_chunk_size":131072},"bucket":"b","nuid":"n","size":3,"mtime":"0001-01-01T00:00:00Z",
            "chunks":1,"digest":"SHA-256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0=","headers":{"x":["y"]},"metadata":{"k":"v"}}"#;
        let read: Meta = serde_json::from_str(go).unwrap();
        assert_eq!((read.size, read.is_link(), read.sha256().unwrap().len()), (3, false, 32));
        assert_eq!(digest(&read.sha256().unwrap()), read.digest);
        let bare = Meta { digest: read.digest.trim_end_matches('=').to_owned(), ..read.clone() };
        assert_eq!(bare.sha256(), read.sha256());
        assert_eq!(Meta { digest: "MD5=x".to_owned(), ..read }.sha256(), None);
        let link = r#"{"name":"l","bucket":"b","options":{"link":{"bucket":"other","name":"x"}}}"#;
        assert!(serde_json::from_str::<Meta>(link).unwrap().is_link());
        let deleted = r#"{"name":"a","bucket":"b","nuid":"n","deleted":true,"size":0,"chunks":0}"#;
        assert!(serde_json::from_str::<Meta>(deleted).unwrap().deleted);
    }
}
