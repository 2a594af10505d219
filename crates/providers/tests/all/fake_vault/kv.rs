//! The KV secrets engines of the double.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Answer, error};

/// What Vault's own storage takes for one entry.
const MAX_ENTRY: usize = 1 << 20;

pub(super) enum Engine {
    V1(BTreeMap<String, Value>),
    V2 {
        keys: BTreeMap<String, Key>,
        /// No write without the version it replaces.
        cas_required: bool,
    },
}

#[derive(Default)]
pub(super) struct Key {
    /// By number; `None` is deleted.
    versions: BTreeMap<u64, Option<Value>>,
    current: u64,
    /// As of the whole engine.
    cas_required: bool,
}

fn nothing() -> Answer {
    (404, json!({ "errors": [] }))
}

impl Engine {
    pub(super) fn new(versioned: bool) -> Self {
        match versioned {
            true => Self::V2 { keys: BTreeMap::new(), cas_required: false },
            false => Self::V1(BTreeMap::new()),
        }
    }

    pub(super) fn versioned(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    pub(super) fn handle(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        if body.to_string().len() > MAX_ENTRY {
            return error(
                500,
                "1 error occurred:\n\t* put failed due to value being too large; got 1, max 1048576\n\n",
            );
        }
        match self {
            Self::V1(keys) => match method {
                "GET" => keys
                    .get(path)
                    .map_or_else(nothing, |value| (200, json!({ "data": value, "lease_duration": 2764800 }))),
                "LIST" => listed(keys.keys(), path),
                "POST" | "PUT" => match body.as_object() {
                    Some(object) if !object.is_empty() => {
                        keys.insert(path.to_owned(), body.clone());
                        (204, Value::Null)
                    }
                    _ => error(400, "missing data fields"),
                },
                "DELETE" => {
                    keys.remove(path);
                    (204, Value::Null)
                }
                _ => error(405, "unsupported operation"),
            },
            Self::V2 { cas_required, .. } if path == "config" && matches!(method, "POST" | "PUT") => {
                *cas_required = body["cas_required"] == true;
                (204, Value::Null)
            }
            Self::V2 { keys, cas_required } => match path.split_once('/') {
                Some(("data", path)) => data(keys, *cas_required, method, path, body),
                Some(("metadata", path)) if matches!(method, "POST" | "PUT") => {
                    keys.entry(path.to_owned()).or_default().cas_required = body["cas_required"] == true;
                    (204, Value::Null)
                }
                Some(("metadata", path)) if method == "LIST" => listed(keys.keys(), path),
                Some(("metadata", path)) if method == "DELETE" => {
                    keys.remove(path);
                    (204, Value::Null)
                }
                _ => error(404, "no handler for route. route entry not found."),
            },
        }
    }
}

fn data(keys: &mut BTreeMap<String, Key>, cas_required: bool, method: &str, path: &str, body: &Value) -> Answer {
    match method {
        "GET" => {
            let Some(key) = keys.get(path).filter(|key| key.current > 0) else { return nothing() };
            let value = key.versions.get(&key.current).cloned().flatten();
            let status = if value.is_some() { 200 } else { 404 };
            let deleted = if value.is_some() { "" } else { "2026-01-01T00:00:00Z" };
            let metadata = json!({ "version": key.current, "destroyed": false, "deletion_time": deleted });
            (status, json!({ "data": { "data": value, "metadata": metadata } }))
        }
        "POST" | "PUT" => {
            if !body["data"].is_object() {
                return error(400, "no data provided");
            }
            let current = keys.get(path).map_or(0, |key| key.current);
            let needed = cas_required || keys.get(path).is_some_and(|key| key.cas_required);
            if needed && body["options"].get("cas").is_none() {
                return error(400, "check-and-set parameter required for this call");
            }
            if body["options"].get("cas").is_some_and(|cas| cas.as_u64() != Some(current)) {
                return error(400, "check-and-set parameter did not match the current version");
            }
            let key = keys.entry(path.to_owned()).or_default();
            key.current += 1;
            key.versions.insert(key.current, Some(body["data"].clone()));
            while key.versions.len() > 10 {
                key.versions.pop_first();
            }
            (200, json!({ "data": { "version": key.current, "destroyed": false, "deletion_time": "" } }))
        }
        // The last version only, and not for good.
        "DELETE" => {
            if let Some(key) = keys.get_mut(path) {
                key.versions.insert(key.current, None);
            }
            (204, Value::Null)
        }
        _ => error(405, "unsupported operation"),
    }
}

fn listed<'a>(keys: impl Iterator<Item = &'a String>, folder: &str) -> Answer {
    let folder = format!("{}/", folder.trim_end_matches('/'));
    let names: BTreeSet<String> = keys
        .filter_map(|key| key.strip_prefix(&folder))
        .map(|rest| rest.split_once('/').map_or_else(|| rest.to_owned(), |(name, _)| format!("{name}/")))
        .collect();
    if names.is_empty() { nothing() } else { (200, json!({ "data": { "keys": names } })) }
}
