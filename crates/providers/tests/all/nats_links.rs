//! Links that share one connection to NATS: a stream that hangs holds back whoever asks it, and nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use model::stream::StreamSettings;
use providers::blobstore::{self, Backend as _};
use providers::http_out::public_roots;
use providers::keyvalue::Backend as _;
use providers::messaging::{self, Backend as _, jetstream::Jetstream};
use providers::meter::{ErrorKind, LinkMeter};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::faults::{Call, call};
use crate::keyvalue_nats;
use crate::nats_server::{NatsServer, client};
use crate::support::{Direct, config};

/// Questions of one link at once: fewer than hold it back, so that what else it asks in between counts, too.
const AT_ONCE: usize = 2;
/// So often it asks at most until it is held back.
const ROUNDS: usize = 6;

/// Before a server: some of what is published never reaches it, as if the stream that is asked had no leader, while the
/// connection goes on. Where a stream is, the server still says.
struct Swallows {
    address: SocketAddr,
    hungry: Arc<AtomicBool>,
    swallowed: Arc<AtomicUsize>,
}

impl Swallows {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hungry, swallowed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_hungry, count) = (hungry.clone(), swallowed.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (is_hungry, count) = (is_hungry.clone(), count.clone());
                tokio::spawn(pass(client, server, is_hungry, count));
            }
        });
        Self { address, hungry, swallowed }
    }
}

async fn pass(client: TcpStream, server: SocketAddr, hungry: Arc<AtomicBool>, swallowed: Arc<AtomicUsize>) {
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut from_client = BufReader::new(from_client);
    let mut line = String::new();
    while from_client.read_line(&mut line).await.is_ok_and(|count| count > 0) {
        let published = line.starts_with("PUB ") || line.starts_with("HPUB ");
        let body =
            line.split_whitespace().next_back().filter(|_| published).map_or(0, |n| n.parse::<usize>().unwrap() + 2);
        let mut frame = std::mem::take(&mut line).into_bytes();
        let (head, slow) = (frame.len(), String::from_utf8_lossy(&frame).contains("slow"));
        let looks = String::from_utf8_lossy(&frame).contains("STREAM.INFO");
        frame.resize(head + body, 0);
        from_client.read_exact(&mut frame[head..]).await.unwrap();
        if published && slow && !looks && hungry.load(SeqCst) {
            swallowed.fetch_add(1, SeqCst);
        } else {
            to_server.write_all(&frame).await.unwrap();
        }
    }
    answers.abort();
}

