//! One request by hand: a body may be missing, an answer may be left lying or break off.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::cases::Send;

/// How long an answer is left lying.
const LEFT_LYING: Duration = Duration::from_millis(500);
/// The most bytes of a body that are kept.
const KEPT: usize = 64 << 10;

/// What came back.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its status; 0 where the connection ended before one.
    pub status: u16,
    /// What the platform calls the failure, where it answers itself.
    pub fault: Option<String>,
    /// The beginning of the body.
    pub body: String,
    /// Bytes of the body.
    pub length: u64,
    /// The body came to its announced end.
    pub whole: bool,
    /// Until the end.
    pub took: Duration,
}

/// Sends a request and takes what comes.
///
/// # Errors
/// When there is no connection to be had, or nothing within a minute.
pub fn exchange(addr: SocketAddr, host: &str, path: &str, send: Send) -> anyhow::Result<Seen> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(10)).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let (method, announced, sent) = match send {
        Send::Get | Send::GetSlowly => ("GET", None, 0),
        Send::Post(length) => ("POST", Some(length), length),
        Send::PostNothing => ("POST", Some(1000), 0),
    };
    let length = announced.map_or_else(String::new, |length| format!("content-length: {length}\r\n"));
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{length}\r\n").as_bytes())?;
    // Whoever answers early does not read it all.
    let _ = stream.write_all(&vec![b'x'; sent]);
    if send == Send::GetSlowly {
        let mut first = [0; 1];
        stream.peek(&mut first).context("nothing comes")?;
        std::thread::sleep(LEFT_LYING);
    }
    let mut seen = read(&mut stream);
    seen.took = begun.elapsed();
    Ok(seen)
}

fn read(stream: &mut TcpStream) -> Seen {
    let mut seen = Seen { status: 0, fault: None, body: String::new(), length: 0, whole: false, took: Duration::ZERO };
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if !more(stream, &mut bytes) {
            return seen;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let field = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    seen.status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    seen.fault = field("sidereal-fault");
    let mut rest = bytes.split_off(end + 4);
    let mut kept = Vec::new();
    if field("transfer-encoding").is_some() {
        seen.whole = chunks(stream, &mut rest, &mut kept, &mut seen.length);
    } else {
        let length: u64 = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        loop {
            seen.length += rest.len() as u64;
            keep(&mut kept, &rest);
            rest.clear();
            if seen.length >= length || !more(stream, &mut rest) {
                break;
            }
        }
        seen.whole = seen.length == length;
    }
    seen.body = String::from_utf8_lossy(&kept).into_owned();
    seen
}

/// Whether the last chunk came.
fn chunks(stream: &mut TcpStream, rest: &mut Vec<u8>, kept: &mut Vec<u8>, length: &mut u64) -> bool {
    loop {
        let end = loop {
            match rest.windows(2).position(|two| two == b"\r\n") {
                Some(end) => break end,
                None if more(stream, rest) => {}
                None => return false,
            }
        };
        let Ok(size) = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16) else { return false };
        while rest.len() < end + 2 + size + 2 {
            if !more(stream, rest) {
                let here = rest.len().saturating_sub(end + 2).min(size);
                *length += here as u64;
                keep(kept, &rest[end + 2..end + 2 + here]);
                return false;
            }
        }
        if size == 0 {
            return true;
        }
        *length += size as u64;
        keep(kept, &rest[end + 2..end + 2 + size]);
        rest.drain(..end + 2 + size + 2);
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT - kept.len().min(KEPT);
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut part = vec![0; 64 << 10];
    match stream.read(&mut part) {
        Ok(count) if count > 0 => {
            bytes.extend_from_slice(&part[..count]);
            true
        }
        _ => false,
    }
}
