//! The command line as people and programs meet it.

use std::process::{Command, Stdio};

use sidereal_tests::platform::{Platform, cli};

const COMMANDS: &[&[&str]] = &[
    &["deploy"],
    &["plan"],
    &["rollback", "x"],
    &["delete", "x"],
    &["status"],
    &["logs", "x"],
    &["top"],
    &["link", "list"],
    &["link", "set", "x", "wasi:keyvalue=memory"],
    &["provider", "list"],
    &["provider", "list", "--contracts"],
    &["config", "list"],
    &["config", "set", "x", "a=b"],
    &["route", "list"],
    &["call", "x"],
    &["keys", "list"],
    &["sign", "missing.wasm"],
    &["inspect", "missing.wasm"],
    &["doctor"],
    &["tenant-settings", "show"],
];

#[test]
fn every_command_in_an_empty_folder_says_what_to_do() {
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for command in COMMANDS {
        for json in [false, true] {
            let mut run = Command::new(sidereal_tests::binary());
            run.args(*command).env("SIDEREAL_DATA_DIR", data.path()).current_dir(folder.path()).stdin(Stdio::null());
            if json {
                run.args(["-o", "json"]);
            }
            let out = run.output().unwrap();
            let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
            assert!(
                !stdout.contains('\u{1b}') && !stderr.contains('\u{1b}'),
                "{command:?}: escapes without a terminal"
            );
            assert!(!stderr.contains("Usage:"), "{command:?}: a stack of flags: {stderr}");
            if json {
                let envelope: serde_json::Value =
                    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{command:?}: {e}: {stdout}"));
                assert_eq!(envelope["schema"], 1);
                assert_eq!(envelope["ok"].as_bool().unwrap(), envelope.get("error").is_none(), "{envelope}");
            } else if !out.status.success() && command != &["doctor"] {
                assert!(stderr.contains("help") || stderr.contains("sidereal"), "{command:?}: no next step: {stderr}");
            }
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn usage_errors_exit_2_and_unreachable_6() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(cli(dir.path(), &["deploy", "--nonsense"]).unwrap().status.code(), Some(2));
    assert_eq!(cli(dir.path(), &["status"]).unwrap().status.code(), Some(6));
}

#[test]
fn a_wrong_command_line_gets_one_sentence_and_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&[][..], &["link"], &["rollback"], &["status", "BAD_NAME"], &["deploy", "--bogus"], &["keys"]] {
        let out = cli(dir.path(), args).unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains("help: ") && !text.contains("Usage:"), "{args:?}: {text}");
        let out = cli(dir.path(), &[&["-o", "json"], args].concat()).unwrap();
        let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(envelope["error"]["code"], "request-invalid", "{args:?}");
    }
    let bare = cli(dir.path(), &[]).unwrap();
    assert!(String::from_utf8_lossy(&bare.stderr).contains("up --demo"));
}

#[test]
fn plan_call_route_and_logs_speak_of_the_running_app() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    sidereal_tests::platform::write_app(app.path(), "shop", "probe", "config = { greeting = \"hi\" }").unwrap();
    assert_eq!(platform.cli(&["plan", folder]).unwrap().status.code(), Some(1), "something to do");
    platform.ok(&["deploy", folder]).unwrap();
    assert_eq!(platform.cli(&["plan", folder]).unwrap().status.code(), Some(0), "nothing to do");
    let again = platform.ok(&["deploy", folder]).unwrap();
    assert_eq!(again["unchanged"], true);

    let answer = platform.ok(&["call", "shop", "/config"]).unwrap();
    assert_eq!(answer["status"], 200, "{answer}");
    let routes = platform.ok(&["route", "list"]).unwrap();
    assert!(routes.to_string().contains("shop.localhost"), "{routes}");
    assert_eq!(platform.get("shop.localhost", "/log").unwrap().status, 200);
    let lines = platform.cli(&["logs", "shop"]).unwrap();
    assert!(String::from_utf8_lossy(&lines.stdout).lines().count() > 0, "its lines are there");
    assert_eq!(platform.cli(&["call", "nobody"]).unwrap().status.code(), Some(3));
}
