//! Keeps notes: `PUT /NAME` one, `GET /NAME` it, `DELETE /NAME` it, `GET /` their names. What it keeps them in is said by the
//! app that it is a part of; the examples of providers that change or keep values use it unchanged.

wit_bindgen::generate!({
    path: ["../../wit/p2", "../../wit/keyvalue"],
    inline: "
        package sidereal:notes;
        world notes {
            import wasi:keyvalue/store@0.2.0-draft;
            export wasi:http/incoming-handler@0.2.12;
        }
    ",
    world: "sidereal:notes/notes",
    generate_all,
});

use exports::wasi::http::incoming_handler::Guest;
use wasi::http::types::{Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasi::io::streams::StreamError;
use wasi::keyvalue::store::{self, Error};

/// The longest note, bytes.
const LONGEST: usize = 64 << 10;

struct Notes;

impl Guest for Notes {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let name = target.split('?').next().unwrap_or_default().trim_start_matches('/');
        let answered = match (request.method(), name) {
            (Method::Get, "") => names().map(|names| (200, names.into_bytes())),
            (Method::Get, name) => store::open("default")
                .and_then(|notes| notes.get(name))
                .map(|note| note.map_or((404, b"no such note\n".to_vec()), |note| (200, note))),
            (Method::Put, name) if !name.is_empty() => match body(&request) {
                Some(note) => {
                    store::open("default").and_then(|notes| notes.set(name, &note)).map(|()| (200, b"kept\n".to_vec()))
                }
                None => Ok((413, b"the note is too long, or was cut off\n".to_vec())),
            },
            (Method::Delete, name) if !name.is_empty() => {
                store::open("default").and_then(|notes| notes.delete(name)).map(|()| (200, b"gone\n".to_vec()))
            }
            _ => Ok((405, b"GET /, and GET, PUT or DELETE /NAME\n".to_vec())),
        };
        match answered {
            Ok((status, text)) => reply(out, status, &text),
            Err(Error::Other(why)) => reply(out, 503, format!("{why}\n").as_bytes()),
            Err(error) => reply(out, 503, format!("{error:?}\n").as_bytes()),
        }
    }
}

/// The names of the notes, one a line.
fn names() -> Result<String, Error> {
    let notes = store::open("default")?;
    let (mut names, mut cursor) = (String::new(), None);
    loop {
        let page = notes.list_keys(cursor)?;
        page.keys.iter().for_each(|key| names.extend([key.as_str(), "\n"]));
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(names);
        }
    }
}

/// The whole body, or nothing where it is too long or was cut off.
fn body(request: &IncomingRequest) -> Option<Vec<u8>> {
    let body = request.consume().ok()?;
    let (stream, mut whole) = (body.stream().ok()?, Vec::new());
    loop {
        match stream.blocking_read(8192) {
            Ok(part) => whole.extend(part),
            Err(StreamError::Closed) => return Some(whole),
            Err(_) => return None,
        }
        if whole.len() > LONGEST {
            return None;
        }
    }
}

fn reply(out: ResponseOutparam, status: u16, text: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    // The client may have gone; there is nobody left to tell.
    if let Ok(stream) = body.write() {
        let _ = text.chunks(4096).try_for_each(|part| stream.blocking_write_and_flush(part));
    }
    let _ = OutgoingBody::finish(body, None);
}

export!(Notes);
