//! What a task reaches: registries, links, the network of its group; and what it is told where it does not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::NetworkIsolationSpec;
use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::network_isolation_spec::Mode;
use drivers::plugin::error::is_recoverable;
use model::Digest;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{Claims, sign};
use serde_json::{Value, json};

use crate::agent::{Agent, Alloc, guest};
use crate::servers::Server;

fn configure(agent: &Agent, alloc: &mut Alloc, config: &Value) {
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, config).unwrap();
}

/// 30: a component of a registry, pinned by its digest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_comes_from_a_registry_by_its_digest() {
    let mut registry = Server::registry();
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("oci", "hello");
    let pinned = registry.push(&std::fs::read(guest("hello")).unwrap());
    let http = json!({"port": "http"});
    configure(&agent, &mut alloc, &json!({"component": pinned, "http": http}));
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();

    // A digest that was never published will not be there the next time either.
    let other = format!("{}/shop@{}", registry.addr, Digest::of(b"something else"));
    alloc.next_id();
    configure(&agent, &mut alloc, &json!({"component": other, "http": http}));
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(
        refused.message().contains("does not have") && refused.message().contains("[artifact-missing]"),
        "{refused}"
    );
    assert!(!is_recoverable(&refused), "{refused}");
    // A program of a registry is called by its repository's name.
    let program = registry.push(&std::fs::read(guest("batch")).unwrap());
    configure(&agent, &mut alloc, &json!({"component": program, "args": ["args", "exit:4"]}));
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 4);
    alloc.ended().await;
    assert_eq!(*alloc.stdout.lock().unwrap(), "[\"shop\", \"args\", \"exit:4\"]\n");
    agent.destroy(alloc.id(), true).await.unwrap();
    // A registry that is away may come back.
    registry.end();
    alloc.next_id();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(is_recoverable(&refused) && refused.message().contains("cannot bring"), "{refused}");
    assert!(agent.left().is_empty());
}

/// 11: whoever vouches for the component must be one the operator trusts, and for these bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_a_trusted_account_signed_runs() {
    let key = |seed| KeyPair::from_entropy(KeyKind::Account, [seed; 32]);
    let subject = KeyPair::from_entropy(KeyKind::Module, [9; 32]).public();
    let mut agent = Agent::with(json!({"trust_anchors": [key(1).public_key()]})).await;
    let alloc = agent.alloc("signed", "hello");
    let plain = std::fs::read(guest("hello")).unwrap();
    let signed = |seed, change: fn(&mut Claims)| {
        let mut claims = Claims::new("hello", &subject, "1", 1);
        change(&mut claims);
        sign(&plain, claims, &key(seed)).unwrap()
    };
    let mut tampered = signed(1, |_| ());
    let at = tampered.windows(5).position(|bytes| bytes == b"hello").unwrap();
    tampered[at] = b'j';
    for (bytes, code) in [
        (plain.clone(), "artifact-unsigned"),
        (signed(2, |_| ()), "issuer-untrusted"),
        (signed(1, |claims| claims.expires = Some(2)), "artifact-expired"),
        (tampered, "artifact-tampered"),
    ] {
        std::fs::write(alloc.task_dir().join("local/app.wasm"), bytes).unwrap();
        let refused = agent.start_task(&alloc.config).await.unwrap_err();
        assert!(refused.message().contains(&format!("[{code}]")) && !is_recoverable(&refused), "{code}: {refused}");
        assert!(agent.left().is_empty());
    }
    std::fs::write(alloc.task_dir().join("local/app.wasm"), signed(1, |_| ())).unwrap();
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// A link to a Redis whose password a `template` wrote: what it needs, it says; what is away may come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_reaches_its_server_with_a_secret_of_the_task() {
    const PASSWORD: &str = "correct-horse";
    let mut redis = Server::redis(PASSWORD);
    let mut agent = Agent::with(json!({"allow_unsigned": true, "egress": ["127.0.0.0/8"]})).await;
    let mut alloc = agent.alloc("redis", "kv-counter");
    let secret = alloc.task_dir().join("secrets/redis");
    let link = json!({"provider": "redis", "url": format!("redis://{}", redis.addr), "secret_files": {"password": "secrets/redis"}});
    let config = json!({"component": "local/app.wasm", "http": {"port": "http"}, "link": {"wasi:keyvalue": link}});
    configure(&agent, &mut alloc, &config);
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("[secret-missing]") && !is_recoverable(&refused), "{refused}");
    std::fs::write(&secret, "wrong\n").unwrap();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("[provider-unavailable]") && is_recoverable(&refused), "{refused}");
    assert!(!refused.message().contains("wrong\n"), "{refused}");
    std::fs::write(&secret, format!("{PASSWORD}\n")).unwrap();
    for run in 0..2 {
        agent.start_task(&alloc.config).await.unwrap();
        for call in 1..=2 {
            let (status, body) = alloc.get("/").await.unwrap();
            assert_eq!(status, 200, "{body}");
            assert!(body.contains(&(run * 2 + call).to_string()), "{body}");
        }
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
    }
    redis.end();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("[provider-unavailable]") && is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty());
}

