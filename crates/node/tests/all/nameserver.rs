//! The dialer with a real nameserver that is an attacker's: what it answers over UDP and TCP decides about nothing but itself.

#[path = "../../../../tests/src/nameserver.rs"]
mod fake;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::flows::{FlowQuery, Verdict};
use api::services::{Caller, Dial, FileFault};
use fake::{Nameserver, Reply};
use futures::StreamExt as _;
use model::Revision;
use model::app::LockedApp;
use model::egress::Transport;
use model::tenant::TenantSettings;
use node::dialer::{Dialer, Nameserver as Client, Nameservers, Resolve as _};
use node::tenant::{Prepared, Tenant};
use tokio::net::TcpListener;

fn tenant(granted: &[&str]) -> Arc<Tenant> {
    let tenant = Tenant::new("t".parse().unwrap());
    let egress = granted.iter().map(|range| (*range).to_owned()).collect();
    tenant.apply(&TenantSettings { egress, ..TenantSettings::default() });
    tenant
}

/// By a component of a revision whose `allow-hosts` name it.
fn ask(tenant: &Tenant, host: &str, port: u16) -> Dial {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let component = serde_json::json!({"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
        "exports": [], "allow_hosts": [format!("tcp://{host}:{port}")]});
    let app: LockedApp =
        serde_json::from_value(serde_json::json!({"name": "a", "components": {"c": component}})).unwrap();
    let revision = Revision(NEXT.fetch_add(1, Ordering::Relaxed));
    tenant.add(Arc::new(Prepared::of(revision, &app).unwrap()));
    let caller = Caller::Component("c".parse().unwrap());
    Dial { app: "a".parse().unwrap(), caller, transport: Transport::Tcp, host: host.into(), port }
}

