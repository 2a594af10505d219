//! What one call and one component may use. Every field is enforced somewhere; a field nobody enforces is a defect.

use serde::{Deserialize, Serialize};

use crate::unit::{ByteSize, Millis};

/// Limits of one component. The defaults are what an app gets that says nothing; [`Limits::ceiling`] is what an app
/// may ask for unless the tenant says otherwise (`docs/limits.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Limits {
    /// CPU time of one call, milliseconds.
    pub cpu: Millis,
    /// Wall time of one call, milliseconds, from the arrival of the request head to the end of the response.
    pub wall: Millis,
    /// Linear memory of one instance, all memories together, bytes.
    pub memory: ByteSize,
    /// Native stack of guest code, bytes.
    pub stack: ByteSize,
    /// Elements in all tables of one instance.
    pub table_elements: u32,
    /// Resource handles one instance holds at once.
    pub handles: u32,
    /// Bytes one host call may copy out of the guest.
    pub hostcall_copy: ByteSize,
    /// Bytes of one request body.
    pub request_body: ByteSize,
    /// Bytes of one response body.
    pub response_body: ByteSize,
    /// Calls of the component that run at once on one host; one more is refused with 503.
    pub concurrency: u32,
    /// Outgoing requests one call may make.
    pub subrequests: u32,
    /// Bytes one call may log; the rest is dropped and counted.
    pub log_per_call: ByteSize,
    /// Bytes a second the component may log on one host, all calls together; the rest is dropped and counted.
    pub log_rate: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu: Millis(200),
            wall: Millis::secs(30),
            memory: ByteSize::mib(128),
            stack: ByteSize::mib(1),
            table_elements: 100_000,
            handles: 4096,
            hostcall_copy: ByteSize::mib(16),
            request_body: ByteSize::mib(100),
            response_body: ByteSize::mib(100),
            concurrency: 256,
            subrequests: 64,
            log_per_call: ByteSize::kib(256),
            log_rate: ByteSize::mib(1),
        }
    }
}

impl Limits {
    /// The largest values an app may ask for where its tenant names no ceilings of its own.
    pub fn ceiling() -> Self {
        Self {
            cpu: Millis::secs(60),
            wall: Millis::secs(15 * 60),
            memory: ByteSize::mib(1024),
            stack: ByteSize::mib(1),
            table_elements: 1_000_000,
            handles: 65_536,
            hostcall_copy: ByteSize::mib(128),
            request_body: ByteSize::mib(1024),
            response_body: ByteSize::mib(1024),
            concurrency: 512,
            subrequests: 1024,
            log_per_call: ByteSize::mib(4),
            log_rate: ByteSize::mib(16),
        }
    }
}
