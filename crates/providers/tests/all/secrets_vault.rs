//! Secrets in Vault: read, kept, told of when they change, used to the end of their lease while Vault is away, and each way in
//! which they cannot be had. Against the double, and where the same can be asked of it a real OpenBao.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use model::{AppName, SecretRef};
use providers::meter::{ErrorKind, Kind as _, LinkMeter};
use providers::secrets::vault::{Engine, Scope, Settings as StoreSettings, VaultSecrets};
use providers::secrets::{Credentials, Hold, LinkedSecret, Resolver, Revealed, SecretError, Sources, conformance};
use providers::vault::{Hidden, Login, Settings, VaultError};
use serde_json::{Value, json};

use crate::support::{RedisServer, Vault as Keeper};
use crate::vault::{Rig, fresh, rigs};

/// How a store of a test differs from the usual.
struct With {
    engine: Engine,
    scope: Scope,
    prefix: Option<&'static str>,
    refresh: Duration,
    lease: Duration,
}

const USUAL: With = With {
    engine: Engine::Kv2,
    scope: Scope::App,
    prefix: None,
    refresh: Duration::from_secs(1),
    lease: Duration::from_secs(600),
};

fn app() -> AppName {
    "shop".parse().unwrap()
}

/// A store, and who holds the secrets that tests ask it for: as links do, for as long as they are there.
struct Linked {
    store: Arc<VaultSecrets>,
    _held: Vec<Hold>,
}

impl std::ops::Deref for Linked {
    type Target = VaultSecrets;

    fn deref(&self) -> &VaultSecrets {
        &self.store
    }
}

fn store(rig: &Rig, mount: &str, login: Login, auth_mount: Option<&str>, with: &With) -> Linked {
    let store = store_of(rig, &app(), mount, login, auth_mount, with);
    let held = ["api-key", "cache", "key", "smtp"].map(|name| store.hold(&secret(name, None))).into();
    Linked { store, _held: held }
}

fn store_of(
    rig: &Rig,
    app: &AppName,
    mount: &str,
    login: Login,
    auth_mount: Option<&str>,
    with: &With,
) -> Arc<VaultSecrets> {
    let url = rig.url();
    let vault = Settings { url: &url, ca: None, namespace: None, auth_mount, login: Arc::new(login) };
    let With { engine, scope, prefix, refresh, lease } = *with;
    let settings = StoreSettings { vault, mount: Some(mount), prefix, engine, scope, refresh, lease };
    let (tenant, provider) = ("acme".parse().unwrap(), "vault".parse().unwrap());
    VaultSecrets::new(&tenant, app, &provider, &settings, rig.dialer.clone()).unwrap()
}

/// The usual store as if its Vault were at `url`.
pub(crate) fn store_at(url: &str, mount: &str, login: Login, dialer: Arc<crate::support::Direct>) -> Arc<VaultSecrets> {
    let vault = Settings { url, ca: None, namespace: None, auth_mount: None, login: Arc::new(login) };
    let With { engine, scope, prefix, refresh, lease } = USUAL;
    let settings = StoreSettings { vault, mount: Some(mount), prefix, engine, scope, refresh, lease };
    VaultSecrets::new(&"acme".parse().unwrap(), &app(), &"vault".parse().unwrap(), &settings, dialer).unwrap()
}

fn secret(name: &str, field: Option<&str>) -> SecretRef {
    SecretRef { field: field.map(|field| field.parse().unwrap()), ..SecretRef::new(name.parse().unwrap()) }
}

pub(crate) async fn reveal(store: &dyn Resolver, name: &str) -> Result<Revealed, SecretError> {
    store.reveal(&app(), &secret(name, None)).await
}

async fn text(store: &dyn Resolver, name: &str) -> String {
    let revealed = reveal(store, name).await.unwrap();
    revealed.value.expose_text().unwrap().to_owned()
}

/// Waits until something is so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn put(rig: &Rig, path: &str, data: Value) {
    rig.admin("POST", path, json!({ "data": data }));
}

/// Writes into Vault as an operator does: text as text, and what is none in base64.
struct Operator<'a> {
    rig: &'a Rig,
    mount: &'a str,
    versioned: bool,
}