/// One component asks what hangs until it is held back, and its neighbour asks something else all the time.
async fn only_one_is_held_back(hangs: &Swallows, dialer: &Direct, slow: Call, quick: Call) {
    let (one, neighbour) = (Arc::new(LinkMeter::default()), LinkMeter::default());
    one.observe(slow()).await.unwrap();
    neighbour.observe(quick()).await.unwrap();
    hangs.hungry.store(true, SeqCst);
    let (asks, meter, swallowed) = (slow.clone(), one.clone(), hangs.swallowed.clone());
    let held_back = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            let ended = join_all((0..AT_ONCE).map(|_| meter.observe(asks()))).await;
            assert!(ended.iter().all(Result::is_err), "{ended:?}");
            let before = swallowed.load(SeqCst);
            meter.observe(asks()).await.unwrap_err();
            if swallowed.load(SeqCst) == before {
                return;
            }
        }
        panic!("every call is sent to a stream that hangs, and waits for it");
    });
    while !held_back.is_finished() {
        neighbour.observe(quick()).await.expect("the neighbour goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    held_back.await.unwrap();
    neighbour.observe(quick()).await.expect("it goes on while the other is held back");
    let trouble = one.trouble().expect("the status names the one whose stream hangs");
    assert_eq!(trouble.kind, ErrorKind::Unavailable, "{trouble:?}");
    assert!(trouble.reason.contains("of this link") && trouble.reason.contains("leader"), "{trouble:?}");
    assert_eq!(neighbour.trouble(), None, "and nobody else");
    hangs.hungry.store(false, SeqCst);
    let found_again = async {
        while one.observe(slow()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), found_again).await.expect("it is not found again");
    assert_eq!(one.trouble(), None);
    assert_eq!(dialer.dials.load(SeqCst), 1, "the connection was never left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_hangs_is_its_own_links_trouble_only() {
    let server = NatsServer::start();
    let hangs = Swallows::start(server.address).await;
    let dialer = Direct::to(hangs.address);
    let url = format!("nats://{}", hangs.address);
    let keys = Arc::new(keyvalue_nats::made("acme", "shop", keyvalue_nats::settings(&url), dialer.clone()));
    let ask = |bucket: &'static str| {
        call(keys.clone(), move |keys| async move {
            keys.set(bucket, "k", b"v".to_vec()).await?;
            keys.get(bucket, "k").await.map(|found| assert_eq!(found.as_deref(), Some(&b"v"[..])))
        })
    };
    only_one_is_held_back(&hangs, &dialer, ask("slow"), ask("quick")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_hangs_is_its_own_links_trouble_only() {
    let server = NatsServer::start();
    let hangs = Swallows::start(server.address).await;
    let dialer = Direct::to(hangs.address);
    let client = client(&format!("nats://{}", hangs.address), None, public_roots(), dialer.clone());
    let (tenant, app, provider) = ("acme".parse().unwrap(), "shop".parse().unwrap(), "objects".parse().unwrap());
    let objects = Arc::new(blobstore::nats::Nats::new(client, None, &tenant, &app, &provider, 1).unwrap());
    for container in ["slow", "quick"] {
        objects.create(container).await.unwrap();
        let mut upload = objects.write(container, "o").await.unwrap();
        upload.write(Bytes::from_static(b"v")).await.unwrap();
        upload.finish().await.unwrap();
    }
    let ask = |container: &'static str| {
        call(objects.clone(), move |objects| async move {
            objects.object(container, "o").await.map(|found| assert_eq!(found.unwrap().size, 1))
        })
    };
    only_one_is_held_back(&hangs, &dialer, ask("slow"), ask("quick")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_whose_messages_are_not_stored_is_its_own_links_trouble_only() {
    let server = NatsServer::start();
    let hangs = Swallows::start(server.address).await;
    let dialer = Direct::to(hangs.address);
    let client = client(&format!("nats://{}", hangs.address), None, public_roots(), dialer.clone());
    let settings = StreamSettings::read(&config(&[("stream", "JOBS"), ("subjects", "jobs.>")])).unwrap();
    let broker = Arc::new(Jetstream::new(client, None, "acme".parse().unwrap(), settings, 1).unwrap());
    let send = |subject: &'static str| {
        call(broker.clone(), move |broker| async move {
            let message = messaging::Message { subject: subject.to_owned(), body: b"v".to_vec(), reply_to: None };
            broker.publish(message).await
        })
    };
    only_one_is_held_back(&hangs, &dialer, send("jobs.slow"), send("jobs.quick")).await;
}

/// Over core NATS somebody else owes the answer: that it does not come is no reason to send nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_asked_and_never_answers_holds_back_nothing() {
    let server = NatsServer::start();
    let listens = server.client();
    let mut asked = listens.subscribe("never", None, providers::nats::Buffer::default()).await.unwrap();
    let bus = messaging::nats::Nats::new(server.client(), "acme".parse().unwrap());
    let link = LinkMeter::default();
    for _ in 0..4 {
        let asks = join_all(
            (0..AT_ONCE).map(|_| link.observe(bus.request("never".to_owned(), Vec::new(), Duration::from_millis(600)))),
        );
        assert!(asks.await.iter().all(|ended| matches!(ended, Err(messaging::BackendError::TimedOut { .. }))));
    }
    for _ in 0..4 * AT_ONCE {
        asked.next().await.unwrap();
    }
    let message = messaging::Message { subject: "never".to_owned(), body: b"v".to_vec(), reply_to: None };
    link.observe(bus.publish(message)).await.unwrap();
    assert_eq!(&asked.next().await.unwrap().payload[..], b"v", "what the link sends goes on");
}
