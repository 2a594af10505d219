//! Key-value in Consul: a real server of the test's own, with its access rules on; and what happens when it is away.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use model::SecretRef;
use providers::dial::{Caller, DialError};
use providers::keyvalue::conformance::{self, Promises};
use providers::keyvalue::{Backend, BackendError, Consul, consul};
use providers::secrets::Credentials;

use crate::support::{Direct, Scripted, Vault, not_run, plain_http};

const PROMISES: Promises = Promises {
    increments: true,
    max_value: consul::MAX_VALUE,
    max_batch: consul::MAX_BATCH,
    // What is sent is base64.
    max_batch_bytes: 384 << 10,
};

/// The token that may do everything.
const ROOT: &str = "3f9d2f7c-6a4e-4a0e-9f5f-1d0f4f6a0c11";

/// A Consul of one server, killed with the test, or the one that `CONSUL_HTTP_ADDR` names.
pub(crate) struct Server {
    child: Option<(Child, tempfile::TempDir)>,
    url: String,
    pub(crate) address: SocketAddr,
    token: String,
}

impl Server {
    /// `None`, said loudly, where no Consul can be had.
    pub(crate) fn start() -> Option<Self> {
        if let Ok(url) = std::env::var("CONSUL_HTTP_ADDR") {
            let url = if url.contains("://") { url } else { format!("http://{url}") };
            let address = url.rsplit("://").next().unwrap().trim_end_matches('/').parse().unwrap();
            let token = std::env::var("CONSUL_HTTP_TOKEN").unwrap_or_default();
            return Some(Self { child: None, url, address, token });
        }
        let Some(program) = program() else {
            not_run("a real Consul. What was missing: the program `consul` (CONSUL_BIN, or CONSUL_HTTP_ADDR)");
            return None;
        };
        Some(Self::start_at(&program, &[0; 4].map(|_| free_port())))
    }

