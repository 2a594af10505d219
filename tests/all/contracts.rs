//! What a platform offers can be asked of it, and an import it does not have is refused by name.

use sidereal_tests::platform::{Platform, write_app};

#[test]
fn a_platform_says_what_it_offers_and_refuses_the_rest_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let contracts = platform.ok(&["provider", "list", "--contracts"]).unwrap();
    let contracts = contracts.as_array().unwrap();
    let find = |contract: &str, version: &str| {
        let found = contracts.iter().find(|c| c["contract"] == contract && c["version"] == version);
        found.unwrap_or_else(|| panic!("no {contract} {version}"))
    };
    let keyvalue = find("wasi:keyvalue", "0.2.0-draft");
    assert_eq!((keyvalue["by_link"].as_bool(), keyvalue["track"].as_bool()), (Some(true), Some(false)));
    let types: Vec<&str> =
        keyvalue["providers"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap()).collect();
    assert!(["keyvalue-embedded", "keyvalue-vault", "component"].iter().all(|one| types.contains(one)), "{types:?}");
    let embedded = keyvalue["providers"].as_array().unwrap().iter().find(|p| p["type"] == "keyvalue-embedded").unwrap();
    assert_eq!(embedded["built_in_as"], "embedded");
    assert!(embedded["durability"].as_str().unwrap().contains("power cut"), "{embedded}");
    for version in ["0.2.0-rc.1", "0.2.0-draft"] {
        assert_eq!(find("wasi:config", version)["by_link"], false);
    }
    assert_eq!(find("wasi:logging", "none")["interfaces"][0], "logging");
    let text = String::from_utf8(platform.cli(&["provider", "list", "--contracts"]).unwrap().stdout).unwrap();
    for part in ["wasi:http", "0.2.12 and its line", "by link", "keyvalue-redis", "SURVIVES"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

/// What a component imports that the platform does not have in this way, and how its deploy is refused: the code, and parts of
/// the sentence and of the help.
const REFUSED: [(&str, &str, &str, &str); 9] = [
    // Another version.
    (
        "wasi:keyvalue/store@0.1.0",
        "import-version",
        "offers `wasi:keyvalue/store` in version 0.2.0-draft",
        "against `wasi:keyvalue@0.2.0-draft`",
    ),
    ("wasi:http/types@0.4.0", "import-version", "in version 0.2.12 or 0.3.0", "against `wasi:http@"),
    ("wasi:clocks/monotonic-clock@0.3.0-rc-2025-09-16", "import-version", "or 0.3.0", "against `wasi:clocks@0.3.0`"),
    ("wasmcloud:messaging/consumer@0.3.0", "import-version", "in version 0.2.0", "against `wasmcloud:messaging@0.2.0`"),
    // Written otherwise.
    ("wasi:keyvalue/stroe@0.2.0-draft", "import-not-offered", "", "is `wasi:keyvalue/store@0.2.0-draft`"),
    ("wasi:blob-store/container@0.2.0-draft", "import-not-offered", "", "is `wasi:blobstore/container@0.2.0-draft`"),
    // An interface of another draft of the package.
    ("wasi:keyvalue/eventual@0.1.0", "import-not-offered", "", "is `wasi:keyvalue/store@0.2.0-draft`"),
    // Nothing like it.
    ("acme:unknown/thing@1.0.0", "import-not-offered", "does not offer", "`docs/manifest.md` lists what is offered"),
    ("wasi:nn/graph@0.2.0", "import-not-offered", "does not offer", "`docs/manifest.md` lists what is offered"),
];

#[test]
fn an_interface_that_is_not_offered_is_refused_by_name_with_the_nearest_that_is() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let deploy = ["deploy", app.path().to_str().unwrap()];
    let text = "schema = 1\nname = \"odd\"\n\n[components.main]\nsource = \"component.wasm\"\n";
    for (import, code, sentence, help) in REFUSED {
        let component = format!("(component (import \"{import}\" (instance)))");
        std::fs::write(app.path().join("component.wasm"), wat::parse_str(component).unwrap()).unwrap();
        std::fs::write(app.path().join("app.toml"), text).unwrap();
        let out = platform.cli(&deploy).unwrap();
        let all = String::from_utf8(out.stderr).unwrap();
        let (_, said) = all.split_once(&format!("error[{code}]: ")).unwrap_or_else(|| panic!("{import}: {all}"));
        let (said, helps) = said.split_once("= help: ").unwrap_or_else(|| panic!("{import}: no help: {all}"));
        assert!(!out.status.success(), "{import}");
        assert!(said.starts_with(&format!("component `main` imports `{import}`")) && said.contains(sentence), "{all}");
        assert!(helps.contains(help), "{import}: {all}");
        assert!(!helps.contains("error["), "nothing else is wrong: {all}");
    }
    // For programs too, and nothing of it is there.
    write_app(app.path(), "odd", "wants-unknown", "").unwrap();
    let out = platform.cli(&[&deploy[..], &["-o", "json"]].concat()).unwrap();
    let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(!out.status.success() && envelope.to_string().contains("acme:unknown/thing@1.0.0"), "{envelope}");
    assert!(platform.cli(&["status", "odd"]).is_ok_and(|out| !out.status.success()));
}
