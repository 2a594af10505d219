//! Clients of HTTP/2 that send frames without end, fields without bound, and windows that do not add up: the connection ends
//! or the stream is refused, nothing reaches a host, and whoever else asks is answered meanwhile.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::faults::wait_until;
use super::h2::opened;
use super::rig::{PATIENCE, Rig, status};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Most bytes of a frame that the other side takes unless it says more.
const FRAME: usize = 16 * 1024;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a `GET /`: by the static table, and `:authority h` as a literal that no table keeps.
const GET: [u8; 6] = [0x82, 0x86, 0x84, 0x01, 1, b'h'];

/// A number of HPACK behind `bits` bits of `first`.
fn number(first: u8, bits: u32, mut value: usize) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![first | u8::try_from(most).unwrap()];
    value -= most;
    while value >= 0x80 {
        bytes.push(u8::try_from(value % 0x80).unwrap() | 0x80);
        value /= 0x80;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

/// A field whose name is no index, kept in the table (`0x40`) or in none (`0`).
fn field(first: u8, name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [number(0, 7, text.len()), text.as_bytes().to_vec()].concat();
    [vec![first], text(name), text(value)].concat()
}

/// A `GET /` with this block of fields more, in as many frames as it takes.
fn request(stream: u32, block: &[u8]) -> Vec<u8> {
    let block = [&GET[..], block].concat();
    let last = block.len().div_ceil(FRAME) - 1;
    let frames = block.chunks(FRAME).enumerate().map(|(at, part)| {
        let end = if at == last { END_HEADERS } else { 0 };
        match at {
            0 => frame(HEADERS, END_STREAM | end, stream, part),
            _ => frame(CONTINUATION, end, stream, part),
        }
    });
    frames.collect::<Vec<_>>().concat()
}

/// What the other side said until it closed: kinds of frames and their streams.
async fn said_until_the_end(rig: &Rig, bytes: &[u8]) -> Vec<(u8, u32)> {
    ended(rig.connect().await, bytes).await
}

/// The same on a connection that is open.
async fn ended(stream: TcpStream, bytes: &[u8]) -> Vec<(u8, u32)> {
    let (mut reader, mut writer) = stream.into_split();
    let both = async {
        let mut said = Vec::new();
        // Either may fail, because the other side closes with bytes unread.
        let write = async { drop(writer.write_all(bytes).await) };
        let ((), _) = tokio::join!(write, reader.read_to_end(&mut said));
        said
    };
    let said = tokio::time::timeout(PATIENCE, both).await.expect("the connection is not ended");
    frames_of(&said)
}

fn frames_of(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut frames = Vec::new();
    while let Some(([a, b, c, kind, _, stream @ ..], _)) = bytes.split_first_chunk::<9>() {
        frames.push((*kind, u32::from_be_bytes(*stream) & 0x7fff_ffff));
        let whole = 9 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
        bytes = bytes.get(whole..).unwrap_or_default();
    }
    frames
}

/// Another connection is answered.
async fn neighbour_is_served(rig: &Rig) {
    assert_eq!(status(&rig.get("/neighbour").await), 200);
    assert_eq!(rig.seen().into_iter().map(|seen| seen.target).collect::<Vec<_>>(), ["/neighbour"]);
}

#[tokio::test]
async fn a_head_that_goes_on_and_on_ends_the_connection() {
    let rig = Rig::new(1);
    for (name, piece) in [("nothing", Vec::new()), ("a byte", vec![0]), ("much", field(0, "x", &"y".repeat(8000)))] {
        let mut bytes = [opened(b""), frame(HEADERS, END_STREAM, 1, &GET)].concat();
        for _ in 0..2000 {
            bytes.extend_from_slice(&frame(CONTINUATION, 0, 1, &piece));
        }
        let said = said_until_the_end(&rig, &bytes).await;
        assert!(!said.iter().any(|(kind, _)| *kind == HEADERS), "{name}: {said:?}");
        assert!(rig.seen().is_empty(), "{name}");
        neighbour_is_served(&rig).await;
    }
}

/// One byte stands for a field of 4 kB: 15 kB of them are 60 MB.
#[tokio::test]
async fn fields_that_are_many_times_as_long_as_what_is_sent_end_the_connection() {
    let rig = Rig::new(1);
    let kept = field(0x40, "x", &"y".repeat(4000));
    // The newest entry of the table that a connection keeps.
    let again = vec![0x80 | 62_u8; 15_000];
    // In one head.
    said_until_the_end(&rig, &[opened(b""), request(1, &[kept.clone(), again.clone()].concat())].concat()).await;
    assert!(rig.seen().is_empty());
    neighbour_is_served(&rig).await;
    // In a second one, after a head that is like others.
    let mut stream = rig.connect().await;
    stream.write_all(&[opened(b""), request(1, &kept)].concat()).await.unwrap();
    wait_until(|| rig.record.lock().unwrap().len() == 1).await;
    assert_eq!(rig.seen()[0].headers["x"].len(), 4000);
    ended(stream, &request(3, &again)).await;
    assert!(rig.seen().is_empty());
    neighbour_is_served(&rig).await;
}

#[tokio::test]
async fn a_list_of_fields_beyond_its_bounds_is_refused() {
    let rig = Rig::new(1);
    // Empty fields are many, and 32 bytes each count for them; long ones are few.
    let many: Vec<u8> = (0..101).flat_map(|n| field(0, &format!("x-{n}"), "")).collect();
    let long = field(0, "x", &"y".repeat(4000)).repeat(18);
    for (name, block) in [("101 fields", many), ("more than 64 KiB", long)] {
        let stream = rig.connect().await;
        let (mut reader, mut writer) = stream.into_split();
        writer.write_all(&[opened(b""), request(1, &block)].concat()).await.unwrap();
        let mut said = Vec::new();
        let refused = async {
            loop {
                let frames = frames_of(&said);
                // An answer, which is 431, or a word that there will be none.
                let told = frames.iter().any(|(kind, of)| match *kind {
                    HEADERS | RESET => *of == 1,
                    kind => kind == GOAWAY,
                });
                if told || reader.read_buf(&mut said).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, refused).await.unwrap_or_else(|_| panic!("{name}: not refused"));
        assert!(rig.seen().is_empty(), "{name}");
        neighbour_is_served(&rig).await;
    }
}

#[tokio::test]
async fn windows_that_do_not_add_up_end_the_connection() {
    let rig = Rig::new(1);
    let most = 0x7fff_ffff_u32.to_be_bytes();
    let setting = |id: u8, value: u32| [&[0, id][..], &value.to_be_bytes()].concat();
    for (name, bytes) in [
        ("the connection's window overflows", frame(WINDOW, 0, 0, &most)),
        ("the connection's window grows by nothing", frame(WINDOW, 0, 0, &[0; 4])),
        ("a window of no size", frame(WINDOW, 0, 0, &[0; 3])),
        ("a window of a stream that was never opened", frame(WINDOW, 0, 7, &[0, 0, 0, 1])),
        ("a first window beyond the most", frame(SETTINGS, 0, 0, &setting(4, 0x8000_0000))),
        ("frames larger than there are", frame(SETTINGS, 0, 0, &setting(5, 0x0100_0000))),
        ("settings that are half a setting", frame(SETTINGS, 0, 0, &[0; 5])),
        ("a body of no stream", frame(DATA, 0, 0, b"x")),
        ("a ping of no size", frame(PING, 0, 0, &[0; 7])),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &GET)),
        ("a frame larger than was agreed", frame(PING, 0, 0, &vec![0; 64 * 1024])),
    ] {
        said_until_the_end(&rig, &[opened(b""), bytes].concat()).await;
        assert!(rig.seen().is_empty(), "{name}");
        neighbour_is_served(&rig).await;
    }
}

