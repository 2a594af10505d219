//! Why a call failed: one closed list, one clear sentence each, and the decision which engine error is which.

use model::unit::{ByteSize, Millis};
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::FieldMapError;

use crate::limiter::{Hit, Limiter};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// CPU time used up.
    #[error("the call used more than its {limit} of CPU time and was ended; raise `limits.cpu` or do less per call")]
    CpuTime {
        /// The limit it ran into.
        limit: Millis,
    },
    /// Wall time used up.
    #[error("the call took longer than its {limit} of wall time and was ended; raise `limits.wall` or wait for less")]
    WallTime {
        /// The limit it ran into.
        limit: Millis,
    },
    /// More linear memory wanted than allowed.
    #[error("the component wanted more than its {limit} of memory; raise `limits.memory` or use less")]
    Memory {
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// More table elements wanted than allowed.
    #[error("the component wanted more than its {limit} table elements; raise `limits.table_elements`")]
    TableElements {
        /// The limit it ran into.
        limit: u32,
    },
    /// More core instances, memories or tables than one component may have.
    #[error("the component has too many parts: {message}")]
    Instances {
        /// Which count, and how many are allowed.
        message: String,
    },
    /// Native stack used up.
    #[error("the component recursed deeper than its {limit} of stack")]
    Stack {
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// Too many resource handles at once.
    #[error("the component held more than its {limit} handles at once; drop resources or raise `limits.handles`")]
    Handles {
        /// The limit it ran into.
        limit: u32,
    },
    /// One host call copied too much.
    #[error(
        "one host call copied more than {limit} out of the component; pass less at once or raise `limits.hostcall_copy`"
    )]
    HostCopy {
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// More random bytes asked for at once than allowed.
    #[error("the component asked for more than {limit} of random bytes at once")]
    Random {
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// One set of headers or trailers grew too large.
    #[error("the component built headers larger than {limit} in host memory")]
    Headers {
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// The request body was larger than allowed.
    #[error("the request body is larger than {limit}; send less or raise `limits.request_body`")]
    RequestTooLarge {
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// The response body became larger than allowed.
    #[error("the response body is larger than {limit}; answer with less or raise `limits.response_body`")]
    ResponseTooLarge {
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// The response had more header fields, or larger ones together, than a response may have.
    #[error("the response has {fields} header fields of {size} together; a response has at most {most} of {limit}")]
    ResponseHead {
        /// How many it had.
        fields: usize,
        /// How large they were.
        size: ByteSize,
        /// How many it may have.
        most: usize,
        /// The limit it ran into.
        limit: ByteSize,
    },
    /// The guest trapped.
    #[error("the component trapped: {message}")]
    Trap {
        /// What the engine said, one line.
        message: String,
    },
    /// The guest ended itself with `wasi:cli/exit`.
    #[error("the component exited with code {code} before the call was finished")]
    Exit {
        /// Its exit code.
        code: i32,
    },
    /// The guest returned without setting a response.
    #[error("the component returned without a response")]
    NoResponse,
    /// The guest answered with an error code instead of a response.
    #[error("the component answered with an error: {message}")]
    Refused {
        /// The `wasi:http` error code.
        message: String,
    },
    /// The body ended before the length its head announced, or with an error of the guest's.
    #[error("the response body broke off: {message}")]
    BodyBroken {
        /// What happened.
        message: String,
    },
    /// The request cannot be handed to a component.
    #[error("the request is not valid: {message}")]
    BadRequest {
        /// What is wrong with it.
        message: String,
    },
    /// The component exports no HTTP handler.
    #[error("the component exports neither wasi:http/incoming-handler nor wasi:http/handler")]
    NoHandler,
    /// No instance slot is free on this host.
    #[error("no instance slot is free on this host: {message}")]
    NoCapacity {
        /// Which pool is empty.
        message: String,
    },
    /// The component has all the calls it may have.
    #[error("the component has all the calls it may have at once; try again, or raise `limits.concurrency`")]
    Busy,
    /// Components that call components, too many on one another.
    #[error("calls between components stand more than {limit} deep")]
    Depth {
        /// The limit it ran into.
        limit: u32,
    },
    /// A component that the component called failed.
    #[error("its call of {interface} failed in component `{name}`: {fault}")]
    Callee {
        /// The component that was called.
        name: String,
        /// The interface it was called by.
        interface: String,
        /// Why it failed.
        fault: Box<Fault>,
    },
    /// The component could not be instantiated.
    #[error("the component cannot be instantiated: {message}")]
    Instantiate {
        /// What the engine said.
        message: String,
    },
    /// The caller went away before the answer was complete.
    #[error("the call was cancelled")]
    Cancelled,
}

/// What sort of failure a [`Fault`] is; decides status codes and who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// A limit of the component was reached.
    Limit,
    /// The component trapped, exited or broke the protocol.
    Component,
    /// The caller's request was at fault.
    Request,
    /// The host has no room now; trying again may help.
    Busy,
    /// The caller left.
    Cancelled,
}

impl Fault {
    /// What sort of failure it is.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::CpuTime { .. }
            | Self::WallTime { .. }
            | Self::Memory { .. }
            | Self::TableElements { .. }
            | Self::Instances { .. }
            | Self::Stack { .. }
            | Self::Handles { .. }
            | Self::HostCopy { .. }
            | Self::Random { .. }
            | Self::Headers { .. }
            | Self::Depth { .. }
            | Self::ResponseHead { .. }
            | Self::ResponseTooLarge { .. } => FaultKind::Limit,
            Self::Trap { .. }
            | Self::Exit { .. }
            | Self::NoResponse
            | Self::Refused { .. }
            | Self::BodyBroken { .. }
            | Self::NoHandler
            | Self::Instantiate { .. } => FaultKind::Component,
            Self::RequestTooLarge { .. } | Self::BadRequest { .. } => FaultKind::Request,
            Self::NoCapacity { .. } | Self::Busy => FaultKind::Busy,
            // What a component was asked was its caller's doing, not that of whoever sent the request.
            Self::Callee { fault, .. } => match fault.kind() {
                FaultKind::Request => FaultKind::Component,
                kind => kind,
            },
            Self::Cancelled => FaultKind::Cancelled,
        }
    }

    /// The fault itself, where this is one of a component that was called, or of one that that called.
    pub fn root(&self) -> &Fault {
        match self {
            Self::Callee { fault, .. } => fault.root(),
            fault => fault,
        }
    }

    /// A short stable name, for metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CpuTime { .. } => "cpu-time",
            Self::WallTime { .. } => "wall-time",
            Self::Memory { .. } => "memory",
            Self::TableElements { .. } => "table-elements",
            Self::Instances { .. } => "instances",
            Self::Stack { .. } => "stack",
            Self::Handles { .. } => "handles",
            Self::HostCopy { .. } => "hostcall-copy",
            Self::Random { .. } => "random",
            Self::Headers { .. } => "headers",
            Self::RequestTooLarge { .. } => "request-too-large",
            Self::ResponseTooLarge { .. } => "response-too-large",
            Self::ResponseHead { .. } => "response-head",
            Self::Trap { .. } => "trap",
            Self::Exit { .. } => "exit",
            Self::NoResponse => "no-response",
            Self::Refused { .. } => "refused",
            Self::BodyBroken { .. } => "body-broken",
            Self::BadRequest { .. } => "bad-request",
            Self::NoHandler => "no-handler",
            Self::NoCapacity { .. } => "no-capacity",
            Self::Busy => "busy",
            Self::Depth { .. } => "depth",
            Self::Callee { .. } => "callee",
            Self::Instantiate { .. } => "instantiate",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where the engine was when it returned the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum During {
    /// While making the instance.
    Instantiate,
    /// While the guest ran.
    Call,
}

/// Which fault an engine error is. What the limiter refused comes before the words of a trap: a guest that was refused
/// memory usually traps on an `unreachable` of its own a moment later.
pub(crate) fn classify(error: &wasmtime::Error, limiter: &Limiter, during: During) -> Fault {
    let limits = limiter.limits();
    if let Some(error) = error.downcast_ref::<PoolConcurrencyLimitError>() {
        return Fault::NoCapacity { message: error.to_string() };
    }
    if let Some(fault) = error.downcast_ref::<Fault>() {
        return fault.clone();
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => return Fault::CpuTime { limit: limits.cpu },
        Some(Trap::StackOverflow) => return Fault::Stack { limit: crate::config::STACK },
        _ => {}
    }
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return Fault::Exit { code: *code };
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
        return Fault::Handles { limit: limits.handles };
    }
    if let Some(FieldMapError::TotalSizeTooBig | FieldMapError::TooManyFields) = error.downcast_ref() {
        return Fault::Headers { limit: crate::config::FIELDS };
    }
    match limiter.hit() {
        Some(Hit::Memory) => return Fault::Memory { limit: limits.memory },
        Some(Hit::TableElements) => return Fault::TableElements { limit: limits.table_elements },
        None => {}
    }
    // The engine has no types for these; `tests/all/limits.rs` fails when a new release words them differently.
    let message = error.root_cause().to_string();
    if message.contains("store handle limit exceeded") {
        Fault::Handles { limit: limits.handles }
    } else if message.contains("fuel allocated for hostcalls has been exhausted") {
        Fault::HostCopy { limit: limits.hostcall_copy }
    } else if message.starts_with("requested len") {
        Fault::Random { limit: crate::config::RANDOM }
    } else if message.contains("count too high") {
        Fault::Instances { message }
    } else if during == During::Instantiate && !error.is::<Trap>() {
        Fault::Instantiate { message }
    } else {
        Fault::Trap { message }
    }
}
