//! The settings of providers as a way out: every spelling of `tests/egress/addresses.txt` as the server of every provider
//! type that has one, with its real client, at the node's own dialer. None comes through.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use api::flows::Verdict;
use api::services::{Caller as Asking, Dial, FileFault};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use model::app::{LockedApp, ProviderKind};
use model::egress::Transport;
use model::secret::SecretRef;
use model::tenant::TenantSettings;
use model::{AppName, ProviderName, Revision, TenantName};
use node::dialer::{Dialer as NodeDialer, Resolve};
use node::tenant::{Prepared, Tenant};
use providers::blobstore::S3;
use providers::dial::{Caller, DialError, Dialer, Dialled, Target};
use providers::http_out::{Tls, public_roots};
use providers::keyvalue::{Consul, Nats, Redis, VaultKv, consul, nats, redis, vault};
use providers::messaging;
use providers::nats::{Client, Login, Options};
use providers::secrets::{Credentials, Resolver, Revealed, SecretError};
use providers::sql::Postgres;
use providers::vault::{Hidden, Login as VaultLogin};
use tokio::sync::watch;

const TABLE: &str = include_str!("../egress/addresses.txt");

/// Provider types that connect to what their settings name, and how an address stands in those. The types that are left
/// out share a client with one of these (`blobstore-nats`, `messaging-jetstream`, `secrets-vault`).
const KINDS: [(ProviderKind, &str); 7] = [
    (ProviderKind::KeyvalueRedis, "redis://{}"),
    (ProviderKind::KeyvalueVault, "http://{}"),
    (ProviderKind::KeyvalueConsul, "http://{}"),
    (ProviderKind::KeyvalueNats, "nats://{}"),
    (ProviderKind::MessagingNats, "nats://{}"),
    (ProviderKind::BlobstoreS3, "http://{}"),
    (ProviderKind::SqlPostgres, "postgres://{}/db"),
];

/// Names of an attacker, and the machine's own.
struct Names;

impl Resolve for Names {
    fn resolve(&self, _: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        Box::pin(async { Ok(vec![Ipv4Addr::LOCALHOST.into()]) })
    }
}

struct NoSecrets;

impl Resolver for NoSecrets {
    fn reveal<'a>(&'a self, _: &'a AppName, _: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        unreachable!("no setting names a secret")
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

/// As a host dials, without a host between.
struct ByNode {
    dialer: Arc<NodeDialer>,
    tenant: Arc<Tenant>,
    other: Mutex<Vec<String>>,
}

impl Dialer for ByNode {
    fn dial(&self, target: Target) -> BoxFuture<'_, Result<Dialled, DialError>> {
        async move {
            let caller = match target.caller {
                Caller::Component(name) => Asking::Component(name),
                Caller::Provider(name) => Asking::Provider(name),
            };
            let dial =
                Dial { app: target.app, caller, transport: Transport::Tcp, host: target.host, port: target.port };
            match self.dialer.dial(&self.tenant, 0, &dial).await {
                Err(FileFault::Denied { what, .. }) => Err(DialError::Denied(what)),
                Err(other) => {
                    self.other.lock().unwrap().push(format!("{dial:?}: {other}"));
                    Err(DialError::Connect(other.to_string()))
                }
                Ok(dialled) => {
                    let stream = std::net::TcpStream::from(dialled.as_fd().try_clone_to_owned().unwrap());
                    let address = Some(dialled.address);
                    dialled.handed_over();
                    Ok(Dialled { stream: tokio::net::TcpStream::from_std(stream).unwrap().into(), address })
                }
            }
        }
        .boxed()
    }
}

/// The name of the provider with the n-th of these settings.
fn provider(n: usize) -> ProviderName {
    format!("p{n}").parse().unwrap()
}

