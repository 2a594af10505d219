//! A strict double of Vault's HTTP API, for where no Vault can be had: written from its public description. It checks
//! tokens, policies, leases, seals, versions and check-and-set, and answers in Vault's words; it encrypts and keeps
//! nothing.

mod auth;
mod dynamic;
mod kv;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// The token that may do everything.
pub(crate) const ROOT: &str = "hvs.root-of-the-fake";
/// What opens the seal.
const UNSEAL: &str = "unseal-key-of-the-fake";
const MAX_REQUEST: usize = 32 << 20;

/// A running double; its connections end with it.
pub(crate) struct FakeVault {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

/// Everything it knows.
#[derive(Default)]
pub(crate) struct State {
    sealed: bool,
    /// Every answer takes this long.
    pub(crate) delay: Duration,
    /// Headers of the requests that came with a token, in order.
    pub(crate) asked: Vec<(String, HeaderMap)>,
    mounts: BTreeMap<String, kv::Engine>,
    /// Where engines are mounted that make credentials, and what they made.
    makers: BTreeSet<String>,
    made: dynamic::Engines,
    policies: BTreeMap<String, Policy>,
    auth: auth::Auth,
}

/// Capabilities by path; a path that ends in `*` is a prefix.
type Policy = BTreeMap<String, BTreeSet<String>>;

/// Status and body.
type Answer = (u16, Value);

pub(crate) fn error(status: u16, words: &str) -> Answer {
    (status, json!({ "errors": [words] }))
}

fn denied() -> Answer {
    error(403, "1 error occurred:\n\t* permission denied\n\n")
}

fn no_route(path: &str) -> Answer {
    error(404, &format!("no handler for route \"{path}\". route entry not found."))
}

impl FakeVault {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { auth: auth::Auth::with_root(ROOT), ..State::default() }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = shared.clone();
                let service = service_fn(move |request| answer(state.clone(), request));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, state, task }
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often a path that ends so was asked.
    pub(crate) fn asked(&self, end: &str) -> usize {
        self.state().asked.iter().filter(|(path, _)| path.ends_with(end)).count()
    }

    pub(crate) fn seal(&self, sealed: bool) {
        self.state().sealed = sealed;
    }
}

impl Drop for FakeVault {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let delay = state.lock().unwrap().delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let list = head.uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "list=true"));
    let method = if list { "LIST" } else { head.method.as_str() };
    let (status, body) = state.lock().unwrap().handle(method, head.uri.path(), &head.headers, &body);
    let body = if status == 204 { Bytes::new() } else { body.to_string().into() };
    Ok(Response::builder().status(status).header("content-type", "application/json").body(Full::new(body)).unwrap())
}

impl State {
    pub(crate) fn has_lease(&self, id: &str) -> bool {
        self.made.has_lease(id)
    }

