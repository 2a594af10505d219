//! Vault: logins, the life of tokens, its errors, and key-value on top. Everything that a real server can be asked runs
//! against the double, and the same against a real OpenBao, or the server that `VAULT_ADDR` and `VAULT_TOKEN` name.

mod faults;
mod keyvalue;
mod logins;
mod tokens;

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

async fn get(vault: &Vault, path: &str) -> Result<u16, VaultError> {
    vault.call(http::Method::GET, path, Default::default()).await.map(|told| told.status.as_u16())
}

/// A token that somebody sets anew.
struct Changing(Arc<std::sync::Mutex<Hidden>>);

impl LoginSource for Changing {
    fn login(&self) -> futures::future::BoxFuture<'_, Result<Login, VaultError>> {
        let token = self.0.lock().unwrap().clone();
        Box::pin(async move { Ok(Login::Token(token)) })
    }
}
