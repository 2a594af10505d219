//! Outgoing connections against a listener on loopback, with names that resolve to what an attacker would choose.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use api::flows::{FlowQuery, FlowRecord, Verdict};
use api::services::datagram::{DatagramEnd, Packet};
use api::services::{Caller, Dial, FileFault};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use model::app::{LockedApp, ProviderKind, ProviderSpec};
use model::egress::Transport;
use model::tenant::TenantSettings;
use model::{AppName, ProviderName, Revision};
use node::dialer::{Dialer, Dialled, Resolve};
use node::tenant::{Prepared, Tenant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Names and their addresses; how often the name that is never resolved was asked for.
struct FakeDns(HashMap<&'static str, Vec<&'static str>>, Arc<AtomicUsize>);

impl Resolve for FakeDns {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        if name == "stuck.example" {
            self.1.fetch_add(1, Ordering::Relaxed);
            return Box::pin(std::future::pending());
        }
        let found = self.0.get(name.as_str()).map(|all| all.iter().map(|a| a.parse().unwrap()).collect());
        Box::pin(async move { found.ok_or_else(|| io::Error::other("no such name")) })
    }
}

fn dialer() -> Dialer {
    dialer_that_counts(Arc::default())
}

fn dialer_that_counts(stuck: Arc<AtomicUsize>) -> Dialer {
    let many: Vec<&'static str> = vec!["8.8.8.8"; 1000];
    let names = HashMap::from([
        ("home.example", vec!["127.0.0.1"]),
        ("mixed.example", vec!["8.8.8.8", "127.0.0.1"]),
        ("mapped.example", vec!["::ffff:127.0.0.1"]),
        ("nat64.example", vec!["64:ff9b::7f00:1"]),
        ("metadata.example", vec!["169.254.169.254"]),
        ("two.example", vec!["127.0.0.2", "127.0.0.1"]),
        ("many.example", many),
        ("none.example", vec![]),
    ]);
    Dialer::new(Arc::new(FakeDns(names, stuck)))
}

fn tenant(settings: &TenantSettings) -> Arc<Tenant> {
    named("t", settings)
}

