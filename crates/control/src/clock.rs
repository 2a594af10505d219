//! The wall clock, in the units the API and the claims use.

/// Milliseconds since 1970.
pub(crate) fn millis() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// Seconds since 1970.
pub(crate) fn seconds() -> u64 {
    millis() / 1000
}
