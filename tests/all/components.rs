//! Components that answer components, deployed by the real binary: another component of the app, and one that is a store.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sidereal_tests::platform::{Platform, until};

use crate::secrets::{Watch, events};

fn guest(name: &str) -> PathBuf {
    let dir = std::env::var_os("SIDEREAL_GUESTS").expect("SIDEREAL_GUESTS");
    Path::new(&dir).join(format!("{name}.wasm"))
}

pub(crate) const SHOP: &str = r#"schema = 1
name = "shop"

[components.shop]
source = "shop.wasm"
links."acme:pricing" = { component = "pricing" }

[components.pricing]
source = "pricing.wasm"

[[routes]]
host = "shop.localhost"
component = "shop"
"#;

#[test]
fn a_component_calls_another_of_its_app() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    for name in ["shop", "pricing"] {
        fs::copy(guest(name), app.path().join(format!("{name}.wasm"))).unwrap();
    }
    let platform = Platform::start(dir.path(), &[]).unwrap();
    // An interface that nobody is linked to is refused, and the component that has it is named.
    let unlinked = SHOP.replace("links.\"acme:pricing\" = { component = \"pricing\" }\n", "");
    fs::write(app.path().join("app.toml"), unlinked).unwrap();
    let refused = platform.cli(&["deploy", folder]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(!refused.status.success() && said.contains("{ component = \"pricing\" }"), "{said}");

    fs::write(app.path().join("app.toml"), SHOP).unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    let get = |path: &str| platform.get("shop.localhost", path).unwrap();
    assert_eq!(get("/price?lines=pear:2,plum").body, "Ok(11)");
    assert_eq!(get("/basket?lines=pear:2,plum").body, "11 22 ada 22");
    let trapped = get("/act?what=trap");
    assert_eq!(trapped.status, 500, "{}", trapped.body);
    assert_eq!(get("/next?n=1").body, "2");
    let status = platform.ok(&["status", "shop"]).unwrap().to_string();
    assert!(status.contains("pricing"), "{status}");
}

/// The example, as a user deploys it.
#[test]
fn the_example_of_a_component_that_is_a_store_counts() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/prefix-keyvalue");
    for signer in ["../counter/signer.pub", "signer.pub"] {
        let key = fs::read_to_string(Path::new(example).join(signer)).unwrap();
        platform.ok(&["tenant-settings", "set", "--trust", key.trim()]).unwrap();
    }
    platform.ok(&["deploy", example]).unwrap();
    let get = || platform.get("prefix-keyvalue.localhost", "/").unwrap().body;
    for count in 1..=3 {
        assert_eq!(get(), format!("counter: {count}\n"));
    }
    // What is behind the component only it knows: its data are not copied, in neither direction.
    for (provider, component) in [("embedded", "counter"), ("prefixed", "prefixer")] {
        let link = format!("wasi:keyvalue={provider}");
        let copy = ["link", "set", "prefix-keyvalue", &link, "--component", component, "--copy-data", "-o", "json"];
        let refused = platform.cli(&copy).unwrap();
        let said = [refused.stdout, refused.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!refused.status.success(), "{said}");
        assert!(component != "counter" || said.contains("copy-unsupported"), "{said}");
    }
    // Without the component between, the same app has counted nothing; back again it goes on.
    platform.ok(&["link", "set", "prefix-keyvalue", "wasi:keyvalue=embedded", "--component", "counter"]).unwrap();
    until(Duration::from_secs(5), || get() == "counter: 1\n").unwrap();
    platform.ok(&["link", "set", "prefix-keyvalue", "wasi:keyvalue=prefixed", "--component", "counter"]).unwrap();
    until(Duration::from_secs(5), || get() == "counter: 4\n").unwrap();
}

/// Objects by way of a component that puts a prefix before their names.
const GALLERY: &str = r#"schema = 1
name = "gallery"

[components.web]
source = "blob-probe.wasm"
links."wasi:blobstore" = { component = "between" }

