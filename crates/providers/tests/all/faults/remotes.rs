//! The providers that the suite runs for, each with a server of its own. A new one is a [`Remote`] here and a line in
//! `mod.rs`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use providers::blobstore::Backend as _;
use providers::http_out::public_roots;
use providers::keyvalue::Backend as _;
use providers::keyvalue::vault::Version;
use providers::messaging::{self, Backend as _};
use providers::meter::Kind as _;
use providers::nats::{Credentials, Login};
use providers::vault::{Hidden, Login as VaultLogin};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Call, Remote, SECOND, call};
use crate::nats_server::{NatsServer, client};
use crate::support::{Direct, RedisServer, Vault as Keeper};
use crate::{consul, keyvalue, keyvalue_nats, s3, secrets_vault, sql, vault};

/// What logs in; no error shows it.
pub(crate) const SECRET: &str = "hunter2-of-the-faults";
/// What the server takes instead once that was revoked.
const OTHER: &str = "another-one";

pub(crate) struct Redis(RedisServer);

impl Remote for Redis {
    const BOUND: Duration = Duration::from_secs(5);

    async fn start() -> Option<Self> {
        let address = crate::ports::free();
        Some(Self(RedisServer::start_at(address, &["--requirepass", SECRET])))
    }

    fn address(&self) -> SocketAddr {
        self.0.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let keeper = Keeper::new();
        keeper.set("password", SECRET);
        let login = keyvalue::login(None, &["password"], &keeper);
        let redis = keyvalue::redis_as("acme", "shop", &format!("redis://{at}"), login, dialer);
        call(redis, |redis| async move { redis.get("b", "k").await.map(drop) })
    }

    async fn revoke(&self) -> bool {
        keyvalue::tells(self.0.address, SECRET, &format!("CONFIG SET requirepass {OTHER}")).await;
        keyvalue::tells(self.0.address, OTHER, "CLIENT KILL TYPE normal").await;
        true
    }
}

/// A NATS server that one user may use.
struct NatsOfAnn(NatsServer);

impl NatsOfAnn {
    fn rules(password: &str) -> String {
        format!("authorization {{ user: ann, password: \"{password}\" }}")
    }

    fn start() -> Self {
        Self(NatsServer::with(&Self::rules(SECRET)))
    }

    fn login() -> Credentials {
        Credentials::User { user: "ann".to_owned(), password: SECRET.to_owned().into() }
    }

    fn revoke(&self) -> bool {
        self.0.reload(&Self::rules(OTHER));
        true
    }
}

pub(crate) struct NatsKeys(NatsOfAnn);

impl Remote for NatsKeys {
    // The lookup of the bucket, at most, and the call itself.
    const BOUND: Duration = Duration::from_secs(10);

    async fn start() -> Option<Self> {
        Some(Self(NatsOfAnn::start()))
    }

    fn address(&self) -> SocketAddr {
        self.0.0.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let url = format!("nats://{at}");
        let mut settings = keyvalue_nats::settings(&url);
        settings.login = Login::Fixed(NatsOfAnn::login());
        let nats = keyvalue_nats::made("acme", "shop", settings, dialer);
        call(nats, |nats| async move { nats.get("b", "k").await.map(drop) })
    }

    async fn revoke(&self) -> bool {
        self.0.revoke()
    }
}

pub(crate) struct NatsMessages(NatsOfAnn);

impl Remote for NatsMessages {
    const BOUND: Duration = Duration::from_secs(5);

    async fn start() -> Option<Self> {
        Some(Self(NatsOfAnn::start()))
    }

    fn address(&self) -> SocketAddr {
        self.0.0.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let client = client(&format!("nats://{at}"), Some(NatsOfAnn::login()), public_roots(), dialer);
        let bus = messaging::nats::Nats::new(client, "acme".parse().unwrap());
        // Nobody listens: the server itself says so.
        call(bus, |bus| async move {
            match bus.request("nobody".to_owned(), Vec::new(), 5 * SECOND).await {
                Err(messaging::BackendError::NoResponder(_)) => Ok(()),
                other => other.map(drop),
            }
        })
    }

    async fn revoke(&self) -> bool {
        self.0.revoke()
    }
}

/// The double, which runs in the test itself.
pub(crate) struct Vault {
    rig: vault::Rig,
    mount: String,
    token: String,
}