/// A tenant whose app has a provider for each of the `urls`, with a link to it.
fn tenant(name: String, settings: &TenantSettings, kind: ProviderKind, urls: &[String]) -> Arc<Tenant> {
    let tenant = Tenant::new(name.parse().unwrap());
    tenant.apply(settings);
    let named = || urls.iter().enumerate().map(|(n, url)| (provider(n).to_string(), url));
    let spec = |url| serde_json::json!({ "type": kind.as_str(), "config": { "url": url } });
    let providers: serde_json::Map<_, _> = named().map(|(name, url)| (name, spec(url))).collect();
    let link = |name| serde_json::json!({ "component": "c", "contract": "wasi:keyvalue", "label": "default", "provider": name });
    let links: Vec<_> = named().map(|(name, _)| link(name)).collect();
    let app = serde_json::json!({ "name": "a", "components": {}, "providers": providers, "links": links });
    let app: LockedApp = serde_json::from_value(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    tenant
}

/// Opens the provider as a host does, and asks it whether its server is there.
async fn knock(kind: ProviderKind, name: ProviderName, url: &str, dialer: Arc<dyn Dialer>) -> Result<(), String> {
    let (tenant, app): (TenantName, AppName) = ("t".parse().unwrap(), "a".parse().unwrap());
    let secrets = || Credentials::new(app.clone(), BTreeMap::new(), Arc::new(NoSecrets));
    let tls = || Tls::new(public_roots()).unwrap();
    let text = |cause: &dyn std::fmt::Display| cause.to_string();
    match kind {
        ProviderKind::KeyvalueRedis => {
            let login = redis::Login { username: None, secrets: secrets() };
            let redis = Redis::new(&tenant, &app, &name, url, None, login, dialer).map_err(|c| text(&c))?;
            redis.check().await.map_err(|c| text(&c))
        }
        ProviderKind::KeyvalueVault => {
            let login = Arc::new(VaultLogin::Token(Hidden::new("token".to_owned())));
            let vault = providers::vault::Settings { url, ca: None, namespace: None, auth_mount: None, login };
            let settings = vault::Settings { vault, mount: None, prefix: None, version: vault::Version::V2 };
            let vault = VaultKv::new(&tenant, &app, &name, &settings, dialer).map_err(|c| text(&c))?;
            vault.check().await.map_err(|c| text(&c))
        }
        ProviderKind::KeyvalueConsul => {
            let settings = consul::Settings { url, ca: None, prefix: None, credentials: secrets() };
            let consul = Consul::new(&tenant, &app, &name, &settings, dialer).map_err(|c| text(&c))?;
            consul.check().await.map_err(|c| text(&c))
        }
        ProviderKind::KeyvalueNats => {
            let settings = nats::Settings { url, replicas: None, jetstream_domain: None, login: Login::Nobody };
            let nats = Nats::new(&tenant, &app, &name, settings, tls(), dialer).map_err(|c| text(&c))?;
            nats.check().await.map_err(|c| text(&c))
        }
        ProviderKind::MessagingNats => {
            let endpoint = url.parse().map_err(|c: providers::nats::EndpointError| text(&c))?;
            let options = Options {
                tenant: tenant.clone(),
                app: app.clone(),
                provider: name.clone(),
                endpoint,
                login: Login::Nobody,
                tls: tls(),
            };
            messaging::nats::Nats::new(Client::new(options, dialer), tenant).check().await.map_err(|c| text(&c))
        }
        ProviderKind::BlobstoreS3 => {
            let config = [("url", url), ("bucket", "b"), ("access-key-id", "k")];
            let config = config.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let s3 = S3::new(&tenant, &app, &name, &config, secrets(), dialer).map_err(|c| text(&c))?;
            s3.check().await.map_err(|c| text(&c))
        }
        ProviderKind::SqlPostgres => {
            let config = [("url", url), ("tls", "off"), ("username", "u")];
            let config = config.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let postgres = Postgres::new(&tenant, &app, &name, &config, secrets(), dialer).map_err(|c| text(&c))?;
            postgres.check().await.map_err(|c| text(&c))
        }
        other => unreachable!("{other:?} connects nowhere"),
    }
}

/// A port of this machine, on every address of both families, and how often anybody knocked.
fn ears() -> (u16, Arc<AtomicUsize>) {
    let four = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = four.local_addr().unwrap().port();
    let knocks = Arc::new(AtomicUsize::new(0));
    // A machine without IPv6 has nothing to knock on there.
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).ok();
    for listener in [Some(four), six].into_iter().flatten() {
        let heard = knocks.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                heard.fetch_add(1, Relaxed);
                std::thread::spawn(move || drop(stream.read(&mut [0; 64])));
            }
        });
    }
    (port, knocks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_comes_through_the_settings_of_a_provider() {
    let (port, knocks) = ears();
    let dialer = Arc::new(NodeDialer::new(Arc::new(Names)));
    let hosts: Vec<&str> = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")).collect();
    assert!(hosts.len() >= 500, "{} spellings", hosts.len());
    for (kind, url) in KINDS {
        let mut denied = 0;
        // A tenant may open 400 connections in a burst, and some clients try each thrice; one over its rate proves nothing.
        for (n, some) in hosts.chunks(100).enumerate() {
            // As it is, and where that is how an address with a port is written, in brackets.
            let place = |host: &&str| {
                if host.contains("::") && !host.contains('[') { format!("[{host}]") } else { (*host).to_owned() }
            };
            let urls: Vec<String> =
                some.iter().map(|host| url.replace("{}", &format!("{}:{port}", place(host)))).collect();
            let tenant = tenant(format!("{}-{n}", kind.as_str()), &TenantSettings::default(), kind, &urls);
            let by_node = Arc::new(ByNode { dialer: dialer.clone(), tenant: tenant.clone(), other: Mutex::default() });
            let tried = futures::stream::iter(urls.into_iter().enumerate()).map(|(n, url)| {
                let dialer = by_node.clone();
                async move { (url.clone(), knock(kind, provider(n), &url, dialer).await) }
            });
            let tried: Vec<_> = tried.buffer_unordered(25).collect().await;
            for (url, result) in tried {
                assert!(result.is_err(), "{url} came through as {}", kind.as_str());
            }
            let other = by_node.other.lock().unwrap();
            assert!(other.is_empty(), "refused for another reason: {other:#?}");
            assert_eq!(tenant.flows.count(Verdict::Connected), 0);
            denied += tenant.flows.count(Verdict::Denied);
        }
        // Most of the table is refused by the node, and not by somebody who cannot read it.
        assert!(denied > 200, "{}: {denied} were refused by the node", kind.as_str());
    }
    assert_eq!(knocks.load(Relaxed), 0, "nobody knocked");

    // With a grant each of them does: the refusals above are refusals.
    let settings = TenantSettings { egress: vec!["127.0.0.1".into()], ..TenantSettings::default() };
    for (n, (kind, url)) in KINDS.into_iter().enumerate() {
        let url = url.replace("{}", &format!("127.0.0.1:{port}"));
        let tenant = tenant(format!("open-{}", kind.as_str()), &settings, kind, std::slice::from_ref(&url));
        let by_node = Arc::new(ByNode { dialer: dialer.clone(), tenant, other: Mutex::default() });
        // The one who answers says nothing and hangs up.
        assert!(knock(kind, provider(0), &url, by_node).await.is_err(), "{url}");
        assert!(knocks.load(Relaxed) > n, "{url} did not knock");
    }
}