    fn start_at(program: &PathBuf, ports: &[u16; 4]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [http, server, lan, wan] = ports;
        let config = format!(
            r#"{{"server":true,"bootstrap_expect":1,"bind_addr":"127.0.0.1","client_addr":"127.0.0.1",
            "ports":{{"http":{http},"server":{server},"serf_lan":{lan},"serf_wan":{wan},"dns":-1,"grpc":-1}},
            "disable_update_check":true,"disable_host_node_id":true,"performance":{{"raft_multiplier":1}},
            "acl":{{"enabled":true,"default_policy":"deny","tokens":{{"master":"{ROOT}","agent":"{ROOT}"}}}}}}"#
        );
        let file = dir.path().join("config.json");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(program)
            .args(["agent", "-log-level", "warn", "-config-file"])
            .arg(&file)
            .arg("-data-dir")
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], *http));
        let url = format!("http://{address}");
        let server = Self { child: Some((child, dir)), url, address, token: ROOT.to_owned() };
        let start = Instant::now();
        while !server.leads() {
            assert!(start.elapsed() < Duration::from_secs(60), "consul does not lead at {address}");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Whether it takes a write with its rules in force.
    fn leads(&self) -> bool {
        self.curl("PUT", "/v1/kv/started", "1").is_some_and(|answer| answer.trim() == "true")
    }

    /// A request of the operator's.
    fn curl(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let answer = plain_http(self.address, method, path, ("x-consul-token", &self.token), body);
        answer.filter(|(status, _)| *status == 200).map(|(_, body)| body)
    }

    /// A token with these rules.
    pub(crate) fn token_with(&self, rules: &str) -> String {
        let name = format!("p{}", free_port());
        let body = format!(r#"{{"Name":"{name}","Rules":{}}}"#, serde_json::to_string(rules).unwrap());
        self.curl("PUT", "/v1/acl/policy", &body).unwrap();
        let made = self.curl("PUT", "/v1/acl/token", &format!(r#"{{"Policies":[{{"Name":"{name}"}}]}}"#)).unwrap();
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        made["SecretID"].as_str().unwrap().to_owned()
    }

    /// The token is none any more.
    pub(crate) fn revoke(&self, token: &str) {
        let own = plain_http(self.address, "GET", "/v1/acl/token/self", ("x-consul-token", token), "").unwrap();
        let own: serde_json::Value = serde_json::from_str(&own.1).unwrap();
        let accessor = own["AccessorID"].as_str().unwrap();
        self.curl("DELETE", &format!("/v1/acl/token/{accessor}"), "").unwrap();
    }

    fn of(&self, tenant: &str, app: &str, token: &str, dialer: &Arc<Direct>) -> Consul {
        consul_of(tenant, app, &self.url, token, dialer)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn program() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/servers/consul/usr/bin/consul");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::var_os("CONSUL_BIN")
        .map(PathBuf::from)
        .into_iter()
        .chain(std::env::split_paths(&path).map(|dir| dir.join("consul")))
        .chain([beside])
        .find(|program| program.is_file())
}

fn free_port() -> u16 {
    crate::ports::free().port()
}

pub(crate) fn consul_of(tenant: &str, app: &str, url: &str, token: &str, dialer: &Arc<Direct>) -> Consul {
    let held = Vault::new();
    held.set("consul-token", token);
    consul_with(tenant, app, url, Some(&held).filter(|_| !token.is_empty()), dialer)
}

/// With the token that is held now.
fn consul_with(tenant: &str, app: &str, url: &str, held: Option<&Arc<Vault>>, dialer: &Arc<Direct>) -> Consul {
    let named = held.map(|_| ("token".to_owned(), SecretRef::new("consul-token".parse().unwrap())));
    let held = held.cloned().unwrap_or_else(Vault::new);
    let credentials = Credentials::new(app.parse().unwrap(), named.into_iter().collect(), held);
    let settings = consul::Settings { url, ca: None, prefix: None, credentials };
    let names = (tenant.parse().unwrap(), app.parse().unwrap(), "store".parse().unwrap());
    Consul::new(&names.0, &names.1, &names.2, &settings, dialer.clone()).unwrap()
}

#[tokio::test]
async fn consul_conforms() {
    let Some(server) = Server::start() else { return };
    let dialer = Direct::to(server.address);
    let token = server.token_with(r#"key_prefix "sidereal/acme/shop/" { policy = "write" }"#);
    let consul = server.of("acme", "shop", &token, &dialer);
    consul.check().await.unwrap();
    conformance::run_with(&consul, PROMISES).await.unwrap();
    let asked = dialer.asked.lock().unwrap()[0].clone();
    assert_eq!(asked.caller, Caller::Provider("store".parse().unwrap()));
    assert!(dialer.dials.load(SeqCst) <= 64, "connections are kept: {}", dialer.dials.load(SeqCst));
}

#[tokio::test]
async fn neither_tenants_nor_apps_nor_buckets_meet_in_one_consul() {
    let Some(server) = Server::start() else { return };
    let dialer = Direct::to(server.address);
    let one = server.of("acme", "shop", &server.token, &dialer);
    one.set("b", "k", b"mine".to_vec()).await.unwrap();
    for (tenant, app) in [("acme", "shop-x"), ("acme-shop", "shop"), ("shop", "acme")] {
        let other = server.of(tenant, app, &server.token, &dialer);
        for bucket in ["b", "../shop/b", "acme/shop/b", "x/b", "*", ""] {
            assert_eq!(other.get(bucket, "k").await.unwrap(), None);
            other.delete(bucket, "k").await.unwrap();
            assert!(other.list_keys(bucket, None).await.unwrap().keys.is_empty());
        }
    }
    assert_eq!(one.get("b", "k").await.unwrap(), Some(b"mine".to_vec()));
    one.delete("b", "k").await.unwrap();
}

#[tokio::test]
async fn two_hosts_count_together() {
    let Some(server) = Server::start() else { return };
    let dialer = Direct::to(server.address);
    let hosts = [0; 2].map(|_| server.of("acme", "shop", &server.token, &dialer));
    let calls = (0..100).map(|n| hosts[n % 2].increment("b", "hot", 1));
    let mut sums: Vec<u64> = futures::future::try_join_all(calls).await.unwrap();
    sums.sort_unstable();
    assert!(sums.into_iter().eq(1..=100), "each sees another sum and none is lost");
    hosts[0].delete("b", "hot").await.unwrap();
}

#[tokio::test]
async fn what_the_token_may_not_is_denied() {
    let Some(server) = Server::start() else { return };
    let dialer = Direct::to(server.address);
    let reads = server.token_with(r#"key_prefix "sidereal/acme/" { policy = "read" }"#);
    let unknown = "7b1bdb48-1111-2222-3333-444455556666";
    server.of("acme", "shop", &server.token, &dialer).set("b", "k", b"1".to_vec()).await.unwrap();

    let reader = server.of("acme", "shop", &reads, &dialer);
    assert_eq!(reader.get("b", "k").await.unwrap(), Some(b"1".to_vec()));
    let denied = [
        reader.set("b", "k", b"2".to_vec()).await.unwrap_err(),
        reader.delete("b", "k").await.unwrap_err(),
        reader.increment("b", "k", 1).await.unwrap_err(),
        reader.set_many("b", vec![("k".into(), vec![]), ("l".into(), vec![])]).await.unwrap_err(),
        server.of("acme", "shop", unknown, &dialer).check().await.unwrap_err(),
    ];
    for denied in denied {
        assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
        assert!(!denied.to_string().contains(unknown) && !denied.to_string().contains(&reads), "{denied}");
    }
    assert_eq!(reader.get("b", "k").await.unwrap(), Some(b"1".to_vec()), "nothing was changed");
}

#[tokio::test]
async fn a_token_that_is_set_anew_is_used_at_once() {
    let Some(server) = Server::start() else { return };
    let (dialer, held) = (Direct::to(server.address), Vault::new());
    let consul = consul_with("acme", "shop", &server.url, Some(&held), &dialer);
    let missing = consul.set("b", "k", vec![]).await.unwrap_err();
    assert!(matches!(&missing, BackendError::Denied(why) if why.contains("secret set consul-token")), "{missing:?}");
    // As from a file, with the line break of an editor.
    held.set("consul-token", &format!("{}\n", server.token));
    consul.set("b", "k", b"1".to_vec()).await.unwrap();
    let asked = held.revealed.load(SeqCst);
    for _ in 0..20 {
        consul.get("b", "k").await.unwrap();
    }
    assert_eq!(held.revealed.load(SeqCst), asked, "a token is not asked for with every call");
    held.set("consul-token", "7b1bdb48-1111-2222-3333-444455556666");
    assert!(matches!(consul.get("b", "k").await.unwrap_err(), BackendError::Denied(_)));
    held.set("consul-token", &server.token);
    assert_eq!(consul.get("b", "k").await.unwrap(), Some(b"1".to_vec()));
}

#[tokio::test]
async fn a_restarted_consul_is_found_again_with_everything_acknowledged() {
    let Some(program) = program() else { return drop(Server::start()) };
    let ports = [0; 4].map(|_| free_port());
    let mut server = Server::start_at(&program, &ports);
    let dialer = Direct::to(server.address);
    let consul = server.of("acme", "shop", &server.token, &dialer);
    assert_eq!(consul.increment("b", "n", 1).await.unwrap(), 1);
    let (child, dir) = server.child.as_mut().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let (start, dials) = (Instant::now(), dialer.dials.load(SeqCst));
    for _ in 0..1000 {
        let lost = consul.get("b", "n").await.unwrap_err();
        assert!(matches!(lost, BackendError::Unavailable(_)), "{lost:?}");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "a dead server costs nothing: {took:?}");
    let tries = u64::from(dialer.dials.load(SeqCst) - dials);
    assert!(tries < 10 + took.as_secs(), "few calls tried to connect: {tries} in {took:?}");

    *child = Command::new(&program)
        .args(["agent", "-log-level", "warn", "-config-file"])
        .arg(dir.path().join("config.json"))
        .arg("-data-dir")
        .arg(dir.path().join("data"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while let Err(cause) = consul.get("b", "n").await {
        assert!(start.elapsed() < Duration::from_secs(90), "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(consul.increment("b", "n", 1).await.unwrap(), 2);
}

#[tokio::test]
async fn what_is_not_consul_is_said_to_be_none() {
    for (answer, words) in [
        ("hello", "does not speak HTTP"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "not JSON"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "another shape"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello", "status 404"),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 17\r\n\r\nNo cluster leader", "no leader"),
        ("HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n", "rate limit"),
        // What stands between may repeat what it was sent.
        ("HTTP/1.1 502 Bad\r\ncontent-length: 23\r\n\r\nx-consul-token: hunter2", "withheld"),
    ] {
        let server = Scripted::start(answer).await;
        let consul = consul_of("acme", "shop", &server.url(), "hunter2", &Direct::to(server.address));
        let said = consul.list_keys("b", None).await.unwrap_err();
        assert!(matches!(said, BackendError::Unavailable(_)) && said.to_string().contains(words), "{answer}: {said}");
        assert!(!said.to_string().contains("hunter2"), "{said}");
    }
    let server = Scripted::start("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n").await;
    let consul = consul_of("acme", "shop", &server.url(), "", &Direct::to(server.address));
    assert!(matches!(consul.list_keys("b", None).await.unwrap_err(), BackendError::TooLarge(_)));
    let server = Scripted::endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1000\r\n", 0x1000).await;
    let consul = consul_of("acme", "shop", &server.url(), "", &Direct::to(server.address));
    assert!(matches!(consul.list_keys("b", None).await.unwrap_err(), BackendError::TooLarge(_)));
}

#[tokio::test]
async fn what_is_not_granted_is_denied() {
    let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
    *dialer.refuse.lock().unwrap() = Some(DialError::Denied("10.0.0.1 (private) is not granted".into()));
    let denied = consul_of("acme", "shop", "http://10.0.0.1", "", &dialer).check().await.unwrap_err();
    assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
}
