//! Both ends of the node's socket against each other.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;

use super::client::{FileError, FilesClient, KvClient, KvError, NodeWay};
use super::server::{Accepted, accept};
use super::*;

/// A socket of the test's own, gone with it.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sidereal-api-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn socket(&self) -> PathBuf {
        self.0.join("node.sock")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn scope() -> KvScope {
    KvScope { app: "a".parse().unwrap(), provider: "p".parse().unwrap(), bucket: "b".into() }
}

fn get(key: &str) -> KvOp {
    KvOp::Get { key: key.to_owned() }
}

/// Answers the calls that come together in reverse; the key `hang` never, the key `hang-up` by closing.
async fn serve_keyvalue(listener: UnixListener, batches: Arc<Mutex<Vec<usize>>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Accepted::KeyValue(mut reader, mut writer) = accept(stream).await.unwrap() else { panic!("not asked for") };
        let batches = batches.clone();
        tokio::spawn(async move {
            while let Ok(Some(first)) = reader.next::<KvCall>().await {
                let mut calls = vec![first];
                while let Some(more) = reader.ready().unwrap() {
                    calls.push(more);
                }
                batches.lock().unwrap().push(calls.len());
                for call in calls.into_iter().rev() {
                    let KvOp::Get { key } = call.op else { panic!("{:?}", call.op) };
                    match key.as_str() {
                        "hang" => continue,
                        "hang-up" => return,
                        _ => {}
                    }
                    let result = match key.as_str() {
                        "bad" => Err(KvFault::NotANumber(key)),
                        _ => Ok(KvAnswer::Value(Some(key.into_bytes()))),
                    };
                    writer.push(&KvReply { id: call.id, result }).unwrap();
                }
                writer.flush().await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn calls_travel_together_and_each_gets_its_own_answer() {
    let dir = Dir::new();
    let batches = Arc::new(Mutex::new(Vec::new()));
    tokio::spawn(serve_keyvalue(UnixListener::bind(dir.socket()).unwrap(), batches.clone()));
    let client = KvClient::new(dir.socket(), Duration::from_secs(60));
    assert_eq!(client.call(&scope(), &get("first")).await.unwrap(), KvAnswer::Value(Some(b"first".to_vec())));
    let keys: Vec<String> = (0..500).map(|n| format!("key-{n}")).collect();
    let scope = scope();
    let ops: Vec<_> = keys.iter().map(|key| get(key)).collect();
    let answers = join_all(ops.iter().map(|op| client.call(&scope, op))).await;
    for (key, answer) in keys.iter().zip(answers) {
        assert_eq!(answer.unwrap(), KvAnswer::Value(Some(key.clone().into_bytes())));
    }
    assert!(batches.lock().unwrap().len() < 100, "calls made together are written together");
    let fault = client.call(&scope, &get("bad")).await.unwrap_err();
    assert!(matches!(fault, KvError::Fault(KvFault::NotANumber(_))), "{fault:?}");
}

#[tokio::test]
async fn a_lost_connection_fails_its_calls_and_the_next_call_has_a_new_one() {
    let dir = Dir::new();
    tokio::spawn(serve_keyvalue(UnixListener::bind(dir.socket()).unwrap(), Arc::default()));
    let client = KvClient::new(dir.socket(), Duration::from_millis(300));
    let scope = scope();
    let late = client.call(&scope, &get("hang")).await.unwrap_err();
    assert!(matches!(late, KvError::TimedOut(_)), "{late:?}");
    let client = KvClient::new(dir.socket(), Duration::from_secs(60));
    let (one, other) = (get("hang"), get("hang-up"));
    let (hanging, hung_up) = tokio::join!(client.call(&scope, &one), client.call(&scope, &other));
    assert!(matches!(hanging, Err(KvError::Lost(_))), "{hanging:?}");
    assert!(matches!(hung_up, Err(KvError::Lost(_))), "{hung_up:?}");
    assert_eq!(client.call(&scope, &get("again")).await.unwrap(), KvAnswer::Value(Some(b"again".to_vec())));
}

#[tokio::test]
async fn without_a_node_a_call_fails_at_once() {
    let dir = Dir::new();
    let client = KvClient::new(dir.socket(), Duration::from_secs(60));
    assert!(matches!(client.call(&scope(), &get("k")).await, Err(KvError::Lost(_))));
    assert!(NodeWay::from(dir.socket()).alive().await.is_err());
}

fn compiled(text: &str) -> FileRequest {
    FileRequest::Compiled { digest: Digest::of(text.as_bytes()), world: World::P2 }
}

/// Hands over a file that holds the digest asked for; refuses the digest of `refused`, never answers that of `hang`.
async fn serve_files(listener: UnixListener, connections: Arc<AtomicU32>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, SeqCst);
        let Accepted::Files(mut files) = accept(stream).await.unwrap() else { panic!("not asked for") };
        tokio::spawn(async move {
            while let Ok(Some(request)) = files.next().await {
                let FileRequest::Compiled { digest, .. } = &request else { panic!("{request:?}") };
                if request == compiled("refused") {
                    let fault = FileFault::NoCode("no such code".into());
                    files.reply(&FileReply::Refused(fault), None).unwrap();
                    continue;
                }
                if request == compiled("hang") {
                    std::future::pending::<()>().await;
                }
                let name = format!("sidereal-api-fd-{}-{}", std::process::id(), digest.short());
                let path = std::env::temp_dir().join(name);
                let mut file =
                    std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
                std::fs::remove_file(&path).unwrap();
                file.write_all(digest.to_string().as_bytes()).unwrap();
                files.reply(&FileReply::Ready { address: None }, Some(file.as_fd())).unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_descriptor_comes_with_its_reply_and_no_other() {
    let dir = Dir::new();
    let connections = Arc::new(AtomicU32::new(0));
    tokio::spawn(serve_files(UnixListener::bind(dir.socket()).unwrap(), connections.clone()));
    let client = FilesClient::new(dir.socket());
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let fetch = |name: String| {
        let client = &client;
        async move {
            let (fd, address) = client.request(&compiled(&name)).await.unwrap();
            assert_eq!(address, None);
            let mut file = std::fs::File::from(fd);
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, Digest::of(name.as_bytes()).to_string());
        }
    };
    for name in names.iter().take(3) {
        fetch(name.clone()).await;
    }
    assert_eq!(connections.load(SeqCst), 1, "a connection is used again");
    join_all(names.into_iter().map(fetch)).await;
    assert!(connections.load(SeqCst) <= 33);
    let refused = client.request(&compiled("refused")).await.unwrap_err();
    assert!(matches!(refused, FileError::Fault(FileFault::NoCode(_))), "{refused:?}");
}

#[tokio::test]
async fn a_request_that_is_given_up_takes_its_connection_with_it() {
    let dir = Dir::new();
    tokio::spawn(serve_files(UnixListener::bind(dir.socket()).unwrap(), Arc::default()));
    let client = FilesClient::new(dir.socket());
    let hanging = compiled("hang");
    assert!(tokio::time::timeout(Duration::from_millis(50), client.request(&hanging)).await.is_err());
    assert!(client.request(&compiled("next")).await.is_ok(), "the next reply is not mistaken for the last");
}

#[tokio::test]
async fn each_side_sees_the_other_end() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.socket()).unwrap();
    let node = NodeWay::from(dir.socket());
    let (held, gone) = tokio::join!(async { accept(listener.accept().await.unwrap().0).await }, node.alive());
    let Accepted::Alive(held) = held.unwrap() else { panic!("not asked for") };
    let mut gone = Box::pin(gone.unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(30), &mut gone).await.is_err());
    drop(held);
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
}

#[tokio::test]
async fn who_can_connect_nowhere_is_handed_its_connections() {
    let (first, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    first.set_nonblocking(true).unwrap();
    let first = tokio::net::UnixStream::from_std(first).unwrap();
    let server = tokio::spawn(async move {
        let Accepted::More(mut more) = accept(first).await.unwrap() else { panic!("not asked for") };
        let mut kinds = Vec::new();
        while let Ok(Some(MoreRequest::Connection)) = more.next().await {
            let stream = more.connection().unwrap();
            kinds.push(match accept(stream).await {
                Ok(Accepted::Alive(held)) => {
                    drop(held);
                    "alive"
                }
                Ok(Accepted::Files(_)) => "files",
                // Whoever asked for it waits no more.
                Err(_) => "nothing",
                other => panic!("{other:?}"),
            });
        }
        kinds
    });
    let node = NodeWay::handed(theirs).unwrap();
    node.alive().await.unwrap().await;
    let files = FilesClient::new(node.clone());
    assert!(files.request(&compiled("x")).await.is_err(), "the server closed it");
    drop((files, node));
    assert_eq!(server.await.unwrap(), ["alive", "files"]);
}

#[tokio::test]
async fn a_word_of_where_a_host_stands_never_waits() {
    let (first, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    first.set_nonblocking(true).unwrap();
    let first = tokio::net::UnixStream::from_std(first).unwrap();
    let server = tokio::spawn(async move {
        let Accepted::More(mut more) = accept(first).await.unwrap() else { panic!("not asked for") };
        more.next().await.unwrap();
        match accept(more.connection().unwrap()).await.unwrap() {
            Accepted::Standing(stream) => stream,
            other => panic!("{other:?}"),
        }
    });
    let word = NodeWay::handed(theirs).unwrap().standing().await.unwrap();
    let mut node = server.await.unwrap();
    // Nobody reads.
    let said = (0..1_000_000).take_while(|_| word.say(Standing::Last)).count();
    assert!((100..1_000_000).contains(&said), "{said}");
    let mut words = vec![0; said];
    node.read_exact(&mut words).await.unwrap();
    assert!(words.iter().all(|byte| Standing::of(*byte) == Some(Standing::Last)));
    assert!(word.say(Standing::Owed));
    assert_eq!(Standing::of(node.read_u8().await.unwrap()), Some(Standing::Owed));
    assert_eq!(Standing::of(0), None);
}

/// A frame of `head` and 1 MiB of the same byte.
fn of_one_byte(head: &[u8], byte: u8) -> bytes::BytesMut {
    let mut wire = bytes::BytesMut::new();
    wire.extend_from_slice(&u32::try_from(head.len() + (1 << 20)).unwrap().to_le_bytes());
    wire.extend_from_slice(head);
    wire.resize(wire.len() + (1 << 20), byte);
    wire
}

#[test]
fn nothing_on_this_wire_holds_itself() {
    let encoded = |value: &dyn Fn(&mut bytes::BytesMut)| {
        let mut wire = bytes::BytesMut::new();
        value(&mut wire);
        wire.split_off(4).to_vec()
    };
    let mut call = encoded(&|wire| codec::encode(&KvCall { id: 1, scope: scope(), op: get("") }, wire).unwrap());
    // Without the number of the operation, and what is in it.
    call.truncate(call.len() - 2);
    let mut reply = encoded(&|wire| codec::encode(&KvReply { id: 1, result: Ok(KvAnswer::Done) }, wire).unwrap());
    reply.truncate(reply.len() - 1);
    let decoding = move || {
        for byte in 0..16 {
            let mut wire = of_one_byte(&call, byte);
            assert!(matches!(codec::decode::<KvCall>(&mut wire), Err(WireError::Malformed(_))), "call of {byte}");
            let mut wire = of_one_byte(&reply, byte);
            assert!(matches!(codec::decode::<KvReply>(&mut wire), Err(WireError::Malformed(_))), "reply of {byte}");
        }
    };
    std::thread::Builder::new().stack_size(256 << 10).spawn(decoding).unwrap().join().unwrap();
}