impl conformance::Keeper for Operator<'_> {
    fn set<'a>(&'a self, name: &'a str, value: &'a [u8]) -> BoxFuture<'a, ()> {
        let data = match std::str::from_utf8(value) {
            Ok(text) => json!({ "value": text }),
            Err(_) => json!({ "base64": data_encoding::BASE64.encode(value) }),
        };
        let (mount, rig) = (self.mount, self.rig);
        match self.versioned {
            true => put(rig, &format!("{mount}/data/sidereal/acme/shop/{name}"), data),
            false => drop(rig.admin("POST", &format!("{mount}/sidereal/acme/shop/{name}"), data)),
        }
        Box::pin(std::future::ready(()))
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        let part = if self.versioned { "/metadata" } else { "" };
        self.rig.admin("DELETE", &format!("{}{part}/sidereal/acme/shop/{name}", self.mount), Value::Null);
        Box::pin(std::future::ready(()))
    }
}

/// Each app has a store of its own, below its own path.
struct ByApp([(AppName, Arc<VaultSecrets>); 2]);

impl Resolver for ByApp {
    fn reveal<'a>(&'a self, app: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        self.0.iter().find(|(of, _)| of == app).unwrap().1.reveal(app, secret)
    }

    fn hold(&self, secret: &SecretRef) -> Hold {
        self.0[0].1.hold(secret)
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0[0].1.changes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_vault_conform() {
    for rig in rigs().await {
        for (version, engine) in [("2", Engine::Kv2), ("1", Engine::Kv1)] {
            let mount = rig.mount(version);
            let policy = rig.policy(&[&format!("{mount}/*")]);
            let token = rig.token(json!({ "policies": [policy], "ttl": "1h" }));
            let login = || Login::Token(Hidden::new(token.clone()));
            let of = |name: &str| {
                let with = With { engine, ..USUAL };
                let app: AppName = name.parse().unwrap();
                (app.clone(), store_of(&rig, &app, &mount, login(), None, &with))
            };
            let store = ByApp([of("shop"), of("stranger")]);
            let operator = Operator { rig: &rig, mount: &mount, versioned: version == "2" };
            let run = conformance::run(&store, &operator, &app(), &"stranger".parse().unwrap()).await;
            run.unwrap_or_else(|cause| panic!("kv version {version} of {}: {cause}", rig.url()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_read_at_its_place_and_a_change_is_told_of() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let policy = rig.policy(&[&format!("{mount}/data/sidereal/acme/shop/*")]);
        let (auth, login) = rig.approle(json!({ "token_policies": [policy], "token_ttl": 60 }));
        put(&rig, &format!("{mount}/data/sidereal/acme/shop/api-key"), json!({ "value": "one", "note": "by hand" }));
        put(&rig, &format!("{mount}/data/sidereal/acme/other/api-key"), json!({ "value": "anothers" }));
        let store = store(&rig, &mount, login, Some(&auth), &USUAL);
        store.check().await.unwrap();
        let first = reveal(&*store, "api-key").await.unwrap();
        assert_eq!(first.value.expose(), b"one");
        let noted = store.reveal(&app(), &secret("api-key", Some("note"))).await.unwrap();
        assert_eq!((noted.value.expose(), noted.version), (&b"by hand"[..], first.version));

        let asked = || rig.fake.as_ref().map_or(0, |fake| fake.asked("shop/api-key"));
        let (before, start) = (asked(), Instant::now());
        for _ in 0..100 {
            reveal(&*store, "api-key").await.unwrap();
        }
        // It is looked at every second.
        let looks = usize::try_from(start.elapsed().as_secs()).unwrap() + 2;
        assert!(asked() <= before + looks, "from memory, and not from Vault each time");

        // Rotated: told of, and another version; what was got before stays what it was.
        let mut changes = store.changes();
        changes.mark_unchanged();
        put(&rig, &format!("{mount}/data/sidereal/acme/shop/api-key"), json!({ "value": "two" }));
        tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
        let second = reveal(&*store, "api-key").await.unwrap();
        assert_eq!((second.value.expose(), first.value.expose()), (&b"two"[..], &b"one"[..]));
        assert!(second.version > first.version);
        // Written again as it was: nothing to tell.
        put(&rig, &format!("{mount}/data/sidereal/acme/shop/api-key"), json!({ "value": "two" }));
        let read = asked();
        if rig.fake.is_some() {
            until("it is not read again", || async { asked() >= read + 2 }).await;
        }
        assert!(!changes.has_changed().unwrap());
        assert_eq!(reveal(&*store, "api-key").await.unwrap().version, second.version);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_and_secrets_of_the_tenant_have_their_own_places() {
    for rig in rigs().await {
        let mount = rig.mount("1");
        rig.admin("POST", &format!("{mount}/apps/acme/smtp"), json!({ "value": "shared", "port": 25 }));
        let with = With { engine: Engine::Kv1, scope: Scope::Tenant, prefix: Some("apps"), ..USUAL };
        let store = store(&rig, &mount, rig.root_login(), None, &with);
        store.check().await.unwrap();
        assert_eq!(text(&*store, "smtp").await, "shared");
        let port = store.reveal(&app(), &secret("smtp", Some("port"))).await.unwrap();
        assert_eq!(port.value.expose(), b"25");
        rig.admin("POST", &format!("{mount}/apps/acme/smtp"), json!({ "value": "anew" }));
        until("a change in version 1 is seen", || async { text(&*store, "smtp").await == "anew" }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_that_is_mounted_is_told_from_the_one_that_is_set() {
    for rig in rigs().await {
        for (version, set, says) in
            [("1", Engine::Kv2, "kv-1"), ("2", Engine::Kv1, "kv-2"), ("2", Engine::Dynamic, "kv-2")]
        {
            let mount = rig.mount(version);
            let with = With { engine: set, ..USUAL };
            let wrong = store(&rig, &mount, rig.root_login(), None, &with).check().await.unwrap_err();
            assert!(matches!(&wrong, VaultError::OtherEngine { set, .. } if *set == says), "{wrong:?}");
            assert!(wrong.to_string().contains(&format!("engine = \"{says}\"")), "{wrong}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_not_allowed_is_said_and_not_kept() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let path = format!("{mount}/data/sidereal/acme/shop/key");
        let store_as_root = store(&rig, &mount, rig.root_login(), None, &USUAL);
        let absent = reveal(&*store_as_root, "key").await.unwrap_err();
        assert!(matches!(&absent, SecretError::Absent { place, .. } if *place == path), "{absent:?}");
        assert!(absent.to_string().contains(&path), "{absent}");
        assert_eq!(absent.kind(), ErrorKind::Refused);
        put(&rig, &path, json!({ "value": "hunter2" }));
        until("what was written is found", || async { reveal(&*store_as_root, "key").await.is_ok() }).await;
        // Deleted: gone for us, too, and told of.
        let mut changes = store_as_root.changes();
        changes.mark_unchanged();
        rig.admin("DELETE", &path, Value::Null);
        tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
        assert!(matches!(reveal(&*store_as_root, "key").await, Err(SecretError::Absent { .. })));

        let (auth, login) = rig.approle(json!({ "token_ttl": 60 }));
        let store = store(&rig, &mount, login, Some(&auth), &USUAL);
        let denied = reveal(&*store, "key").await.unwrap_err();
        let SecretError::Vault { cause, .. } = &denied else { panic!("{denied:?}") };
        assert!(matches!(**cause, VaultError::Denied(_)), "{denied:?}");
        assert!(denied.to_string().contains("`key`") && denied.to_string().contains("policies"), "{denied}");
        assert_eq!(denied.kind(), ErrorKind::Denied);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_away_end_the_use_of_what_was_read() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let policy = rig.policy(&[&format!("{mount}/*")]);
        put(&rig, &format!("{mount}/data/sidereal/acme/shop/key"), json!({ "value": "hunter2" }));
        let token = rig.token(json!({ "policies": [policy], "ttl": 600 }));
        let store = store(&rig, &mount, Login::Token(Hidden::new(token.clone())), None, &USUAL);
        assert_eq!(text(&*store, "key").await, "hunter2");
        rig.admin("POST", "auth/token/revoke", json!({ "token": token }));
        until("a revoked token is noticed", || async { reveal(&*store, "key").await.is_err() }).await;
        let ended = reveal(&*store, "key").await.unwrap_err();
        let SecretError::Vault { cause, .. } = &ended else { panic!("{ended:?}") };
        assert_eq!(**cause, VaultError::Expired);
        assert!(ended.to_string().contains("expired or revoked"), "{ended}");
        assert_eq!(ended.kind(), ErrorKind::Denied);
        assert!(!format!("{ended} {ended:?}").contains(&token));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_used_to_the_end_of_its_lease_while_vault_is_away() {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let mount = rig.mount("2");
    put(&rig, &format!("{mount}/data/sidereal/acme/shop/key"), json!({ "value": "hunter2" }));
    let long = store(&rig, &mount, rig.root_login(), None, &USUAL);
    let short = store(&rig, &mount, rig.root_login(), None, &With { lease: Duration::from_secs(2), ..USUAL });
    let never = store(&rig, &mount, rig.root_login(), None, &With { lease: Duration::ZERO, ..USUAL });
    for store in [&long, &short, &never] {
        assert_eq!(text(&**store, "key").await, "hunter2");
    }
    let version = reveal(&*long, "key").await.unwrap().version;
    fake.seal(true);
    until("without a lease a value ends", || async { reveal(&*never, "key").await.is_err() }).await;
    until("with the lease a value ends", || async { reveal(&*short, "key").await.is_err() }).await;
    let ended = reveal(&*short, "key").await.unwrap_err();
    let SecretError::Vault { cause, .. } = &ended else { panic!("{ended:?}") };
    assert!(matches!(**cause, VaultError::Sealed(_)) && ended.to_string().contains("vault operator unseal"), "{ended}");
    assert_eq!(text(&*long, "key").await, "hunter2");
    let newcomer = store(&rig, &mount, rig.root_login(), None, &USUAL);
    assert!(reveal(&*newcomer, "key").await.is_err(), "one that never had it cannot use it");

    // Slow: what is kept costs no wait, what is not says how long was waited.
    fake.seal(false);
    until("found again", || async { reveal(&*newcomer, "key").await.is_ok() }).await;
    // Much longer than is waited for: else both may be over when the machine comes to look at them.
    fake.state().delay = Duration::from_secs(30);
    // One that waits does so every time.
    let mut tries = Vec::new();
    while !tries.iter().any(|took| *took < Duration::from_secs(3)) {
        assert!(tries.len() < 4, "{tries:?}");
        let start = Instant::now();
        assert_eq!(text(&*long, "key").await, "hunter2");
        tries.push(start.elapsed());
    }
    let late = store(&rig, &mount, rig.root_login(), None, &USUAL);
    let slow = reveal(&*late, "key").await.unwrap_err();
    let SecretError::Vault { cause, .. } = &slow else { panic!("{slow:?}") };
    assert!(matches!(**cause, VaultError::Slow { ms: 4000, .. }), "{slow:?}");
    assert!(slow.to_string().contains("did not answer within 4000 ms"), "{slow}");
    assert_eq!(slow.kind(), ErrorKind::TimedOut);
    fake.state().delay = Duration::ZERO;
    until("fast again", || async { reveal(&*late, "key").await.is_ok() }).await;
    assert_eq!(reveal(&*long, "key").await.unwrap().version, version, "it is the same value as before");

    // Gone.
    drop(rig.fake);
    let lost = store_at_nobody(&rig.dialer, &mount);
    let unreachable = reveal(&*lost, "key").await.unwrap_err();
    let SecretError::Vault { cause, .. } = &unreachable else { panic!("{unreachable:?}") };
    assert!(matches!(**cause, VaultError::Unreachable { .. }), "{unreachable:?}");
    assert!(unreachable.to_string().contains("cannot be reached"), "{unreachable}");
    assert_eq!(unreachable.kind(), ErrorKind::Unavailable);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        assert_eq!(text(&*long, "key").await, "hunter2");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_used_to_the_end_of_its_lease_where_the_login_ended_while_vault_was_away() {
    // Where the machine stood still until the logins had ended, before Vault was away, it is tried with longer ones.
    for life in [6, 20, 50] {
        if is_used_where_a_login_of(life).await {
            return;
        }
    }
    panic!("no login lives until it is used");
}

/// With logins that live so many seconds; whether they did until Vault was away.
async fn is_used_where_a_login_of(life: u64) -> bool {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let mount = rig.mount("2");
    let policy = rig.policy(&[&format!("{mount}/*")]);
    put(&rig, &format!("{mount}/data/sidereal/acme/shop/key"), json!({ "value": "hunter2" }));
    // An AppRole that logs in once, and a token that is given: neither has a second life.
    let role = json!({ "token_policies": [policy], "token_ttl": life, "renewable": false, "secret_id_num_uses": 1 });
    let (auth, approle) = rig.approle(role);
    let begun = Instant::now();
    let given = rig.token(json!({ "policies": [policy], "ttl": life, "renewable": false }));
    let token = || Login::Token(Hidden::new(given.clone()));
    let long = [store(&rig, &mount, token(), None, &USUAL), store(&rig, &mount, approle, Some(&auth), &USUAL)];
    let short = store(&rig, &mount, token(), None, &With { lease: Duration::from_secs(life + 4), ..USUAL });
    let meters = [0; 2].map(|_| Arc::new(LinkMeter::default()));
    for (store, meter) in long.iter().zip(&meters) {
        store.tell(meter);
    }
    let mut read = Vec::new();
    for store in long.iter().chain([&short]) {
        read.push(reveal(&**store, "key").await);
    }
    fake.seal(true);
    let away = Instant::now();
    if begun + Duration::from_secs(life) <= away {
        return false;
    }
    for read in read {
        assert_eq!(read.unwrap().value.expose_text(), Some("hunter2"));
    }
    // By then each of the tokens has ended.
    tokio::time::sleep_until((away + Duration::from_secs(life + 1)).into()).await;
    fake.seal(false);
    for (meter, words) in meters.iter().zip(["expired or revoked", "refuses the login by approle"]) {
        let said = || meter.trouble().is_some_and(|trouble| trouble.reason.contains(words));
        until("it is told that the login has ended", || async { said() }).await;
    }
    for store in &long {
        assert_eq!(text(&**store, "key").await, "hunter2", "Vault that comes back takes nothing away");
    }
    until("with the lease a value ends", || async { reveal(&*short, "key").await.is_err() }).await;
    let ended = reveal(&*short, "key").await.unwrap_err();
    assert!(ended.to_string().contains("expired or revoked"), "{ended}");
    for store in &long {
        assert_eq!(text(&**store, "key").await, "hunter2");
    }
    true
}

fn store_at_nobody(dialer: &Arc<crate::support::Direct>, mount: &str) -> Arc<VaultSecrets> {
    let login = Arc::new(Login::Token(Hidden::new("t".to_owned())));
    let vault = Settings { url: "http://127.0.0.1:1", ca: None, namespace: None, auth_mount: None, login };
    let With { engine, scope, prefix, refresh, lease } = USUAL;
    let settings = StoreSettings { vault, mount: Some(mount), prefix, engine, scope, refresh, lease };
    let (tenant, provider) = ("acme".parse().unwrap(), "vault".parse().unwrap());
    VaultSecrets::new(&tenant, &app(), &provider, &settings, dialer.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_token_that_is_looked_at_anew_keeps_the_credentials_made_for_it() {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let mount = fresh("database");
    rig.admin("POST", &format!("sys/mounts/{mount}"), json!({ "type": "database" }));
    rig.admin("POST", &format!("{mount}/config/cache"), json!({ "plugin_name": "valkey-database-plugin" }));
    let role = json!({ "db_name": "cache", "default_ttl": "600s", "max_ttl": "600s" });
    rig.admin("POST", &format!("{mount}/roles/acme.shop.cache"), role);
    let policy = rig.policy(&[&format!("{mount}/creds/acme.shop.*"), "sys/leases/*"]);
    let token = rig.token(json!({ "ttl": 30, "renewable": false, "policies": [policy] }));
    let login = Login::Token(Hidden::new(token));
    let store = store(&rig, &mount, login, None, &With { engine: Engine::Dynamic, ..USUAL });
    let user = || async { store.reveal(&app(), &secret("cache", Some("username"))).await };
    let first = user().await.unwrap();
    // At two thirds of its life; what it keeps is looked at every second.
    until("it is looked at anew", || async { fake.asked("token/lookup-self") >= 2 }).await;
    tokio::time::sleep(Duration::from_millis(1800)).await;
    assert_eq!(user().await.unwrap().version, first.version);
    assert_eq!(fake.asked("creds/acme.shop.cache"), 1, "no other credential was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_vault_makes_is_renewed_replaced_in_time_and_revoked_at_the_end() {
    for rig in rigs().await {
        let redis_at = crate::ports::free();
        let _redis = RedisServer::start_at(redis_at, &["--requirepass", "of-the-server"]);
        let mount = fresh("database");
        rig.admin("POST", &format!("sys/mounts/{mount}"), json!({ "type": "database" }));
        let server = json!({
            "plugin_name": "valkey-database-plugin", "allowed_roles": ["*"], "host": "127.0.0.1",
            "port": redis_at.port(), "username": "default", "password": "of-the-server",
        });
        rig.admin("POST", &format!("{mount}/config/cache"), server);
        let role = json!({
            "db_name": "cache", "creation_statements": [r#"["~*","+@all"]"#], "default_ttl": "8s", "max_ttl": "16s",
        });
        rig.admin("POST", &format!("{mount}/roles/acme.shop.cache"), role);
        let policy = rig.policy(&[&format!("{mount}/creds/acme.shop.*"), "sys/leases/*"]);
        let (auth, login) = rig.approle(json!({ "token_policies": [policy], "token_ttl": 600 }));
        let with = With { engine: Engine::Dynamic, ..USUAL };
        let store = store(&rig, &mount, login, Some(&auth), &with);
        store.check().await.unwrap();
        let part = |field| {
            let (store, secret) = (store.store.clone(), secret("cache", Some(field)));
            async move { store.reveal(&app(), &secret).await }
        };
        let (user, password) = (part("username").await.unwrap(), part("password").await.unwrap());
        assert_eq!(user.version, password.version, "both are of one credential");
        let mut changes = store.changes();
        changes.mark_unchanged();
        // Past the longest life of one credential, and never without a good one.
        tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
        let (other, next) = (part("username").await.unwrap(), part("password").await.unwrap());
        assert!(other.value != user.value && next.value != password.value && next.version > password.version);
        if let Some(fake) = &rig.fake {
            assert!(fake.asked("leases/renew") >= 1, "renewed first");
            assert_eq!(fake.asked("creds/acme.shop.cache"), 2);
        }
        let unknown = reveal(&*store, "other").await.unwrap_err();
        assert!(matches!(&unknown, SecretError::Vault { .. }), "{unknown:?}");
        let lists = || {
            let listed = match &rig.fake {
                Some(fake) => fake.asked("leases/revoke"),
                None => 0,
            };
            let real = rig.fake.is_none().then(|| {
                let path = format!("sys/leases/lookup/{mount}/creds/acme.shop.cache");
                let (address, root) = (rig.address, rig.root.clone());
                let ask = move || {
                    crate::support::plain_http(address, "LIST", &format!("/v1/{path}"), ("x-vault-token", &root), "")
                };
                std::thread::spawn(ask).join().unwrap().is_some_and(|(status, _)| status == 404)
            });
            listed >= 1 || real == Some(true)
        };
        drop(store);
        until("the lease is revoked", || async { tokio::task::block_in_place(lists) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_link_and_no_provider_names_any_more_is_let_go_while_others_use_the_same_vault() {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let database = fresh("database");
    rig.admin("POST", &format!("sys/mounts/{database}"), json!({ "type": "database" }));
    rig.admin("POST", &format!("{database}/config/db"), json!({ "plugin_name": "valkey-database-plugin" }));
    for role in ["admin", "read"] {
        let role_of = json!({ "db_name": "db", "default_ttl": "600s", "max_ttl": "600s" });
        rig.admin("POST", &format!("{database}/roles/acme.shop.{role}"), role_of);
    }
    let kv = rig.mount("2");
    for name in ["admin", "read"] {
        put(&rig, &format!("{kv}/data/sidereal/acme/shop/{name}"), json!({ "value": name }));
    }
    let store = |mount: &str, engine| store_of(&rig, &app(), mount, rig.root_login(), None, &With { engine, ..USUAL });
    let (dynamic, versioned) = (store(&database, Engine::Dynamic), store(&kv, Engine::Kv2));

    // A link names one, and the settings of a provider the other; of both kinds.
    let from: model::ProviderName = "vault".parse().unwrap();
    let linked =
        |store: &Arc<VaultSecrets>| LinkedSecret::new(app(), secret("admin", None), store.clone(), Arc::default());
    let named = |store: &Arc<VaultSecrets>| {
        let sources = Sources::new(Keeper::new(), false, [(from.clone(), store.clone() as Arc<dyn Resolver>)].into());
        let field = if Arc::ptr_eq(store, &dynamic) { "username" } else { "value" };
        let read = SecretRef { from: Some(from.clone()), ..secret("read", Some(field)) };
        Credentials::new(app(), [("username".to_owned(), read)].into(), Arc::new(sources))
    };
    let links = [&dynamic, &versioned].map(linked);
    let providers = [&dynamic, &versioned].map(named);
    let user = |of: usize| {
        let credentials = &providers[of];
        async move { credentials.get("username").await.unwrap().unwrap().version }
    };
    let admin = secret("admin", Some("username"));
    dynamic.reveal(&app(), &admin).await.unwrap();
    assert_eq!(text(&*versioned, "admin").await, "admin");
    let before = (user(0).await, user(1).await);
    let lease = |n: usize| format!("{database}/creds/acme.shop.{}/lease-{n}", ["admin", "read"][n - 1]);
    let lives = |n| fake.state().has_lease(&lease(n));
    assert!(lives(1) && lives(2));
    // Held by two, and one of them goes: nothing happens.
    drop(linked(&dynamic));
    let looks = fake.asked("shop/read");
    until("it is not read again", || async { fake.asked("shop/read") >= looks + 2 }).await;
    assert!(lives(1) && fake.asked("leases/revoke") == 0);

    drop(links);
    until("the lease is not revoked", || async { fake.asked("leases/revoke") == 1 }).await;
    assert!(!lives(1) && lives(2), "the one of the link that went");
    // One look may have been under way.
    let looks = fake.asked("shop/read");
    until("the other is not read again", || async { fake.asked("shop/read") >= looks + 2 }).await;
    let (gone, looks) = (fake.asked("shop/admin"), fake.asked("shop/read"));
    until("the other is not read again", || async { fake.asked("shop/read") >= looks + 3 }).await;
    assert_eq!(fake.asked("shop/admin"), gone, "what nobody names is read no more");
    assert_eq!((user(0).await, user(1).await), before, "and what is named is what it was");
    assert_eq!(fake.asked("creds/acme.shop.read"), 1);
    // Named again: had anew.
    let _again = linked(&versioned);
    assert_eq!(text(&*versioned, "admin").await, "admin");
    assert!(fake.asked("shop/admin") > gone);
}

#[tokio::test]
async fn a_provider_may_have_its_secrets_from_several_sources_and_hears_of_changes_in_each() {
    let (own, other) = (Keeper::new(), Keeper::new());
    own.set("user", "ann");
    other.set("password", "one");
    let from: model::ProviderName = "vault".parse().unwrap();
    let references = |from: &model::ProviderName| -> BTreeMap<String, SecretRef> {
        let password = SecretRef::at("password".parse().unwrap(), from.clone());
        [("username".to_owned(), secret("user", None)), ("password".to_owned(), password)].into()
    };
    let named = || [(from.clone(), other.clone() as Arc<dyn Resolver>)].into();
    let sources = Arc::new(Sources::new(own.clone(), true, named()));
    let credentials = Credentials::new(app(), references(&from), sources);
    let all = credentials.all().await.unwrap();
    assert_eq!((all.text("username").unwrap(), all.text("password").unwrap()), (Some("ann"), Some("one")));
    let mut changes = credentials.changes();
    for change in
        [|own: &Keeper, _: &Keeper| own.set("user", "bob"), |_: &Keeper, other: &Keeper| other.set("password", "two")]
    {
        change(&own, &other);
        tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
    }
    // One source alone is asked directly, and the own store concerns nobody.
    let alone = Sources::new(own.clone(), false, named());
    let changes = alone.changes();
    own.set("user", "cid");
    assert!(!changes.has_changed().unwrap());
    let elsewhere = references(&"nowhere".parse().unwrap());
    let lost = Credentials::new(app(), elsewhere, Arc::new(alone)).all().await.unwrap_err();
    assert!(lost.to_string().contains("`nowhere`"), "{lost}");
}
