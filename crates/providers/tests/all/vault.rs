//! Vault: logins, the life of tokens, its errors, and key-value on top. Everything that a real server can be asked runs
//! against the double, and the same against a real OpenBao, or the server that `VAULT_ADDR` and `VAULT_TOKEN` name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use model::SecretRef;
use providers::dial::{Caller, DialError};
use providers::keyvalue::conformance::{self, Promises};
use providers::keyvalue::vault::{self as kv, MAX_VALUE, VaultKv, Version};
use providers::keyvalue::{Backend, BackendError};
use providers::secrets::Credentials;
use providers::vault::{FromSecrets, Hidden, Login, LoginSource, Settings, Vault, VaultError};
use serde_json::{Value, json};

use crate::fake_vault::{FakeVault, ROOT};
use crate::openbao::{Real, real};
use crate::support::{Direct, Scripted, Vault as Keeper, plain_http};

const V1: Promises = Promises { increments: false, max_value: MAX_VALUE, max_batch: 1, max_batch_bytes: 0 };
const V2: Promises = Promises { increments: true, ..V1 };

/// A Vault and the right to set it up.
pub(crate) struct Rig {
    pub(crate) fake: Option<FakeVault>,
    pub(crate) address: SocketAddr,
    pub(crate) root: String,
    pub(crate) dialer: Arc<Direct>,
}

/// The double, and the real one where there is one.
pub(crate) async fn rigs() -> Vec<Rig> {
    let fake = FakeVault::start().await;
    let address = fake.address;
    let mut rigs = vec![Rig { fake: Some(fake), address, root: ROOT.to_owned(), dialer: Direct::to(address) }];
    if let Some(Real { address, root }) = tokio::task::block_in_place(real) {
        rigs.push(Rig { fake: None, address, root, dialer: Direct::to(address) });
    }
    rigs
}

/// A name nothing else has, also not an earlier run against the same server.
pub(crate) fn fresh(what: &str) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("sidereal-{what}-{}-{}", std::process::id(), MADE.fetch_add(1, SeqCst))
}

impl Rig {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A request of the operator's, which must succeed.
    pub(crate) fn admin(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (address, root, path) = (self.address, self.root.clone(), format!("/v1/{path}"));
        let method = method.to_owned();
        // The double runs on this thread.
        let asked = std::thread::spawn(move || plain_http(address, &method, &path, ("x-vault-token", &root), &body));
        let (status, body) = tokio::task::block_in_place(|| asked.join()).unwrap().unwrap();
        assert!((200..300).contains(&status), "{status} {body}");
        serde_json::from_str(&body).unwrap_or_default()
    }

    /// A `kv` of this version.
    pub(crate) fn mount(&self, version: &str) -> String {
        let mount = fresh("kv");
        self.admin("POST", &format!("sys/mounts/{mount}"), json!({ "type": "kv", "options": { "version": version } }));
        mount
    }

    /// A policy that allows `all` below each path.
    pub(crate) fn policy(&self, paths: &[&str]) -> String {
        let name = fresh("policy");
        let all = json!({ "capabilities": ["create", "update", "read", "delete", "list"] });
        let paths: Value = paths.iter().map(|path| ((*path).to_owned(), all.clone())).collect();
        let policy = json!({ "path": paths }).to_string();
        self.admin("PUT", &format!("sys/policies/acl/{name}"), json!({ "policy": policy }));
        name
    }

