//! Manifests without mistakes: what they are locked to, and that the schema for editors takes them.

use std::fs;
use std::path::{Path, PathBuf};

use model::lock::{Locked, lock};
use model::manifest::{json_schema, parse};
use model::{Digest, LockedApp, TenantName, admission};

use crate::facts::{self, Facts};
use crate::golden;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all/good")
}

pub(crate) fn manifests() -> Vec<(String, String, Facts)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".toml").filter(|name| !name.ends_with(".facts")) {
            let facts = fs::read_to_string(folder().join(format!("{name}.facts.toml"))).ok();
            found.push((name.to_owned(), fs::read_to_string(&path).unwrap(), facts::read(facts.as_deref())));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 4);
    found
}

pub(crate) fn locked(text: &str, facts: &Facts) -> Locked {
    let manifest = parse(text, "app.toml").unwrap_or_else(|report| panic!("{}", report.render()));
    lock(&manifest, &facts.artifacts(&manifest), &facts.tenant).unwrap_or_else(|report| panic!("{}", report.render()))
}

#[test]
fn a_good_manifest_is_locked() {
    for (name, text, facts) in manifests() {
        let Locked { app, warnings } = locked(&text, &facts);
        assert!(warnings.findings.is_empty(), "{name}: {}", warnings.render());
        let json = serde_json::to_string_pretty(&app).unwrap() + "\n";
        golden::compare(&folder().join(format!("{name}.json")), &json).unwrap();
        assert_eq!(serde_json::from_str::<LockedApp>(&json).unwrap(), app, "{name}: what is stored is what was locked");
    }
}

/// Lock and admission apply one set of rules, so what the one makes the other takes.
#[test]
fn what_is_locked_is_admitted() {
    let owner: TenantName = "local".parse().unwrap();
    for (name, text, facts) in manifests() {
        let manifest = parse(&text, "app.toml").unwrap();
        let artifacts = facts.artifacts(&manifest);
        let app = locked(&text, &facts).app;
        let infos = artifacts.values().map(|a| a.clone().unwrap()).map(|a| (a.digest, a.info)).collect();
        let refused = admission::check(&app, &infos, &owner, &facts.tenant, &[]);
        assert!(refused.is_empty(), "{name}: {refused:?}");
    }
}

#[test]
fn what_stays_the_same_locks_the_same() {
    for (name, text, facts) in manifests() {
        let digest = || Digest::of(&serde_json::to_vec(&locked(&text, &facts).app).unwrap());
        assert_eq!(digest(), digest(), "{name}");
    }
}

#[test]
fn schema_drift() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/app.schema.json");
    golden::compare(&path, &json_schema())
        .unwrap_or_else(|_| panic!("schemas/app.schema.json is not what the code says: run `cargo xtask openapi`"));
}
