//! Every blobstore operation, commanded by the path: `/<operation>/<container>/<argument>/...`, each percent-encoded.
//!
//! `create/c`, `get-container/c`, `delete-container/c`, `exists/c`, `info/c`, `put/c/o` (the request's body), `get/c/o`
//! and `range/c/o/start/end` (streamed), `sync/c/o` (in one piece), `fill/c/o/<bytes>` and `early/c/o/<bytes>` (written
//! before write-data), `half/c/o/<bytes>` (dropped before finish), `twice/c/o`, `nowhere/c` (finished without
//! write-data), `sum/c/o` (reads a filled object and checks it), `list/c`, `skip/c/n`, `delete/c/o`, `delete-many/c/a,b`,
//! `has/c/o`, `stat/c/o`, `clear/c`, `copy/c/o/c/o`, `move/c/o/c/o`.
//! Status: 200, 502 an error (its text), 400 not a command.
use guests::wasi::blobstore::blobstore;
use guests::wasi::blobstore::container::Container;
use guests::wasi::blobstore::types::{IncomingValue, ObjectId, OutgoingValue};
use guests::wasi::io::streams::{InputStream, OutputStream, StreamError};
use guests::{Fields, Guest, IncomingRequest, OutgoingBody, ResponseOutparam};

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, _) = guests::target(&request);
        let parts: Vec<String> = path.trim_start_matches('/').split('/').map(guests::decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let value = match parts.as_slice() {
            ["get", container, object] => open(container).and_then(|c| c.get_data(object, 0, u64::MAX)),
            ["range", container, object, start, end] => {
                let number = |text: &str| text.parse().unwrap_or(0);
                open(container).and_then(|c| c.get_data(object, number(start), number(end)))
            }
            other => {
                return match run(other, &request) {
                    Ok(Some(text)) => guests::reply(out, 200, &text),
                    Ok(None) => guests::reply(out, 400, "no such command"),
                    Err(text) => guests::reply(out, 502, &text),
                };
            }
        };
        match value {
            Ok(value) => stream(value, out),
            Err(text) => guests::reply(out, 502, &text),
        }
    }
}

fn open(container: &str) -> Result<Container, String> {
    blobstore::get_container(container)
}

fn run(parts: &[&str], request: &IncomingRequest) -> Result<Option<String>, String> {
    let done = |()| Some("ok".to_owned());
    let id = |container: &str, object: &str| ObjectId { container: container.to_owned(), object: object.to_owned() };
    Ok(match parts {
        ["create", container] => Some(blobstore::create_container(container)?.name()?),
        ["get-container", container] => Some(open(container)?.name()?),
        ["delete-container", container] => done(blobstore::delete_container(container)?),
        ["exists", container] => Some(blobstore::container_exists(container)?.to_string()),
        ["info", container] => {
            let info = open(container)?.info()?;
            Some(format!("{} {}", info.name, info.created_at))
        }
        ["put", container, object] => {
            let body = request.consume().map_err(|()| "no body")?;
            let source = body.stream().map_err(|()| "no stream")?;
            done(write(container, object, |sink| pour(&source, sink))?)
        }
        ["fill", container, object, size] => match size.parse() {
            Ok(size) => done(write(container, object, |sink| generate(sink, size))?),
            Err(_) => None,
        },
        ["early", container, object, size] => {
            let container = open(container)?;
            let value = OutgoingValue::new_outgoing_value();
            {
                let sink = value.outgoing_value_write_body().map_err(|()| "no body")?;
                generate(&sink, size.parse().unwrap_or(0))?;
            }
            container.write_data(object, &value)?;
            done(OutgoingValue::finish(value)?)
        }
        ["half", container, object, size] => {
            let container = open(container)?;
            let value = OutgoingValue::new_outgoing_value();
            container.write_data(object, &value)?;
            let sink = value.outgoing_value_write_body().map_err(|()| "no body")?;
            done(generate(&sink, size.parse().unwrap_or(0))?)
        }
        ["twice", container, object] => {
            let container = open(container)?;
            let value = OutgoingValue::new_outgoing_value();
            let first = value.outgoing_value_write_body().is_ok();
            let second = value.outgoing_value_write_body().is_ok();
            container.write_data(object, &value)?;
            let again = container.write_data(object, &value);
            Some(format!("{first} {second} {again:?}"))
        }
        ["nowhere", _] => done(OutgoingValue::finish(OutgoingValue::new_outgoing_value())?),
        ["sum", container, object] => {
            let value = open(container)?.get_data(object, 0, u64::MAX)?;
            let source = IncomingValue::incoming_value_consume_async(value)?;
            Some(check(&source)?.to_string())
        }
        ["sync", container, object] => {
            let value = open(container)?.get_data(object, 0, u64::MAX)?;
            let bytes = IncomingValue::incoming_value_consume_sync(value)?;
            Some(format!("{} {}", bytes.len(), String::from_utf8_lossy(&bytes[..bytes.len().min(100)])))
        }
        ["list", container] => {
            let names = open(container)?.list_objects()?;
            let mut all = Vec::new();
            loop {
                let (mut some, end) = names.read_stream_object_names(7)?;
                all.append(&mut some);
                if end {
                    break;
                }
            }
            all.sort();
            Some(all.join("\n"))
        }
        ["skip", container, count] => {
            let names = open(container)?.list_objects()?;
            let (skipped, end) = names.skip_stream_object_names(count.parse().unwrap_or(0))?;
            let (rest, _) = names.read_stream_object_names(u64::MAX)?;
            Some(format!("{skipped} {end} {}", rest.len()))
        }
        ["delete", container, object] => done(open(container)?.delete_object(object)?),
        ["delete-many", container, objects] => {
            let objects: Vec<String> = objects.split(',').map(str::to_owned).collect();
            done(open(container)?.delete_objects(&objects)?)
        }
        ["has", container, object] => Some(open(container)?.has_object(object)?.to_string()),
        ["stat", container, object] => {
            let info = open(container)?.object_info(object)?;
            Some(format!("{} {} {}", info.container, info.name, info.size))
        }
        ["clear", container] => done(open(container)?.clear()?),
        ["copy", c, o, to_c, to_o] => done(blobstore::copy_object(&id(c, o), &id(to_c, to_o))?),
        ["move", c, o, to_c, to_o] => done(blobstore::move_object(&id(c, o), &id(to_c, to_o))?),
        _ => None,
    })
}

