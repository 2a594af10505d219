//! Components that answer components, deployed by the real binary: another component of the app, and one that is a store.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sidereal_tests::platform::{Platform, until};

fn guest(name: &str) -> PathBuf {
    let dir = std::env::var_os("SIDEREAL_GUESTS").expect("SIDEREAL_GUESTS");
    Path::new(&dir).join(format!("{name}.wasm"))
}

const SHOP: &str = r#"schema = 1
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
