//! What the operator of a client says of all its tasks: whose components do not run, what jobs may ask for, what a task may keep.

use model::Digest;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{Claims, sign};
use plugin::error::is_recoverable;
use serde_json::json;

use crate::agent::{Agent, guest};
use crate::block::block;

/// 11: a component that its publisher signed, and that turned out bad, starts no more: by its digest, its key, its token or its
/// publisher, and no other one is touched by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_operator_revoked_does_not_start() {
    let publisher = KeyPair::from_entropy(KeyKind::Account, [1; 32]);
    let subject = KeyPair::from_entropy(KeyKind::Module, [9; 32]).public();
    let plain = std::fs::read(guest("hello")).unwrap();
    let claims = Claims::new("hello", &subject, "1", 1);
    let token = claims.id.clone();
    let signed = sign(&plain, claims, &publisher).unwrap();
    let other = Digest::of(b"another one").to_string();
    for (revoked, runs) in [
        (other, true),
        (Digest::of(&signed).to_string(), false),
        (subject.to_string(), false),
        (token, false),
        (publisher.public_key(), false),
    ] {
        let mut agent = Agent::with(json!({"trust_anchors": [publisher.public_key()], "revoked": [revoked]})).await;
        let alloc = agent.alloc("revoked", "hello");
        std::fs::write(alloc.task_dir().join("local/app.wasm"), &signed).unwrap();
        match agent.start_task(&alloc.config).await {
            Ok(_) => {
                assert!(runs, "{revoked}");
                assert_eq!(alloc.get("/").await.unwrap().0, 200);
                agent.destroy(alloc.id(), true).await.unwrap();
            }
            Err(refused) => {
                let said = refused.message().contains("[artifact-revoked]") && !is_recoverable(&refused);
                assert!(!runs && said, "{revoked}: {refused}");
            }
        }
        assert!(agent.left().is_empty());
    }
}

/// 26: no job may ask for more than the operator lets it, and what it does not ask for stays within that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_has_no_more_than_the_ceilings_of_its_client() {
    let mut agent = Agent::with(json!({"allow_unsigned": true, "ceilings": {"cpu": "100ms", "memory": "16MiB"}})).await;
    let mut alloc = agent.alloc("ceilings", "probe");
    let asks = |limits| json!({"component": "local/app.wasm", "http": {"port": "http"}, "limits": limits});
    alloc.config.msgpack_driver_config = block(&agent.schema, &asks(json!({"cpu": "200ms"}))).unwrap();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("write 10ms to 100ms") && !is_recoverable(&refused), "{refused}");
    alloc.config.msgpack_driver_config = block(&agent.schema, &asks(json!({}))).unwrap();
    agent.start_task(&alloc.config).await.unwrap();
    assert!(alloc.get("/spin").await.unwrap().0 >= 500);
    let err = alloc.stderr.clone();
    crate::agent::until("a line of the platform's", || err.lock().unwrap().contains("its 100ms of CPU time")).await;
    agent.destroy(alloc.id(), true).await.unwrap();

    // A program computes as long as it likes, in the memory that there is.
    let mut program = agent.alloc("program", "batch");
    for (steps, code) in [(["eat:4", "spin:500"], 0), (["eat:64", "spin:0"], 134)] {
        let config = json!({"component": "local/app.wasm", "args": steps});
        program.config.msgpack_driver_config = block(&agent.schema, &config).unwrap();
        agent.start_task(&program.config).await.unwrap();
        assert_eq!(agent.wait(program.id()).await.unwrap().exit_code, code, "{steps:?}");
        agent.destroy(program.id(), true).await.unwrap();
        program.next_id();
        program.read();
    }
}

/// A job that writes without end fills what one task may keep, and nothing of anybody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_keeps_no_more_than_its_client_lets_it() {
    let mut agent = Agent::with(json!({"allow_unsigned": true, "store_bytes": "1MiB"})).await;
    let link = json!({"wasi:keyvalue": {"provider": "embedded"}});
    let config = json!({"component": "local/app.wasm", "http": {"port": "http"}, "link": link});
    let config = block(&agent.schema, &config).unwrap();
    let mut greedy = agent.alloc("greedy", "kv-probe");
    greedy.config.msgpack_driver_config = config.clone();
    agent.start_task(&greedy.config).await.unwrap();
    let (status, said) = greedy.get("/fill/default/64/65536").await.unwrap();
    assert!(status == 502 && said.contains("over quota"), "{status} {said}");
    // What it has it may read and take away, and then there is room again.
    assert_eq!(greedy.get("/exists/default/fill-00000000").await.unwrap(), (200, "true".to_owned()));
    assert_eq!(greedy.get("/delete/default/fill-00000000").await.unwrap().0, 200);
    assert_eq!(greedy.get("/set/default/small/x").await.unwrap().0, 200);

    let mut next = agent.alloc("next", "kv-probe");
    next.config.msgpack_driver_config = config;
    agent.start_task(&next.config).await.unwrap();
    assert_eq!(next.get("/fill/default/8/65536").await.unwrap().0, 200);
    // Its start anew counts what is there.
    agent.destroy(greedy.id(), true).await.unwrap();
    greedy.next_id();
    greedy.read();
    agent.start_task(&greedy.config).await.unwrap();
    let (status, said) = greedy.get("/fill/default/64/65536").await.unwrap();
    assert!(status == 502 && said.contains("over quota"), "{status} {said}");
    for alloc in [&greedy, &next] {
        agent.destroy(alloc.id(), true).await.unwrap();
    }
    assert!(agent.left().is_empty());
}