[components.both]
source = "blob-probe.wasm"
links."wasi:blobstore" = [ { component = "between" }, { component = "between", label = "mine", container = "theirs" } ]

[components.between]
source = "blob-prefix.wasm"
config = { prefix = "p-" }
links."wasi:blobstore" = "folder"

[[routes]]
host = "gallery.localhost"
component = "web"

[[routes]]
host = "both.localhost"
component = "both"
"#;

#[test]
fn a_component_stands_before_an_object_store() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["blob-probe", "blob-prefix"] {
        fs::copy(guest(name), app.path().join(format!("{name}.wasm"))).unwrap();
    }
    fs::write(app.path().join("app.toml"), GALLERY).unwrap();
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let of = |host: &str, path: &str| {
        let answer = platform.get(host, path).unwrap();
        (answer.status, answer.body.trim().to_owned())
    };
    let ask = |path: &str| of("gallery.localhost", path);
    for (path, expected) in [
        ("/exists/photos", "false"),
        ("/create/photos", "photos"),
        ("/fill/photos/a/3000000", "ok"),
        ("/sum/photos/a", "3000000"),
        ("/stat/photos/a", "photos a 3000000"),
        ("/early/photos/b/70000", "ok"),
        ("/copy/photos/b/photos/c", "ok"),
        ("/sum/photos/c", "70000"),
        ("/half/photos/d/100000", "ok"),
        ("/has/photos/d", "false"),
        ("/list/photos", "a\nb\nc"),
        ("/skip/photos/2", "2 false 1"),
        ("/delete-many/photos/b,c", "ok"),
        ("/list/photos", "a"),
    ] {
        assert_eq!(ask(path), (200, expected.to_owned()), "{path}");
    }
    let (status, text) = ask("/sum/photos/none");
    assert!(status == 502 && text.contains("no object `p-none`"), "{text}");
    // By whichever of its labels an object behind the component is named, it is one: moved to itself it stays.
    for (path, expected) in [
        ("/create/mine", "mine"),
        ("/fill/mine/moved/70000", "ok"),
        ("/move/mine/moved/theirs/moved", "ok"),
        ("/sum/mine/moved", "70000"),
    ] {
        assert_eq!(of("both.localhost", path), (200, expected.to_owned()), "{path}");
    }
    // What the component did is to be seen without it, and objects are not copied past it.
    let copy = ["link", "set", "gallery", "wasi:blobstore=folder", "--component", "web", "--copy-data", "-o", "json"];
    let refused = platform.cli(&copy).unwrap();
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(!refused.status.success() && said.contains("copy-unsupported"), "{said}");
    platform.ok(&["link", "set", "gallery", "wasi:blobstore=folder", "--component", "web"]).unwrap();
    until(Duration::from_secs(5), || ask("/list/photos") == (200, "p-a".to_owned())).unwrap();
    assert_eq!(ask("/sum/photos/p-a"), (200, "3000000".to_owned()));
}

/// Secrets, messages and tables by way of a component that is no store, no broker and no database.
const BETWEEN: &str = r#"schema = 1
name = "between"

[components.web]
source = "messages.wasm"

[components.web.links]
"wasi:keyvalue" = "embedded"
"wasmcloud:messaging" = [
  { component = "between" },
  { provider = "durable", label = "in", subscriptions = [ "orders.>", "private.>" ] },
]

[components.keys]
source = "secret-probe.wasm"

[components.keys.links]
"wasi:keyvalue" = "embedded"
"wasmcloud:secrets" = [
  { component = "between", label = "stripe-key" },
  { component = "between", label = "forbidden" },
]

[components.books]
source = "sql-probe.wasm"
links."sidereal:sql" = { component = "between" }

[components.between]
source = "go-between.wasm"

[components.between.links]
"sidereal:sql" = "sqlite"
"wasmcloud:messaging" = "durable"
"wasmcloud:secrets" = { provider = "secrets", label = "stripe-key" }

[[routes]]
host = "between.localhost"
component = "web"

[[routes]]
host = "keys.localhost"
component = "keys"