/// A trap and a call that only computes cost that call, and not the task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_fails_is_one_call() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("faults", "probe");
    agent.start_task(&alloc.config).await.unwrap();
    for (path, status, said) in [("/trap", 502, "trapped"), ("/spin", 503, "CPU time")] {
        let answer = alloc.get(path).await.unwrap();
        assert!(answer.0 >= 500, "{path} answers {answer:?}, not like {status}");
        let err = alloc.stderr.clone();
        crate::agent::until("a line of the platform's", || err.lock().unwrap().contains(said)).await;
        assert_eq!(alloc.get("/").await.unwrap().0, 200, "after {path}");
    }
    agent.stop(alloc.id(), Duration::from_secs(5), "").await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 0);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// A network namespace as an agent makes one for a group, with its loopback up.
struct Namespace(String);

impl Namespace {
    fn new() -> Option<Self> {
        let name = format!("sidereal-test-{}", std::process::id());
        let ip = |args: &[&str]| Command::new("ip").args(args).output().is_ok_and(|output| output.status.success());
        ip(&["netns", "add", &name]).then_some(())?;
        let made = Self(name);
        ip(&["-n", &made.0, "link", "set", "lo", "up"]).then_some(made)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs something inside.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.path();
        let thread = std::thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).unwrap();
            work()
        });
        thread.join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "delete", &self.0]).output());
    }
}

fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// 25: the task listens in the network of its group, and what it connects to is there too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_lives_in_the_network_of_its_group() {
    let Some(namespace) = Namespace::new() else {
        crate::not_run("tasks in a network namespace: this user cannot make one with `ip netns`");
        return;
    };
    // Somebody who can be reached in there alone.
    let inner = namespace.inside(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let at = inner.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = inner.accept() {
            let mut head = [0; 1024];
            drop(stream.read(&mut head));
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\ninside"));
        }
    });
    let mut agent = Agent::with(json!({"allow_unsigned": true, "egress": ["127.0.0.0/8"]})).await;
    let mut alloc = agent.alloc("netns", "probe");
    let there = format!("http://{at}");
    configure(
        &agent,
        &mut alloc,
        &json!({"component": "local/app.wasm", "http": {"port": "http"}, "allow_hosts": [there]}),
    );
    alloc.config.resources.as_mut().unwrap().ports[0].to = 8080;
    alloc.config.network_isolation_spec = Some(NetworkIsolationSpec {
        mode: Mode::Group.into(),
        path: namespace.path(),
        ..NetworkIsolationSpec::default()
    });
    agent.start_task(&alloc.config).await.unwrap();
    let task: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let url = format!("/fetch?url={there}/");
    let answer = namespace.inside(move || (ask(task, "/"), ask(task, &url)));
    assert!(answer.0.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "{answer:?}");
    assert!(answer.1.as_ref().is_some_and(|answer| answer.contains("inside")), "it dials inside: {answer:?}");
    assert!(alloc.get("/").await.is_err(), "nothing listens on the machine's own network");
    agent.destroy(alloc.id(), true).await.unwrap();
    // A namespace that is gone: the agent makes another one.
    alloc.next_id();
    drop(namespace);
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("cannot open the network") && is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty());
}
