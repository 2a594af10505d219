//! Tokens and logins of the double.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};

use super::{Answer, error, no_route};

#[derive(Default)]
pub(super) struct Auth {
    tokens: BTreeMap<String, Token>,
    /// Login methods by where they are mounted.
    methods: BTreeMap<String, Method>,
    made: u64,
}

#[derive(Clone)]
struct Token {
    policies: Vec<String>,
    /// `None` lives for ever.
    ends: Option<Instant>,
    /// Beyond this no renewal goes.
    last: Option<Instant>,
    ttl: Duration,
    renewable: bool,
}

enum Method {
    AppRole(BTreeMap<String, AppRole>),
    Jwt { key: Option<Vec<u8>>, roles: BTreeMap<String, Value> },
}

#[derive(Default)]
struct AppRole {
    role: Value,
    role_id: String,
    /// Each with how often it still logs in; `None` for ever.
    secret_ids: BTreeMap<String, Option<u64>>,
}

fn seconds(value: &Value) -> Option<Duration> {
    value.as_u64().filter(|n| *n > 0).map(Duration::from_secs)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

impl Auth {
    pub(super) fn with_root(root: &str) -> Self {
        let token =
            Token { policies: vec!["root".into()], ends: None, last: None, ttl: Duration::ZERO, renewable: false };
        Self { tokens: [(root.to_owned(), token)].into(), ..Self::default() }
    }

    pub(super) fn policies_of(&self, token: &str) -> Option<Vec<String>> {
        let token = self.tokens.get(token).filter(|token| token.ends.is_none_or(|ends| Instant::now() < ends))?;
        Some(token.policies.clone())
    }

    pub(super) fn mount(&mut self, mount: &str, body: &Value) -> Answer {
        let method = match body["type"].as_str() {
            Some("approle") => Method::AppRole(BTreeMap::new()),
            Some("jwt") => Method::Jwt { key: None, roles: BTreeMap::new() },
            other => return error(400, &format!("unknown auth type {other:?}")),
        };
        if self.methods.contains_key(mount) {
            return error(400, &format!("path is already in use at {mount}/"));
        }
        self.methods.insert(mount.to_owned(), method);
        (204, Value::Null)
    }

    fn issue(&mut self, role: &Value) -> Answer {
        self.made += 1;
        let text = format!("hvs.{:08x}{}", self.made, BASE64URL_NOPAD.encode(&self.made.to_be_bytes()));
        let (ttl, now) = (seconds(&role["token_ttl"]), Instant::now());
        let mut policies = texts(&role["token_policies"]);
        if role["token_no_default_policy"] != true {
            policies.push("default".to_owned());
        }
        let last = seconds(&role["token_max_ttl"]).map(|max| now + max);
        let token = Token {
            policies: policies.clone(),
            ends: ttl.map(|ttl| now + ttl),
            last,
            ttl: ttl.unwrap_or_default(),
            renewable: role["renewable"] != false,
        };
        let renewable = token.renewable;
        self.tokens.insert(text.clone(), token);
        let lease = ttl.unwrap_or_default().as_secs();
        (
            200,
            json!({ "auth": { "client_token": text, "accessor": "a", "policies": policies, "lease_duration": lease, "renewable": renewable } }),
        )
    }

    /// What needs no token.
    pub(super) fn log_in(&mut self, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let mount = path.strip_prefix("auth/")?.strip_suffix("/login")?;
        if !matches!(method, "POST" | "PUT") {
            return Some(error(405, "unsupported operation"));
        }
        let role = match self.methods.get_mut(mount) {
            None => return Some(no_route(path)),
            Some(Method::AppRole(roles)) => approle(roles, body),
            Some(Method::Jwt { key, roles }) => jwt(key.as_deref(), roles, body),
        };
        Some(role.map_or_else(|words| error(400, &words), |role| self.issue(&role)))
    }

    pub(super) fn handle(&mut self, method: &str, path: &str, token: &str, body: &Value) -> Option<Answer> {
        let rest = path.strip_prefix("auth/")?;
        let write = matches!(method, "POST" | "PUT");
        let now = Instant::now();
        match rest {
            "token/lookup-self" if method == "GET" => {
                let own = self.tokens.get(token)?;
                let ttl = own.ends.map_or(0, |ends| (ends - now).as_secs());
                return Some((
                    200,
                    json!({ "data": { "ttl": ttl, "renewable": own.renewable, "policies": own.policies } }),
                ));
            }
            "token/renew-self" if write => {
                let own = self.tokens.get_mut(token)?;
                if !own.renewable || own.ends.is_none() {
                    return Some(error(400, "lease is not renewable"));
                }
                let ends = own.last.map_or(now + own.ttl, |last| last.min(now + own.ttl));
                own.ends = Some(ends);
                // Whole seconds, as Vault tells them.
                let lease = (ends - now).as_secs_f64().round() as u64;
                return Some((
                    200,
                    json!({ "auth": { "client_token": token, "lease_duration": lease, "renewable": true } }),
                ));
            }
            "token/create" if write => {
                let role = json!({
                    "token_policies": body["policies"], "token_ttl": body["ttl"], "renewable": body["renewable"],
                    "token_max_ttl": body["explicit_max_ttl"], "token_no_default_policy": body["no_default_policy"],
                });
                return Some(self.issue(&role));
            }
            "token/revoke" if write => {
                self.tokens.remove(body["token"].as_str()?);
                return Some((204, Value::Null));
            }
            _ => {}
        }
        let (mount, rest) = rest.split_once('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        Some(match (self.methods.get_mut(mount), &parts[..]) {
            (Some(Method::AppRole(roles)), ["role", name]) if write => {
                let role = roles.entry((*name).to_owned()).or_default();
                role.role = body.clone();
                role.role_id = format!("role-id-of-{name}");
                (204, Value::Null)
            }
            (Some(Method::AppRole(roles)), ["role", name, "role-id"]) if method == "GET" => match roles.get(*name) {
                Some(role) => (200, json!({ "data": { "role_id": role.role_id } })),
                None => (404, json!({ "errors": [] })),
            },
            (Some(Method::AppRole(roles)), ["role", name, "secret-id"]) if write => match roles.get_mut(*name) {
                Some(role) => {
                    let secret = format!("secret-id-{}-of-{name}", role.secret_ids.len());
                    let uses = role.role["secret_id_num_uses"].as_u64().filter(|uses| *uses > 0);
                    role.secret_ids.insert(secret.clone(), uses);
                    (200, json!({ "data": { "secret_id": secret } }))
                }
                None => error(400, "role does not exist"),
            },
            (Some(Method::AppRole(roles)), ["role", name, "secret-id", "destroy"]) if write => {
                if let Some(role) = roles.get_mut(*name) {
                    role.secret_ids.remove(body["secret_id"].as_str().unwrap_or_default());
                }
                (204, Value::Null)
            }
            (Some(Method::Jwt { key, .. }), ["config"]) if write => {
                let pem = body["jwt_validation_pubkeys"][0].as_str().unwrap_or_default();
                let text: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
                match BASE64.decode(text.as_bytes()) {
                    // An Ed25519 key is the last 32 bytes of its envelope.
                    Ok(der) if der.len() == 44 => *key = Some(der[12..].to_vec()),
                    _ => return Some(error(400, "error parsing public key")),
                }
                (204, Value::Null)
            }
            (Some(Method::Jwt { roles, .. }), ["role", name]) if write => {
                roles.insert((*name).to_owned(), body.clone());
                (204, Value::Null)
            }
            _ => no_route(path),
        })
    }
}

