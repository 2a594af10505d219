//! Every spelling of `tests/egress/addresses.txt` at the dialer's door, over each way a host can ask: none comes through.
//! What stands in the table stands in the component's `allow-hosts` too, so that the address alone decides.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use api::flows::{FlowQuery, Verdict};
use api::services::{Caller, Dial, FileFault};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use model::Revision;
use model::app::{LockedApp, ProviderKind, ProviderSpec};
use model::egress::Transport;
use model::tenant::TenantSettings;
use node::dialer::{Dialer, Resolve};
use node::tenant::{Prepared, Tenant};
use tokio::net::{TcpListener, UdpSocket};

const TABLE: &str = include_str!("../../../../tests/egress/addresses.txt");

fn spellings() -> impl Iterator<Item = &'static str> {
    TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with("# "))
}

/// What an attacker's names mean; `late.example` is public when it is asked for first, and internal from then on.
#[derive(Default)]
struct Names {
    asked: AtomicUsize,
    late: AtomicUsize,
}

impl Resolve for Names {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.asked.fetch_add(1, Relaxed);
        let found: &[&str] = match name.as_str() {
            "localhost" => &["127.0.0.1", "::1"],
            "home.example" => &["127.0.0.1"],
            "mixed.example" => &["1.1.1.1", "127.0.0.1"],
            "six.example" => &["2606:4700::1111", "::1"],
            "mapped.example" => &["::ffff:127.0.0.1"],
            "nat64.example" => &["64:ff9b::7f00:1"],
            "metadata.example" => &["169.254.169.254"],
            "alias.example" => &["10.0.0.1"],
            "late.example" => &["127.0.0.1"],
            "rebound.example" if self.late.fetch_add(1, Relaxed) == 0 => &["127.0.0.1"],
            "rebound.example" => &["169.254.169.254"],
            _ => &[],
        };
        let found = found.iter().map(|address| address.parse().unwrap()).collect();
        Box::pin(async move { Ok(found) })
    }
}

/// Listens wherever a spelling could lead on this machine; says how often anybody knocked.
struct Ears {
    port: u16,
    knocks: Arc<AtomicUsize>,
}

impl Ears {
    async fn open() -> Self {
        loop {
            let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
            let port = tcp.local_addr().unwrap().port();
            let knocks = Arc::new(AtomicUsize::new(0));
            let Ok(udp) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await else { continue };
            Self::hear(tcp, udp, &knocks);
            // A machine without IPv6 has nothing to knock on there.
            let six = (
                TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await,
                UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).await,
            );
            if let (Ok(tcp), Ok(udp)) = six {
                Self::hear(tcp, udp, &knocks);
            }
            return Self { port, knocks };
        }
    }

    fn hear(tcp: TcpListener, udp: UdpSocket, knocks: &Arc<AtomicUsize>) {
        let heard = knocks.clone();
        tokio::spawn(async move {
            while tcp.accept().await.is_ok() {
                heard.fetch_add(1, Relaxed);
            }
        });
        let heard = knocks.clone();
        tokio::spawn(async move {
            while udp.recv(&mut [0; 16]).await.is_ok() {
                heard.fetch_add(1, Relaxed);
            }
        });
    }
}

/// The provider whose settings name this host; some spellings cannot be declared, and the node has none of those.
fn provider(host: &str) -> String {
    format!("p-{}", model::Digest::of(host.as_bytes()).hex().get(..16).unwrap())
}

/// An app whose component `c` is let by its manifest to every host of the table, over every transport, and that has a provider
/// at each.
fn open_app(hosts: &[&str], port: u16) -> LockedApp {
    let entries = |host: &&str| ["http", "tcp", "udp"].map(|scheme| format!("{scheme}://{host}:{port}"));
    let allowed: Vec<String> = hosts.iter().flat_map(entries).collect();
    let component = serde_json::json!({"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
        "exports": [], "allow_hosts": allowed});
    let redis = |host: &&str| {
        let url = format!("redis://{host}:{port}");
        (provider(host), serde_json::json!({"type": "keyvalue-redis", "config": {"url": url}}))
    };
    let providers: serde_json::Map<_, _> = hosts.iter().map(redis).collect();
    let link = |name: &String| serde_json::json!({"component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": name});
    let links: Vec<_> = providers.keys().map(link).collect();
    let app = serde_json::json!({"name": "a", "components": {"c": component}, "providers": providers, "links": links});
    serde_json::from_value(app).unwrap()
}