    pub(crate) fn token(&self, body: Value) -> String {
        self.admin("POST", "auth/token/create", body)["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// An AppRole with these settings: its mount and what logs in.
    pub(crate) fn approle(&self, role: Value) -> (String, Login) {
        let mount = fresh("approle");
        self.admin("POST", &format!("sys/auth/{mount}"), json!({ "type": "approle" }));
        self.admin("POST", &format!("auth/{mount}/role/app"), role);
        let role_id = self.admin("GET", &format!("auth/{mount}/role/app/role-id"), Value::Null);
        let secret_id = self.admin("POST", &format!("auth/{mount}/role/app/secret-id"), json!({}));
        let text = |value: &Value| Hidden::new(value.as_str().unwrap().to_owned());
        let login = Login::AppRole {
            role_id: text(&role_id["data"]["role_id"]),
            secret_id: text(&secret_id["data"]["secret_id"]),
        };
        (mount, login)
    }

    fn vault(&self, login: Login, auth_mount: Option<&str>) -> Arc<Vault> {
        vault_at(&self.url(), Arc::new(login), auth_mount, &self.dialer)
    }

    fn kv(&self, app: &str, mount: &str, version: Version, login: Login, auth_mount: Option<&str>) -> VaultKv {
        kv_at(&self.url(), app, mount, version, login, auth_mount, &self.dialer)
    }

    pub(crate) fn root_login(&self) -> Login {
        Login::Token(Hidden::new(self.root.clone()))
    }
}

pub(crate) fn kv_at(
    url: &str,
    app: &str,
    mount: &str,
    version: Version,
    login: Login,
    auth_mount: Option<&str>,
    dialer: &Arc<Direct>,
) -> VaultKv {
    let vault = Settings { url, ca: None, namespace: None, auth_mount, login: Arc::new(login) };
    let settings = kv::Settings { vault, mount: Some(mount), prefix: None, version };
    let names = ("acme".parse().unwrap(), app.parse().unwrap(), "store".parse().unwrap());
    VaultKv::new(&names.0, &names.1, &names.2, &settings, dialer.clone()).unwrap()
}

fn vault_at(url: &str, login: Arc<dyn LoginSource>, auth_mount: Option<&str>, dialer: &Arc<Direct>) -> Arc<Vault> {
    let settings = Settings { url, ca: None, namespace: Some("team/a"), auth_mount, login };
    // A namespace is a part of Vault that only some have: the double looks at the header, the real one must not see it.
    let is_real = real().is_some_and(|real| url.ends_with(&real.address.to_string()));
    let settings = if is_real { Settings { namespace: None, ..settings } } else { settings };
    Vault::new(&"shop".parse().unwrap(), &"store".parse().unwrap(), &settings, dialer.clone()).unwrap()
}

/// A token that somebody sets anew.
struct Changing(Arc<std::sync::Mutex<Hidden>>);

impl LoginSource for Changing {
    fn login(&self) -> futures::future::BoxFuture<'_, Result<Login, VaultError>> {
        let token = self.0.lock().unwrap().clone();
        Box::pin(async move { Ok(Login::Token(token)) })
    }
}

async fn get(vault: &Vault, path: &str) -> Result<u16, VaultError> {
    vault.call(http::Method::GET, path, Default::default()).await.map(|told| told.status.as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn version_2_conforms() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let below = |part| format!("{mount}/{part}/sidereal/acme/shop/*");
        let policy = rig.policy(&[&below("data"), &below("metadata")]);
        let (auth, login) = rig.approle(json!({ "token_policies": [policy], "token_ttl": 60 }));
        let kv = rig.kv("shop", &mount, Version::V2, login, Some(&auth));
        kv.check().await.unwrap();
        conformance::run_with(&kv, V2).await.unwrap();
        let asked = rig.dialer.asked.lock().unwrap()[0].clone();
        assert_eq!(asked.caller, Caller::Provider("store".parse().unwrap()));
        let dials = rig.dialer.dials.load(SeqCst);
        assert!(dials <= 200, "connections are kept for thousands of calls: {dials}");

        // What another app has is out of its reach, by the policy and by the path.
        rig.kv("other", &mount, Version::V2, rig.root_login(), None).set("b", "k", b"1".to_vec()).await.unwrap();
        for bucket in ["b", "../other/b", "../../acme/other/b"] {
            assert_eq!(kv.get(bucket, "k").await.unwrap(), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_conforms_and_refuses_what_it_cannot() {
    for rig in rigs().await {
        let mount = rig.mount("1");
        let kv = rig.kv("shop", &mount, Version::V1, rig.root_login(), None);
        kv.check().await.unwrap();
        conformance::run_with(&kv, V1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_that_is_mounted_is_told_from_the_one_that_is_set() {
    for rig in rigs().await {
        for (mounted, set) in [("1", Version::V2), ("2", Version::V1)] {
            let mount = rig.mount(mounted);
            let refused = rig.kv("shop", &mount, set, rig.root_login(), None).check().await.unwrap_err();
            assert!(refused.to_string().contains(&format!("version = \"{mounted}\"")), "{refused}");
        }
        let missing = rig.kv("shop", "nothing-here", Version::V2, rig.root_login(), None);
        let said = missing.get("b", "k").await.unwrap_err();
        assert!(said.to_string().contains("nothing mounted"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_count_together_and_over_what_a_person_deleted() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let hosts = [0; 2].map(|_| rig.kv("shop", &mount, Version::V2, rig.root_login(), None));
        let calls = (0..100).map(|n| hosts[n % 2].increment("b", "hot", 1));
        let mut sums: Vec<u64> = futures::future::try_join_all(calls).await.unwrap();
        sums.sort_unstable();
        assert!(sums.into_iter().eq(1..=100), "each sees another sum and none is lost");
        // `vault kv delete` keeps the count of versions, so the next write is not the first.
        rig.admin("DELETE", &format!("{mount}/data/sidereal/acme/shop/b/hot"), Value::Null);
        assert_eq!(hosts[0].get("b", "hot").await.unwrap(), None);
        assert_eq!(hosts[0].increment("b", "hot", 7).await.unwrap(), 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_people_set_are_read() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let path = format!("{mount}/data/sidereal/acme/shop/b/by-hand");
        rig.admin("POST", &path, json!({ "data": { "value": "hello" } }));
        let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
        assert_eq!(kv.get("b", "by-hand").await.unwrap(), Some(b"hello".to_vec()));
        kv.set("b", "by-us", b"hello back".to_vec()).await.unwrap();
        let seen = rig.admin("GET", &format!("{mount}/data/sidereal/acme/shop/b/by-us"), Value::Null);
        assert_eq!(seen["data"]["data"], json!({ "text": "hello back" }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_a_call_is_in_its_trace() {
    const CALL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let rig = rigs().await.remove(0);
    let mount = rig.mount("2");
    let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
    kv.set("b", "k", b"1".to_vec()).await.unwrap();
    crate::support::traced(CALL, kv.get("b", "k")).await.unwrap();
    let fake = rig.fake.as_ref().unwrap();
    let asked = fake.state().asked.clone();
    let [.., (_, before), (_, last)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((before.get("traceparent"), last["traceparent"].to_str().unwrap()), (None, CALL));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_people_wrote_cut_no_listing_short() {
    for rig in rigs().await {
        for version in ["1", "2"] {
            let mount = rig.mount(version);
            let of = if version == "2" { "data/" } else { "" };
            let kv_version = if version == "2" { Version::V2 } else { Version::V1 };
            let kv = rig.kv("shop", &mount, kv_version, rig.root_login(), None);
            let keys: Vec<String> = (0..1100).map(|n| format!("k{n:04}")).collect();
            // The last name of the first page: a key that is none of ours, and a folder.
            for (bucket, foreign) in [("file", "k0998.json"), ("folder", "k0998+/x")] {
                let written = stream::iter(&keys).map(|key| kv.set(bucket, key, b"1".to_vec())).buffer_unordered(32);
                written.try_collect::<Vec<()>>().await.unwrap();
                let body = json!({ "data": { "value": "by hand" }, "value": "by hand" });
                rig.admin("POST", &format!("{mount}/{of}sidereal/acme/shop/{bucket}/{foreign}"), body);
                let (mut found, mut cursor, mut pages) = (Vec::new(), None, 0);
                loop {
                    let page = kv.list_keys(bucket, cursor.as_deref()).await.unwrap();
                    found.extend(page.keys);
                    pages += 1;
                    cursor = page.cursor;
                    if cursor.is_none() {
                        break;
                    }
                    assert!(pages < 5, "it ends: {cursor:?}");
                }
                assert_eq!(found.len(), keys.len(), "version {version}, {bucket}, {pages} pages");
                assert_eq!(found, keys);
                assert!(pages == 2 || rig.fake.is_none(), "{pages}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_and_then_replaced_before_it_ends() {
    for rig in rigs().await {
        let (auth, login) = rig.approle(json!({ "token_ttl": 6, "token_max_ttl": 10 }));
        let vault = rig.vault(login, Some(&auth));
        let start = Instant::now();
        // Longer than the longest life of one token, and never without one.
        while start.elapsed() < Duration::from_secs(13) {
            vault.check().await.unwrap();
            assert_eq!(get(&vault, "/v1/auth/token/lookup-self").await.unwrap(), 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if let Some(fake) = &rig.fake {
            assert!(fake.asked("renew-self") >= 1, "renewed first");
            let logins = fake.asked(&format!("{auth}/login"));
            assert!((2..=5).contains(&logins), "logged in anew when a renewal gave little: {logins}");
            let state = fake.state();
            let (_, headers) = state.asked.iter().find(|(path, _)| path.ends_with("lookup-self")).unwrap();
            assert_eq!(
                (&headers["x-vault-namespace"], &headers["x-vault-request"]),
                (&"team/a".parse().unwrap(), &"true".parse().unwrap())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_at_the_next_call() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let policy = rig.policy(&[&format!("{mount}/*")]);
        let (auth, login) = rig.approle(json!({ "token_policies": [policy], "token_ttl": 600 }));
        let kv = rig.kv("shop", &mount, Version::V2, login, Some(&auth));
        assert_eq!(kv.increment("b", "n", 1).await.unwrap(), 1);
        if let Some(fake) = &rig.fake {
            let token = fake.state().asked.last().unwrap().1["x-vault-token"].to_str().unwrap().to_owned();
            rig.admin("POST", "auth/token/revoke", json!({ "token": token }));
        }
        // Many at once: one of them logs in, and none sees an error.
        let calls = (0..20).map(|_| kv.increment("b", "n", 1));
        let sums: Vec<u64> = futures::future::try_join_all(calls).await.unwrap();
        assert_eq!(sums.into_iter().max(), Some(21));
        if let Some(fake) = &rig.fake {
            assert_eq!(fake.asked(&format!("{auth}/login")), 2);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_refused_keeps_no_revoked_token_in_use_for_others() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let policy = rig.policy(&[&format!("{mount}/*")]);
        let (first, second) = (rig.token(json!({ "policies": [policy] })), rig.token(json!({ "policies": [policy] })));
        let held = Arc::new(std::sync::Mutex::new(Hidden::new(first.clone())));
        let vault = vault_at(&rig.url(), Arc::new(Changing(held.clone())), None, &rig.dialer);
        rig.admin("POST", &format!("{mount}/data/k"), json!({ "data": { "v": "1" } }));
        let (good, forbidden) = (format!("/v1/{mount}/data/k"), "/v1/secret-of-others/data/k");
        assert_eq!(get(&vault, &good).await.unwrap(), 200);
        assert!(matches!(get(&vault, forbidden).await, Err(VaultError::Denied(_))));
        *held.lock().unwrap() = Hidden::new(second);
        rig.admin("POST", "auth/token/revoke", json!({ "token": first }));
        assert_eq!(get(&vault, &good).await.unwrap(), 200, "replaced at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_token_that_has_ended_is_said_to_have_ended() {
    for rig in rigs().await {
        let token = rig.token(json!({ "ttl": 6, "renewable": false, "policies": [] }));
        let vault = rig.vault(Login::Token(Hidden::new(token.clone())), None);
        vault.check().await.unwrap();
        let start = Instant::now();
        let ended = loop {
            match get(&vault, "/v1/auth/token/lookup-self").await {
                Ok(_) => assert!(start.elapsed() < Duration::from_secs(60)),
                Err(ended) => break ended,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(ended, VaultError::RanOut(Box::new(VaultError::Expired)));
        let unknown = rig.vault(Login::Token(Hidden::new("hvs.hunter2".to_owned())), None);
        let refused = unknown.check().await.unwrap_err();
        assert_eq!(refused, VaultError::Expired);
        assert!(!format!("{refused} {refused:?}").contains("hunter2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policies_do_not_allow_is_denied_without_a_new_login_each_time() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let (auth, login) = rig.approle(json!({ "token_ttl": 60 }));
        let kv = rig.kv("shop", &mount, Version::V2, login, Some(&auth));
        kv.check().await.unwrap();
        for _ in 0..20 {
            let denied = kv.get("b", "k").await.unwrap_err();
            assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
            assert!(denied.to_string().contains("policies"), "{denied}");
        }
        if let Some(fake) = &rig.fake {
            assert_eq!(fake.asked(&format!("{auth}/login")), 1);
            assert_eq!(fake.asked("lookup-self"), 1, "a token that is good is not asked about again at once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_look_itself_up_is_not_replaced_for_each_call_that_is_denied() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let path = |part| format!("{mount}/{part}/sidereal/acme/shop/open/*");
        let policy = rig.policy(&[&path("data"), &path("metadata")]);
        let role = |uses| {
            json!({
                "token_policies": [policy], "token_ttl": 600, "token_no_default_policy": true,
                "secret_id_num_uses": uses,
            })
        };
        let denied = |kv: Arc<VaultKv>, n: usize| async move {
            // Each another path: a component can name as many as it likes.
            let denied = kv.set("closed", &format!("k{n}"), b"1".to_vec()).await.unwrap_err();
            assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
            denied.to_string()
        };
        let (auth, login) = rig.approle(role(0));
        let kv = Arc::new(rig.kv("shop", &mount, Version::V2, login, Some(&auth)));
        let start = Instant::now();
        for n in 0..40 {
            let said = denied(kv.clone(), n).await;
            assert!(said.contains("policies"), "{said}");
        }
        assert_eq!(kv.increment("open", "n", 1).await.unwrap(), 1);
        if let Some(fake) = &rig.fake {
            // The first, the one that told that the token is not to blame, and how long that is believed.
            let most = 2 + usize::try_from(start.elapsed().as_secs()).unwrap() / 2;
            let logins = fake.asked(&format!("{auth}/login"));
            assert!(logins <= most, "{logins} logins, and {most} at most");
        }
        // What it logs in with is used up by the first login: a call that is denied takes nothing from those that are not.
        let (auth, login) = rig.approle(role(1));
        let kv = Arc::new(rig.kv("shop", &mount, Version::V2, login, Some(&auth)));
        assert_eq!(kv.increment("open", "n", 1).await.unwrap(), 2);
        for n in 0..5 {
            denied(kv.clone(), n).await;
            assert_eq!(kv.get("open", "n").await.unwrap(), Some(b"2".to_vec()), "the token is as good as before");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_or_a_key_that_takes_only_writes_by_version_is_written() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        rig.admin("POST", &format!("{mount}/config"), json!({ "cas_required": true }));
        let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
        kv.check().await.unwrap();
        conformance::run_with(&kv, V2).await.unwrap();
        // Over what is no value of ours, what was deleted by hand, and by many at once.
        let path = format!("{mount}/data/sidereal/acme/shop/b/by-hand");
        let by_hand = |cas: u64| json!({ "data": { "password": "hunter2" }, "options": { "cas": cas } });
        rig.admin("POST", &path, by_hand(0));
        kv.set("b", "by-hand", b"1".to_vec()).await.unwrap();
        rig.admin("DELETE", &path, Value::Null);
        kv.set("b", "by-hand", b"2".to_vec()).await.unwrap();
        assert_eq!(kv.get("b", "by-hand").await.unwrap(), Some(b"2".to_vec()));
        let hosts = [0; 2].map(|_| rig.kv("shop", &mount, Version::V2, rig.root_login(), None));
        let sets = (0..20_usize).map(|n| hosts[n % 2].set("b", "hot", n.to_string().into_bytes()));
        futures::future::try_join_all(sets).await.unwrap();
        let last = kv.get("b", "hot").await.unwrap().unwrap();
        assert!(String::from_utf8(last).unwrap().parse::<u64>().unwrap() < 20);

        let mount = rig.mount("2");
        let meta = format!("{mount}/metadata/sidereal/acme/shop/b/careful");
        rig.admin("POST", &meta, json!({ "cas_required": true }));
        let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
        for value in [b"1", b"2"] {
            kv.set("b", "careful", value.to_vec()).await.unwrap();
            assert_eq!(kv.get("b", "careful").await.unwrap(), Some(value.to_vec()));
        }
    }
}

/// A statement signed by Nomad, as it were.
fn jwt(key: &ed25519_dalek::SigningKey, claims: &Value) -> Hidden {
    use ed25519_dalek::Signer as _;
    let head = BASE64URL_NOPAD.encode(br#"{"alg":"EdDSA","typ":"JWT"}"#);
    let signed = format!("{head}.{}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
    let signature = BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes()).to_bytes());
    Hidden::new(format!("{signed}.{signature}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_logs_in_with_its_signed_identity() {
    for rig in rigs().await {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let mut der = data_encoding::HEXLOWER.decode(b"302a300506032b6570032100").unwrap();
        der.extend(key.verifying_key().as_bytes());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", BASE64.encode(&der));
        let auth = fresh("jwt");
        rig.admin("POST", &format!("sys/auth/{auth}"), json!({ "type": "jwt" }));
        let config = json!({ "jwt_validation_pubkeys": [pem], "jwt_supported_algs": ["EdDSA"] });
        rig.admin("POST", &format!("auth/{auth}/config"), config);
        let role = json!({
            "role_type": "jwt", "bound_audiences": ["vault.io"], "user_claim": "nomad_job_id", "token_ttl": 60,
        });
        rig.admin("POST", &format!("auth/{auth}/role/workloads"), role);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = |audience: &str, exp: u64| json!({ "aud": audience, "nomad_job_id": "sidereal", "sub": "global:default:sidereal", "iat": now - 60, "nbf": now - 60, "exp": exp });
        let login = |jwt: Hidden, role: &str| Login::Jwt { role: Some(role.to_owned()), jwt };
        let good = jwt(&key, &claims("vault.io", now + 600));
        rig.vault(login(good.clone(), "workloads"), Some(&auth)).check().await.unwrap();
        let forged = jwt(&ed25519_dalek::SigningKey::from_bytes(&[8; 32]), &claims("vault.io", now + 600));
        for (what, jwt, role) in [
            ("another audience", jwt(&key, &claims("elsewhere", now + 600)), "workloads"),
            ("expired", jwt(&key, &claims("vault.io", now - 3600)), "workloads"),
            ("signed by another", forged, "workloads"),
            ("another role", good, "others"),
        ] {
            let refused = rig.vault(login(jwt.clone(), role), Some(&auth)).check().await.unwrap_err();
            assert!(matches!(refused, VaultError::LoginRefused { method: "jwt", .. }), "{what}: {refused:?}");
            assert!(!format!("{refused} {refused:?}").contains(jwt.expose()), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_is_not_tried_for_every_call() {
    for rig in rigs().await {
        let (auth, login) = rig.approle(json!({ "token_ttl": 60 }));
        let Login::AppRole { role_id, .. } = login else { panic!("an AppRole is one") };
        let wrong = Login::AppRole { role_id, secret_id: Hidden::new("hunter2".to_owned()) };
        let vault = rig.vault(wrong, Some(&auth));
        for _ in 0..50 {
            let refused = vault.check().await.unwrap_err();
            assert!(matches!(refused, VaultError::LoginRefused { method: "approle", .. }), "{refused:?}");
            assert!(!format!("{refused} {refused:?}").contains("hunter2"));
        }
        if let Some(fake) = &rig.fake {
            assert_eq!(fake.asked(&format!("{auth}/login")), 1);
        }
        let elsewhere = rig.vault(rig.approle(json!({})).1, Some("nowhere")).check().await.unwrap_err();
        assert!(matches!(elsewhere, VaultError::NoMount(_) | VaultError::LoginRefused { .. }), "{elsewhere:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_set_anew_is_used_at_the_next_login() {
    for rig in rigs().await {
        let [first, second] = [0; 2].map(|_| rig.token(json!({ "ttl": 600, "policies": [] })));
        let held = Arc::new(std::sync::Mutex::new(Hidden::new(first.clone())));
        let vault = vault_at(&rig.url(), Arc::new(Changing(held.clone())), None, &rig.dialer);
        vault.check().await.unwrap();
        *held.lock().unwrap() = Hidden::new(second);
        rig.admin("POST", "auth/token/revoke", json!({ "token": first }));
        assert_eq!(get(&vault, "/v1/auth/token/lookup-self").await.unwrap(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secrets_of_a_provider_log_in_and_are_asked_for_at_every_login() {
    for rig in rigs().await {
        let held = Keeper::new();
        let from = |settings: &[&str], mount: Option<&str>| {
            let named =
                |setting: &&str| ((*setting).to_owned(), SecretRef::new(setting.replace('_', "-").parse().unwrap()));
            let named = settings.iter().map(named).collect();
            let login = FromSecrets::new(Credentials::new("shop".parse().unwrap(), named, held.clone()), None);
            vault_at(&rig.url(), Arc::new(login), mount, &rig.dialer)
        };
        let missing = from(&["token"], None).check().await.unwrap_err();
        assert!(
            matches!(&missing, VaultError::NoCredential { cause, .. } if cause.contains("secret set token")),
            "{missing:?}"
        );

        let [first, second] = [0; 2].map(|_| rig.token(json!({ "ttl": 600, "policies": [] })));
        // As from a file, with the line break of an editor.
        held.set("token", &format!("{first}\n"));
        let vault = from(&["token"], None);
        vault.check().await.unwrap();
        held.set("token", &second);
        rig.admin("POST", "auth/token/revoke", json!({ "token": first }));
        assert_eq!(get(&vault, "/v1/auth/token/lookup-self").await.unwrap(), 200);

        let (auth, login) = rig.approle(json!({ "token_ttl": 60 }));
        let Login::AppRole { role_id, secret_id } = login else { panic!("an AppRole is one") };
        held.set("role-id", role_id.expose());
        held.set("secret-id", secret_id.expose());
        from(&["role_id", "secret_id"], Some(&auth)).check().await.unwrap();
        let half = from(&["role_id"], Some(&auth)).check().await.unwrap_err();
        assert!(matches!(half, VaultError::NoCredential { passing: false, .. }), "{half:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_vault_is_said_to_be_sealed_and_works_again_when_it_is_not() {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let mount = rig.mount("2");
    let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
    kv.set("b", "k", b"1".to_vec()).await.unwrap();
    fake.seal(true);
    let sealed = kv.get("b", "k").await.unwrap_err();
    assert!(matches!(&sealed, BackendError::Unavailable(why) if why.contains("sealed")), "{sealed:?}");
    let newcomer = rig.vault(rig.root_login(), None);
    assert!(matches!(newcomer.check().await.unwrap_err(), VaultError::Sealed(_)));
    fake.seal(false);
    assert_eq!(kv.get("b", "k").await.unwrap(), Some(b"1".to_vec()), "its token is as good as before");
    let start = Instant::now();
    while let Err(cause) = newcomer.check().await {
        assert!(start.elapsed() < Duration::from_secs(60), "{cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_vault_is_said_to_be_slow_and_keeps_its_token() {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let mount = rig.mount("2");
    let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
    kv.set("b", "k", b"1".to_vec()).await.unwrap();
    // Much longer than is waited for: else both may be over when the machine comes to look at them.
    fake.state().delay = Duration::from_secs(30);
    let start = Instant::now();
    let slow = futures::future::join_all((0..10).map(|_| kv.get("b", "k"))).await;
    assert!(slow.iter().all(|slow| matches!(slow, Err(BackendError::TimedOut { ms: 4000 }))), "{slow:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "they wait together: {:?}", start.elapsed());
    fake.state().delay = Duration::ZERO;
    let start = Instant::now();
    while let Err(cause) = kv.get("b", "k").await {
        assert!(start.elapsed() < Duration::from_secs(60), "{cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fake.asked("lookup-self"), 1, "no new login");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_is_denied() {
    let rig = rigs().await.remove(0);
    *rig.dialer.refuse.lock().unwrap() = Some(DialError::Denied("10.0.0.1 (private) is not granted".into()));
    let login = || Arc::new(Login::Token(Hidden::new("t".to_owned())));
    let denied = vault_at("http://10.0.0.1:8200", login(), None, &rig.dialer).check().await.unwrap_err();
    assert_eq!(denied.to_string(), "10.0.0.1 (private) is not granted");
}

#[tokio::test]
async fn what_is_not_vault_is_said_to_be_none() {
    let login = || Arc::new(Login::Token(Hidden::new("hvs.hunter2".to_owned())));
    for (answer, words) in [
        ("hello", "does not speak HTTP"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "not JSON"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "another shape"),
        ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", "status 302"),
        ("HTTP/1.1 307 Elsewhere\r\nlocation: http://b\r\ncontent-length: 0\r\n\r\n", "standby"),
        ("HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n", "rate limit"),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 36\r\n\r\n{\"errors\":[\"what is hvs.hunter2 ?\"]}", "withheld"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "more than"),
    ] {
        let server = Scripted::start(answer).await;
        let vault = vault_at(&server.url(), login(), None, &Direct::to(server.address));
        let said = vault.check().await.unwrap_err();
        assert!(said.to_string().contains(words), "{answer}: {said}");
        assert!(!format!("{said} {said:?}").contains("hunter2"), "{said:?}");
    }
    let server = Scripted::endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1000\r\n", 0x1000).await;
    let vault = vault_at(&server.url(), login(), None, &Direct::to(server.address));
    assert!(matches!(vault.check().await.unwrap_err(), VaultError::TooLarge(_)));
    let server = Scripted::start("").await;
    let vault = vault_at(&server.url(), login(), None, &Direct::to(server.address));
    assert!(matches!(vault.check().await.unwrap_err(), VaultError::Slow { ms: 4000, .. }));
}

#[tokio::test]
async fn settings_that_could_be_paths_elsewhere_are_refused() {
    let login = Arc::new(Login::Token(Hidden::new("t".to_owned())));
    let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
    for bad in ["..", "secret/../sys", "a//b", "a?b", "%2e%2e", ""] {
        let vault = || Settings { url: "http://v", ca: None, namespace: None, auth_mount: None, login: login.clone() };
        let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
        let settings = |vault, mount, prefix| kv::Settings { vault, mount, prefix, version: Version::V2 };
        for settings in [
            settings(vault(), Some(bad), None),
            settings(vault(), None, Some(bad)),
            settings(Settings { namespace: Some(bad), ..vault() }, None, None),
            settings(Settings { auth_mount: Some(bad), ..vault() }, None, None),
        ] {
            assert!(VaultKv::new(&names.0, &names.1, &names.2, &settings, dialer.clone()).is_err(), "{bad}");
        }
    }
}

/// RustyVault, a Vault of its own make: sealed when it starts, and a `kv` of version 1.
struct RustyVault {
    child: std::process::Child,
    rig: Rig,
    key: String,
    _dir: tempfile::TempDir,
}

impl RustyVault {
    fn start() -> Option<Self> {
        let beside =
            std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/servers/rusty_vault/bin/rvault");
        let program = std::env::var_os("RUSTY_VAULT_BIN").map_or(beside, Into::into);
        if !program.is_file() {
            crate::support::not_run("RustyVault. What was missing: the program `rvault` (RUSTY_VAULT_BIN)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let address = crate::ports::free();
        let (shown, config) = (dir.path().display(), dir.path().join("config.hcl"));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let text = format!(
            "storage \"file\" {{\n path = \"{shown}/data\"\n}}\nlistener \"tcp\" {{\n address = \"{address}\"\n tls_disable = \"true\"\n}}\n\
             api_addr = \"http://{address}\"\nlog_level = \"error\"\npid_file = \"{shown}/pid\"\nwork_dir = \"{shown}/work\"\ndaemon = false\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut child = std::process::Command::new(program);
        let child = child.arg("server").arg("--config").arg(config);
        let child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let init = json!({ "secret_shares": 1, "secret_threshold": 1 }).to_string();
        let made = loop {
            match plain_http(address, "PUT", "/v1/sys/init", ("x-vault-token", "none"), &init) {
                Some((200, made)) => break serde_json::from_str::<Value>(&made).unwrap(),
                _ => assert!(start.elapsed() < Duration::from_secs(60), "rvault does not answer at {address}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (key, root) = (text(&made["keys"][0]), text(&made["root_token"]));
        let rig = Rig { fake: None, address, root, dialer: Direct::to(address) };
        Some(Self { child, rig, key, _dir: dir })
    }
}

impl Drop for RustyVault {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_conforms_on_rusty_vault() {
    let Some(server) = RustyVault::start() else { return };
    let rig = &server.rig;
    let kv = rig.kv("shop", "kv1", Version::V1, rig.root_login(), None);
    let sealed = kv.get("b", "k").await.unwrap_err();
    assert!(matches!(&sealed, BackendError::Unavailable(why) if why.contains("sealed")), "{sealed:?}");
    rig.admin("PUT", "sys/unseal", json!({ "key": server.key }));
    rig.admin("POST", "sys/mounts/kv1", json!({ "type": "kv" }));
    let start = Instant::now();
    while let Err(cause) = kv.check().await {
        assert!(start.elapsed() < Duration::from_secs(60), "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It takes requests of 256 KiB, which is less than Vault does.
    conformance::run_with(&kv, Promises { max_value: 196_596, ..V1 }).await.unwrap();
    let unknown = rig.vault(Login::Token(Hidden::new("hunter2".to_owned())), None).check().await;
    assert_eq!(unknown.unwrap_err(), VaultError::Expired);
}