/// A nameserver, and a dialer that asks it.
fn with(zone: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> (Nameserver, Dialer) {
    let server = Nameserver::start(zone);
    let dialer = Dialer::new(Arc::new(Client::new(server.address)));
    (server, dialer)
}

#[tokio::test]
async fn what_is_dialled_is_what_was_checked_however_often_the_name_changes() {
    // Public to the check and internal to the dial is what a rebinding name tries; here each look-up says something else.
    let (server, dialer) = with(|_, nth| match nth {
        0 => Reply::has(&["127.0.0.1"]),
        1 => Reply::has(&["169.254.169.254"]),
        2 => Reply::has(&["127.0.0.2"]),
        _ => Reply::has(&["127.0.0.1"]),
    });
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = tenant(&["127.0.0.1"]);
    let dial = ask(&open, "rebound.example", port);
    let dialled = dialer.dial(&open, 0, &dial).await.unwrap();
    assert_eq!(dialled.address, SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(listener.accept().await.unwrap().0.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
    assert_eq!(server.asked("rebound.example"), 1, "one look-up, and the address of that one");
    for (address, what) in [("169.254.169.254", "a cloud metadata address"), ("127.0.0.2", "a loopback address")] {
        let refused = dialer.dial(&open, 0, &dial).await.unwrap_err();
        let FileFault::Denied { address: at, what: why } = &refused else { panic!("{refused}") };
        assert_eq!((at.as_str(), why.as_str()), (format!("{address}:{port}").as_str(), what));
    }
    assert!(dialer.dial(&open, 0, &dial).await.is_ok());
    assert_eq!(server.asked("rebound.example"), 4, "nothing is remembered from dial to dial");
    listener.accept().await.unwrap();
    let more = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(more.is_err(), "nobody knocked for those that were refused");
}

#[tokio::test]
async fn one_forbidden_record_forbids_the_name() {
    let (_server, dialer) = with(|name, _| match name {
        "first.example" => Reply::has(&["127.0.0.2", "127.0.0.1"]),
        "last.example" => Reply::has(&["127.0.0.1", "10.0.0.1"]),
        "six.example" => Reply::has(&["127.0.0.1", "::1"]),
        "mapped.example" => Reply::has(&["127.0.0.1", "::ffff:10.0.0.1"]),
        "nat64.example" => Reply::has(&["64:ff9b::a00:1"]),
        "alias.example" => Reply::Alias("db.internal".into(), vec!["10.0.0.1".parse().unwrap()]),
        "good.example" => Reply::Alias("home.example".into(), vec!["127.0.0.1".parse().unwrap()]),
        _ => Reply::NoSuchName,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = tenant(&["127.0.0.1"]);
    for name in ["first", "last", "six", "mapped", "nat64", "alias"] {
        let refused = dialer.dial(&open, 0, &ask(&open, &format!("{name}.example"), port)).await;
        assert!(matches!(refused, Err(FileFault::Denied { .. })), "{name}: {refused:?}");
    }
    assert_eq!(open.flows.count(Verdict::Denied), 6);
    let knock = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(knock.is_err(), "nobody knocked");
    // An alias of what is granted is granted, in whatever case it is written.
    let dialled = dialer.dial(&open, 0, &ask(&open, "GOOD.example.", port)).await.unwrap();
    assert_eq!(dialled.address.ip(), IpAddr::from([127, 0, 0, 1]));
}

#[tokio::test]
async fn odd_answers_end_in_an_error_that_says_what_was_odd() {
    let (server, dialer) = with(|name, _| match name {
        "thousand.example" => Reply::Has((0..1000u32).map(|n| IpAddr::from((0x0808_0000 + n).to_be_bytes())).collect()),
        "many.example" => Reply::Has(vec![IpAddr::from([127, 0, 0, 1]); 64]),
        "failing.example" => Reply::Failure,
        "empty.example" => Reply::has(&[]),
        "silent.example" => Reply::Silence,
        "garbage.example" => Reply::Garbage,
        "forged.example" => Reply::Forged(vec![IpAddr::from([127, 0, 0, 1])]),
        _ => Reply::NoSuchName,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = tenant(&["127.0.0.0/8"]);
    let began = Instant::now();
    let cause = async |name: &str| match dialer.dial(&open, 0, &ask(&open, name, port)).await {
        Err(FileFault::Dns { cause, .. }) => cause,
        other => panic!("{name}: {other:?}"),
    };
    let (thousand, missing, failing, empty, silent, garbage, forged) = tokio::join!(
        cause("thousand.example"),
        cause("missing.example"),
        cause("failing.example"),
        cause("empty.example"),
        cause("silent.example"),
        cause("garbage.example"),
        cause("forged.example"),
    );
    assert_eq!(thousand, "it has 1000 addresses; 1 to 64 are accepted");
    assert_eq!(missing, "there is no such name");
    assert_eq!(failing, "the nameserver answered ServerFailure");
    assert_eq!(empty, "it has 0 addresses; 1 to 64 are accepted");
    assert_eq!(silent, "the nameserver does not answer");
    let unfit = "the nameserver answered nothing that fits the question";
    assert_eq!([garbage, forged], [unfit; 2]);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(server.asked("silent.example"), 3, "it is asked again");
    // As many as fit are many, and reached.
    assert!(dialer.dial(&open, 0, &ask(&open, "many.example", port)).await.is_ok());
    // Nobody there at all.
    drop(server);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dialer = Dialer::new(Arc::new(Client::new(closed)));
    let nobody = dialer.dial(&open, 0, &ask(&open, "a.example", port)).await;
    assert!(matches!(nobody, Err(FileFault::Dns { .. })), "{nobody:?}");
}

#[tokio::test]
async fn what_a_refused_name_resolves_to_and_which_nameserver_was_asked_is_not_told() {
    let (server, dialer) = with(|name, _| match name {
        "mapped.internal" => Reply::has(&["::ffff:10.0.0.5"]),
        "nat64.internal" => Reply::has(&["64:ff9b::a00:5"]),
        "private.internal" => Reply::has(&["10.0.0.5"]),
        "failing.internal" => Reply::Failure,
        _ => Reply::Silence,
    });
    let open = tenant(&[]);
    let names = ["mapped", "nat64", "private", "failing", "silent"].map(|name| format!("{name}.internal"));
    for name in &names {
        assert!(dialer.dial(&open, 0, &ask(&open, name, 5432)).await.is_err(), "{name}");
    }
    let query = FlowQuery { last: 10, ..FlowQuery::default() };
    let told: Vec<_> = open.flows.query(query).collect().await;
    let asked = server.address.to_string();
    for record in &told {
        let text = serde_json::to_string(record).unwrap();
        assert!(["10.0.0.5", "a00:5", &asked].iter().all(|part| !text.contains(part)), "{text}");
        assert_eq!(record.address, None, "{text}");
    }
    let of = |name: &str, cause: &str| format!("`{name}.internal` does not resolve: the nameserver {cause}");
    let said: Vec<_> = told.iter().map(|record| record.reason.clone()).collect();
    let wrapped = "an IPv6 form of a private address".to_owned();
    let (failing, silent) = (of("failing", "answered ServerFailure"), of("silent", "does not answer"));
    assert_eq!(said, [wrapped.clone(), wrapped, "a private address".to_owned(), failing, silent]);
}

#[tokio::test]
async fn servers_that_are_silent_or_gone_are_passed_over_and_the_one_that_answered_is_asked_first() {
    let silent = Nameserver::start(|_, _| Reply::Silence);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let good = Nameserver::start(|name, _| match name {
        "a.two.example" => Reply::has(&["192.0.2.1"]),
        _ => Reply::NoSuchName,
    });
    let own = Nameservers {
        servers: vec![silent.address, closed, good.address],
        searches: vec!["one.example".into(), "two.example".into()],
        ndots: 1,
        timeout: Duration::from_secs(3),
        attempts: 2,
        rotate: false,
        within: Duration::from_secs(60),
    };
    for rotate in [false, true] {
        let asked = silent.asked("a.one.example");
        let client = Client::of(Nameservers { rotate, ..own.clone() });
        for _ in 0..3 {
            let found = client.resolve("a".into()).await.unwrap();
            assert_eq!(found, [IpAddr::from([192, 0, 2, 1])], "rotate: {rotate}");
        }
        // Once, by the first of the three names; the completed names after it go to who answered.
        assert_eq!(silent.asked("a.one.example") - asked, 1, "rotate: {rotate}");
        assert_eq!(silent.asked("a.two.example"), 0, "rotate: {rotate}");
    }
    // However often it is to be asked, nobody waits longer than is said, and who was silent is named.
    let client = Client::of(Nameservers { servers: vec![silent.address], attempts: 5, within: own.timeout * 2, ..own });
    let began = Instant::now();
    let failed = client.resolve("a".into()).await.unwrap_err().to_string();
    assert_eq!(failed, format!("the nameserver {} does not answer", silent.address));
    // Five times would be 15 s.
    assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_name_that_cannot_be_found_out_does_not_end_the_search() {
    let server = Nameserver::start(|name, _| match name {
        "db.two.example" => Reply::has(&["192.0.2.1"]),
        "db.one.example" | "lost.one.example" => Reply::Failure,
        _ => Reply::NoSuchName,
    });
    // The first is no name at all.
    let searches = vec!["x".repeat(64), "one.example".into(), "two.example".into()];
    let client = Client::of(Nameservers { searches, ndots: 1, ..Nameservers::one(server.address) });
    assert_eq!(client.resolve("db".into()).await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
    // Whether there is such a name is not known: that is not said.
    let failed = client.resolve("lost".into()).await.unwrap_err();
    assert_ne!(failed.kind(), std::io::ErrorKind::NotFound, "{failed}");
    assert_eq!(server.asked("lost"), 1, "all of them were asked for");
}