fn tenant(name: &str, settings: &TenantSettings, app: &LockedApp) -> Arc<Tenant> {
    let tenant = Tenant::new(name.parse().unwrap());
    tenant.apply(settings);
    tenant.add(Arc::new(Prepared::of(Revision(1), app).unwrap()));
    tenant
}

/// Outgoing HTTP and TCP sockets ask for the same thing; what of a component is let through differs in the host alone.
fn ways(host: &str, port: u16) -> [(&'static str, Dial); 4] {
    let dial =
        |caller: Caller, transport| Dial { app: "a".parse().unwrap(), caller, transport, host: host.into(), port };
    let component = || Caller::Component("c".parse().unwrap());
    let provider = || Caller::Provider(provider(host).parse().unwrap());
    [
        ("a component over TCP", dial(component(), Transport::Tcp)),
        ("a component over UDP", dial(component(), Transport::Udp)),
        ("a provider over TCP", dial(provider(), Transport::Tcp)),
        ("a provider over UDP", dial(provider(), Transport::Udp)),
    ]
}

#[tokio::test]
async fn no_spelling_comes_through_any_way() {
    let ears = Ears::open().await;
    let hosts: Vec<&str> = spellings().collect();
    assert!(hosts.len() >= 500, "{} spellings", hosts.len());
    let dialer = Dialer::new(Arc::new(Names::default()));
    let app = open_app(&hosts, ears.port);
    let mut passed = Vec::new();
    let mut by_reason: BTreeMap<String, usize> = BTreeMap::new();
    // A tenant may open 400 connections in a burst, and one that is over its rate proves nothing.
    for (n, some) in hosts.chunks(90).enumerate() {
        let closed = tenant(&format!("t{n}"), &TenantSettings::default(), &app);
        for host in some {
            for (way, dial) in ways(host, ears.port) {
                match dialer.dial(&closed, 0, &dial).await {
                    Err(FileFault::Denied { what, .. }) => *by_reason.entry(what).or_default() += 1,
                    other => passed.push(format!("{host:?} by {way}: {other:?}")),
                }
            }
        }
        assert!(passed.is_empty(), "these came through or failed for another reason:\n{}", passed.join("\n"));
        let records: Vec<_> = closed.flows.query(FlowQuery { last: 1000, ..FlowQuery::default() }).collect().await;
        assert_eq!(records.len(), some.len() * 4, "every decision is recorded");
        assert!(records.iter().all(|record| record.verdict == Verdict::Denied && !record.reason.is_empty()));
        assert_eq!(closed.open_connections(), 0);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ears.knocks.load(Relaxed), 0, "nobody knocked");
    // The table reaches the policy, and not only the parser or the manifest.
    for class in ["a loopback address", "a cloud metadata address", "a private address", "a reserved address"] {
        assert!(by_reason.get(class).is_some_and(|count| *count >= 8), "{class}: {by_reason:#?}");
    }
    assert!(by_reason.keys().any(|why| why.starts_with("an IPv6 form of")), "{by_reason:#?}");
}

#[tokio::test]
async fn with_a_grant_each_way_connects() {
    let ears = Ears::open().await;
    let dialer = Dialer::new(Arc::new(Names::default()));
    let app = open_app(&["127.0.0.1", "home.example"], ears.port);
    let settings = TenantSettings { egress: vec!["127.0.0.1".into()], ..TenantSettings::default() };
    let open = tenant("t", &settings, &app);
    for host in ["127.0.0.1", "home.example"] {
        let [component_tcp, component_udp, provider_tcp, provider_udp] = ways(host, ears.port);
        let datagrams = dialer.dial(&open, 0, &provider_udp.1).await;
        assert!(matches!(datagrams, Err(FileFault::Denied { .. })), "providers have no datagrams: {datagrams:?}");
        for (way, dial) in [component_tcp, component_udp, provider_tcp] {
            let dialled = dialer.dial(&open, 0, &dial).await;
            let dialled = dialled.unwrap_or_else(|fault| panic!("{host} by {way}: {fault}"));
            assert_eq!(dialled.address, SocketAddr::from(([127, 0, 0, 1], ears.port)), "{host} by {way}");
        }
    }
    // What the operator declared for one provider opens nothing to the next spelling of the same address.
    let url = format!("redis://127.0.0.1:{}", ears.port);
    let kind = ProviderSpec::new(ProviderKind::KeyvalueRedis);
    let spec = ProviderSpec { config: [("url".to_owned(), url)].into(), operator: true, ..kind };
    let providers = [(provider("127.0.0.1").parse().unwrap(), spec)].into();
    let settings = TenantSettings { providers, ..TenantSettings::default() };
    let declared = tenant("t2", &settings, &app);
    for (host, expected) in
        [("127.0.0.1", true), ("home.example", false), ("::ffff:127.0.0.1", false), ("127.0.0.2", false)]
    {
        let [.., (_, tcp), _] = ways(host, ears.port);
        assert_eq!(dialer.dial(&declared, 0, &tcp).await.is_ok(), expected, "{host}");
    }
}

/// An address of this machine that is not loopback, if it has one.
fn own() -> Option<Ipv4Addr> {
    let table = std::fs::read_to_string("/proc/net/fib_trie").ok()?;
    let lines: Vec<&str> = table.lines().collect();
    let local = lines.windows(2).filter(|two| two[1].trim() == "/32 host LOCAL");
    let mut addresses = local.filter_map(|two| two[0].trim().strip_prefix("|-- ")?.parse::<Ipv4Addr>().ok());
    addresses.find(|address| !address.is_loopback())
}

#[tokio::test]
async fn the_range_of_a_network_does_not_open_the_machine_itself() {
    let Some(own) = own() else {
        println!("NOT RUN: own addresses inside a granted range: this machine has none but loopback");
        return;
    };
    let ears = Ears::open().await;
    let dialer = Dialer::new(Arc::new(Names::default()));
    let (own, wrapped) = (own.to_string(), format!("::ffff:{own}"));
    let app = open_app(&[&own, &wrapped], ears.port);
    let granted = |ranges: &[&str]| {
        let egress = ranges.iter().map(|range| (*range).to_owned()).collect();
        tenant("t", &TenantSettings { egress, ..TenantSettings::default() }, &app)
    };
    let [network, half] = ["0.0.0.0/0", "::/0"];
    for host in [&own, &wrapped] {
        let [(_, tcp), (_, udp), (_, provider), _] = ways(host, ears.port);
        for dial in [tcp, udp, provider] {
            let refused = dialer.dial(&granted(&[network, half]), 0, &dial).await;
            assert!(matches!(&refused, Err(FileFault::Denied { .. })), "{dial:?}: {refused:?}");
        }
    }
    assert_eq!(ears.knocks.load(Relaxed), 0, "nobody knocked");
    let [(_, tcp), ..] = ways(&own, ears.port);
    let open = granted(&[network, &own]);
    assert!(dialer.dial(&open, 0, &tcp).await.is_ok(), "a range of just this address grants it");
}

#[tokio::test]
async fn a_name_is_resolved_once_for_each_dial_and_a_rebound_one_is_refused() {
    let ears = Ears::open().await;
    let names = Arc::new(Names::default());
    let dialer = Dialer::new(names.clone());
    let app = open_app(&["rebound.example"], ears.port);
    let settings = TenantSettings { egress: vec!["127.0.0.1".into()], ..TenantSettings::default() };
    let open = tenant("t", &settings, &app);
    let [(_, tcp), (_, udp), ..] = ways("rebound.example", ears.port);
    let dialled = dialer.dial(&open, 0, &tcp).await.unwrap();
    assert_eq!(names.asked.load(Relaxed), 1, "one look-up, and the address of that one");
    assert_eq!(dialled.address.ip(), IpAddr::from([127, 0, 0, 1]));
    for dial in [tcp, udp] {
        let again = dialer.dial(&open, 0, &dial).await;
        assert!(
            matches!(&again, Err(FileFault::Denied { what, .. }) if what == "a cloud metadata address"),
            "{again:?}"
        );
    }
    assert_eq!(names.asked.load(Relaxed), 3, "nothing is remembered from dial to dial");
}
