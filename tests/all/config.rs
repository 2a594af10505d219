//! Configuration that apps share, and the environment of the operator's choice: changed under traffic, taken back, kept.

use std::path::Path;
use std::time::Duration;

use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, write_app};

fn config(platform: &Platform, app: &str) -> String {
    let answer = platform.get(&format!("{app}.localhost"), "/config").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body.lines().collect::<Vec<_>>().join(" ")
}

fn deploy(platform: &Platform, dir: &Path, name: &str, rest: &str) {
    write_app(dir, name, "probe", rest).unwrap();
    platform.ok(&["deploy", dir.to_str().unwrap()]).unwrap();
}

fn code(platform: &Platform, args: &[&str]) -> (Option<i32>, String) {
    let out = platform.cli(&[args, &["-o", "json"]].concat()).unwrap();
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    (out.status.code(), said["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_shared_config_changes_under_traffic_and_a_rollback_takes_it_back() {
    let (dir, one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(one.path(), "one", "probe", "config-from = [\"shared\"]").unwrap();
    assert_eq!(code(&platform, &["deploy", one.path().to_str().unwrap()]), (Some(1), "config-missing".to_owned()));
    platform.ok(&["config", "set", "shared", "region=north", "greeting=hello world"]).unwrap();
    deploy(&platform, one.path(), "one", "config-from = [\"shared\"]");
    deploy(&platform, two.path(), "two", "config = { region = \"own\" }\nconfig-from = [\"shared\"]");
    assert_eq!(config(&platform, "one"), "greeting=hello world region=north");
    assert_eq!(config(&platform, "two"), "greeting=hello world region=own", "the manifest's own value goes first");

    let load = Load::start(platform.ingress, "one.localhost", "/config?key=region", 4, Duration::from_millis(4));
    load.wait(20);
    for region in ["south", "west", "east"] {
        let set = platform.ok(&["config", "set", "shared", &format!("region={region}")]).unwrap();
        assert_eq!(set["apps"].as_array().unwrap().len(), 2, "{set}");
        // The command ends when the apps serve it: no redeploy, no waiting.
        assert_eq!(config(&platform, "one"), format!("greeting=hello world region={region}"));
        load.wait(20);
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let view = platform.ok(&["config", "get", "shared"]).unwrap();
    assert_eq!((view["version"].as_u64(), view["used_by"][0]["revision"].as_u64()), (Some(4), Some(4)), "{view}");

    // What ran before runs again, values included; whoever looks sees that it differs.
    platform.ok(&["rollback", "one"]).unwrap();
    assert_eq!(config(&platform, "one"), "greeting=hello world region=west");
    let listed = platform.cli(&["config", "list"]).unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("one (revision 5 holds other values), two"), "{listed}");
    platform.ok(&["config", "set", "shared", "--unset", "greeting"]).unwrap();
    assert_eq!((config(&platform, "one"), config(&platform, "two")), ("region=east".into(), "region=own".into()));

    assert_eq!(code(&platform, &["config", "delete", "shared"]), (Some(4), "config-in-use".to_owned()));
    assert_eq!(code(&platform, &["config", "set", "env", "a=b"]), (Some(2), "request-invalid".to_owned()));
    assert_eq!(code(&platform, &["config", "set", "shared", "a"]).0, Some(2));
    assert_eq!(code(&platform, &["config", "get", "nothing"]), (Some(3), "not-found".to_owned()));
    // It survives the platform.
    platform.kill().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    assert_eq!(config(&platform, "one"), "region=east");
    for app in ["one", "two"] {
        platform.ok(&["delete", app, "--confirm", app]).unwrap();
    }
    platform.ok(&["config", "delete", "shared"]).unwrap();
    assert_eq!(platform.ok(&["config", "list"]).unwrap(), serde_json::json!([]));
}

#[test]
fn only_what_the_operator_names_of_the_environment_is_seen() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let variables = [("APP_REGION", "north"), ("SHOP_NAME", "corner"), ("SHOP_SIZE", "small"), ("HIDDEN", "canary")];
    let start = |flags: &[&str]| Platform::start_with(dir.path(), flags, &variables).unwrap();
    let mut platform = start(&["--config-env", "APP_REGION", "--config-env-prefix", "SHOP_"]);
    deploy(&platform, app.path(), "shop", "config-from = [\"env\"]");
    assert_eq!(config(&platform, "shop"), "APP_REGION=north SHOP_NAME=corner SHOP_SIZE=small");
    let ambient = platform.get("shop.localhost", "/env").unwrap().body;
    assert!(ambient.starts_with("variables: 0"), "nothing is ambient: {ambient}");
    assert!(!platform.ok(&["config", "get", "env"]).unwrap().to_string().contains("canary"));
    platform.stop(Duration::from_secs(20)).unwrap();

    // Another choice at the next start reaches the app by itself, as a revision.
    let mut platform = start(&["--config-env", "SHOP_NAME"]);
    sidereal_tests::platform::until(Duration::from_secs(20), || config(&platform, "shop") == "SHOP_NAME=corner")
        .unwrap();
    platform.stop(Duration::from_secs(20)).unwrap();
    let refused = Platform::start_with(dir.path(), &["--config-env", "NOT_THERE"], &variables).err().unwrap();
    assert!(format!("{refused:#}").contains("no variable `NOT_THERE`"), "{refused:#}");
}
