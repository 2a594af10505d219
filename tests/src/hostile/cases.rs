//! The table: each case of `guests/hostile`, the request that sets it off, and its one right end.

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Send {
    /// A `GET`, and its answer read to the end.
    Get,
    /// A `GET` whose answer is left lying for some seconds before it is read.
    GetSlowly,
    /// A `POST` of a body of that many bytes.
    Post(usize),
    /// A `POST` that announces a body and sends none of it.
    PostNothing,
}

/// What must become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The platform answers in the component's place with this code; the status of the component says why, with these words.
    Fault(&'static str, &'static str),
    /// The component's own answer, exactly.
    Says(&'static str),
    /// An answer that had begun breaks off; the status of the component says why.
    BrokenOff(&'static str),
}

/// One case that is set off by a request.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its file in the corpus.
    pub name: &'static str,
    /// What is sent.
    pub send: Send,
    /// Its end.
    pub end: End,
}

const fn get(name: &'static str, end: End) -> Case {
    Case { name, send: Send::Get, end }
}

const CPU: End = End::Fault("limit-reached", "of CPU time");
const WALL: End = End::Fault("timed-out", "of wall time");
const MEMORY: End = End::Fault("limit-reached", "of memory");
const STACK: End = End::Fault("limit-reached", "of stack");
const HANDLES: End = End::Fault("limit-reached", "handles at once");
const COPY: End = End::Fault("limit-reached", "one host call copied more than");
const HEADERS: End = End::Fault("limit-reached", "headers larger than");
const TRAP: End = End::Fault("component-trapped", "trapped");

/// `guests/hostile/requests`: modules of one component of WASI 0.2.
pub const REQUESTS: &[Case] = &[
    get("spin", CPU),
    get("cheap_calls", CPU),
    get("parked", WALL),
    get("parked_many", WALL),
    Case { name: "parked_body", send: Send::PostNothing, end: WALL },
    get("allocate", MEMORY),
    get("recursion", STACK),
    get("handles_fields", HANDLES),
    get("handles_pollables", HANDLES),
    get("handles_requests", HANDLES),
    get("fields_from_bomb", COPY),
    get("kv_bomb", COPY),
    get("kv_huge", End::Says("[true, true, true]")),
    get("random_huge", End::Fault("limit-reached", "of random bytes")),
    get("poll_empty", TRAP),
    get("headers_many", HEADERS),
    get("header_huge", COPY),
    get("header_invalid", End::Says("taken: ")),
    get("status_invalid", End::Says("taken: []")),
    get("outgoing_timeouts", End::Says("[true, true, true, true]")),
    get("outgoing_many", End::Says("answered: 0")),
    get("log_flood", CPU),
    get("stderr_flood", CPU),
    get("log_lines", End::Says("100000")),
    get("log_message", End::Says("logged")),
    get("log_invalid", End::Says("true")),
    get("log_ansi", End::Says("true")),
    get("log_forged", End::Says("true")),
    Case { name: "body_unread", send: Send::Post(8 << 20), end: End::Says("unread") },
    get("never_answers", End::Fault("component-trapped", "without a response")),
    get("answer_twice", TRAP),
    get("body_drip", End::BrokenOff("of wall time")),
    get("body_endless", End::BrokenOff("larger than")),
    get("body_dropped", End::Fault("component-trapped", "broke off")),
    get("body_longer", End::Fault("component-trapped", "broke off")),
    get("body_shorter", End::Fault("component-trapped", "broke off")),
    get("clock", End::Says("1000000")),
    get("remember", End::Says("0 0")),
    get("surroundings", End::Says("0 0")),
    get("connect", End::Says("reached: ")),
    get("kv_guess", End::Says("seen: ")),
    get("blob_guess", End::Says("seen: ")),
    get("exit", End::Fault("component-trapped", "exited")),
    get("trap", TRAP),
];

/// `guests/hostile/streams`: modules of one component of WASI 0.3.
pub const STREAMS: &[Case] = &[
    Case { name: "producer", send: Send::GetSlowly, end: End::BrokenOff("larger than") },
    Case { name: "never_read", send: Send::Post(4 << 20), end: WALL },
    Case { name: "pump", send: Send::Post(1000), end: End::BrokenOff("trapped") },
    get("never_ends", End::BrokenOff("of wall time")),
    get("tasks_many", HANDLES),
    get("tasks_spin", CPU),
    get("streams_many", HANDLES),
    get("futures_many", HANDLES),
    get("loop_after", End::BrokenOff("of CPU time")),
    get("trap_after", TRAP),
    get("parked_later", WALL),
];

/// `guests/hostile/components`: those that come to be, and misbehave at their first request.
pub const COMPONENTS: &[Case] = &[
    get("loop_post_return", CPU),
    get("loop_drop", CPU),
    get("loop_realloc", CPU),
    get("realloc_outside", TRAP),
    get("realloc_calls_host", TRAP),
    get("table_grow", End::Fault("limit-reached", "table elements")),
    get("stack_frames", STACK),
    get("pointer_outside", TRAP),
    get("text_invalid", TRAP),
    get("level_invalid", TRAP),
    get("handle_forged", TRAP),
    get("handle_twice", TRAP),
    get("handle_other", TRAP),
    get("divide", TRAP),
    get("call_null", TRAP),
    get("read_outside", TRAP),
    get("fill_outside", TRAP),
    get("fill_long", CPU),
];

/// One case that must not come to be: its deploy is refused with one of these codes, and these words.
#[derive(Debug, Clone, Copy)]
pub struct Refused {
    /// Its file in `guests/hostile/components`.
    pub name: &'static str,
    /// The code.
    pub code: &'static str,
    /// Words of the sentence.
    pub says: &'static str,
}

const fn refused(name: &'static str, code: &'static str, says: &'static str) -> Refused {
    Refused { name, code, says }
}

/// `guests/hostile/components`: those that must not come to be.
pub const REFUSED: &[Refused] = &[
    refused("loop_start", "probe-failed", "of CPU time"),
    refused("tables_many", "start-failed", "more memories, tables or memory"),
    refused("memories_many", "start-failed", "more memories, tables or memory"),
    refused("memory_min", "start-failed", "more memories, tables or memory"),
    refused("instances_many", "probe-failed", "too many parts"),
    refused("data_outside", "probe-failed", "out of bounds"),
    refused("proposal_memory64", "compile-failed", "memory64"),
    refused("proposal_threads", "compile-failed", "threads"),
    refused("proposal_gc", "compile-failed", "gc types"),
    refused("proposal_exceptions", "compile-failed", "exceptions"),
    refused("proposal_pages", "compile-failed", "custom page sizes"),
    refused("proposal_relaxed", "compile-failed", "relaxed SIMD"),
    refused("proposal_wide", "compile-failed", "wide arithmetic"),
    refused("import_unknown", "manifest-invalid", "[import-not-offered]"),
    refused("import_version", "manifest-invalid", "[import-version]"),
    refused("import_function", "manifest-invalid", "[artifact-invalid]"),
    refused("import_not_linked", "manifest-invalid", "[import-not-linked]"),
    refused("no_handler", "manifest-invalid", "[route-no-http]"),
    refused("import_wrong_type", "link-missing", "has the wrong type"),
    refused("import_extra", "link-missing", "`get-secret-bytes` is missing"),
];

/// All files that cases name: folder and name.
pub fn files() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of = |folder, cases: &'static [Case]| cases.iter().map(move |case| (folder, case.name));
    of("requests", REQUESTS)
        .chain(of("streams", STREAMS))
        .chain(of("components", COMPONENTS))
        .chain(REFUSED.iter().map(|case| ("components", case.name)))
}
