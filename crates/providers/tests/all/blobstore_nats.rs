//! Objects in the object store of real NATS servers: the suite of the contract, the layout that other clients read and
//! write, and what faults leave behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::BASE64URL;
use futures::StreamExt;
use providers::blobstore::nats::Nats;
use providers::blobstore::{Backend, BackendError, CHUNK, conformance};
use providers::http_out::public_roots;
use providers::nats::jetstream::{JetStream, Which};
use providers::nats::{Client, Credentials, Headers};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::nats_server::{NatsServer, client};
use crate::support::Direct;

const SECOND: Duration = Duration::from_secs(1);

fn of(client: Client, names: (&str, &str, &str), domain: Option<&str>) -> Nats {
    let (tenant, app, provider) = (names.0.parse().unwrap(), names.1.parse().unwrap(), names.2.parse().unwrap());
    Nats::new(client, domain, &tenant, &app, &provider, 1).unwrap()
}

fn nats(server: &NatsServer) -> Nats {
    of(server.client(), ("acme", "shop", "objects"), None)
}

fn js(server: &NatsServer) -> JetStream {
    JetStream::new(server.client(), None).unwrap()
}

/// How many messages there are of the bucket's chunks.
async fn chunks(server: &NatsServer, bucket: &str) -> usize {
    let ask = json!({ "subjects_filter": format!("$O.{bucket}.C.>") });
    let info: Value = js(server).call(&format!("STREAM.INFO.OBJ_{bucket}"), &ask).await.unwrap();
    info["state"]["subjects"].as_object().map_or(0, |all| all.values().map(|n| n.as_u64().unwrap() as usize).sum())
}

