//! What a platform offers can be asked of it, and an import it does not have is refused by name.

use sidereal_tests::platform::{Platform, write_app};

#[test]
fn a_platform_says_what_it_offers_and_refuses_the_rest_by_name() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
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
    assert!(types.contains(&"keyvalue-embedded") && types.contains(&"keyvalue-vault"), "{types:?}");
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

    write_app(app.path(), "odd", "wants-unknown", "").unwrap();
    let out = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && said.contains("import-not-offered") && said.contains("help"), "{said}");
}
