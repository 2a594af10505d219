//! The committed document is the one the code describes; with `UPDATE=1` it is written instead.

use std::path::Path;

#[test]
fn no_drift_of_the_committed_document() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/control.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, control::openapi()).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == control::openapi(), "openapi/control.json has drifted: run `cargo xtask openapi`");
}

#[test]
fn every_path_is_described_and_needs_the_token() {
    let document: serde_json::Value = serde_json::from_str(&control::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(document["security"][0]["token"], serde_json::json!([]));
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let operations: usize = paths.values().map(|p| p.as_object().unwrap().len()).sum();
    assert_eq!(operations, 24, "{:?}", paths.keys());
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(operation["summary"].as_str().is_some_and(|s| s.ends_with('.')), "{method} {path} has no summary");
        }
    }
}
