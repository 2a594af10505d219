//! The frames between a host, its node and the process of a tenant's databases: decoded in pieces as whole, encoded again to what means the same, and never
//! more taken from the buffer than the frame has.

use api::databases::{Count, Counted, Order, Word};
use api::services::codec::{decode, encode};
use api::services::{FileReply, FileRequest, Hello, KvCall, KvReply, MAX_FRAME, ServiceCall, ServiceReply};
use bytes::BytesMut;
use model::sql::SqlError;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    use api::services::{Caller, Dial, KvOp, KvScope, KvTell, KvWrite};
    let name = "a";
    let scope =
        KvScope { app: name.parse().expect("a name"), provider: name.parse().expect("a name"), bucket: "b".to_owned() };
    let call = |op| KvCall { id: 1, scope: scope.clone(), op };
    let dial = Dial {
        app: name.parse().expect("a name"),
        caller: Caller::Provider(name.parse().expect("a name")),
        transport: model::egress::Transport::Tcp,
        host: "a.example".to_owned(),
        port: 1,
    };
    let tell = KvTell { group: "g".to_owned(), keys: vec![0], trace: None };
    let telling = KvOp::Write { write: KvWrite::Delete { key: "k".to_owned() }, tell: vec![tell] };
    let mut seeds = vec![
        seed(0, &Hello::Calls),
        seed(1, &call(KvOp::Get { key: "k".to_owned() })),
        seed(1, &call(KvWrite::SetMany { pairs: vec![("k".to_owned(), vec![1, 2])] }.into())),
        seed(1, &call(KvWrite::CompareAndSet { key: "k".to_owned(), expected: Some(vec![]), value: vec![3] }.into())),
        seed(1, &call(telling)),
        seed(2, &FileRequest::Dial(dial)),
        seed(3, &FileReply::Ready { address: Some(([127, 0, 0, 1], 80).into()) }),
        seed(7, &Order::Close { app: name.parse().expect("a name") }),
        seed(7, &Order::Counted { id: 1, answer: Counted::Left(2) }),
        seed(8, &Word::Count { id: 1, count: Count::Begin(2) }),
        seed(8, &Word::Answer { id: 1, result: Err(SqlError::Unavailable("it is".to_owned())) }),
    ];
    // What would hold itself were it let: each byte is one more level.
    seeds.extend([1, 6].into_iter().flat_map(|kind| {
        (0_u8..12).map(move |variant| {
            let head: &[u8] = if kind == 1 { &[1, 1, b'a', 1, b'a', 1, b'b'] } else { &[1, 0] };
            let body = [head, &[variant; 60_000]].concat();
            let length = u32::try_from(body.len()).expect("a frame");
            [&[kind], length.to_le_bytes().as_slice(), &body].concat()
        })
    }));
    // The shapes with most variants are found by the fuzzer from their first bytes.
    seeds
        .extend((4_u8..7).flat_map(|kind| {
            (0_u8..16).map(move |variant| vec![kind, 8, 0, 0, 0, 1, 1, b'a', variant, 0, 1, b'a', 0])
        }));
    seeds
}

fn seed<T: Serialize>(kind: u8, value: &T) -> Vec<u8> {
    let mut frame = BytesMut::new();
    encode(value, &mut frame).expect("it is encoded");
    [&[kind], frame.as_ref()].concat()
}

pub(super) fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 9 {
        0 => one::<Hello>(bytes),
        1 => one::<KvCall>(bytes),
        2 => one::<FileRequest>(bytes),
        3 => one::<FileReply>(bytes),
        4 => one::<ServiceCall>(bytes),
        5 => one::<ServiceReply>(bytes),
        6 => one::<KvReply>(bytes),
        7 => one::<Order>(bytes),
        _ => one::<Word>(bytes),
    }
}

fn one<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let whole = decode::<T>(&mut buffer);
    let length = bytes.first_chunk::<4>().map(|head| u32::from_le_bytes(*head) as usize);
    assert!(whole.is_err() || length.is_none_or(|length| length <= MAX_FRAME), "a frame of {length:?} bytes");
    let mut pieces = BytesMut::new();
    let mut late = Ok(None);
    for piece in bytes.chunks((bytes.len() / 1024).max(1)) {
        pieces.extend_from_slice(piece);
        late = decode::<T>(&mut pieces);
        if !matches!(late, Ok(None)) {
            break;
        }
        // What a length promises is not yet memory.
        assert!(pieces.capacity() <= MAX_FRAME + 4096, "{} bytes reserved", pieces.capacity());
    }
    let encoded = |value: &T| {
        let mut out = BytesMut::new();
        encode(value, &mut out).expect("what was decoded is encoded");
        out
    };
    match (whole, late) {
        (Ok(Some(value)), Ok(Some(again))) => {
            let length = length.expect("a frame has a length");
            assert_eq!(buffer.as_ref(), &bytes[4 + length..], "the next frame is not where it was");
            let mut frame = encoded(&value);
            assert_eq!(frame, encoded(&again), "pieces mean something else");
            let back = decode::<T>(&mut frame).ok().flatten().expect("it is decoded again");
            assert_eq!(encoded(&back), encoded(&value), "it comes back as something else");
        }
        (Ok(None), Ok(None)) | (Err(_), Err(_)) => {}
        (whole, late) => panic!("whole: {}, in pieces: {}", whole.is_ok(), late.is_ok()),
    }
}