fn approle(roles: &mut BTreeMap<String, AppRole>, body: &Value) -> Result<Value, String> {
    let role_id = body["role_id"].as_str().ok_or("missing role_id")?;
    let secret_id = body["secret_id"].as_str().ok_or("missing secret_id")?;
    let role = roles.values_mut().find(|role| role.role_id == role_id).ok_or("invalid role or secret ID")?;
    let uses = role.secret_ids.get_mut(secret_id).ok_or("invalid role or secret ID")?;
    *uses = uses.map(|uses| uses - 1);
    if *uses == Some(0) {
        role.secret_ids.remove(secret_id);
    }
    Ok(role.role.clone())
}

fn jwt(key: Option<&[u8]>, roles: &BTreeMap<String, Value>, body: &Value) -> Result<Value, String> {
    let name = body["role"].as_str().ok_or("missing role")?;
    let role = roles.get(name).ok_or_else(|| format!("role {name:?} could not be found"))?;
    let invalid = |why: &str| format!("error validating token: {why}");
    let text = body["jwt"].as_str().ok_or("missing token")?;
    let (signed, signature) = text.rsplit_once('.').ok_or_else(|| invalid("malformed"))?;
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| invalid("malformed"))?;
    let key = key.ok_or("could not load configuration")?;
    let unsigned = || invalid("no known key successfully validated the token signature");
    let key = ed25519_dalek::VerifyingKey::try_from(key).map_err(|_| unsigned())?;
    let signature = ed25519_dalek::Signature::from_slice(&signature).map_err(|_| unsigned())?;
    key.verify_strict(signed.as_bytes(), &signature).map_err(|_| unsigned())?;
    let claims = signed.split_once('.').and_then(|(_, claims)| BASE64URL_NOPAD.decode(claims.as_bytes()).ok());
    let claims: Value =
        serde_json::from_slice(&claims.ok_or_else(|| invalid("malformed"))?).map_err(|_| invalid("malformed"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    if claims["exp"].as_u64().is_none_or(|exp| exp < now) {
        return Err(invalid("token is expired"));
    }
    if !texts(&role["bound_audiences"]).iter().any(|audience| claims["aud"] == *audience.as_str()) {
        return Err(invalid("invalid audience (aud) claim"));
    }
    if claims[role["user_claim"].as_str().unwrap_or("sub")].is_null() {
        return Err("claim not found in token".to_owned());
    }
    Ok(role.clone())
}