/// As most programs do: the destination first, then the bytes, then the end.
fn write(container: &str, object: &str, bytes: impl FnOnce(&OutputStream) -> Result<(), String>) -> Result<(), String> {
    let container = open(container)?;
    let value = OutgoingValue::new_outgoing_value();
    container.write_data(object, &value)?;
    {
        let sink = value.outgoing_value_write_body().map_err(|()| "no body")?;
        bytes(&sink)?;
    }
    OutgoingValue::finish(value)
}

fn failed(error: StreamError) -> String {
    match error {
        StreamError::LastOperationFailed(error) => error.to_debug_string(),
        StreamError::Closed => "closed".to_owned(),
    }
}

fn pour(source: &InputStream, sink: &OutputStream) -> Result<(), String> {
    loop {
        match sink.blocking_splice(source, 1 << 20) {
            Ok(_) => {}
            Err(StreamError::Closed) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
}

/// The byte at each offset of a filled object.
fn byte(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)) as u8
}

fn generate(sink: &OutputStream, size: u64) -> Result<(), String> {
    let mut offset = 0;
    while offset < size {
        let part: Vec<u8> = (offset..size.min(offset + (64 << 10))).map(byte).collect();
        let mut rest = part.as_slice();
        while !rest.is_empty() {
            let room = match sink.check_write().map_err(failed)? {
                0 => {
                    sink.subscribe().block();
                    continue;
                }
                room => rest.len().min(room as usize),
            };
            sink.write(&rest[..room]).map_err(failed)?;
            rest = &rest[room..];
        }
        offset += part.len() as u64;
    }
    sink.blocking_flush().map_err(failed)
}

/// The size of a filled object, where every byte is right.
fn check(source: &InputStream) -> Result<u64, String> {
    let mut offset = 0;
    loop {
        match source.blocking_read(64 << 10) {
            Ok(part) => {
                for got in part {
                    if got != byte(offset) {
                        return Err(format!("byte {offset} is {got}"));
                    }
                    offset += 1;
                }
            }
            Err(StreamError::Closed) => return Ok(offset),
            Err(error) => return Err(failed(error)),
        }
    }
}

fn stream(value: IncomingValue, out: ResponseOutparam) {
    let headers = Fields::new();
    let _ = headers.set("x-size", &[value.size().to_string().into_bytes()]);
    let source = match IncomingValue::incoming_value_consume_async(value) {
        Ok(source) => source,
        Err(text) => return guests::reply(out, 502, &text),
    };
    let body = guests::start(out, 200, headers);
    {
        let sink = body.write().expect("the stream is taken once");
        if pour(&source, &sink).is_err() {
            // Dropping the body unfinished tells the client that it is not whole.
            return;
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

guests::export!(Probe);
