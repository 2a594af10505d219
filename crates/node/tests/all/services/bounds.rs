//! What a host that was taken over cannot do: reach what is not its apps', fill the node's log or memory, or have its threads
//! for itself.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use api::services::KvReply;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use store::data::{Answer, Op};

use super::*;

#[tokio::test]
async fn a_host_has_the_keys_of_its_apps_providers_and_no_messages() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    let mut app = watching();
    let embedded = serde_json::json!({"type": "keyvalue-embedded", "config": {}});
    app.providers.insert("mine".parse().unwrap(), serde_json::from_value(embedded).unwrap());
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    rig.services.messaging.declare(&tenant.name, &app.name, &node::messaging::declared(&app));
    let (way, _server) = rig.host(&tenant);
    let kv = KvClient::new(way, Duration::from_secs(60));
    let of = |provider: &str, bucket: &str| KvScope {
        provider: provider.parse().unwrap(),
        bucket: bucket.into(),
        ..scope()
    };
    for provider in ["embedded", "mine"] {
        assert_eq!(kv.call(&of(provider, "b"), &increment("n")).await.unwrap(), KvAnswer::Number(1), "{provider}");
    }
    for provider in ["durable", "local", "memory", "folder", "made-up"] {
        let scope = of(provider, WATCH);
        let list = KvOp::ListKeys { cursor: None, limit: 10 };
        for op in [KvWrite::SetMany { pairs: vec![("0".repeat(32), vec![0; 8])] }.into(), increment("n"), list] {
            let refused = kv.call(&scope, &op).await.unwrap_err();
            assert!(refused.to_string().contains(&format!("has a provider `{provider}`")), "{refused}");
        }
        let op = Op::ListKeys { cursor: None, limit: 10 };
        let kept = rig.services.data.call(&tenant.name, &scope.app, &scope.provider, &scope.bucket, op).await.unwrap();
        assert_eq!(kept, Answer::Keys { keys: Vec::new(), cursor: None }, "{provider}");
    }
}

#[tokio::test]
async fn few_questions_of_a_host_for_changed_secrets_wait() {
    let rig = Rig::new().await;
    let (way, _server) = rig.host(&running("t"));
    let calls =
        [CallsClient::new(way.clone(), Duration::from_secs(60)), CallsClient::new(way, Duration::from_secs(60))];
    let app = scope().app;
    let request = ServiceRequest::Secret(SecretRequest::Changed { after: 0 });
    // On two connections. Four of them wait for fifteen seconds, and all others have their answer before.
    let mut asked: FuturesUnordered<_> = (0..100).map(|n| calls[n % 2].call(&app, &request)).collect();
    let mut refused = 0;
    while let Some(answer) = asked.next().await {
        match answer {
            Err(cause) => assert!(cause.to_string().contains("wait already"), "{cause}"),
            Ok(answer) => panic!("{answer:?} after {refused} were refused"),
        }
        refused += 1;
        if refused == 96 {
            return;
        }
    }
    panic!("{refused} were refused");
}

/// Counts what the node says in its log.
struct Said(Arc<AtomicUsize>);

