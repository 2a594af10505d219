//! The committed documents are those the code describes; with `UPDATE=1` they are written instead.

use std::path::Path;

#[test]
fn no_drift_of_the_committed_documents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi");
    for (name, text) in [("control.json", control::openapi()), ("agent.json", api::agent::openapi())] {
        let file = folder.join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(committed == text, "openapi/{name} has drifted: run `cargo xtask openapi`");
    }
}

#[test]
fn every_path_is_described_and_needs_the_token() {
    let document: serde_json::Value = serde_json::from_str(&control::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(document["security"][0]["token"], serde_json::json!([]));
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let operations: usize = paths.values().map(|p| p.as_object().unwrap().len()).sum();
    assert_eq!(operations, 50, "{:?}", paths.keys());
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(operation["summary"].as_str().is_some_and(|s| s.ends_with('.')), "{method} {path} has no summary");
        }
    }
}
