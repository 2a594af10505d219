//! One run of a program on a host: asked for with [`RunRequest`], answered by frames of what it writes and a last one with
//! how it ended. An answer that stops without it is a run whose end nobody saw. Hanging up ends the run.
//!
//! A frame is a byte that says what it is, the length of the rest in four bytes, big-endian, and the rest: `1` standard output,
//! `2` standard error, `0` the JSON text of a [`RunEnd`].

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use model::ComponentName;
use serde::{Deserialize, Serialize};

/// Environment variable of a host: the folders its components may use, a JSON list of [`Folder`]. It is handed the folders
/// themselves, in this order, each in a message of its own after what every host is handed.
pub const FOLDERS_ENV: &str = "SIDEREAL_HOST_FOLDERS";

/// Environment variable of a host: the variables that its components find in their environment, a JSON list of names. The values
/// are in their config.
pub const VARIABLES_ENV: &str = "SIDEREAL_HOST_VARIABLES";

/// The most folders a host is handed: they wait in its socket until it takes them.
pub const MAX_FOLDERS: usize = 64;

/// A folder that components may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// What components call it.
    pub name: String,
    /// They may change what is in it.
    pub writable: bool,
}

/// The largest rest of a frame, bytes.
pub const MAX_FRAME: usize = 256 << 10;
const HEAD: usize = 5;

/// Run a program once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunRequest {
    /// Which component.
    pub component: ComponentName,
    /// The instance it exports that has `run`: `wasi:cli/run@0.2.12`.
    pub export: String,
    /// Its arguments; the first is what it is called.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunEnd {
    /// Its exit code; [`RunEnd::FAILED`] where it did not end by itself.
    pub code: i32,
    /// What ended it: a trap or a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl RunEnd {
    /// The code of a program that was aborted.
    pub const FAILED: i32 = 134;
}

/// A part of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunFrame {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The last one.
    End(RunEnd),
}

/// Why the bytes are no frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no frame of a run: {0}")]
pub struct BadFrame(String);

impl RunFrame {
    /// As it travels.
    pub fn encode(&self) -> Bytes {
        let (kind, rest) = match self {
            Self::Stdout(bytes) => (1, bytes.clone()),
            Self::Stderr(bytes) => (2, bytes.clone()),
            // Numbers and text: there is nothing in it that JSON cannot say.
            Self::End(end) => (0, Bytes::from(serde_json::to_vec(end).unwrap_or_default())),
        };
        let mut frame = BytesMut::with_capacity(HEAD + rest.len());
        frame.put_u8(kind);
        frame.put_u32(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        frame.extend_from_slice(&rest);
        frame.freeze()
    }

    /// Takes the next frame off the front; `None` where it is not whole yet.
    ///
    /// # Errors
    /// Where no frame begins with these bytes.
    pub fn decode(from: &mut BytesMut) -> Result<Option<Self>, BadFrame> {
        let mut head = from.get(..HEAD).unwrap_or_default();
        if head.is_empty() {
            return Ok(None);
        }
        let (kind, size) = (head.get_u8(), head.get_u32() as usize);
        if size > MAX_FRAME {
            return Err(BadFrame(format!("{size} bytes are too many")));
        }
        if from.len() < HEAD + size {
            return Ok(None);
        }
        from.advance(HEAD);
        let rest = from.split_to(size).freeze();
        match kind {
            1 => Ok(Some(Self::Stdout(rest))),
            2 => Ok(Some(Self::Stderr(rest))),
            0 => serde_json::from_slice(&rest)
                .map(|end| Some(Self::End(end)))
                .map_err(|cause| BadFrame(cause.to_string())),
            kind => Err(BadFrame(format!("kind {kind}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let frames = [
            RunFrame::Stdout(Bytes::from_static(b"one\n\xff")),
            RunFrame::Stderr(Bytes::new()),
            RunFrame::End(RunEnd { code: 3, fault: Some("trap".into()) }),
        ];
        let all: Vec<u8> = frames.iter().flat_map(RunFrame::encode).collect();
        for size in 1..all.len() {
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in all.chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = RunFrame::decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames);
        }
        assert!(RunFrame::decode(&mut BytesMut::from(&b"\x07\0\0\0\0"[..])).is_err());
        assert!(RunFrame::decode(&mut BytesMut::from(&b"\x01\xff\0\0\0"[..])).is_err());
    }
}