[[routes]]
host = "books.localhost"
component = "books"
"#;

#[test]
fn a_component_stands_before_secrets_a_broker_and_a_database() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["messages", "secret-probe", "sql-probe", "go-between"] {
        fs::copy(guest(name), app.path().join(format!("{name}.wasm"))).unwrap();
    }
    fs::write(app.path().join("app.toml"), BETWEEN).unwrap();
    let mut watch = Watch::default();
    let (first, second) = (watch.canary(), watch.canary());
    let (log, home) = (tempfile::NamedTempFile::new().unwrap(), dir.path());
    let mut platform = Platform::start_logging(home, &[], log.reopen().unwrap().into()).unwrap();
    assert!(watch.run(home, &["secret", "set", "stripe-key"], Some(&first)));
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |host: &str, path: &str| {
        let answer = platform.get(host, path).unwrap();
        (answer.status, answer.body.trim().to_owned())
    };
    assert_eq!(get("keys.localhost", "/get/stripe-key"), (200, format!("string seen:{first}")));
    let (status, text) = get("keys.localhost", "/get/forbidden");
    assert!(status == 502 && text.contains("the go-between gives none"), "{text}");
    assert!(watch.run(home, &["secret", "set", "stripe-key"], Some(&second)));
    let rotated = format!("string seen:{second}");
    until(Duration::from_secs(10), || get("keys.localhost", "/get/stripe-key").1 == rotated).unwrap();

    assert_eq!(get("between.localhost", "/publish?subject=orders.new&body=one"), (200, "sent".to_owned()));
    let (status, text) = get("between.localhost", "/publish?subject=private.new&body=two");
    assert!(status == 500 && text.contains("does not pass on"), "{text}");
    until(Duration::from_secs(10), || get("between.localhost", "/number?key=done:one").1 == "1").unwrap();
    assert_eq!(get("between.localhost", "/number?key=tried:two").1, "0");
    // A question by way of the component, and its answer by the same way.
    let asked = get("between.localhost", "/ask?subject=orders.ask&body=hat&timeout=20000");
    assert_eq!(asked, (200, "re: hat".to_owned()));
    let (status, text) = get("between.localhost", "/ask?subject=private.ask&body=hat");
    assert!(status == 500 && text.contains("does not pass on"), "{text}");

    let sql = |operation: &str, text: &str| {
        get("books.localhost", &format!("/{operation}/-?sql={}", text.replace(' ', "%20")))
    };
    assert_eq!(sql("execute", "CREATE TABLE book (title TEXT UNIQUE)"), (200, "0".to_owned()));
    assert_eq!(sql("execute", "INSERT INTO book VALUES ('one')"), (200, "1".to_owned()));
    assert_eq!(sql("query", "SELECT title FROM book"), (200, "title\nt:one".to_owned()));
    let (status, text) = sql("execute", "INSERT INTO book VALUES ('one')");
    assert!(status == 502 && text.starts_with("constraint") && text.contains("Unique"), "{text}");
    assert_eq!(sql("execute", "DROP TABLE book"), (502, "denied: the go-between drops nothing".to_owned()));
    assert_eq!(sql("query", "SELECT count(*) AS n FROM book"), (200, "n\ni:1".to_owned()));

    // The secret, as it was and as it is, went through two components and is found nowhere.
    for args in [
        &["status", "between", "-o", "json"][..],
        &["logs", "between"],
        &["link", "list", "between", "-o", "json"],
        &["provider", "list", "-o", "json"],
        &["plan", app.path().to_str().unwrap()],
    ] {
        watch.run(home, args, None);
    }
    watch.hear("events", events(home, platform.info["api"].as_str().unwrap()));
    platform.hosts().into_iter().chain([platform.pid()]).for_each(|pid| watch.process(pid));
    watch.files(home);
    platform.stop(Duration::from_secs(20)).unwrap();
    watch.files(home);
    watch.hear("the platform's log", fs::read(log.path()).unwrap());
    let found = watch.found();
    assert!(found.is_empty(), "{found:#?}");
}
