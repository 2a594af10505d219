//! What cannot run under a real agent: what a person reads, and whether it is tried again.

use std::net::TcpListener;

use model::Digest;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{Claims, sign};

use super::cluster::{Cluster, get};
use super::job::Job;
use crate::servers::Server;

/// 8, 11, 30: never again, with a sentence; or again, as the `restart` block says.
#[test]
fn a_real_agent_says_why_a_task_does_not_run() {
    let Some(nomad) = super::nomad("refusals") else { return };
    let cluster = Cluster::start(nomad);
    let registry = Server::registry();
    let published = registry.push(&std::fs::read(crate::agent::guest("hello")).unwrap());
    let absent = format!("{}/shop@{}", registry.addr, Digest::of(b"something else"));
    let away = format!("127.0.0.1:1/shop@{}", Digest::of(b"something"));
    let unrecoverable = "Error was unrecoverable";
    let (again, given_up) = ("Restarting", "Exceeded allowed attempts");
    let all = [
        ("missing", Job::service("hello").component("local/none.wasm"), ["there is no component at", unrecoverable]),
        ("digest", Job::service("hello").component(&absent), ["[artifact-missing]", unrecoverable]),
        ("unknown", Job::service("wants-unknown"), ["import", unrecoverable]),
        ("unlinked", Job::service("kv-counter"), ["wasi:keyvalue", unrecoverable]),
        ("program", Job::service("command"), ["it is a program", unrecoverable]),
        ("outside", Job::service("hello").component("../../etc/passwd"), ["leads out of", unrecoverable]),
        (
            "key",
            Job::service("hello").config("image = \"x\""),
            ["No argument or block type is named", "Failed Validation"],
        ),
        ("text", Job::service("hello").config("allow_hosts = 7"), ["list of string required", "Failed Validation"]),
        ("away", Job::service("hello").component(&away), [again, given_up]),
    ];
    for (name, job, _) in &all {
        cluster.submit(name, &job.clone().restarts(1));
    }
    cluster.submit("published", &Job::service("hello").component(&published));
    for (name, _, said) in &all {
        let alloc = cluster.comes_to(name, "failed");
        let events = cluster.events(&alloc);
        assert!(said.iter().all(|said| events.contains(said)), "{name}, {said:?}: {events}");
    }
    let alloc = cluster.comes_to("published", "running");
    assert_eq!(get(cluster.address(&alloc), "/").unwrap().0, 200, "from a registry by its digest");
    cluster.stop("published");

    // A port that somebody has, for whom no agent accounts, may be free the next time.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let job = Job::service("hello").network(&format!("port \"http\" {{\n static = {port}\n}}"));
    cluster.submit("taken", &job.restarts(10));
    let alloc = cluster.comes_to("taken", "pending");
    cluster.until("it is tried again", |cluster| cluster.events(&alloc).contains("Restarting"));
    assert!(cluster.events(&alloc).contains(&port.to_string()), "{}", cluster.events(&alloc));
    drop(held);
    let alloc = cluster.comes_to("taken", "running");
    assert_eq!(get(cluster.address(&alloc), "/").unwrap().0, 200);
    cluster.stop("taken");
    cluster.until("nothing is left", |cluster| cluster.tasks("main").is_empty());
}

/// 11: a client that trusts one account runs what that one signed, and nothing else.
#[test]
fn a_real_agent_runs_only_what_its_operator_trusts() {
    let Some(nomad) = super::nomad("signatures") else { return };
    let key = |seed| KeyPair::from_entropy(KeyKind::Account, [seed; 32]);
    let subject = KeyPair::from_entropy(KeyKind::Module, [9; 32]).public();
    let mut cluster = Cluster::alone(nomad);
    let config =
        format!("sidereal = \"{}\"\ntrust_anchors = [\"{}\"]", crate::agent::sidereal().display(), key(1).public_key());
    cluster.join("strict", &config);
    cluster.until("the driver is healthy", |cluster| cluster.driver("strict")["Healthy"] == true);
    let plain = std::fs::read(crate::agent::guest("hello")).unwrap();
    let signed = |seed| sign(&plain, Claims::new("hello", &subject, "1", 1), &key(seed)).unwrap();
    let mut tampered = signed(1);
    let at = tampered.windows(5).position(|bytes| bytes == b"hello").unwrap();
    tampered[at] = b'j';
    let job = |name: &str, bytes: &[u8]| {
        let file = cluster.dir().join(name);
        std::fs::write(&file, bytes).unwrap();
        cluster.submit(name, &Job::service(&format!("file{}", file.display())).on("strict").restarts(1));
    };
    let all = [
        ("unsigned", plain.clone(), "artifact-unsigned"),
        ("other", signed(2), "issuer-untrusted"),
        ("tampered", tampered, "artifact-tampered"),
    ];
    for (name, bytes, _) in &all {
        job(name, bytes);
    }
    job("signed", &signed(1));
    for (name, _, code) in &all {
        let events = cluster.events(&cluster.comes_to(name, "failed"));
        assert!(
            events.contains(&format!("[{code}]")) && events.contains("Error was unrecoverable"),
            "{name}: {events}"
        );
    }
    let alloc = cluster.comes_to("signed", "running");
    assert_eq!(get(cluster.address(&alloc), "/").unwrap().0, 200);
    cluster.stop("signed");
}