    fn handle(&mut self, method: &str, path: &str, headers: &HeaderMap, body: &[u8]) -> Answer {
        let Some(path) = path.strip_prefix("/v1/") else { return (404, json!({})) };
        let token = headers.get("x-vault-token").and_then(|token| token.to_str().ok());
        self.asked.push((path.to_owned(), headers.clone()));
        if body.len() > MAX_REQUEST {
            return error(413, "http: request body too large");
        }
        if path.contains("..") || path.contains("//") || path.contains('%') || path.split('/').any(|part| part == ".") {
            return error(400, "relative path not supported");
        }
        let body: Value = match serde_json::from_slice(body) {
            Ok(body) => body,
            Err(_) if body.is_empty() => Value::Null,
            Err(cause) => return error(400, &format!("failed to parse JSON input: {cause}")),
        };
        match (method, path) {
            ("GET", "sys/seal-status") => return (200, json!({ "sealed": self.sealed })),
            ("PUT" | "POST", "sys/unseal") if body["key"] == UNSEAL => {
                self.sealed = false;
                return (200, json!({ "sealed": false }));
            }
            _ if self.sealed => return error(503, "Vault is sealed"),
            _ => {}
        }
        if let Some(answer) = self.auth.log_in(method, path, &body) {
            return answer;
        }
        let Some(token) = token else { return error(403, "missing client token") };
        let Some(policies) = self.auth.policies_of(token) else {
            return error(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n");
        };
        if !self.allows(&policies, method, path) {
            return denied();
        }
        if let Some(answer) = self.auth.handle(method, path, token, &body) {
            return answer;
        }
        if let Some(rest) = path.strip_prefix("sys/") {
            return self.system(method, rest, path, &body, &policies);
        }
        if let Some(mount) = self.makers.iter().find(|mount| path.starts_with(&format!("{mount}/"))).cloned() {
            return self.made.handle(method, &mount, &path[mount.len() + 1..], token, &body);
        }
        let mount = self.mounts.iter_mut().find(|(mount, _)| path.starts_with(&format!("{mount}/")));
        match mount {
            Some((mount, engine)) => engine.handle(method, &path[mount.len() + 1..], &body),
            None => no_route(path),
        }
    }

    fn allows(&self, policies: &[String], method: &str, path: &str) -> bool {
        let needed: &[&str] = match method {
            "GET" => &["read"],
            "LIST" => &["list"],
            "DELETE" => &["delete"],
            // Whether it is there already decides which; a policy that has one of them is enough for the tests.
            _ => &["create", "update"],
        };
        let own = ["auth/token/lookup-self", "auth/token/renew-self", "auth/token/revoke-self"];
        // It looks at the rights itself.
        if path.starts_with("sys/internal/ui/mounts/") {
            return true;
        }
        policies.iter().any(|name| match name.as_str() {
            "root" => true,
            "default" => own.contains(&path),
            name => self.policies.get(name).is_some_and(|policy| {
                policy.iter().any(|(pattern, allowed)| {
                    let fits = match pattern.strip_suffix('*') {
                        Some(prefix) => path.starts_with(prefix),
                        None => path == pattern,
                    };
                    fits && needed.iter().any(|needed| allowed.contains(*needed))
                })
            }),
        })
    }

    /// What is mounted at a path, for those who may do anything there.
    fn shown(&self, asked: &str, policies: &[String]) -> Option<Value> {
        let is = |mount: &&String| asked == mount.as_str() || asked.starts_with(&format!("{mount}/"));
        let mount = self.makers.iter().chain(self.mounts.keys()).find(is)?;
        let below = format!("{mount}/");
        let mut allowed = policies.iter().filter_map(|name| self.policies.get(name)).flat_map(Policy::keys);
        let may = policies.iter().any(|name| name == "root") || allowed.any(|pattern| pattern.starts_with(&below));
        let data = match self.mounts.get(mount) {
            Some(engine) => {
                let options = engine.versioned().then(|| json!({ "version": "2" }));
                json!({ "type": "kv", "path": below, "options": options })
            }
            None => json!({ "type": "database", "path": below, "options": {} }),
        };
        may.then(|| json!({ "data": data }))
    }

    fn system(&mut self, method: &str, rest: &str, path: &str, body: &Value, policies: &[String]) -> Answer {
        if let Some(asked) = rest.strip_prefix("internal/ui/mounts/") {
            let words = "preflight capability check returned 403, please ensure client's policies grant access to path";
            return self.shown(asked, policies).map_or_else(|| error(403, words), |shown| (200, shown));
        }
        match (method, rest.split_once('/')) {
            ("POST", Some(("mounts", mount))) if body["type"] == "kv" => {
                if self.mounts.contains_key(mount) {
                    return error(400, &format!("path is already in use at {mount}/"));
                }
                let engine = kv::Engine::new(body["options"]["version"] == "2");
                self.mounts.insert(mount.to_owned(), engine);
                (204, Value::Null)
            }
            ("POST", Some(("mounts", mount))) if body["type"] == "database" => {
                self.makers.insert(mount.to_owned());
                (204, Value::Null)
            }
            (_, Some(("leases", what))) => {
                let auth = &self.auth;
                self.made.lease(method, what, body, |token| auth.policies_of(token).is_some())
            }
            ("POST", Some(("auth", mount))) => self.auth.mount(mount, body),
            ("POST" | "PUT", Some(("policies", name))) => {
                let text = body["policy"].as_str().unwrap_or_default();
                let Some(paths) = serde_json::from_str::<Value>(text).ok().and_then(|p| p["path"].as_object().cloned())
                else {
                    return error(400, "failed to parse policy");
                };
                let policy = paths.into_iter().map(|(path, rules)| {
                    let allowed = rules["capabilities"].as_array().unwrap().iter();
                    (path, allowed.map(|one| one.as_str().unwrap().to_owned()).collect())
                });
                self.policies.insert(name.trim_start_matches("acl/").to_owned(), policy.collect());
                (204, Value::Null)
            }
            ("PUT" | "POST", None) if rest == "seal" => {
                self.sealed = true;
                (204, Value::Null)
            }
            _ => no_route(path),
        }
    }
}
