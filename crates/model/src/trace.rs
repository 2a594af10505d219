//! Where a call is in a trace (W3C Trace Context), and the span that says what became of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::app::Revision;
use crate::name::{AppName, ComponentName};

/// The id of a span within its trace; never all zeros.
pub type SpanId = [u8; 8];

/// A place in a trace: what a `traceparent` of version 00 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    /// The trace; never all zeros.
    pub trace: [u8; 16],
    /// The span that others are children of.
    pub span: SpanId,
    /// Whoever began the trace wants it recorded.
    pub sampled: bool,
}

/// The text is no `traceparent` of version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct TraceError;

fn bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut all = [0; N];
    // Upper case is not allowed.
    data_encoding::HEXLOWER.decode_mut(text, &mut all).ok().filter(|length| *length == N)?;
    all.iter().any(|byte| *byte != 0).then_some(all)
}

impl TraceContext {
    /// Reads a `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not zero.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn parse(text: &[u8]) -> Result<Self, TraceError> {
        const LENGTH: usize = 55;
        let part = |from: usize, to: usize| text.get(from..to).filter(|_| text.len() == LENGTH).ok_or(TraceError);
        if part(0, 3)? != b"00-" || part(35, 36)? != b"-" || part(52, 53)? != b"-" {
            return Err(TraceError);
        }
        let mut flags = [0u8; 1];
        data_encoding::HEXLOWER.decode_mut(part(53, 55)?, &mut flags).map_err(|_| TraceError)?;
        Ok(Self {
            trace: bytes(part(3, 35)?).ok_or(TraceError)?,
            span: bytes(part(36, 52)?).ok_or(TraceError)?,
            sampled: flags.iter().any(|flags| flags & 1 == 1),
        })
    }

    /// Whether a trace with this id, which begins here, is recorded where `part` of all are, 0 to 1. The same answer for
    /// the same id everywhere.
    pub fn is_recorded(trace: &[u8; 16], part: f64) -> bool {
        let [.., a, b, c, d, e, f, g, h] = *trace;
        // 53 bits, as many as a double has.
        let place = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11;
        (place as f64) < part * (1u64 << 53) as f64
    }

    /// The same trace, at another span.
    #[must_use]
    pub fn at(self, span: SpanId) -> Self {
        Self { span, ..self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = data_encoding::HEXLOWER;
        write!(
            f,
            "00-{}-{}-{:02x}",
            hex.encode_display(&self.trace),
            hex.encode_display(&self.span),
            u8::from(self.sampled)
        )
    }
}

impl FromStr for TraceContext {
    type Err = TraceError;
    fn from_str(text: &str) -> Result<Self, TraceError> {
        Self::parse(text.as_bytes())
    }
}

impl TryFrom<String> for TraceContext {
    type Error = TraceError;
    fn try_from(text: String) -> Result<Self, TraceError> {
        text.parse()
    }
}

impl From<TraceContext> for String {
    fn from(context: TraceContext) -> Self {
        context.to_string()
    }
}

/// Whose span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanOrigin {
    /// The app.
    pub app: AppName,
    /// Its revision.
    pub revision: Revision,
    /// The component.
    pub component: ComponentName,
}

/// Which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpanKind {
    /// Answers a call.
    Server,
    /// Makes a call.
    Client,
    /// Handles what somebody sent before, and who does not wait for it.
    Consumer,
}

/// Something that took time, finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Itself.
    pub context: TraceContext,
    /// The span it is a part of.
    pub parent: Option<SpanId>,
    /// A name with few values: no ids, no paths.
    pub name: String,
    /// Which side of a call it is.
    pub kind: SpanKind,
    /// When it began, nanoseconds since 1970.
    pub start_ns: u64,
    /// When it ended, nanoseconds since 1970.
    pub end_ns: u64,
    /// What else is known, by the names of OpenTelemetry's conventions where they have one.
    pub attributes: Vec<(String, Attribute)>,
    /// Why it failed, where it did.
    pub error: Option<String>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attribute {
    /// A number.
    Int(i64),
    /// A text.
    Text(String),
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u32> for Attribute {
    fn from(number: u32) -> Self {
        Self::Int(i64::from(number))
    }
}

impl From<u16> for Attribute {
    fn from(number: u16) -> Self {
        Self::Int(i64::from(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = text.parse().unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_string(), text);
        assert_eq!(context.at([1; 8]).to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0101010101010101-01");
        let unsampled = TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02").unwrap();
        assert!(!unsampled.sampled, "only the lowest bit says so");
        let json = serde_json::to_string(&context).unwrap();
        assert_eq!(serde_json::from_str::<TraceContext>(&json).unwrap(), context);
    }

    #[test]
    fn a_part_of_all_is_about_that_many() {
        let recorded = |part| {
            let mut trace = [0u8; 16];
            let taken = (0..10_000u64).filter(|n| {
                trace[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                TraceContext::is_recorded(&trace, part)
            });
            taken.count()
        };
        assert_eq!((recorded(0.0), recorded(1.0)), (0, 10_000));
        assert!((2300..2700).contains(&recorded(0.25)), "{}", recorded(0.25));
    }

    #[test]
    fn malformed_ones_are_refused() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b70-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(TraceError), "{bad}");
        }
    }
}
