//! What a task reaches: registries, links, the network of its group; and what it is told where it does not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use model::Digest;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{Claims, sign};
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::network_isolation_spec::Mode;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{DnsConfig, NetworkIsolationSpec};
use plugin::error::is_recoverable;
use serde_json::{Value, json};

use crate::agent::{Agent, Alloc, guest};
use crate::nameserver::{Nameserver, Reply};
use crate::namespace::Namespace;
use crate::registry::Shop;
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
    // Agents collect the logs of each run anew.
    alloc.read();
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 4);
    alloc.ended().await;
    assert_eq!(*alloc.stdout.lock().unwrap(), "[\"shop\", \"args\", \"exit:4\"]\n");
    agent.destroy(alloc.id(), true).await.unwrap();
    // What it sent once needs it no more: a task that ends while it is away starts again.
    registry.end();
    alloc.next_id();
    configure(&agent, &mut alloc, &json!({"component": pinned, "http": http}));
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
    // A registry that is away may come back.
    alloc.next_id();
    configure(&agent, &mut alloc, &json!({"component": other, "http": http}));
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(is_recoverable(&refused) && refused.message().contains("cannot bring"), "{refused}");
    assert!(agent.left().is_empty());
}

/// 30: registries are reached by the proxy of the agent's environment, known by its certificates, and told its user's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_is_reached_as_the_agent_s_environment_says() {
    let made = rcgen::generate_simple_self_signed(["registry.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let shop = Shop::of(&std::fs::read(guest("hello")).unwrap());
    shop.closed.store(true, SeqCst);
    let proxy = format!("http://{}", shop.behind_proxy(Arc::new(tls)));
    let dir = tempfile::tempdir().unwrap();
    let (authority, docker) = (dir.path().join("ca.pem"), dir.path().join("config.json"));
    let base64 = data_encoding::BASE64.encode(made.cert.der());
    std::fs::write(&authority, format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")).unwrap();
    let credentials = data_encoding::BASE64.encode(b"shopper:secret");
    // Another one is on this machine, where no proxy leads, and wants a name too.
    let near = Shop::of(&std::fs::read(guest("probe")).unwrap());
    near.closed.store(true, SeqCst);
    let at = near.open().to_string();
    let auth = json!({"auth": credentials});
    std::fs::write(docker, json!({"auths": {"registry.example": auth, at.as_str(): auth}}).to_string()).unwrap();
    let env = [
        ("HTTPS_PROXY", proxy.as_str()),
        ("SSL_CERT_FILE", authority.to_str().unwrap()),
        ("DOCKER_CONFIG", dir.path().to_str().unwrap()),
        ("NO_PROXY", "other.example"),
    ];
    let mut agent = Agent::within(&env, json!({"allow_unsigned": true})).await;
    let mut alloc = agent.alloc("proxied", "hello");
    let http = json!({"port": "http"});
    configure(&agent, &mut alloc, &json!({"component": shop.pinned("registry.example"), "http": http}));
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
    let asked = std::mem::take(&mut *shop.connected.lock().unwrap());
    assert!(
        !asked.is_empty() && asked.iter().all(|head| head.starts_with("CONNECT registry.example:443 ")),
        "{asked:?}"
    );
    assert_eq!(*shop.credentials.lock().unwrap(), format!("Basic {credentials}"));
    alloc.next_id();
    let other = format!("other.example/shop@{}", Digest::of(b"another one"));
    configure(&agent, &mut alloc, &json!({"component": other, "http": http}));
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(is_recoverable(&refused) && refused.message().contains("cannot bring"), "{refused}");
    assert_eq!(shop.connected.lock().unwrap().len(), 0, "it is asked directly");
    alloc.next_id();
    configure(&agent, &mut alloc, &json!({"component": near.pinned(at), "http": http}));
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    assert_eq!(*near.credentials.lock().unwrap(), format!("Basic {credentials}"));
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// 11, 30: credentials may be in the care of a helper, which is asked by its protocol; one that has failed may come back. Who has none
/// at all is refused, and is not tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_the_helper_that_the_configuration_names() {
    let shop = Shop::of(&std::fs::read(guest("hello")).unwrap());
    shop.closed.store(true, SeqCst);
    let at = shop.open().to_string();
    let dir = tempfile::tempdir().unwrap();
    let helper = |text: &str| {
        let path = dir.path().join("docker-credential-shop");
        std::fs::write(path.with_extension("new"), format!("#!/bin/sh\n{text}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path.with_extension("new"), mode).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    };
    let docker = |config: Value| std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let env = [("PATH", path.as_str()), ("DOCKER_CONFIG", dir.path().to_str().unwrap())];
    let mut agent = Agent::within(&env, json!({"allow_unsigned": true})).await;
    let mut alloc = agent.alloc("helped", "hello");
    let http = json!({"port": "http"});
    configure(&agent, &mut alloc, &json!({"component": shop.pinned(&at), "http": http}));
    docker(json!({"auths": {}}));
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("[forbidden] (log in there") && !is_recoverable(&refused), "{refused}");
    docker(json!({"credHelpers": {at.as_str(): "shop"}}));
    helper("echo out of order; exit 1");
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    let why = "docker-credential-shop, which the docker configuration names for";
    assert!(refused.message().contains(why) && refused.message().contains("out of order"), "{refused}");
    assert!(is_recoverable(&refused), "{refused}");
    let answer = json!({"ServerURL": at.as_str(), "Username": "shopper", "Secret": "secret"});
    helper(&format!("[ \"$1\" = get ] && [ \"$(cat)\" = {at} ] && [ -n \"$HOME\" ] && echo '{answer}'"));
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    let basic = data_encoding::BASE64.encode(b"shopper:secret");
    assert_eq!(*shop.credentials.lock().unwrap(), format!("Basic {basic}"));
    agent.destroy(alloc.id(), true).await.unwrap();
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

/// What a call and an instance may use is the job's to say, where the `resources` block grants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_the_limits_of_its_job() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("limits", "probe");
    for (limits, said) in [
        (json!({"cpu": "100ms"}), "its 100ms of CPU time"),
        (json!({"wall": "20s", "cpu": "400ms", "concurrency": "8"}), "its 400ms of CPU time"),
    ] {
        let config = json!({"component": "local/app.wasm", "http": {"port": "http"}, "limits": limits});
        configure(&agent, &mut alloc, &config);
        alloc.stderr.lock().unwrap().clear();
        agent.start_task(&alloc.config).await.unwrap();
        assert!(alloc.get("/spin").await.unwrap().0 >= 500);
        let err = alloc.stderr.clone();
        crate::agent::until("a line of the platform's", || err.lock().unwrap().contains(said)).await;
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
        alloc.read();
    }
}

/// 23: a service finds the variables it was granted in its environment, and no other; `wasi:config` answers with them too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_the_environment_that_its_job_grants() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("environment", "probe");
    alloc.config.env.insert("NOMAD_REGION".into(), "global".into());
    let http = json!({"port": "http"});
    for (env, seen) in [
        (json!(["NOMAD_REGION"]), "variables: 1\narguments: 0\nNOMAD_REGION"),
        (json!([]), "variables: 0\narguments: 0\n"),
    ] {
        let settings = json!({"colour": "teal"});
        let config = json!({"component": "local/app.wasm", "http": http, "env": env, "settings": settings});
        configure(&agent, &mut alloc, &config);
        let handle = agent.start_task(&alloc.config).await.unwrap();
        assert_eq!(alloc.get("/env").await.unwrap(), (200, seen.to_owned()));
        let status = if env == json!([]) { 404 } else { 200 };
        assert_eq!(alloc.get("/config?key=NOMAD_REGION").await.unwrap().0, status);
        assert_eq!(alloc.get("/config?key=colour").await.unwrap(), (200, "teal".to_owned()));
        // What is granted may be a secret, and is in nobody's process.
        let host = crate::agent::host_of(crate::agent::pid_of(&handle));
        let environ = String::from_utf8_lossy(&std::fs::read(format!("/proc/{host}/environ")).unwrap()).into_owned();
        assert!(environ.contains("MIMALLOC") && !environ.contains("global"), "{environ}");
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
        alloc.read();
    }
}

/// An address of the network in there beside its loopback.
const INSIDE: &str = "10.213.77.2";

/// Whoever answers in there at this address.
fn inner(namespace: &Namespace, address: &str) -> SocketAddr {
    let address = address.to_owned();
    let inner = namespace.inside(move || TcpListener::bind(address).unwrap());
    let at = inner.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = inner.accept() {
            let mut head = [0; 1024];
            drop(stream.read(&mut head));
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\ninside"));
        }
    });
    at
}

fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(60)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// 25: the task listens in the network of its group, and what it connects to is there too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_lives_in_the_network_of_its_group() {
    let Some(namespace) = Namespace::new("tasks in a network namespace", &[INSIDE]) else { return };
    // Somebody who can be reached in there alone, at a port that the job names and at another one.
    let (at, other) = (inner(&namespace, "127.0.0.1:0"), inner(&namespace, "127.0.0.1:0"));
    let own = inner(&namespace, &format!("{INSIDE}:0"));
    let sockets = namespace.inside(|| {
        let address = ("127.0.0.53", 53);
        (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
    });
    // Takes questions, and answers none.
    let _silent = namespace.inside(|| UdpSocket::bind(("127.0.0.52", 53)).unwrap());
    let nameserver = Nameserver::on(sockets, |name, _| match name {
        "inner.eu.corp.example" => Reply::has(&["127.0.0.1"]),
        _ => Reply::NoSuchName,
    });
    // The loopback of a group's network is the group's: what the job names there takes no grant of the client's.
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("netns", "probe");
    let (there, named) = (format!("http://{at}"), format!("http://inner.eu:{}", at.port()));
    let (by_its_address, elsewhere) = (format!("http://{own}"), format!("http://inner.eu:{}", other.port()));
    let hosts = [&there, &named, &by_its_address, &elsewhere];
    configure(
        &agent,
        &mut alloc,
        &json!({"component": "local/app.wasm", "http": {"port": "http"}, "allow_hosts": hosts}),
    );
    alloc.config.resources.as_mut().unwrap().ports[0].to = 8080;
    alloc.config.network_isolation_spec = Some(NetworkIsolationSpec {
        mode: Mode::Group.into(),
        path: namespace.path(),
        ..NetworkIsolationSpec::default()
    });
    // The first server is silent, and the name is completed.
    alloc.config.dns = Some(DnsConfig {
        servers: vec!["127.0.0.52".into(), "127.0.0.53".into()],
        searches: vec!["corp.example".into()],
        options: vec!["ndots:2".into()],
    });
    agent.start_task(&alloc.config).await.unwrap();
    let task: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let (url, by_name) = (format!("/fetch?url={there}/"), format!("/fetch?url={named}/"));
    let named = namespace.inside(move || ask(task, &by_name));
    assert!(named.as_ref().is_some_and(|answer| answer.contains("inside")), "it asks inside: {named:?}");
    // Once, and again where the machine was too slow for the answer.
    assert!(nameserver.asked("inner.eu.corp.example") > 0 && nameserver.asked("inner.eu") == 0);
    let answer = namespace.inside(move || (ask(task, "/"), ask(task, &url)));
    assert!(answer.0.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "{answer:?}");
    assert!(answer.1.as_ref().is_some_and(|answer| answer.contains("inside")), "it dials inside: {answer:?}");
    let url = format!("/fetch?url={by_its_address}/");
    let answer = namespace.inside(move || ask(task, &url));
    assert!(answer.as_ref().is_some_and(|answer| answer.contains("inside")), "at its own address: {answer:?}");
    // Whoever owns a name may let it point where he likes.
    let url = format!("/fetch?url={elsewhere}/");
    let answer = namespace.inside(move || ask(task, &url));
    assert!(answer.as_ref().is_some_and(|answer| !answer.contains("inside")), "a port nobody names: {answer:?}");
    // A group's network may be one of IPv6 alone.
    let six: SocketAddr = "[::1]:8080".parse().unwrap();
    match namespace.inside(|| UdpSocket::bind("[::1]:0").is_ok()) {
        true => {
            let answer = namespace.inside(move || ask(six, "/"));
            assert!(answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "{answer:?}");
        }
        false => crate::not_run("tasks in a network of IPv6: this machine has none"),
    }
    assert!(alloc.get("/").await.is_err(), "nothing listens on the machine's own network");
    agent.destroy(alloc.id(), true).await.unwrap();
    // A registry is asked from the machine's own network, where this one is.
    alloc.next_id();
    let registry = Server::registry();
    let pinned = registry.push(&std::fs::read(guest("probe")).unwrap());
    configure(&agent, &mut alloc, &json!({"component": pinned, "http": {"port": "http"}}));
    agent.start_task(&alloc.config).await.unwrap();
    let answer = namespace.inside(move || ask(task, "/"));
    assert!(answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "{answer:?}");
    agent.destroy(alloc.id(), true).await.unwrap();
    // A namespace that is gone: the agent makes another one.
    alloc.next_id();
    drop(namespace);
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("cannot open the network") && is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty());
}
