//! Outgoing connections against a listener on loopback, with names that resolve to what an attacker would choose.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::services::{Caller, Dial, FileFault};
use futures::future::BoxFuture;
use model::app::{LockedApp, ProviderKind, ProviderSpec};
use model::tenant::TenantSettings;
use model::{AppName, ProviderName, Revision};
use node::dialer::{Dialer, Resolve};
use node::tenant::{Prepared, Tenant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

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

/// By a provider to which the operator granted nothing: what holds for it holds for every component.
fn ask(host: &str, port: u16) -> Dial {
    let app: AppName = "a".parse().unwrap();
    Dial { app, caller: Caller::Provider("p".parse().unwrap()), host: host.into(), port }
}

fn by(component: &str, host: &str, port: u16) -> Dial {
    Dial { caller: Caller::Component(component.parse().unwrap()), ..ask(host, port) }
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
        let result = dialer.dial(&tenant, &ask(host, port)).await;
        assert!(matches!(result, Err(FileFault::Denied { .. })), "{host}: {result:?}");
    }
    // Nobody knocked.
    let knock = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
    assert!(knock.is_err());
    assert_eq!(tenant.flows.denied.load(Ordering::Relaxed), 18);
    assert_eq!(tenant.flows.connected.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_granted_range_is_reached_and_works() {
    let (listener, port) = listener().await;
    let dialer = dialer();
    let open = tenant(&granted(&["127.0.0.0/8"]));
    for host in ["127.0.0.1", "home.example", "two.example"] {
        let (mut client, address) = dialer.dial(&open, &ask(host, port)).await.unwrap();
        assert_eq!(address, SocketAddr::from(([127, 0, 0, 1], port)), "{host}");
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
    }
    // What is granted may still not answer, and that is another fault.
    drop(listener);
    assert!(matches!(dialer.dial(&open, &ask("127.0.0.1", port)).await, Err(FileFault::Connect { .. })));
    // A change of policy holds from the next dial on.
    open.apply(&TenantSettings::default());
    assert!(matches!(dialer.dial(&open, &ask("127.0.0.1", port)).await, Err(FileFault::Denied { .. })));
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
    let by = |name: &str, port| Dial { caller: Caller::Provider(name.parse().unwrap()), ..ask("127.0.0.1", port) };
    assert!(dialer.dial(&tenant, &by("cache", port)).await.is_ok());
    assert!(matches!(dialer.dial(&tenant, &by("own", port)).await, Err(FileFault::Denied { .. })));
    assert!(matches!(dialer.dial(&tenant, &by("cache", port ^ 1)).await, Err(FileFault::Denied { .. })));
    assert!(matches!(dialer.dial(&tenant, &ask("127.0.0.1", port)).await, Err(FileFault::Denied { .. })));
}

#[tokio::test]
async fn odd_answers_and_odd_askers_are_refused() {
    let dialer = dialer();
    let open = tenant(&granted(&["127.0.0.0/8"]));
    for name in ["unknown.example", "none.example", "many.example"] {
        let result = dialer.dial(&open, &ask(name, 80)).await;
        assert!(matches!(result, Err(FileFault::Dns { .. })), "{name}: {result:?}");
    }
    let stranger = Dial { app: "stranger".parse().unwrap(), ..ask("127.0.0.1", 80) };
    assert!(matches!(dialer.dial(&open, &stranger).await, Err(FileFault::Denied { .. })));
    assert!(matches!(dialer.dial(&open, &ask("127.0.0.1", 0)).await, Err(FileFault::Denied { .. })));
    let mut limited = 0;
    for _ in 0..500 {
        limited += u32::from(dialer.dial(&open, &ask("", 80)).await.is_err());
    }
    assert_eq!(limited, 500);
    assert!(open.flows.limited.load(Ordering::Relaxed) > 50, "a scan runs into the rate limit");
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
            dials.spawn(async move { dialer.dial(&greedy, &ask("stuck.example", 80)).await });
        }
    }
    // One thread runs every task, so after a few turns each of them waits for what it will not get.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stuck.load(Ordering::Relaxed), 5 * 32, "no more than its share is under way");
    let other = tenant(&granted(&["127.0.0.0/8"]));
    for host in ["127.0.0.1", "home.example"] {
        let dial = ask(host, port);
        let reached = tokio::time::timeout(std::time::Duration::from_secs(3), dialer.dial(&other, &dial)).await;
        assert!(matches!(reached, Ok(Ok(_))), "{reached:?}");
    }
    assert!(dials.try_join_next().is_none(), "the others still wait");
    // A lookup nobody waits for any more still holds its thread: giving up makes no room for the next one.
    dials.shutdown().await;
    let greedy = named("greedy-0", &TenantSettings::default());
    let dial = ask("stuck.example", 80);
    let mut again = std::pin::pin!(dialer.dial(&greedy, &dial));
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
    let component = |hosts: &[&str]| {
        serde_json::json!({"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [], "exports": [],
            "allow_hosts": hosts})
    };
    let home = format!("http://home.example:{port}");
    let app = serde_json::json!({"name": "b", "components": {
        "open": component(&[&home, "http://*.other.example"]), "closed": component(&[])}});
    let app: LockedApp = serde_json::from_value(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    let by = |name: &str, host: &str, port: u16| Dial { app: "b".parse().unwrap(), ..by(name, host, port) };
    let reached = dialer.dial(&tenant, &by("open", "home.example", port)).await;
    assert!(reached.is_ok(), "{reached:?}");
    for (name, host, port) in [
        ("closed", "home.example", port),
        ("nobody", "home.example", port),
        ("open", "home.example", port.wrapping_add(1)),
        ("open", "two.example", port),
        ("open", "127.0.0.1", port),
    ] {
        let result = dialer.dial(&tenant, &by(name, host, port)).await;
        let Err(FileFault::Denied { what, .. }) = &result else { panic!("{name} {host} {port}: {result:?}") };
        assert!(what.contains("allow-hosts"), "{what}");
    }
    // And of no other app.
    let foreign = Dial { app: "a".parse().unwrap(), ..by("open", "home.example", port) };
    assert!(matches!(dialer.dial(&tenant, &foreign).await, Err(FileFault::Denied { .. })));
}