/// What is sent only to be answered keeps no connection, and takes no one's turn: the flood goes on while others are served,
/// and ends when the connection has been idle for as long as one may.
#[tokio::test]
async fn floods_of_pings_and_settings_are_idle_and_hold_up_nobody() {
    let rig = Rig::with(1, |config| {
        config.keep_alive = Duration::from_secs(3);
        config.body_timeout = Duration::from_secs(3);
    });
    let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]);
    for (name, one, reads) in [
        ("pings, answers unread", frame(PING, 0, 0, b"12345678"), false),
        ("pings", frame(PING, 0, 0, b"12345678"), true),
        ("settings, answers unread", settings.clone(), false),
        ("settings", settings, true),
    ] {
        let stream = rig.connect().await;
        let (mut reader, mut writer) = stream.into_split();
        writer.write_all(&opened(b"")).await.unwrap();
        let flood = tokio::spawn(async move {
            let block = one.repeat(1000);
            while writer.write_all(&block).await.is_ok() {}
        });
        let reading = tokio::spawn(async move {
            let mut scratch = vec![0; 64 * 1024];
            while reads && matches!(reader.read(&mut scratch).await, Ok(1..)) {}
            // Open until the test is over: what is unread stays unread.
            reader
        });
        for _ in 0..5 {
            neighbour_is_served(&rig).await;
        }
        let ended = tokio::time::timeout(PATIENCE, flood).await;
        assert!(ended.is_ok(), "{name}: the connection is still there");
        reading.await.unwrap();
    }
    assert!(rig.seen().is_empty());
}

/// Answers that nobody makes room for are so many and no more, and what is asked beyond that is refused at once.
#[tokio::test]
async fn streams_without_room_are_only_so_many() {
    let most = 8;
    let rig = Rig::with(1, |config| {
        config.h2_streams = 8;
        config.body_timeout = Duration::from_secs(2);
    });
    let stream = rig.connect().await;
    let (mut reader, mut writer) = stream.into_split();
    // No stream has a window.
    let mut bytes = opened(&[0, 4, 0, 0, 0, 0]);
    let large = [&[0x82, 0x86, 0x04, 6][..], b"/large", &[0x01, 1, b'h']].concat();
    for n in 0..50 {
        bytes.extend_from_slice(&frame(HEADERS, END_STREAM | END_HEADERS, n * 2 + 1, &large));
    }
    writer.write_all(&bytes).await.unwrap();
    let mut said = Vec::new();
    let refused = |said: &[u8]| frames_of(said).iter().filter(|(kind, _)| *kind == RESET).count();
    let all = async {
        while refused(&said) < 50 - most {
            assert!(reader.read_buf(&mut said).await.unwrap() > 0, "the connection ended");
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    wait_until(|| rig.record.lock().unwrap().len() == most).await;
    assert_eq!(status(&rig.get("/neighbour").await), 200);
    // Those that were begun end because nobody takes them.
    wait_until(|| rig.shards.shards()[0].in_flight() == 0).await;
    assert_eq!(rig.seen().iter().filter(|seen| seen.target == "/large").count(), most);
}
