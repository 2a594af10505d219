//! Objects in a real S3 server (s3s over a folder, its signatures checked), and in one that fails in every way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use model::SecretRef;
use providers::blobstore::{Backend, BackendError, CHUNK, S3, conformance};
use providers::dial::{Caller, DialError};
use providers::secrets::Credentials;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{Direct, Vault};

/// The server of one test, gone with it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(root: &Path, secret: &str) -> Self {
        Self::start_at(root, secret, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(root: &Path, secret: &str, address: SocketAddr) -> Self {
        std::fs::create_dir_all(root.join("bucket")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        builder.set_auth(SimpleAuth::from_single("AKID", secret));
        let service = builder.build();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let http = hyper::server::conn::http1::Builder::new();
                connections.spawn(http.serve_connection(TokioIo::new(stream), service.clone()));
            }
        });
        Self { address, accepting }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn secrets(vault: &Arc<Vault>) -> Credentials {
    let secret: SecretRef = SecretRef::new("s3-key".parse().unwrap());
    Credentials::new("shop".parse().unwrap(), [("secret-access-key".to_owned(), secret)].into(), vault.clone())
}

pub(crate) fn vault(secret: &str) -> Arc<Vault> {
    let vault = Vault::new();
    vault.set("s3-key", secret);
    vault
}

pub(crate) fn of(
    who: (&str, &str, &str),
    bucket: &str,
    address: SocketAddr,
    vault: &Arc<Vault>,
    dialer: Arc<Direct>,
) -> S3 {
    let config: BTreeMap<String, String> =
        [("url", format!("http://{address}")), ("bucket", bucket.to_owned()), ("access-key-id", "AKID".to_owned())]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
    let names = (who.0.parse().unwrap(), who.1.parse().unwrap(), who.2.parse().unwrap());
    S3::new(&names.0, &names.1, &names.2, &config, secrets(vault), dialer).unwrap()
}

pub(crate) fn s3(address: SocketAddr, vault: &Arc<Vault>) -> S3 {
    of(("acme", "shop", "store"), "bucket", address, vault, Direct::to(address))
}

async fn put(store: &dyn Backend, object: &str, bytes: &[u8]) -> Result<(), BackendError> {
    let mut upload = store.write("c", object).await?;
    for chunk in bytes.chunks(CHUNK) {
        upload.write(chunk.to_vec().into()).await?;
    }
    upload.finish().await
}

