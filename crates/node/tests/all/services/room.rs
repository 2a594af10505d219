//! What a host costs the node: little, whatever it asks and leaves unread.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_reads_no_answer_and_ends_no_call_takes_little_and_holds_up_nobody_else() {
    let rig = Rig::new().await;
    let (greedy, other) = (running("greedy"), running("other"));
    rig.services.messaging.declare(&greedy.name, &scope().app, &node::messaging::declared(&watching()));
    let (way, _theirs) = rig.host(&greedy);
    let kv = KvClient::new(way, Duration::from_secs(20));
    kv.call(&scope(), &KvWrite::Set { key: "large".into(), value: vec![7; 4 << 20] }.into()).await.unwrap();
    drop(kv);
    let (first, server) = UnixStream::pair().unwrap();
    let client = Client { tenant: greedy.clone(), shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    let _served = AbortOnDrop(tokio::spawn(serve(server, client, rig.services.clone())));
    let mut first = first;
    let mut wire = bytes::BytesMut::new();
    codec::encode(&Hello::More, &mut wire).unwrap();
    first.write_all(&wire).await.unwrap();
    let _measures = MEASURES.lock().await;
    let before = resident();
    let mut held = tokio::task::JoinSet::new();
    for n in 0..80 {
        let mut stream = raw(&mut first).await;
        held.spawn(async move {
            let mut wire = bytes::BytesMut::new();
            codec::encode(&Hello::KeyValue, &mut wire).unwrap();
            let of_keys = |id, keys| KvCall { id, scope: scope(), op: KvOp::GetMany { keys } };
            let telling = |id, tell| KvCall { id, scope: scope(), op: KvOp::Write { write: set("told"), tell } };
            if n % 16 == 0 {
                // A call of twenty million keys, a byte each.
                wire.extend_from_slice(&with_list(&of_keys(1, Vec::new()), 20_000_000, &[0]));
                // Refused, now or once it has room: the connection ends.
                drop(stream.write_all(&wire).await);
                wire = bytes::BytesMut::new();
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 4 {
                // Calls of one byte over and over, each of which might hold the rest.
                let mut call = bytes::BytesMut::new();
                codec::encode(&of_keys(1, Vec::new()), &mut call).unwrap();
                let head = call.get(4..call.len() - 2).unwrap();
                wire.extend_from_slice(&u32::try_from(head.len() + (1 << 20)).unwrap().to_le_bytes());
                wire.extend_from_slice(head);
                wire.resize(wire.len() + (1 << 20), u8::try_from(n / 16 + 7).unwrap());
                drop(stream.write_all(&wire).await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 8 {
                // A write that tells nobody of nothing, six million times.
                wire.extend_from_slice(&with_list(&telling(1, Vec::new()), 6_000_000, &[0; 3]));
                drop(stream.write_all(&wire).await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 12 {
                // One that tells whoever watches of 19 million keys.
                let told = [&[15], WATCH.as_bytes(), &[0x80, 0x08], &[0; 1024], &[0]].concat();
                wire.extend_from_slice(&with_list(&telling(1, Vec::new()), 19_000, &told));
                drop(stream.write_all(&wire).await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            } else if n % 16 == 6 {
                // As many keys as a write may tell of, and more of it than the queue has room for.
                for id in 0..200 {
                    codec::encode(&telling(id, tells(16)), &mut wire).unwrap();
                }
                stream.write_all(&wire).await.unwrap();
            } else if n % 4 == 1 {
                // Many of as many keys as one may have, in frames of a little more than a KiB.
                for id in 0..4000 {
                    codec::encode(&of_keys(id, vec![String::new(); 1024]), &mut wire).unwrap();
                }
                stream.write_all(&wire).await.unwrap();
            } else if n % 4 == 2 {
                // Answers of 800 MiB, of which none is read.
                for id in 0..200 {
                    let call = KvCall { id, scope: scope(), op: KvOp::Get { key: "large".into() } };
                    codec::encode(&call, &mut wire).unwrap();
                }
                stream.write_all(&wire).await.unwrap();
            } else {
                // A call of 19 MiB that lacks its last byte.
                wire.extend_from_slice(&(19u32 << 20).to_le_bytes());
                stream.write_all(&wire).await.unwrap();
                let part = vec![0; 1 << 20];
                for _ in 0..18 {
                    stream.write_all(&part).await.unwrap();
                }
            }
            // What was sent is not the node's.
            drop(wire);
            std::future::pending::<()>().await;
        });
    }
    let (way, _theirs) = rig.host(&other);
    let kv = KvClient::new(way, Duration::from_secs(20));
    let (mut most, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(2) {
        tokio::time::timeout(Duration::from_secs(60), kv.call(&scope(), &increment("n"))).await.unwrap().unwrap();
        most = most.max(resident().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("at most {} MiB more", most >> 20);
    // With what the hosts of this test have in hand themselves; what they ask for would be many GiB.
    assert!(most < 900 << 20, "{} MiB", most >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_has_told_of_takes_room_also_when_it_has_hung_up() {
    let rig = Rig::new().await;
    let (greedy, other) = (running("greedy"), running("other"));
    let (mut first, server) = UnixStream::pair().unwrap();
    let client = Client { tenant: greedy, shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    let _served = AbortOnDrop(tokio::spawn(serve(server, client, rig.services.clone())));
    let mut calls = bytes::BytesMut::new();
    codec::encode(&Hello::More, &mut calls).unwrap();
    first.write_all(&calls).await.unwrap();
    calls.clear();
    codec::encode(&Hello::KeyValue, &mut calls).unwrap();
    for id in 0..60 {
        let write = KvWrite::Set { key: format!("k{id}"), value: vec![7; 1 << 20] };
        let tell = vec![KvTell { group: "x".into(), keys: Vec::new(), trace: None }];
        codec::encode(&KvCall { id, scope: scope(), op: KvOp::Write { write, tell } }, &mut calls).unwrap();
    }
    // No frame begins so: the node ends the connection, and the host has the next one at once.
    calls.extend_from_slice(&[0xff; 4]);
    let _measures = MEASURES.lock().await;
    let before = resident();
    let _greedy = AbortOnDrop(tokio::spawn(async move {
        loop {
            let mut stream = raw(&mut first).await;
            drop(stream.write_all(&calls).await);
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
    }));
    let (way, _theirs) = rig.host(&other);
    let kv = KvClient::new(way, Duration::from_secs(20));
    let (mut most, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(5) {
        tokio::time::timeout(Duration::from_secs(60), kv.call(&scope(), &increment("n"))).await.unwrap().unwrap();
        most = most.max(resident().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("at most {} MiB more", most >> 20);
    // With what the hosts of this test have in hand themselves; what they ask for would be many GiB.
    assert!(most < 900 << 20, "{} MiB", most >> 20);
}
