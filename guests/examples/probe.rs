//! One component with a path per thing a host must survive or do right. Unknown paths answer 404.
use guests::wasi::cli::{environment, stderr, stdout};
use guests::wasi::clocks::monotonic_clock;
use guests::wasi::config;
use guests::wasi::http::outgoing_handler;
use guests::wasi::http::types::{IncomingBody, Method, OutgoingRequest, Scheme};
use guests::wasi::io::streams::{OutputStream, StreamError};
use guests::wasi::logging::logging;
use guests::{Fields, Guest, IncomingRequest, OutgoingBody, ResponseOutparam, number, param, reply, start};

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = guests::target(&request);
        match path.as_str() {
            "/" => reply(out, 200, "probe"),
            // hostile
            "/spin" => spin(),
            "/alloc" => allocate(),
            "/recurse" => reply(out, 200, &recurse(number(&query, "depth", u64::MAX)).to_string()),
            "/park" => monotonic_clock::subscribe_duration(3_600_000_000_000).block(),
            "/logflood" => reply(out, 200, &flood(number(&query, "bytes", 64 << 20)).to_string()),
            "/handles" => reply(out, 200, &handles(number(&query, "n", 100_000)).to_string()),
            "/bigresponse" => endless(out, number(&query, "bytes", u64::MAX)),
            "/trap" => core::arch::wasm32::unreachable(),
            "/headers" => many_headers(out, number(&query, "n", 1000)),
            "/hostcopy" => reply(out, 200, &host_copy(number(&query, "mib", 64))),
            "/nobody" => drop(out),
            "/hostcalls" => reply(out, 200, &host_calls(number(&query, "n", u64::MAX)).to_string()),
            // well-behaved
            "/log" => log(out, &param(&query, "text").unwrap_or_else(|| "line".to_owned())),
            "/echo" => echo(request, out),
            "/slow" => slow(out, number(&query, "ms", 100)),
            "/config" => show_config(out, &query),
            "/fetch" => fetch(out, &query),
            "/follow" => follow(out, &query),
            "/ask" => ask(out, &query),
            "/env" => show_environment(out),
            "/request" => show_request(&request, out),
            "/status" => reply(out, number(&query, "code", 200) as u16, "status"),
            _ => reply(out, 404, "no such probe"),
        }
    }
}

fn spin() {
    loop {
        core::hint::black_box(());
    }
}

/// Takes memory until the host refuses, then traps.
fn allocate() {
    while core::arch::wasm32::memory_grow(0, 16) != usize::MAX {}
    core::arch::wasm32::unreachable()
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    if core::hint::black_box(depth) == 0 { 0 } else { core::hint::black_box(recurse(depth - 1)) + 1 }
}

/// Writes to stdout without ever ending the line.
fn flood(bytes: u64) -> u64 {
    let (stream, part) = (stdout::get_stdout(), [b'x'; 4096]);
    let mut written = 0;
    while written < bytes && stream.blocking_write_and_flush(&part).is_ok() {
        written += part.len() as u64;
    }
    written
}

fn handles(n: u64) -> usize {
    (0..n).map(|_| Fields::new()).collect::<Vec<_>>().len()
}