impl Vault {
    fn on(rig: vault::Rig) -> Self {
        let mount = rig.mount("2");
        let policy = rig.policy(&[&format!("{mount}/*")]);
        let token = rig.token(json!({ "policies": [policy], "ttl": "1h" }));
        Self { rig, mount, token }
    }

    /// A real server, where there is one.
    async fn real() -> Option<Self> {
        let rigs = vault::rigs().await;
        rigs.into_iter().find(|rig| rig.fake.is_none()).map(Self::on)
    }
}

/// The same on a real OpenBao.
pub(crate) struct OpenBao(Vault);

impl Remote for OpenBao {
    const BOUND: Duration = Vault::BOUND;

    async fn start() -> Option<Self> {
        Vault::real().await.map(Self)
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        self.0.open(at, dialer)
    }

    async fn revoke(&self) -> bool {
        self.0.revoke().await
    }
}

impl Remote for Vault {
    // To log in, and the call itself.
    const BOUND: Duration = Duration::from_secs(8);

    async fn start() -> Option<Self> {
        Some(Self::on(vault::rigs().await.remove(0)))
    }

    fn address(&self) -> SocketAddr {
        self.rig.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let login = VaultLogin::Token(Hidden::new(self.token.clone()));
        let kv = vault::kv_at(&format!("http://{at}"), "shop", &self.mount, Version::V2, login, None, &dialer);
        call(kv, |kv| async move { kv.get("b", "k").await.map(drop) })
    }

    async fn revoke(&self) -> bool {
        self.rig.admin("POST", "auth/token/revoke", json!({ "token": self.token }));
        true
    }
}

/// Servers at once: each is large, and slow to begin where many begin.
static FEW: Semaphore = Semaphore::const_new(2);

pub(crate) struct Consul {
    server: consul::Server,
    token: String,
    _turn: SemaphorePermit<'static>,
}

impl Remote for Consul {
    const BOUND: Duration = Duration::from_secs(4);

    async fn start() -> Option<Self> {
        let turn = FEW.acquire().await.unwrap();
        let server = consul::Server::start()?;
        let token = server.token_with(r#"key_prefix "sidereal/acme/" { policy = "read" }"#);
        Some(Self { server, token, _turn: turn })
    }

    fn address(&self) -> SocketAddr {
        self.server.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let consul = consul::consul_of("acme", "shop", &format!("http://{at}"), &self.token, &dialer);
        call(consul, |consul| async move { consul.get("b", "k").await.map(drop) })
    }

    async fn revoke(&self) -> bool {
        self.server.revoke(&self.token);
        true
    }
}

pub(crate) struct S3 {
    server: Mutex<s3::Server>,
    address: SocketAddr,
    root: tempfile::TempDir,
}

impl Remote for S3 {
    const BOUND: Duration = Duration::from_secs(5);

    async fn start() -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let server = s3::Server::start(root.path(), SECRET).await;
        s3::s3(server.address, &s3::vault(SECRET)).create("c").await.unwrap();
        Some(Self { address: server.address, server: Mutex::new(server), root })
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let store = s3::of(("acme", "shop", "store"), "bucket", at, &s3::vault(SECRET), dialer);
        call(store, |store| async move { store.container("c").await.map(drop) })
    }

    async fn revoke(&self) -> bool {
        let accepting = std::mem::replace(&mut self.server.lock().unwrap().accepting, tokio::spawn(async {}));
        accepting.abort();
        drop(accepting.await);
        let other = s3::Server::start_at(self.root.path(), OTHER, self.address).await;
        *self.server.lock().unwrap() = other;
        true
    }
}

/// Each has processes of its own, and `initdb` is slow.
static POSTGRES: Semaphore = Semaphore::const_new(2);

pub(crate) struct Postgres {
    server: crate::postgres_server::Postgres,
    _turn: SemaphorePermit<'static>,
}

impl Remote for Postgres {
    // A place among the connections, and the call.
    const BOUND: Duration = Duration::from_secs(17);

    async fn start() -> Option<Self> {
        let turn = POSTGRES.acquire().await.unwrap();
        let server = crate::postgres_server::Postgres::start();
        let sql = format!("CREATE ROLE ann LOGIN PASSWORD '{SECRET}'");
        server.psql(crate::postgres_server::PASSWORD, "postgres", &sql).unwrap();
        Some(Self { server, _turn: turn })
    }

