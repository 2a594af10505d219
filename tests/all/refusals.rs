//! What must not run does not run, and says why; what no longer may run stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, until, write_app};

fn refused(platform: &Platform, folder: &str, flags: &[&str]) -> String {
    let out = platform.cli(&[&["deploy", folder, "-o", "json"], flags].concat()).unwrap();
    assert!(!out.status.success());
    let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(envelope["error"]["help"].as_str().is_some_and(|help| !help.is_empty()), "says what to do: {envelope}");
    envelope["error"]["code"].as_str().unwrap().to_owned()
}

#[test]
fn unsigned_tampered_and_foreign_components_are_refused() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let wasm = app.path().join("component.wasm");
    let wasm = wasm.to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();

    write_app(app.path(), "shop", "hello", "").unwrap();
    assert_eq!(refused(&platform, folder, &["--no-sign"]), "artifact-unsigned");

    platform.ok(&["sign", wasm]).unwrap();
    platform.ok(&["inspect", wasm]).unwrap();
    let mut bytes = std::fs::read(wasm).unwrap();
    let text = bytes.windows(5).position(|w| w == b"hello").unwrap();
    bytes[text] = b'j';
    std::fs::write(wasm, &bytes).unwrap();
    assert_eq!(refused(&platform, folder, &["--no-sign"]), "artifact-tampered");

    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["keys", "generate", "account", "stranger"]).unwrap();
    platform.ok(&["sign", wasm, "--key", "stranger"]).unwrap();
    assert_eq!(refused(&platform, folder, &["--no-sign"]), "issuer-untrusted");
    assert_eq!(platform.get("shop.localhost", "/").unwrap().status, 404, "nothing of it runs");
}

#[test]
fn revoking_a_key_stops_what_runs() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let wasm = app.path().join("component.wasm");
    let wasm = wasm.to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let key = platform.ok(&["keys", "generate", "account", "partner"]).unwrap()["key"].as_str().unwrap().to_owned();
    platform.ok(&["tenant-settings", "set", "--trust", &key]).unwrap();

    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["sign", wasm, "--key", "partner"]).unwrap();
    platform.ok(&["deploy", folder, "--no-sign"]).unwrap();
    assert_eq!(platform.get("shop.localhost", "/").unwrap().status, 200);
    platform.ok(&["tenant-settings", "set", "--revoke", &key]).unwrap();
    until(Duration::from_secs(10), || platform.get("shop.localhost", "/").is_ok_and(|a| a.status != 200)).unwrap();
    let status = || platform.ok(&["status", "shop"]).unwrap().to_string();
    until(Duration::from_secs(10), || status().contains("artifact-revoked")).unwrap_or_else(|_| panic!("{}", status()));
}

#[test]
fn what_was_revoked_stays_shut_whatever_is_deployed_after_it() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let wasm = app.path().join("component.wasm");
    let mut platform = Platform::start(dir.path(), &[]).unwrap();
    let key = platform.ok(&["keys", "generate", "account", "partner"]).unwrap()["key"].as_str().unwrap().to_owned();
    platform.ok(&["tenant-settings", "set", "--trust", &key]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["sign", wasm.to_str().unwrap(), "--key", "partner"]).unwrap();
    platform.ok(&["deploy", folder, "--no-sign"]).unwrap();
    // A newer one does not start, and is ours: what serves is still what the partner signed.
    write_app(app.path(), "shop", "start-spin", "").unwrap();
    assert!(!platform.cli(&["deploy", folder]).unwrap().status.success());
    assert_eq!(platform.get("shop.localhost", "/").unwrap().body, "hello");
    platform.ok(&["tenant-settings", "set", "--revoke", &key]).unwrap();
    let shut = |platform: &Platform| {
        let answer = platform.get("shop.localhost", "/").unwrap();
        answer.status == 503 && answer.header("sidereal-fault") == Some("suspended")
    };
    until(Duration::from_secs(10), || shut(&platform)).unwrap();
    let status = platform.ok(&["status", "shop"]).unwrap().to_string();
    assert!(status.contains("artifact-revoked"), "{status}");

    // Neither does the next deploy open it, nor a way back, nor a restart.
    assert!(!platform.cli(&["deploy", folder]).unwrap().status.success());
    assert!(shut(&platform));
    let out = platform.cli(&["rollback", "shop", "-o", "json"]).unwrap();
    let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(envelope["error"]["code"], "artifact-revoked", "{envelope}");
    platform.stop(Duration::from_secs(20)).unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    assert!(shut(&platform));

    // What replaces it is all that answers.
    let (ingress, done) = (platform.ingress, Arc::new(AtomicBool::new(false)));
    let asking = std::thread::spawn({
        let done = done.clone();
        move || {
            while !done.load(Ordering::Relaxed) {
                let mut connection = Connection::open(ingress).unwrap();
                let answer = connection.send("GET", "shop.localhost", "/", &[]).unwrap();
                assert_ne!(answer.body, "hello");
            }
        }
    });
    let link = "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"";
    write_app(app.path(), "shop", "kv-counter", link).unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    let answer = platform.get("shop.localhost", "/").unwrap();
    done.store(true, Ordering::Relaxed);
    asking.join().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn claims_that_expire_stop_what_runs() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    let wasm = app.path().join("component.wasm");
    platform.ok(&["sign", wasm.to_str().unwrap(), "--expires", "1s"]).unwrap();
    // Clocks may differ by a minute: so long it is valid still.
    platform.ok(&["deploy", app.path().to_str().unwrap(), "--no-sign"]).unwrap();
    assert_eq!(platform.get("shop.localhost", "/").unwrap().status, 200);
    let suspended = || {
        let answer = platform.get("shop.localhost", "/").unwrap();
        assert!(answer.status == 200 || answer.header("sidereal-fault") == Some("suspended"), "{answer:?}");
        answer.status == 503
    };
    until(Duration::from_secs(90), suspended).unwrap();
    // Nobody has suspended it.
    let told = platform.get("shop.localhost", "/").unwrap().body;
    assert!(told.contains("this app is suspended") && !told.contains("operator"), "{told}");
    let status = || platform.ok(&["status", "shop"]).unwrap().to_string();
    until(Duration::from_secs(10), || status().contains("artifact-expired")).unwrap_or_else(|_| panic!("{}", status()));
}

#[test]
fn unsigned_code_runs_only_where_a_named_policy_says_so() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--allow-unsigned"]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap(), "--no-sign"]).unwrap();
    assert_eq!(platform.get("shop.localhost", "/").unwrap().status, 200);
    assert_eq!(platform.ok(&["status"]).unwrap()["allow_unsigned"], true, "and status names it");
}
