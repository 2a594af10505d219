//! The engine of the double that makes a credential for whoever asks, as `database` does: roles, leases, their renewal to a
//! longest life, and their end with the token they were made for. It tells no database of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answer, error};

/// Roles by mount and name.
#[derive(Default)]
pub(crate) struct Engines {
    roles: BTreeMap<(String, String), Value>,
    leases: BTreeMap<String, Lease>,
    made: u64,
}

struct Lease {
    token: String,
    ends: Instant,
    last: Instant,
}

/// `6s`, or seconds as a number.
fn seconds(value: &Value) -> Duration {
    let text = value.as_str().map(|text| text.trim_end_matches('s').parse().unwrap());
    Duration::from_secs(text.or_else(|| value.as_u64()).unwrap_or(2_764_800))
}

impl Engines {
    pub(super) fn handle(&mut self, method: &str, mount: &str, path: &str, token: &str, body: &Value) -> Answer {
        match (method, path.split_once('/')) {
            ("POST" | "PUT", Some(("config", _))) if body["plugin_name"].is_string() => (204, Value::Null),
            ("POST" | "PUT", Some(("roles", name))) if body["db_name"].is_string() => {
                self.roles.insert((mount.to_owned(), name.to_owned()), body.clone());
                (204, Value::Null)
            }
            ("GET", Some(("creds", name))) => {
                let Some(role) = self.roles.get(&(mount.to_owned(), name.to_owned())) else {
                    return error(400, &format!("unknown role: {name}"));
                };
                self.made += 1;
                let id = format!("{mount}/creds/{name}/lease-{}", self.made);
                let (now, ttl) = (Instant::now(), seconds(&role["default_ttl"]));
                let lease = Lease { token: token.to_owned(), ends: now + ttl, last: now + seconds(&role["max_ttl"]) };
                self.leases.insert(id.clone(), lease);
                let data =
                    json!({ "username": format!("v-{name}-{}", self.made), "password": format!("made-{}", self.made) });
                (200, json!({ "lease_id": id, "lease_duration": ttl.as_secs(), "renewable": true, "data": data }))
            }
            _ => error(404, "no handler for route. route entry not found."),
        }
    }

    pub(super) fn has_lease(&self, id: &str) -> bool {
        self.leases.contains_key(id)
    }

    /// `sys/leases/…`.
    pub(super) fn lease(&mut self, method: &str, what: &str, body: &Value, is_good: impl Fn(&str) -> bool) -> Answer {
        let now = Instant::now();
        self.leases.retain(|_, lease| now < lease.ends && is_good(&lease.token));
        let id = body["lease_id"].as_str().unwrap_or_default();
        match (method, what) {
            ("PUT" | "POST", "renew") => {
                let Some(lease) = self.leases.get_mut(id) else { return error(400, "lease not found") };
                lease.ends = (now + seconds(&body["increment"])).min(lease.last);
                let left = (lease.ends - now).as_secs_f64().round() as u64;
                (200, json!({ "lease_id": id, "lease_duration": left, "renewable": true }))
            }
            ("PUT" | "POST", "revoke") => {
                self.leases.remove(id);
                (204, Value::Null)
            }
            ("PUT" | "POST", "lookup") if self.leases.contains_key(id) => (200, json!({ "data": { "id": id } })),
            ("PUT" | "POST", "lookup") => error(400, "invalid lease"),
            _ => error(405, "unsupported operation"),
        }
    }
}