/// Waits: what is not an object's any more goes after the answer.
async fn chunks_are(server: &NatsServer, bucket: &str, expected: usize) {
    let start = Instant::now();
    loop {
        let found = chunks(server, bucket).await;
        if found == expected {
            return;
        }
        assert!(start.elapsed() < 60 * SECOND, "{found} chunks and not {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn put(store: &dyn Backend, object: &str, bytes: &[u8]) -> Result<(), BackendError> {
    let mut upload = store.write("c", object).await?;
    for chunk in bytes.chunks(CHUNK) {
        upload.write(chunk.to_vec().into()).await?;
    }
    upload.finish().await
}

async fn part(store: &dyn Backend, object: &str, start: u64, end: u64) -> Result<Vec<u8>, BackendError> {
    let mut reading = store.read("c", object, start, end).await?;
    let mut all = Vec::new();
    while let Some(chunk) = reading.chunks.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

async fn get(store: &dyn Backend, object: &str) -> Result<Vec<u8>, BackendError> {
    part(store, object, 0, u64::MAX).await
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n / 251 + n) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_conforms() {
    for server in [Some(NatsServer::start()), NatsServer::newer("")].into_iter().flatten() {
        let store = nats(&server);
        store.check().await.unwrap();
        conformance::run(&store).await.unwrap();
        let left: Value = js(&server).call("STREAM.NAMES", &()).await.unwrap();
        assert_eq!(left["total"], 0, "it leaves nothing: {left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_and_a_bucket_that_only_its_leader_reads_conform() {
    let server = NatsServer::with("jetstream { STORE, domain: hub }");
    conformance::run(&of(server.client(), ("acme", "shop", "objects"), Some("hub"))).await.unwrap();
    let server = NatsServer::start();
    let store = nats(&server);
    let bucket = "acme_shop_objects_c";
    let config = json!({
        "name": format!("OBJ_{bucket}"), "subjects": [format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
        "retention": "limits", "storage": "memory", "num_replicas": 1, "allow_rollup_hdrs": true, "allow_direct": false,
    });
    js(&server).call::<Value>(&format!("STREAM.CREATE.OBJ_{bucket}"), &config).await.unwrap();
    let bytes = content(3 * CHUNK + 5);
    put(&store, "o", &bytes).await.unwrap();
    assert_eq!(get(&store, "o").await.unwrap(), bytes);
    assert_eq!(store.list("c", None).await.unwrap().names, ["o"]);
}

#[tokio::test]
async fn what_is_written_is_what_other_clients_read() {
    let server = NatsServer::start();
    let store = nats(&server);
    store.create("c").await.unwrap();
    let bucket = "acme_shop_objects_c";
    let bytes = content(300_000);
    put(&store, "a/b ü", &bytes).await.unwrap();
    let (js, stream) = (js(&server), format!("OBJ_{bucket}"));
    let info: Value = js.call(&format!("STREAM.INFO.{stream}"), &()).await.unwrap();
    let config = &info["config"];
    assert_eq!(config["subjects"], json!([format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")]));
    assert_eq!(
        (&config["discard"], &config["allow_rollup_hdrs"], &config["allow_direct"]),
        (&json!("new"), &json!(true), &json!(true))
    );
    let subject = format!("$O.{bucket}.M.{}", BASE64URL.encode("a/b ü".as_bytes()));
    let meta = js.message(&stream, true, Which::Last(&subject)).await.unwrap().unwrap();
    assert_eq!(meta.headers.get("Nats-Rollup"), Some("sub"));
    let meta: Value = serde_json::from_slice(&meta.payload).unwrap();
    let digest = format!("SHA-256={}", BASE64URL.encode(&Sha256::digest(&bytes)));
    assert_eq!((&meta["name"], &meta["bucket"], &meta["size"]), (&json!("a/b ü"), &json!(bucket), &json!(300_000)));
    assert_eq!((&meta["digest"], &meta["chunks"]), (&json!(digest), &json!(3)));
    assert_eq!(meta["options"]["max_chunk_size"], 131_072);
    let nuid = meta["nuid"].as_str().unwrap();
    let subject = format!("$O.{bucket}.C.{nuid}");
    let (mut seq, mut all) = (1, Vec::new());
    while let Some(chunk) = js.message(&stream, true, Which::Next { subject: &subject, seq }).await.unwrap() {
        seq = chunk.seq + 1;
        all.extend_from_slice(&chunk.payload);
    }
    assert_eq!(all, bytes);
    // One that is removed is marked, and its content is gone.
    store.remove("c", vec!["a/b ü".to_owned()]).await.unwrap();
    let subject = format!("$O.{bucket}.M.{}", BASE64URL.encode("a/b ü".as_bytes()));
    let meta = js.message(&stream, true, Which::Last(&subject)).await.unwrap().unwrap();
    let meta: Value = serde_json::from_slice(&meta.payload).unwrap();
    assert_eq!((&meta["deleted"], &meta["size"], &meta["chunks"]), (&json!(true), &json!(0), &json!(0)));
    chunks_are(&server, bucket, 0).await;
}

#[tokio::test]
async fn what_other_clients_write_is_read_and_a_link_is_not_followed() {
    let server = NatsServer::start();
    let store = nats(&server);
    store.create("c").await.unwrap();
    let (js, bucket) = (js(&server), "acme_shop_objects_c");
    // Chunks of any size, as a client that reads from a slow source makes them.
    let (bytes, cuts) = (content(3 << 20), [700_000, 1, 900_000, 524_288, 1_021_439]);
    let mut from = 0;
    for cut in cuts {
        let chunk = Bytes::copy_from_slice(&bytes[from..from + cut]);
        js.store(&format!("$O.{bucket}.C.theirs"), Headers::new(), chunk).await.unwrap();
        from += cut;
    }
    assert_eq!(from, bytes.len());
    let describe = async |name: &str, more: Value| {
        let mut meta = json!({
            "name": name, "bucket": bucket, "nuid": "theirs", "size": bytes.len(), "mtime": "0001-01-01T00:00:00Z", "chunks": 5,
            "digest": format!("SHA-256={}", BASE64URL.encode(&Sha256::digest(&bytes))), "headers": { "x": ["y"] },
        });
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let headers = Headers::new().with("Nats-Rollup", "sub").unwrap();
        let subject = format!("$O.{bucket}.M.{}", BASE64URL.encode(name.as_bytes()));
        js.store(&subject, headers, meta.to_string().into()).await.unwrap();
    };
    describe("theirs", json!({})).await;
    assert_eq!(get(&store, "theirs").await.unwrap(), bytes);
    for (start, end) in [(0, 0), (699_999, 700_002), (2_100_000, 2_200_000), (3_145_727, u64::MAX)] {
        let wanted = &bytes[start as usize..=(end.min(bytes.len() as u64 - 1)) as usize];
        assert_eq!(part(&store, "theirs", start, end).await.unwrap(), wanted, "{start}..={end}");
    }
    let info = store.object("c", "theirs").await.unwrap().unwrap();
    assert!(info.created_at > 1_600_000_000, "{info:?}");
    describe("link", json!({ "options": { "link": { "bucket": "acme_other_objects_c", "name": "x" } } })).await;
    let refused = get(&store, "link").await.unwrap_err();
    assert!(refused.to_string().contains("links are not followed"), "{refused}");
    describe("damaged", json!({ "digest": format!("SHA-256={}", BASE64URL.encode(&Sha256::digest(b"other"))) })).await;
    let refused = get(&store, "damaged").await.unwrap_err();
    assert!(matches!(refused, BackendError::Damaged { .. }), "{refused}");
    assert_eq!(part(&store, "damaged", 1, 2).await.unwrap(), bytes[1..=2]);
}

#[tokio::test]
async fn neither_tenants_nor_apps_nor_providers_meet_in_one_nats() {
    let server = NatsServer::start();
    let one = nats(&server);
    one.create("c").await.unwrap();
    put(&one, "o", b"mine").await.unwrap();
    for who in [("acme", "shop", "other"), ("acme", "shop-x", "objects"), ("shop", "acme", "objects")] {
        let other = of(server.client(), who, None);
        for container in ["c", "objects_c", "../c", "shop_objects_c"] {
            assert_eq!(other.container(container).await.unwrap(), None, "{who:?} {container}");
            other.create(container).await.unwrap();
            assert!(other.list(container, None).await.unwrap().names.is_empty());
        }
    }
    assert_eq!(get(&one, "o").await.unwrap(), b"mine");
    assert!(matches!(one.create(&"x".repeat(250)).await, Err(BackendError::TooLarge(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_no_objects_is_removed_and_not_while_it_is_read() {
    let server = NatsServer::start();
    let store = nats(&server);
    store.create("c").await.unwrap();
    let bucket = "acme_shop_objects_c";
    let (old, new) = (content(4 * CHUNK), content(2 * CHUNK));
    put(&store, "o", &old).await.unwrap();
    let mut reading = store.read("c", "o", 0, u64::MAX).await.unwrap();
    put(&store, "o", &new).await.unwrap();
    assert_eq!(chunks(&server, bucket).await, 12, "somebody reads the old one");
    let mut all = Vec::new();
    while let Some(chunk) = reading.chunks.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    drop(reading);
    assert_eq!(all, old);
    chunks_are(&server, bucket, 4).await;
    // Two writers at once: the content of the one that lost goes.
    let other = nats(&server);
    let (one, two) = tokio::join!(put(&store, "o", &old), put(&other, "o", &old));
    assert_eq!((one, two), (Ok(()), Ok(())));
    chunks_are(&server, bucket, 8).await;
    let mut dropped = store.write("c", "dropped").await.unwrap();
    dropped.write(vec![1; CHUNK].into()).await.unwrap();
    drop(dropped);
    chunks_are(&server, bucket, 8).await;
    // A reader of another host is told, and given nothing wrong.
    let mut elsewhere = nats(&server).read("c", "o", 0, u64::MAX).await.unwrap();
    store.remove("c", vec!["o".to_owned()]).await.unwrap();
    let told = loop {
        match elsewhere.chunks.next().await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(told, Some(Err(BackendError::Damaged { .. }))), "{told:?}");
}

/// At whatever moment nobody waits for the end of a write any more, the object is the old one or the new one, whole.
#[tokio::test]
async fn a_write_that_nobody_waits_for_leaves_no_damaged_object() {
    let server = NatsServer::start();
    let store = nats(&server);
    store.create("c").await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for polls in 1.. {
        let (old, new) = (content(CHUNK), content(CHUNK + polls));
        put(&store, "o", &old).await.unwrap();
        let mut upload = store.write("c", "o").await.unwrap();
        for chunk in new.chunks(CHUNK) {
            upload.write(chunk.to_vec().into()).await.unwrap();
        }
        let (mut finish, mut left) = (upload.finish(), polls);
        let ended = std::future::poll_fn(|cx| {
            left -= 1;
            match finish.as_mut().poll(cx) {
                std::task::Poll::Pending if left > 0 => std::task::Poll::Pending,
                polled => std::task::Poll::Ready(polled.is_ready()),
            }
        });
        let ended = ended.await;
        drop(finish);
        // What is removed for it is removed meanwhile.
        for _ in 0..20 {
            let found = get(&store, "o").await.unwrap();
            assert!(found == old || found == new, "after {polls} polls");
            seen.insert(found == new);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if ended {
            break;
        }
    }
    assert_eq!(seen.len(), 2, "dropped too early and too late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_keeps_what_was_acknowledged_and_shows_no_half() {
    let mut server = NatsServer::start();
    let store = nats(&server);
    store.create("c").await.unwrap();
    for round in 0..3_u8 {
        let kept = vec![round; 5 * CHUNK];
        put(&store, "kept", &kept).await.unwrap();
        let mut half = store.write("c", "kept").await.unwrap();
        half.write(vec![255; CHUNK].into()).await.unwrap();
        let restart = server.kill();
        let began = Instant::now();
        let written = async {
            for _ in 0..20 {
                half.write(vec![255; CHUNK].into()).await?;
            }
            half.finish().await
        };
        let lost = written.await.unwrap_err();
        assert!(matches!(lost, BackendError::Unavailable(_)), "{lost:?}");
        assert!(began.elapsed() < 90 * SECOND);
        server = restart();
        let start = Instant::now();
        let found = loop {
            match get(&store, "kept").await {
                Ok(found) => break found,
                Err(cause) => assert!(start.elapsed() < 60 * SECOND, "not found again: {cause}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(found == kept, "round {round}");
        assert_eq!(store.list("c", None).await.unwrap().names, ["kept"]);
    }
}

#[tokio::test]
async fn a_server_that_hangs_ends_in_an_error_in_time_and_is_found_again() {
    let server = NatsServer::start();
    let store = nats(&server);
    store.create("c").await.unwrap();
    put(&store, "o", b"kept").await.unwrap();
    server.signal("-STOP");
    let start = Instant::now();
    for failed in
        [get(&store, "o").await.err(), put(&store, "o", b"new").await.err(), store.list("c", None).await.err()]
    {
        let expected = matches!(failed, Some(BackendError::TimedOut { .. } | BackendError::Unavailable(_)));
        assert!(expected, "{failed:?}");
    }
    assert!(start.elapsed() < 120 * SECOND);
    server.signal("-CONT");
    let start = Instant::now();
    while let Err(cause) = get(&store, "o").await {
        assert!(start.elapsed() < 60 * SECOND, "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let server = NatsServer::with("authorization { users: [{ user: ann, password: right }] }");
    let as_ann = |password: &str| {
        let who = Credentials::User { user: "ann".into(), password: password.to_owned().into() };
        let client = client(&server.url(), Some(who), public_roots(), Direct::to(server.address));
        of(client, ("acme", "shop", "objects"), None)
    };
    let store = as_ann("right");
    store.create("c").await.unwrap();
    put(&store, "o", b"x").await.unwrap();
    let denied = get(&as_ann("wrong"), "o").await.unwrap_err();
    assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
    // Revoked while it is connected.
    server.reload("authorization { users: [{ user: ann, password: other }] }");
    let start = Instant::now();
    loop {
        match get(&store, "o").await {
            Err(BackendError::Denied(_)) => break,
            other => assert!(start.elapsed() < 60 * SECOND, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.reload("authorization { users: [{ user: ann, password: right }] }");
    let start = Instant::now();
    while let Err(cause) = get(&store, "o").await {
        assert!(start.elapsed() < 60 * SECOND, "not let in again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let none = NatsServer::with("jetstream: disabled");
    let refused = nats(&none).check().await.unwrap_err();
    assert!(refused.to_string().contains("no JetStream"), "{refused}");
    // A container removed by somebody else is said, and one made anew is found.
    let server = NatsServer::start();
    let (one, two): (Arc<dyn Backend>, Arc<dyn Backend>) = (Arc::new(nats(&server)), Arc::new(nats(&server)));
    one.create("c").await.unwrap();
    put(&*one, "o", b"x").await.unwrap();
    two.delete("c").await.unwrap();
    assert_eq!(put(&*one, "o", b"x").await, Err(BackendError::NoContainer("c".to_owned())));
    two.create("c").await.unwrap();
    put(&*one, "o", b"y").await.unwrap();
    assert_eq!(get(&*two, "o").await.unwrap(), b"y");
}