impl tracing::Subscriber for Said {
    fn enabled(&self, what: &tracing::Metadata<'_>) -> bool {
        what.is_event() && *what.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_host_brings_about_few_lines_of_the_nodes_log() {
    let rig = Rig::new().await;
    let tenant = running("t");
    rig.services.messaging.declare(&tenant.name, &scope().app, &node::messaging::declared(&watching()));
    let (way, _server) = rig.host(&tenant);
    let kv = KvClient::new(way.clone(), Duration::from_secs(60));
    let calls = CallsClient::new(way, Duration::from_secs(60));
    // The queue is full then.
    kv.call(&scope(), &KvOp::Write { write: set("k"), tell: tells(16) }).await.unwrap();
    let secret = ServiceRequest::Secret(SecretRequest::Reveal { secret: "another".parse().unwrap() });
    let untold = KvOp::Write { write: set("k"), tell: tells(1) };
    let durable = KvScope { provider: "durable".parse().unwrap(), ..scope() };
    let lines = Arc::new(AtomicUsize::new(0));
    // The test, the host and the node are one thread.
    let _said = tracing::subscriber::set_default(Said(lines.clone()));
    let began = Instant::now();
    for _ in 0..200 {
        calls.call(&scope().app, &secret).await.unwrap();
        assert!(matches!(kv.call(&scope(), &untold).await.unwrap(), KvAnswer::Untold { .. }));
        kv.call(&durable, &increment("n")).await.unwrap_err();
    }
    let lines = lines.load(SeqCst);
    // Twenty at once and five a second, for the tenant and for its messages.
    let most = 2.0 * (20.0 + 5.0 * began.elapsed().as_secs_f64()) + 1.0;
    assert!(lines > 0, "it says that there is something");
    assert!(lines as f64 <= most, "{lines}, and at most {most}");
}

/// By what happens before what, so it holds on a slow machine too: were the other tenant served only after all that had come
/// before its calls, these would be over first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_very_many_calls_on_the_way_leaves_its_turns_to_others() {
    const CONNECTIONS: usize = 24;
    const CALLS: usize = 20_000;
    let rig = Rig::new().await;
    let (noisy, other) = (running("noisy"), running("other"));
    let (way, _theirs) = rig.host(&other);
    let kv = KvClient::new(way, Duration::from_secs(60));
    let ask = KvOp::Exists { key: "k".into() };
    kv.call(&scope(), &ask).await.unwrap();
    let (mut first, server) = UnixStream::pair().unwrap();
    let client = Client { tenant: noisy, shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    let _served = AbortOnDrop(tokio::spawn(serve(server, client, rig.services.clone())));
    let mut wire = bytes::BytesMut::new();
    codec::encode(&Hello::More, &mut wire).unwrap();
    first.write_all(&wire).await.unwrap();
    wire.clear();
    for _ in 0..CALLS {
        codec::encode(&KvCall { id: 1, scope: scope(), op: ask.clone() }, &mut wire).unwrap();
    }
    let (calls, mut one) = (wire.freeze(), bytes::BytesMut::new());
    codec::encode(&KvReply { id: 1, result: Ok(KvAnswer::Bool(false)) }, &mut one).unwrap();
    let one = one.len();
    let mut hello = bytes::BytesMut::new();
    codec::encode(&Hello::KeyValue, &mut hello).unwrap();
    let (answered, begin) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let mut hosts = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (calls, answered, begin) = (calls.clone(), answered.clone(), begin.clone());
        let (mut stream, hello) = (raw(&mut first).await, hello.clone());
        hosts.spawn(async move {
            let _all_are_there = begin.acquire().await.unwrap();
            stream.write_all(&hello).await.unwrap();
            let (mut reads, mut writes) = stream.split();
            let write = async { writes.write_all(&calls).await.unwrap() };
            let read = async {
                let (mut bytes, mut left) = (vec![0; 64 << 10], CALLS * one);
                while left > 0 {
                    let count = reads.read(&mut bytes).await.unwrap();
                    assert!(count > 0, "the connection ended");
                    left -= count;
                    answered.fetch_add(count, SeqCst);
                }
            };
            tokio::join!(write, read);
        });
    }
    begin.add_permits(CONNECTIONS);
    let answered = || answered.load(SeqCst) / one;
    while answered() == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        kv.call(&scope(), &ask).await.unwrap();
    }
    let before = answered();
    println!("{before} of {} were answered before ten of the other tenant", CALLS * CONNECTIONS);
    assert!(before < CALLS * CONNECTIONS / 2, "{before} calls of one tenant were answered before ten of another one");
    while let Some(ended) = hosts.join_next().await {
        ended.unwrap();
    }
    assert_eq!(answered(), CALLS * CONNECTIONS);
}

/// Large values and pages are read on threads of the tenant's own, and their answers take room while they are: what is
/// answered with a word waits for none of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_reads_and_writes_of_one_connection_go_on_together() {
    let _measures = MEASURES.lock().await;
    let rig = Rig::new().await;
    let (way, _theirs) = rig.host(&running("t"));
    let kv = KvClient::new(way, Duration::from_secs(120));
    let large = KvWrite::Set { key: "large".into(), value: vec![7; 4 << 20] };
    kv.call(&scope(), &large.into()).await.unwrap();
    for _ in 0..5 {
        let many = KvOp::GetMany { keys: vec!["none".to_owned(); 200] };
        let ops = (0..12).flat_map(|_| [KvOp::Get { key: "large".into() }, many.clone(), increment("n")]);
        let answers = ops.map(|op| {
            let kv = &kv;
            async move { kv.call(&scope(), &op).await.unwrap() }
        });
        for answer in futures::future::join_all(answers).await {
            match answer {
                KvAnswer::Value(Some(value)) => assert_eq!(value.len(), 4 << 20),
                KvAnswer::Values(found) => assert_eq!(found.len(), 200),
                KvAnswer::Number(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(kv.call(&scope(), &increment("n")).await.unwrap(), KvAnswer::Number(61));
}