async fn get(store: &dyn Backend, object: &str) -> Result<Vec<u8>, BackendError> {
    let mut reading = store.read("c", object, 0, u64::MAX).await?;
    let mut all = Vec::new();
    while let Some(chunk) = reading.chunks.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_are_begun_and_not_written_hold_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "right").await;
    let store = s3(server.address, &vault("right"));
    store.create("c").await.unwrap();
    let mut begun = Vec::new();
    for n in 0..40 {
        begun.push(store.write("c", &format!("begun{n}")).await.unwrap());
    }
    put(&store, "other", b"bytes").await.unwrap();
    // Those that have something in hand are bounded.
    let most = store.uploads().unwrap();
    for upload in &mut begun[..most] {
        upload.write(vec![1; 10].into()).await.unwrap();
    }
    let refused = begun[most].write(vec![1; 10].into()).await.unwrap_err();
    assert!(matches!(&refused, BackendError::Unavailable(why) if why.contains("under way")), "{refused}");
    begun.remove(0).finish().await.unwrap();
    put(&store, "another", b"bytes").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "right").await;
    let dialer = Direct::to(server.address);
    let store = of(("acme", "shop", "store"), "bucket", server.address, &vault("right"), dialer.clone());
    store.check().await.unwrap();
    // This server keeps what it knows of an object in a file that is named after the whole key.
    conformance::run_up_to(&store, 60).await.unwrap();
    let asked = dialer.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.host.as_str(), asked.port), ("127.0.0.1", server.address.port()));
    assert_eq!(asked.caller, Caller::Provider("store".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_tenants_nor_apps_nor_providers_meet_in_one_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "right").await;
    let (address, vault) = (server.address, vault("right"));
    let one = s3(address, &vault);
    one.create("c").await.unwrap();
    put(&one, "o", b"mine").await.unwrap();
    for who in [("acme", "shop", "other"), ("acme", "shop-x", "store"), ("shop", "acme", "store")] {
        let other = of(who, "bucket", address, &vault, Direct::to(address));
        for container in ["c", "../store/c", "../../acme/shop/store/c", "/acme/shop/store/c"] {
            assert_eq!(other.container(container).await.unwrap(), None, "{who:?} {container}");
            other.create(container).await.unwrap();
            assert!(other.list(container, None).await.unwrap().names.is_empty());
            other.delete(container).await.unwrap();
        }
    }
    assert_eq!(get(&one, "o").await.unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_told_apart_and_a_new_key_is_used_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "right").await;
    let vault = vault("wrong");
    let store = s3(server.address, &vault);
    let denied = store.check().await.unwrap_err();
    assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
    assert!(!denied.to_string().contains("wrong"), "{denied}");
    vault.set("s3-key", "right");
    store.check().await.unwrap();

    let nowhere = of(("acme", "shop", "store"), "nobucket", server.address, &vault, Direct::to(server.address));
    let missing = nowhere.check().await.unwrap_err();
    assert!(missing.to_string().contains("`nobucket` does not exist"), "{missing}");
    let dialer = Direct::to(server.address);
    *dialer.refuse.lock().unwrap() = Some(DialError::Denied("10.0.0.1 (private) is not granted".into()));
    let refused = of(("acme", "shop", "store"), "bucket", server.address, &vault, dialer.clone());
    let refused = refused.check().await.unwrap_err();
    assert!(matches!(refused, BackendError::Denied(_)) && refused.to_string().contains("not granted"), "{refused}");
    assert_eq!(dialer.dials.load(SeqCst), 1, "what is denied is not tried again and again");
    let unset = Vault::new();
    let refused = s3(server.address, &unset).check().await.unwrap_err();
    assert!(refused.to_string().contains("s3-key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_abandoned_leaves_no_parts() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "right").await;
    let store = s3(server.address, &vault("right"));
    store.create("c").await.unwrap();
    let files = || walk(dir.path()).into_iter().filter(|size| *size > 1 << 20).count();
    let mut upload = store.write("c", "o").await.unwrap();
    for _ in 0..48 {
        upload.write(vec![1; CHUNK].into()).await.unwrap();
    }
    assert!(files() >= 2, "two parts of 5 MiB are up");
    upload.abandon().await;
    assert_eq!(files(), 0);
    assert_eq!(store.object("c", "o").await.unwrap(), None);
}

fn walk(dir: &Path) -> Vec<u64> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path.metadata().unwrap().len()) }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_repeats_of_a_session_token_is_not_told() {
    const TOKEN: &str = "IQoJb3JpZ2luX2VjEJ7hunter2+/canary==";
    let vault = vault("right");
    vault.set("s3-token", TOKEN);
    for (status, code, denies) in [
        ("400 Bad Request", "ExpiredToken", true),
        ("400 Bad Request", "InvalidToken", true),
        ("400 Bad Request", "EntityTooLarge", false),
        ("409 Conflict", "OperationAborted", false),
    ] {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Token-0>{TOKEN}</Token-0><Code>{code}</Code><Message>Not {TOKEN}</Message></Error>"
        );
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let address = broken(answer.into_bytes()).await;
        let config =
            [("url", format!("http://{address}")), ("bucket", "bucket".into()), ("access-key-id", "ASIA".into())];
        let named = [("secret-access-key", "s3-key"), ("session-token", "s3-token")];
        let named = named.map(|(setting, secret)| (setting.to_owned(), SecretRef::new(secret.parse().unwrap())));
        let credentials = Credentials::new("shop".parse().unwrap(), named.into(), vault.clone());
        let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
        let config = config.map(|(key, value)| (key.to_owned(), value)).into();
        let store = S3::new(&names.0, &names.1, &names.2, &config, credentials, Direct::to(address)).unwrap();
        let all = [
            store.list("c", None).await.unwrap_err(),
            store.create("c").await.unwrap_err(),
            store.read("c", "o", 0, u64::MAX).await.map(drop).unwrap_err(),
        ];
        for said in &all {
            for piece in [TOKEN, "hunter2", "IQoJ"] {
                assert!(!format!("{said} {said:?}").contains(piece), "{said:?}");
            }
        }
        let listed = &all[0];
        assert_eq!(matches!(listed, BackendError::Denied(_)), denies, "{listed:?}");
        assert!(listed.to_string().contains(code), "{listed:?}");
    }
}

