//! The examples of providers that are a few lines on `sdk/keyvalue-provider`, as a user deploys them: what the store behind them
//! has is looked at past them. The one with a prefix is in `components.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, until};

fn example(name: &str) -> PathBuf {
    sidereal_tests::workspace().join("examples").join(name)
}

fn trust(platform: &Platform, examples: &[&str]) {
    for name in examples {
        let key = fs::read_to_string(example(name).join("signer.pub")).unwrap();
        platform.ok(&["tenant-settings", "set", "--trust", key.trim()]).unwrap();
    }
}

/// Deploys the app of the example, with `more` of it.
fn deploy(platform: &Platform, app: &Path, name: &str, more: &str) {
    for file in fs::read_dir(example(name)).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|kind| kind == "wasm") {
            fs::copy(&file, app.join(file.file_name().unwrap())).unwrap();
        }
    }
    let text = fs::read_to_string(example(name).join("app.toml")).unwrap();
    fs::write(app.join("app.toml"), text + more).unwrap();
    platform.ok(&["deploy", app.to_str().unwrap()]).unwrap();
}

/// The notes of an app by each of its hosts.
struct Notes<'a>(&'a Platform);

impl Notes<'_> {
    fn ask(&self, method: &str, host: &str, path: &str, body: &str) -> (u16, String) {
        let mut connection = Connection::open(self.0.ingress).unwrap();
        let answer = connection.send(method, &format!("{host}.localhost"), path, body.as_bytes()).unwrap();
        (answer.status, answer.body)
    }

    fn get(&self, host: &str, path: &str) -> (u16, String) {
        self.ask("GET", host, path, "")
    }

    fn put(&self, host: &str, path: &str, note: &str) {
        assert_eq!(self.ask("PUT", host, path, note), (200, "kept\n".to_owned()), "{host}{path}");
    }
}

fn ok(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

/// Past the provider, to what the store has.
const DIRECT: &str = r#"
[components.direct]
source = "notes.wasm"
links."wasi:keyvalue" = "embedded"

[[routes]]
host = "direct.localhost"
component = "direct"
"#;

/// The same encrypting provider, whose store gives it the value of `ab` as that of `b`.
const SHIFTED: &str = r#"
[components.shifted]
source = "notes.wasm"
links."wasi:keyvalue" = { component = "other" }

[components.other]
source = "encrypter.wasm"
links."wasi:keyvalue" = { component = "prefixer" }
links."wasmcloud:secrets" = { provider = "secrets", label = "key", secret = "notes-key" }

[components.prefixer]
source = "prefixer.wasm"
config = { prefix = "a" }
links."wasi:keyvalue" = "embedded"

[[routes]]
host = "shifted.localhost"
component = "shifted"
"#;

#[test]
fn the_example_that_encrypts_keeps_values_from_its_store() {
    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let notes = Notes(&platform);
    trust(&platform, &["notes", "encrypt-keyvalue", "prefix-keyvalue"]);
    platform.secret("notes-key", KEY).unwrap();
    platform.ok(&["deploy", example("encrypt-keyvalue").to_str().unwrap()]).unwrap();
    assert_eq!(notes.get("encrypt-keyvalue", "/ab").0, 404);
    notes.put("encrypt-keyvalue", "/ab", "buy bread");
    assert_eq!(notes.get("encrypt-keyvalue", "/ab"), ok("buy bread"));
    assert_eq!(notes.get("encrypt-keyvalue", "/"), ok("ab\n"));

    fs::copy(example("prefix-keyvalue").join("prefixer.wasm"), app.path().join("prefixer.wasm")).unwrap();
    deploy(&platform, app.path(), "encrypt-keyvalue", &[DIRECT, SHIFTED].concat());
    // The key is to be read, the value is not.
    assert_eq!(notes.get("direct", "/"), ok("ab\n"));
    let (status, stored) = notes.get("direct", "/ab");
    assert!(status == 200 && !stored.contains("bread"), "{stored:?}");
    assert_eq!(notes.get("encrypt-keyvalue", "/ab"), ok("buy bread"));
    // A value that was not encrypted, or is that of another key, is refused.
    for plain in ["short", &"long enough to have a nonce and a tag".repeat(2)] {
        notes.put("direct", "/plain", plain);
        let (status, said) = notes.get("encrypt-keyvalue", "/plain");
        assert!(status == 503 && said.contains("was not encrypted"), "{said}");
    }
    notes.put("shifted", "/own", "mine");
    assert_eq!(notes.get("shifted", "/own"), ok("mine"));
    let (status, said) = notes.get("shifted", "/b");
    assert!(status == 503 && said.contains("or was changed"), "{said}");
    assert_eq!(notes.get("shifted", "/"), ok("b\nown\n"));

    // Another key reads none of it, and what is no key is said, but not repeated.
    let keyed = |key: &str, status: u16, part: &str| {
        platform.secret("notes-key", key).unwrap();
        let answered = || notes.get("encrypt-keyvalue", "/ab");
        until(Duration::from_secs(10), || {
            let (given, text) = answered();
            given == status && text.contains(part)
        })
        .unwrap_or_else(|_| panic!("{:?}", answered()));
        answered().1
    };
    keyed(&KEY.replace('0', "1"), 503, "was not encrypted under this key");
    let said = keyed("no-hex-digits", 503, "is not 64 hex digits");
    assert!(!said.contains("no-hex"), "{said}");
    assert_eq!(keyed(KEY, 200, "bread"), "buy bread");
}

#[test]
fn the_example_that_caches_asks_its_store_once_and_sees_every_write() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let notes = Notes(&platform);
    trust(&platform, &["notes", "cache-keyvalue"]);
    platform.ok(&["deploy", example("cache-keyvalue").to_str().unwrap()]).unwrap();
    assert_eq!(notes.get("cache-keyvalue", "/a").0, 404);
    for note in ["one", "two"] {
        notes.put("cache-keyvalue", "/a", note);
        assert_eq!(notes.get("cache-keyvalue", "/a"), ok(note));
    }
    deploy(&platform, app.path(), "cache-keyvalue", DIRECT);
    // What is written past it is not seen: it has the value, and asks nobody.
    assert_eq!(notes.get("cache-keyvalue", "/a"), ok("two"));
    notes.put("direct", "/a", "three");
    assert_eq!(notes.get("cache-keyvalue", "/a"), ok("two"));
    // Nor is it for ever: the next write that it sees, of whichever key, ends that.
    notes.put("cache-keyvalue", "/b", "other");
    assert_eq!(notes.get("cache-keyvalue", "/a"), ok("three"));
    assert_eq!(notes.ask("DELETE", "cache-keyvalue", "/a", ""), ok("gone\n"));
    assert_eq!(notes.get("cache-keyvalue", "/a").0, 404);
    assert_eq!(notes.get("cache-keyvalue", "/"), ok("b\n"));
    // Away from the cache and back: the store has it all.
    let links = |provider: &str| {
        let link = format!("wasi:keyvalue={provider}");
        platform.ok(&["link", "set", "cache-keyvalue", &link, "--component", "notes"]).unwrap();
    };
    links("embedded");
    notes.put("direct", "/b", "newer");
    until(Duration::from_secs(5), || notes.get("cache-keyvalue", "/b") == ok("newer")).unwrap();
    links("cached");
    notes.put("cache-keyvalue", "/c", "last");
    assert_eq!(notes.get("cache-keyvalue", "/b"), ok("newer"));
    assert_eq!(notes.get("direct", "/c"), ok("last"));
}