fn endless(out: ResponseOutparam, bytes: u64) {
    let body = start(out, 200, Fields::new());
    {
        let stream = body.write().expect("the stream is taken once");
        let mut left = bytes;
        while left > 0 {
            let part = left.min(4096) as usize;
            if stream.blocking_write_and_flush(&[b'x'; 4096][..part]).is_err() {
                return;
            }
            left -= part as u64;
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

fn many_headers(out: ResponseOutparam, n: u64) {
    let headers = Fields::new();
    for at in 0..n {
        if headers.append(&format!("x-header-{at}"), b"value").is_err() {
            return reply(out, 507, &at.to_string());
        }
    }
    let _ = OutgoingBody::finish(start(out, 200, headers), None);
}

/// Hands the host one list of `mib` MiB.
fn host_copy(mib: u64) -> String {
    let huge = vec![b'x'; (mib as usize) << 20];
    format!("{:?}", Fields::new().append("x-huge", &huge))
}

fn host_calls(n: u64) -> u64 {
    (0..n).map(|_| monotonic_clock::now()).last().unwrap_or(0)
}

fn log(out: ResponseOutparam, text: &str) {
    let _ = stdout::get_stdout().blocking_write_and_flush(format!("out {text}\n").as_bytes());
    let _ = stderr::get_stderr().blocking_write_and_flush(format!("err {text}\n").as_bytes());
    logging::log(logging::Level::Warn, "probe", &format!("log {text}"));
    reply(out, 200, "logged");
}

/// Streams the request body back as it arrives.
fn echo(request: IncomingRequest, out: ResponseOutparam) {
    let incoming = request.consume().expect("the body is taken once");
    let body = start(out, 200, Fields::new());
    {
        let source = incoming.stream().expect("the stream is taken once");
        let sink = body.write().expect("the stream is taken once");
        loop {
            match source.blocking_read(64 << 10) {
                Ok(part) if write_all(&sink, &part) => {}
                Err(StreamError::Closed) => break,
                // Dropping the body unfinished tells the client that it is not whole.
                Ok(_) | Err(StreamError::LastOperationFailed(_)) => return,
            }
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

fn write_all(sink: &OutputStream, part: &[u8]) -> bool {
    part.chunks(4096).all(|chunk| sink.blocking_write_and_flush(chunk).is_ok())
}

fn slow(out: ResponseOutparam, ms: u64) {
    monotonic_clock::subscribe_duration(ms * 1_000_000).block();
    reply(out, 200, "slow");
}

/// `?key=` answers one value, nothing answers all.
fn show_config(out: ResponseOutparam, query: &str) {
    let text = match param(query, "key") {
        Some(key) => config::store::get(&key),
        None => config::store::get_all().map(|all| Some(all.into_iter().map(|(k, v)| format!("{k}={v}\n")).collect())),
    };
    match text {
        Ok(Some(text)) => reply(out, 200, &text),
        Ok(None) => reply(out, 404, "not set"),
        Err(error) => reply(out, 502, &format!("{error:?}")),
    }
}

/// GETs `?url=`; answers with its status and body, or 502 and the error code. `?n=` repeats it.
fn fetch(out: ResponseOutparam, query: &str) {
    let url = param(query, "url").unwrap_or_default();
    let mut last = (400, "no url".to_owned());
    for _ in 0..number(query, "n", 1) {
        last = get(&url).unwrap_or_else(|error| (502, error));
    }
    reply(out, last.0, &last.1);
}

/// GETs `?url=` as a browser would: goes where redirects lead, at most five times.
fn follow(out: ResponseOutparam, query: &str) {
    let mut url = param(query, "url").unwrap_or_default();
    for _ in 0..5 {
        match send(&Method::Get, &url, Fields::new()) {
            Err(error) => return reply(out, 502, &format!("{url} {error}")),
            Ok(answer) => match answer.location {
                Some(next) if (300..400).contains(&answer.status) => url = next,
                _ => return reply(out, answer.status, &format!("{url} {}", answer.body)),
            },
        }
    }
    reply(out, 502, "it never ends");
}

/// Sends `?method=` to `?url=`, with the header field `?name=` of `?value=` where it is given.
fn ask(out: ResponseOutparam, query: &str) {
    let text = |name: &str| param(query, name).unwrap_or_default();
    let fields = Fields::new();
    if let Some(name) = param(query, "name")
        && let Err(error) = fields.append(&name, text("value").as_bytes())
    {
        return reply(out, 400, &format!("{error:?}"));
    }
    match send(&Method::Other(text("method")), &text("url"), fields) {
        Ok(answer) => reply(out, 200, &format!("{} {}", answer.status, answer.body)),
        Err(error) => reply(out, 502, &error),
    }
}

struct Answer {
    status: u16,
    location: Option<String>,
    body: String,
}

fn get(url: &str) -> Result<(u16, String), String> {
    send(&Method::Get, url, Fields::new()).map(|answer| (answer.status, answer.body))
}

fn send(method: &Method, url: &str, fields: Fields) -> Result<Answer, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err("not a url".to_owned()),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let request = OutgoingRequest::new(fields);
    request.set_method(method).map_err(|()| "method")?;
    request.set_scheme(Some(&scheme)).map_err(|()| "scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "authority")?;
    request.set_path_with_query(Some(path)).map_err(|()| "path")?;
    let text = |error| format!("{error:?}");
    let future = outgoing_handler::handle(request, None).map_err(text)?;
    future.subscribe().block();
    let response = match future.get() {
        Some(Ok(response)) => response.map_err(text)?,
        _ => return Err("no answer".to_owned()),
    };
    let body = response.consume().map_err(|()| "body")?;
    let mut bytes = Vec::new();
    {
        let stream = body.stream().map_err(|()| "stream")?;
        loop {
            match stream.blocking_read(64 << 10) {
                Ok(part) => bytes.extend(part),
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
            }
        }
    }
    drop(IncomingBody::finish(body));
    let location = response.headers().get("location").into_iter().next();
    let location = location.map(|value| String::from_utf8_lossy(&value).into_owned());
    Ok(Answer { status: response.status(), location, body: String::from_utf8_lossy(&bytes).into_owned() })
}

fn show_environment(out: ResponseOutparam) {
    let (variables, arguments) = (environment::get_environment(), environment::get_arguments());
    let names: Vec<_> = variables.iter().map(|(name, _)| name.as_str()).collect();
    reply(out, 200, &format!("variables: {}\narguments: {}\n{}", names.len(), arguments.len(), names.join("\n")));
}

/// What the component sees of its request, a line each.
fn show_request(request: &IncomingRequest, out: ResponseOutparam) {
    let mut text = format!(
        "method: {:?}\nscheme: {:?}\nauthority: {}\ntarget: {}\n",
        request.method(),
        request.scheme(),
        request.authority().unwrap_or_default(),
        request.path_with_query().unwrap_or_default(),
    );
    for (name, value) in request.headers().entries() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(&value)));
    }
    reply(out, 200, &text);
}

guests::export!(Probe);