/// A server whose answer to each request is what `answer` makes of its head.
async fn scripted(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        let text = String::from_utf8_lossy(&head).into_owned();
                        let length = text
                            .to_lowercase()
                            .split_once("content-length: ")
                            .map_or(0, |(_, rest)| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
                        stream.read_exact(&mut vec![0; length]).await.unwrap();
                        head.clear();
                        let answer = answer(&text);
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_refuses_of_one_request_holds_back_no_other() {
    for (status, code, refused) in [
        ("400 Bad Request", "EntityTooLarge", true),
        ("409 Conflict", "OperationAborted", true),
        ("412 Precondition Failed", "PreconditionFailed", true),
        ("400 Bad Request", "RequestTimeout", false),
        ("429 Too Many Requests", "SlowDown", false),
        ("500 Oh", "InternalError", false),
    ] {
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = asked.clone();
        let address = scripted(move |line| {
            counted.fetch_add(1, SeqCst);
            let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
            let body = if line.starts_with("HEAD") { String::new() } else { body };
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        })
        .await;
        let store = s3(address, &vault("right"));
        let mut last = 0;
        for n in 0..4 {
            let said = store.list("c", None).await.unwrap_err();
            assert_eq!(matches!(said, BackendError::Misuse(_)), refused, "{code}: {said:?}");
            assert!(said.to_string().contains(code), "{said:?}");
            let now = asked.load(SeqCst);
            assert!(!refused || now > last, "{code}: call {n} went out");
            last = now;
        }
        let checked = store.check().await.unwrap_err();
        assert!(matches!(checked, BackendError::Unavailable(_)), "{code}: {checked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_an_object_that_is_replaced_meanwhile_is_read_of_the_new_one() {
    for (replaced, read) in [(1, true), (100, false)] {
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = asked.clone();
        let address = scripted(move |line| {
            let tag = format!("ETag: \"{}\"\r\nLast-Modified: Mon, 30 Nov 2026 20:00:00 GMT\r\n", counted.load(SeqCst));
            if line.starts_with("HEAD") {
                return format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{tag}\r\n");
            }
            match counted.fetch_add(1, SeqCst) < replaced {
                true => "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n".to_owned(),
                false => {
                    let range = "Content-Range: bytes 2-4/10\r\n";
                    format!("HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n{range}{tag}\r\ncde")
                }
            }
        })
        .await;
        let store = s3(address, &vault("right"));
        match store.read("c", "o", 2, 4).await {
            Ok(mut reading) => {
                assert!(read);
                assert_eq!((reading.size, reading.chunks.next().await.unwrap().unwrap()), (3, "cde".into()));
            }
            Err(said) => assert!(!read && said.to_string().contains("replaced"), "{said}"),
        }
        assert_eq!(asked.load(SeqCst), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_a_call_is_in_its_trace() {
    const CALL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = heads.clone();
    let address = scripted(move |head| {
        seen.lock().unwrap().push(head.to_owned());
        let answers = "Content-Length: 0\r\nETag: \"1\"\r\nLast-Modified: Mon, 30 Nov 2026 20:00:00 GMT\r\n";
        format!("HTTP/1.1 200 OK\r\n{answers}\r\n")
    })
    .await;
    let store = s3(address, &vault("right"));
    crate::support::traced(CALL, put(&store, "o", b"x")).await.unwrap();
    let in_trace = heads.lock().unwrap().len();
    put(&store, "o", b"x").await.unwrap();
    let heads = heads.lock().unwrap();
    let carry = |head: &String| head.contains(&format!("traceparent: {CALL}\r\n"));
    assert!(in_trace > 0 && heads[..in_trace].iter().all(carry), "{heads:?}");
    assert!(heads.len() > in_trace && !heads[in_trace..].iter().any(|head| head.contains("traceparent")), "{heads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_others_wrote_cut_no_listing_short() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), "right").await;
    let store = s3(server.address, &vault("right"));
    store.create("c").await.unwrap();
    put(&store, "a", b"").await.unwrap();
    put(&store, "z", b"").await.unwrap();
    // No name of an object has these in its key; a whole page of them, and more.
    let objects = dir.path().join("bucket/acme/shop/store/c/objects");
    assert!(objects.join("a").is_file());
    for n in 0..1200 {
        std::fs::write(objects.join(format!("m{n:04}%41")), b"").unwrap();
    }
    let (mut names, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = store.list("c", cursor.as_deref()).await.unwrap();
        names.extend(page.names);
        pages += 1;
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
        assert!(pages < 10, "it ends: {cursor:?}");
    }
    assert_eq!((names, pages), (vec!["a".to_owned(), "z".to_owned()], 2));
}

/// A server that reads what it is sent and answers `answer` to everything; holds the connection where that is empty.
async fn broken(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {
                    if !answer.is_empty() && (stream.write_all(&answer).await.is_err() || answer.ends_with(b"!")) {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_nonsense_is_an_error_and_not_a_hang() {
    let endless = [&b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"[..], &vec![b'<'; 16 << 20]].concat();
    let answers: [&[u8]; 6] = [
        b"hello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n<?xml version=\"1.0\"?><ListBucketResult>!",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
        &endless,
    ];
    for answer in answers {
        let address = broken(answer.to_vec()).await;
        let dialer = Direct::to(address);
        let store = of(("acme", "shop", "store"), "bucket", address, &vault("right"), dialer.clone());
        let start = Instant::now();
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        let listed = store.list("c", None).await;
        assert!(matches!(listed, Err(BackendError::Unavailable(_))), "{shown}: {listed:?}");
        let written = put(&store, "o", b"x").await;
        assert!(written.is_err(), "{shown}");
        assert!(start.elapsed() < Duration::from_secs(60), "{shown}: took {:?}", start.elapsed());
        let hosts: Vec<_> = dialer.asked.lock().unwrap().iter().map(|asked| asked.host.clone()).collect();
        assert!(hosts.iter().all(|host| host == "127.0.0.1"), "no redirect is followed: {hosts:?}");
    }
}

#[test]
fn settings_that_are_wrong_are_refused_without_being_shown() {
    let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
    let vault = vault("right");
    for (url, bucket) in [("", "b"), ("ftp://a", "b"), ("http://user:hunter2@a", "b"), ("http://a?b=hunter2", "b")] {
        let config = [("url".to_owned(), url.to_owned()), ("bucket".to_owned(), bucket.to_owned())].into();
        let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
        let refused = S3::new(&names.0, &names.1, &names.2, &config, secrets(&vault), dialer);
        let refused = refused.err().unwrap_or_else(|| panic!("{url} was accepted")).to_string();
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}