fn named(name: &str, settings: &TenantSettings) -> Arc<Tenant> {
    let tenant = Tenant::new(name.parse().unwrap());
    tenant.apply(settings);
    let app: LockedApp = serde_json::from_str(r#"{"name":"a","components":{}}"#).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    tenant
}

fn granted(ranges: &[&str]) -> TenantSettings {
    TenantSettings { egress: ranges.iter().map(|range| (*range).to_owned()).collect(), ..TenantSettings::default() }
}

/// By a provider to which the operator granted nothing, from a revision that declares it there.
fn ask(tenant: &Tenant, host: &str, port: u16) -> Dial {
    ask_by("p", tenant, host, port)
}

fn ask_by(provider: &str, tenant: &Tenant, host: &str, port: u16) -> Dial {
    let url = serde_json::json!({"type": "keyvalue-redis", "config": {"url": redis(host, port)}});
    let app = serde_json::json!({"name": "a", "components": {"c": component(&[])}, "providers": {provider: url},
        "links": [{"component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": provider}]});
    deploy(tenant, app);
    Dial { caller: Caller::Provider(provider.parse().unwrap()), ..by("c", host, port) }
}

fn redis(host: &str, port: u16) -> String {
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    format!("redis://{host}:{port}/0")
}

fn component(hosts: &[&str]) -> serde_json::Value {
    serde_json::json!({"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [], "exports": [],
        "allow_hosts": hosts})
}

/// One more revision, beside those there are.
fn deploy(tenant: &Tenant, app: serde_json::Value) {
    static NEXT: AtomicU64 = AtomicU64::new(100);
    let app: LockedApp = serde_json::from_value(app).unwrap();
    let revision = Revision(NEXT.fetch_add(1, Ordering::Relaxed));
    tenant.add(Arc::new(Prepared::of(revision, &app).unwrap()));
}

fn by(component: &str, host: &str, port: u16) -> Dial {
    let app: AppName = "a".parse().unwrap();
    let (caller, transport) = (Caller::Component(component.parse().unwrap()), Transport::Tcp);
    Dial { app, caller, transport, host: host.into(), port }
}

/// The host's end of a TCP connection.
fn stream(dialled: &Dialled) -> TcpStream {
    let stream = std::net::TcpStream::from(dialled.as_fd().try_clone_to_owned().unwrap());
    TcpStream::from_std(stream).unwrap()
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn loopback_is_closed_in_every_spelling_and_by_every_name() {
    let (listener, port) = listener().await;
    let (dialer, tenant) = (dialer(), tenant(&TenantSettings::default()));
    for host in [
        "127.0.0.1",
        "[::1]",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "127.1",
        "0x7f000001",
        "2130706433",
        "127.0.0.1.",
        "home.example",
        "HOME.example.",
        "mixed.example",
        "mapped.example",
        "nat64.example",
        "metadata.example",
        "",
        "a@127.0.0.1",
        "127.0.0.1:80",
    ] {
        let result = dialer.dial(&tenant, 0, &ask(&tenant, host, port)).await;
        assert!(matches!(result, Err(FileFault::Denied { .. })), "{host}: {result:?}");
    }
    // Nobody knocked.
    let knock = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
    assert!(knock.is_err());
    assert_eq!(tenant.flows.count(Verdict::Denied), 18);
    assert_eq!(tenant.flows.count(Verdict::Connected), 0);
}

#[tokio::test]
async fn a_granted_range_is_reached_and_works() {
    let (listener, port) = listener().await;
    let dialer = dialer();
    let open = tenant(&granted(&["127.0.0.0/8"]));
    for host in ["127.0.0.1", "home.example", "two.example"] {
        let dialled = dialer.dial(&open, 0, &ask(&open, host, port)).await.unwrap();
        let mut client = stream(&dialled);
        assert_eq!(dialled.address, SocketAddr::from(([127, 0, 0, 1], port)), "{host}");
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
    }
    // What is granted may still not answer, and that is another fault. The port is somebody's, who does not listen.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let port = silent.local_addr().unwrap().port();
    assert!(matches!(dialer.dial(&open, 0, &ask(&open, "127.0.0.1", port)).await, Err(FileFault::Connect { .. })));
    // A change of policy holds from the next dial on.
    open.apply(&TenantSettings::default());
    assert!(matches!(dialer.dial(&open, 0, &ask(&open, "127.0.0.1", port)).await, Err(FileFault::Denied { .. })));
}

#[tokio::test]
async fn only_the_operator_s_provider_gets_where_it_was_declared() {
    let (_listener, port) = listener().await;
    let dialer = dialer();
    let url = format!("redis://127.0.0.1:{port}/0");
    let spec = ProviderSpec {
        config: [("url".to_owned(), url)].into(),
        operator: true,
        ..ProviderSpec::new(ProviderKind::KeyvalueRedis)
    };
    let cache: ProviderName = "cache".parse().unwrap();
    let mut settings = TenantSettings::default();
    settings.providers.insert(cache.clone(), spec);
    let tenant = tenant(&settings);
    let by = |name: &str, port| ask_by(name, &tenant, "127.0.0.1", port);
    assert!(dialer.dial(&tenant, 0, &by("cache", port)).await.is_ok());
    assert!(matches!(dialer.dial(&tenant, 0, &by("own", port)).await, Err(FileFault::Denied { .. })));
    assert!(matches!(dialer.dial(&tenant, 0, &by("cache", port ^ 1)).await, Err(FileFault::Denied { .. })));
    assert!(matches!(dialer.dial(&tenant, 0, &ask(&tenant, "127.0.0.1", port)).await, Err(FileFault::Denied { .. })));
}

#[tokio::test]
async fn odd_answers_and_odd_askers_are_refused() {
    let dialer = dialer();
    let open = tenant(&granted(&["127.0.0.0/8"]));
    for name in ["unknown.example", "none.example", "many.example"] {
        let result = dialer.dial(&open, 0, &ask(&open, name, 80)).await;
        assert!(matches!(result, Err(FileFault::Dns { .. })), "{name}: {result:?}");
    }
    let stranger = Dial { app: "stranger".parse().unwrap(), ..ask(&open, "127.0.0.1", 80) };
    assert!(matches!(dialer.dial(&open, 0, &stranger).await, Err(FileFault::Denied { .. })));
    assert!(matches!(dialer.dial(&open, 0, &ask(&open, "127.0.0.1", 0)).await, Err(FileFault::Denied { .. })));
    // So many at once, and so many a second: the slower this is, the more of it are let through.
    let (scan, began) = (ask(&open, "", 80), std::time::Instant::now());
    while open.flows.count(Verdict::Limited) <= 50 {
        assert!(dialer.dial(&open, 0, &scan).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(60), "a scan runs into no rate limit");
    }
}

#[tokio::test]
async fn the_stuck_dials_of_one_tenant_stop_no_other_tenant() {
    let (_listener, port) = listener().await;
    let stuck = Arc::new(AtomicUsize::new(0));
    let dialer = Arc::new(dialer_that_counts(stuck.clone()));
    let mut dials = tokio::task::JoinSet::new();
    // Five of them, each with more than it can have: together more than there is.
    for n in 0..5 {
        let greedy = named(&format!("greedy-{n}"), &TenantSettings::default());
        for _ in 0..100 {
            let (dialer, greedy) = (dialer.clone(), greedy.clone());
            dials.spawn(async move { dialer.dial(&greedy, 0, &ask(&greedy, "stuck.example", 80)).await });
        }
    }
    // One thread runs every task, so after a few turns each of them waits for what it will not get.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stuck.load(Ordering::Relaxed), 5 * 32, "no more than its share is under way");
    let other = tenant(&granted(&["127.0.0.0/8"]));
    for host in ["127.0.0.1", "home.example"] {
        let dial = ask(&other, host, port);
        let reached = tokio::time::timeout(Duration::from_secs(60), dialer.dial(&other, 0, &dial)).await;
        assert!(matches!(reached, Ok(Ok(_))), "{reached:?}");
    }
    assert!(dials.try_join_next().is_none(), "the others still wait");
    // A lookup nobody waits for any more still holds its thread: giving up makes no room for the next one.
    dials.shutdown().await;
    let greedy = named("greedy-0", &TenantSettings::default());
    let dial = ask(&greedy, "stuck.example", 80);
    let mut again = std::pin::pin!(dialer.dial(&greedy, 0, &dial));
    for _ in 0..100 {
        assert!(futures::poll!(again.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(stuck.load(Ordering::Relaxed), 5 * 32);
}

#[tokio::test]
async fn a_component_reaches_only_what_its_own_allow_hosts_name() {
    let (_listener, port) = listener().await;
    let (dialer, tenant) = (dialer(), tenant(&granted(&["127.0.0.0/8"])));
    let home = format!("http://home.example:{port}");
    let app = serde_json::json!({"name": "b", "components": {
        "open": component(&[&home, "http://*.other.example"]), "closed": component(&[])}});
    let app: LockedApp = serde_json::from_value(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    let by = |name: &str, host: &str, port: u16| Dial { app: "b".parse().unwrap(), ..by(name, host, port) };
    let reached = dialer.dial(&tenant, 0, &by("open", "home.example", port)).await;
    assert!(reached.is_ok(), "{reached:?}");
    for (name, host, port) in [
        ("closed", "home.example", port),
        ("nobody", "home.example", port),
        ("open", "home.example", port.wrapping_add(1)),
        ("open", "two.example", port),
        ("open", "127.0.0.1", port),
    ] {
        let result = dialer.dial(&tenant, 0, &by(name, host, port)).await;
        let Err(FileFault::Denied { what, .. }) = &result else { panic!("{name} {host} {port}: {result:?}") };
        assert!(what.contains("allow-hosts"), "{what}");
    }
    // And of no other app.
    let foreign = Dial { app: "a".parse().unwrap(), ..by("open", "home.example", port) };
    assert!(matches!(dialer.dial(&tenant, 0, &foreign).await, Err(FileFault::Denied { .. })));
}

#[tokio::test]
async fn a_host_gets_nowhere_by_the_name_of_a_provider_that_nobody_declared_there() {
    let (listener, port) = listener().await;
    let (_other, elsewhere) = self::listener().await;
    let (dialer, open) = (dialer(), tenant(&granted(&["127.0.0.0/8"])));
    let declared = ask_by("cache", &open, "home.example", port);
    let invented = Dial { caller: Caller::Provider("invented".parse().unwrap()), ..declared.clone() };
    for (what, dial) in [
        ("another provider", invented.clone()),
        ("another port", Dial { port: elsewhere, ..declared.clone() }),
        ("another host", Dial { host: "127.0.0.1".into(), ..declared.clone() }),
        ("a public address", Dial { host: "8.8.8.8".into(), ..declared.clone() }),
        ("datagrams", Dial { transport: Transport::Udp, ..declared.clone() }),
    ] {
        let result = dialer.dial(&open, 0, &dial).await;
        let Err(FileFault::Denied { what: why, .. }) = &result else { panic!("{what}: {result:?}") };
        assert!(why.contains("in the settings of a provider"), "{what}: {why}");
    }
    assert!(dialer.dial(&open, 0, &declared).await.is_ok());
    listener.accept().await.unwrap();
    // Its data are moved to one that no revision names yet: for as long as that takes, and not to any other place.
    let (name, kind) = ("invented".parse().unwrap(), ProviderSpec::new(ProviderKind::KeyvalueRedis));
    let spec = ProviderSpec { config: [("url".to_owned(), redis("home.example", port))].into(), ..kind };
    open.lend(&declared.app, [(&name, &spec)].into_iter());
    let lent = dialer.dial(&open, 0, &invented).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    lent.handed_over();
    let further = Dial { port: elsewhere, ..invented.clone() };
    assert!(matches!(dialer.dial(&open, 0, &further).await, Err(FileFault::Denied { .. })));
    open.take_back(&declared.app);
    dialer.recheck(&open);
    assert_eq!(accepted.read(&mut [0; 8]).await.unwrap(), 0, "what was lent ends");
    assert!(matches!(dialer.dial(&open, 0, &invented).await, Err(FileFault::Denied { .. })));
}

/// By a component of a revision whose `allow-hosts` name it.
fn udp(tenant: &Tenant, host: &str, port: u16) -> Dial {
    let place = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let component = component(&[&format!("udp://{place}:{port}")]);
    deploy(tenant, serde_json::json!({"name": "a", "components": {"u": component}}));
    Dial { transport: Transport::Udp, ..by("u", host, port) }
}

async fn packet(end: &DatagramEnd) -> Option<Vec<u8>> {
    loop {
        end.readable().await.unwrap();
        match end.try_recv(&mut Vec::new()) {
            Ok(Some(Packet::Data(datagram))) => return Some(datagram.to_vec()),
            Ok(Some(Packet::Refused)) => return Some(b"refused".to_vec()),
            Ok(None) => return None,
            Err(cause) => assert_eq!(cause.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

/// Waits until the tenant has so many connections open.
async fn until_open(tenant: &Tenant, count: usize) {
    let reached = async {
        while tenant.open_connections() != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("connections open or end");
}

async fn recorded(tenant: &Tenant, last: usize) -> Vec<FlowRecord> {
    tenant.flows.query(FlowQuery { last, ..FlowQuery::default() }).collect().await
}

#[tokio::test]
async fn datagrams_go_to_the_granted_address_and_back_and_nowhere_else() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let (dialer, open) = (dialer(), tenant(&granted(&["127.0.0.0/8"])));
    let dialled = dialer.dial(&open, 0, &udp(&open, "home.example", port)).await.unwrap();
    assert_eq!(dialled.address, SocketAddr::from(([127, 0, 0, 1], port)));
    let end = DatagramEnd::new(dialled.as_fd().try_clone_to_owned().unwrap()).unwrap();
    dialled.handed_over();
    let mut buffer = [0; 100];
    for sent in [&b"one"[..], b"", b"three"] {
        end.try_send(sent).unwrap();
        let (size, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..size], sent);
        server.send_to(b"back", from).await.unwrap();
        assert_eq!(packet(&end).await.unwrap(), b"back");
        // What others send to the same port does not come through.
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        stranger.send_to(b"forged", from).await.unwrap();
    }
    assert_eq!(open.open_connections(), 1);
    drop(end);
    until_open(&open, 0).await;
    // A refusal of the other side is told.
    drop(server);
    let dialled = dialer.dial(&open, 0, &udp(&open, "127.0.0.1", port)).await.unwrap();
    let end = DatagramEnd::new(dialled.as_fd().try_clone_to_owned().unwrap()).unwrap();
    dialled.handed_over();
    end.try_send(b"anybody there?").unwrap();
    assert_eq!(packet(&end).await.unwrap(), b"refused");
    for host in ["10.0.0.1", "mapped.example", "metadata.example", "::1", "0.0.0.0", "255.255.255.255", "224.0.0.1"] {
        let result = dialer.dial(&open, 0, &udp(&open, host, port)).await;
        assert!(matches!(result, Err(FileFault::Denied { .. })), "{host}: {result:?}");
    }
}

#[tokio::test]
async fn a_grant_taken_back_ends_what_is_open() {
    let (listener, port) = listener().await;
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let udp_port = server.local_addr().unwrap().port();
    let (dialer, open) = (dialer(), tenant(&granted(&["127.0.0.0/8"])));
    let dialled = dialer.dial(&open, 0, &ask(&open, "127.0.0.1", port)).await.unwrap();
    let mut client = stream(&dialled);
    dialled.handed_over();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let dialled = dialer.dial(&open, 0, &udp(&open, "127.0.0.1", udp_port)).await.unwrap();
    let end = DatagramEnd::new(dialled.as_fd().try_clone_to_owned().unwrap()).unwrap();
    dialled.handed_over();
    // A change that still grants them disturbs neither.
    open.apply(&granted(&["127.0.0.1"]));
    dialer.recheck(&open);
    client.write_all(b"x").await.unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), b'x');
    assert_eq!(open.open_connections(), 2);
    open.apply(&granted(&["127.0.0.2"]));
    dialer.recheck(&open);
    until_open(&open, 0).await;
    // Both sides see the end, though the host still has its descriptor.
    assert_eq!(accepted.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(client.write_all(b"x").await.is_err());
    assert_eq!(packet(&end).await, None);
    let verdicts: Vec<_> = recorded(&open, 10).await.into_iter().map(|record| record.verdict).collect();
    assert_eq!(verdicts, [Verdict::Connected, Verdict::Connected, Verdict::Revoked, Verdict::Revoked]);
}

#[tokio::test]
async fn a_suspended_tenant_has_no_connection_and_gets_none() {
    let (listener, port) = listener().await;
    let settings = granted(&["127.0.0.0/8"]);
    let (dialer, open) = (dialer(), tenant(&settings));
    let dial = ask(&open, "127.0.0.1", port);
    let dialled = dialer.dial(&open, 0, &dial).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    dialled.handed_over();
    open.apply(&TenantSettings { suspended: Some("a test".into()), ..settings.clone() });
    dialer.recheck(&open);
    assert_eq!(accepted.read(&mut [0; 8]).await.unwrap(), 0, "what was open has ended");
    let refused = dialer.dial(&open, 0, &dial).await.unwrap_err();
    assert!(matches!(&refused, FileFault::Denied { what, .. } if what.contains("suspended")), "{refused:?}");
    open.apply(&settings);
    assert!(dialer.dial(&open, 0, &dial).await.is_ok());
}

#[tokio::test]
async fn what_only_a_revision_that_left_was_granted_ends() {
    let (listener, port) = listener().await;
    let (dialer, open) = (dialer(), tenant(&granted(&["127.0.0.0/8"])));
    let app = |hosts: &[&str]| {
        let app = serde_json::json!({"name": "b", "components": {"c": component(hosts)}});
        serde_json::from_value::<LockedApp>(app).unwrap()
    };
    let revision = |n, hosts: &[&str]| Arc::new(Prepared::of(Revision(n), &app(hosts)).unwrap());
    open.add(revision(1, &[&format!("tcp://127.0.0.1:{port}")]));
    open.add(revision(2, &[]));
    let dial = Dial { app: "b".parse().unwrap(), ..by("c", "127.0.0.1", port) };
    let dialled = dialer.dial(&open, 0, &dial).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    dialled.handed_over();
    dialer.recheck(&open);
    assert_eq!(open.open_connections(), 1);
    open.remove(&dial.app, Revision(1));
    dialer.recheck(&open);
    assert_eq!(accepted.read(&mut [0; 8]).await.unwrap(), 0);
    until_open(&open, 0).await;
}

#[tokio::test]
async fn a_tenant_has_only_so_many_open_and_a_host_that_lets_go_gives_them_back() {
    // Each takes three descriptors here; the product raises its limit in the same way when it starts.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let (dialer, open) = (dialer(), tenant(&granted(&["127.0.0.0/8"])));
    let (listener, tcp_port) = listener().await;
    let dialled = dialer.dial(&open, 0, &ask(&open, "127.0.0.1", tcp_port)).await.unwrap();
    let (_accepted, _) = listener.accept().await.unwrap();
    let client = stream(&dialled);
    dialled.handed_over();
    // Closing tells nobody, for the node has it too; shutting down does.
    rustix::net::shutdown(&client, rustix::net::Shutdown::Both).unwrap();
    until_open(&open, 0).await;
    // Nor is one kept that never reached its host.
    drop(dialer.dial(&open, 0, &udp(&open, "127.0.0.1", port)).await.unwrap());
    until_open(&open, 0).await;
    let mut held = Vec::new();
    let limited = loop {
        match dialer.dial(&open, 0, &udp(&open, "127.0.0.1", port)).await {
            Ok(dialled) => held.push(dialled),
            Err(FileFault::Limited { what, .. }) if what.contains("as many connections open") => break true,
            // The rate comes first; it refills.
            Err(FileFault::Limited { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(limited && held.len() == 1024, "{}", held.len());
    held.clear();
    until_open(&open, 0).await;
}

#[tokio::test]
async fn every_decision_is_a_record() {
    let (_listener, port) = listener().await;
    let (dialer, open) = (dialer(), tenant(&granted(&["127.0.0.0/8"])));
    let mut follower =
        open.flows.query(FlowQuery { follow: true, verdict: Some(Verdict::Denied), ..Default::default() });
    for host in ["home.example", "metadata.example", "unknown.example", "a\nb"] {
        drop(dialer.dial(&open, 0, &ask(&open, host, port)).await);
    }
    let records = recorded(&open, 10).await;
    let told: Vec<_> =
        records.iter().map(|r| (r.host.as_str(), r.verdict, r.policy.as_str(), r.reason.as_str())).collect();
    assert_eq!(
        told,
        [
            ("home.example", Verdict::Connected, "range 127.0.0.0/8", ""),
            ("metadata.example", Verdict::Denied, "", "a cloud metadata address"),
            ("unknown.example", Verdict::Failed, "", "`unknown.example` does not resolve: no such name"),
            (
                "a\\nb",
                Verdict::Denied,
                "",
                "`\n` does not belong in a host name; write international names in their `xn--` form"
            ),
        ]
    );
    assert_eq!(records[0].address, Some(SocketAddr::from(([127, 0, 0, 1], port))));
    assert_eq!(records[1].address, None, "what a name resolves to is nothing that a refusal tells");
    assert_eq!((records[0].caller.as_str(), records[0].transport, records[0].port), ("p", Transport::Tcp, port));
    // One who follows sees what comes, and only what was asked for.
    assert_eq!(follower.next().await.unwrap().host, "metadata.example");
    assert_eq!(follower.next().await.unwrap().host, "a\\nb");
    assert_eq!(open.flows.query(FlowQuery { last: 1, ..FlowQuery::default() }).count().await, 1);
}