    fn address(&self) -> SocketAddr {
        self.server.addr
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let database = sql::postgres_of("ann", SECRET, at, dialer);
        call(database, |database| async move {
            let statement = model::sql::Statement { sql: "SELECT 1".to_owned(), params: Vec::new() };
            providers::sql::Backend::call(&*database, model::sql::Call::Query(statement)).await.map(drop)
        })
    }

    async fn revoke(&self) -> bool {
        let admin = |sql: &str| {
            self.server.psql(crate::postgres_server::PASSWORD, "postgres", sql).unwrap();
        };
        admin(&format!("ALTER ROLE ann PASSWORD '{OTHER}'"));
        admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ann'");
        true
    }
}

pub(crate) struct JetstreamMessages(NatsOfAnn);

impl Remote for JetstreamMessages {
    // What is known of the stream, a message that is sent again for a while, and the last of these tries.
    const BOUND: Duration = Duration::from_secs(18);
    const BRIDGES: bool = true;

    async fn start() -> Option<Self> {
        Some(Self(NatsOfAnn::start()))
    }

    fn address(&self) -> SocketAddr {
        self.0.0.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let client = client(&format!("nats://{at}"), Some(NatsOfAnn::login()), public_roots(), dialer);
        let settings = [("stream", "FAULTS"), ("subjects", "faults.>"), ("max-bytes", "16 MiB")];
        let settings = model::stream::StreamSettings::read(&crate::support::config(&settings)).unwrap();
        let tenant = "acme".parse().unwrap();
        let broker = messaging::jetstream::Jetstream::new(client, None, tenant, settings, 1).unwrap();
        call(broker, |broker| async move {
            let message = messaging::Message { subject: "faults.a".to_owned(), body: Vec::new(), reply_to: None };
            broker.publish(message).await
        })
    }

    async fn revoke(&self) -> bool {
        self.0.revoke()
    }
}

pub(crate) struct NatsObjects(NatsOfAnn);

impl Remote for NatsObjects {
    // The lookup of the bucket, at most, and the call itself.
    const BOUND: Duration = Duration::from_secs(10);

    async fn start() -> Option<Self> {
        Some(Self(NatsOfAnn::start()))
    }

    fn address(&self) -> SocketAddr {
        self.0.0.address
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let client = client(&format!("nats://{at}"), Some(NatsOfAnn::login()), public_roots(), dialer);
        let (tenant, app, provider) = ("acme".parse().unwrap(), "shop".parse().unwrap(), "objects".parse().unwrap());
        let store = providers::blobstore::nats::Nats::new(client, None, &tenant, &app, &provider, 1).unwrap();
        call(store, |store| async move { store.container("c").await.map(drop) })
    }

    async fn revoke(&self) -> bool {
        self.0.revoke()
    }
}

/// The same on a real OpenBao.
pub(crate) struct OpenBaoSecrets(VaultSecrets);

impl Remote for OpenBaoSecrets {
    const BOUND: Duration = VaultSecrets::BOUND;

    async fn start() -> Option<Self> {
        Vault::real().await.map(|vault| Self(VaultSecrets(vault)))
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        self.0.open(at, dialer)
    }

    async fn revoke(&self) -> bool {
        self.0.revoke().await
    }
}

/// The double again, whose secrets are kept by whoever reads them: each call asks for another one.
pub(crate) struct VaultSecrets(Vault);

impl Remote for VaultSecrets {
    // To log in, to look at the mount, and the call itself.
    const BOUND: Duration = Duration::from_secs(12);

    async fn start() -> Option<Self> {
        Some(Self(Vault::start().await?))
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call {
        let login = VaultLogin::Token(Hidden::new(self.0.token.clone()));
        let store = secrets_vault::store_at(&format!("http://{at}"), &self.0.mount, login, dialer);
        let asked = std::sync::atomic::AtomicU64::new(0);
        call((store, asked), |both| async move {
            let (store, asked) = &*both;
            let n = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            match secrets_vault::reveal(&**store, &format!("none-{n}")).await {
                Ok(_) => Ok(()),
                // It is not there, as Vault says.
                Err(cause) if cause.kind() == providers::meter::ErrorKind::Refused => Ok(()),
                Err(cause) => Err(cause),
            }
        })
    }

    async fn revoke(&self) -> bool {
        self.0.revoke().await
    }
}
