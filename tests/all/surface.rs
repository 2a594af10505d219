//! The command line as people and programs meet it.

use std::process::{Command, Stdio};
use std::time::Duration;

use sidereal_tests::envelope;
use sidereal_tests::platform::{Platform, cli, feed, until, write_app};

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
    &["completions", "bash"],
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
                let envelope = envelope::one(stdout.as_bytes());
                assert_eq!(envelope["ok"].as_bool().unwrap(), envelope.get("error").is_none(), "{envelope}");
            } else if !out.status.success() && command != &["doctor"] {
                assert!(stderr.contains("help") || stderr.contains("sidereal"), "{command:?}: no next step: {stderr}");
            }
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn the_schema_of_the_envelope_takes_no_other_one() {
    let error = r#"{"code":"not-found","detail":"there is none"}"#;
    let good =
        [r#"{"schema":1,"ok":true,"data":null}"#.to_owned(), format!(r#"{{"schema":1,"ok":false,"error":{error}}}"#)];
    let bad = [
        r#"{"schema":1,"ok":true}"#.to_owned(),
        r#"{"schema":2,"ok":true,"data":1}"#.to_owned(),
        r#"{"schema":1,"ok":"yes","data":1}"#.to_owned(),
        r#"{"schema":1,"ok":true,"data":1,"more":1}"#.to_owned(),
        r#"{"schema":1,"ok":false,"error":{"code":"not-found"}}"#.to_owned(),
        r#"{"schema":1,"ok":false,"error":{"code":"a","detail":"b","findings":[1]}}"#.to_owned(),
        format!(r#"{{"schema":1,"ok":true,"data":1,"error":{error}}}"#),
        "[]".to_owned(),
    ];
    let fault = |text: &String| envelope::fault(&serde_json::from_str(text).unwrap());
    good.iter().for_each(|text| assert_eq!(fault(text), None, "{text}"));
    bad.iter().for_each(|text| assert!(fault(text).is_some(), "{text}"));
}

#[test]
fn a_folder_without_an_app_is_said_also_while_a_platform_runs() {
    let (dir, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _platform = Platform::start(dir.path(), &[]).unwrap();
    for command in ["deploy", "plan"] {
        let run = |flags: &[&str]| {
            let mut run = Command::new(sidereal_tests::binary());
            run.arg(command).args(flags).env("SIDEREAL_DATA_DIR", dir.path()).current_dir(empty.path());
            run.stdin(Stdio::null()).output().unwrap()
        };
        let out = run(&[]);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && text.contains("there is no app here"), "{command}: {text}");
        assert!(
            text.contains("help: go to a folder with an app.toml") && !text.contains("Usage:"),
            "{command}: {text}"
        );
        let envelope = envelope::one(&run(&["-o", "json"]).stdout);
        assert_eq!(envelope["error"]["code"], "not-found", "{command}: {envelope}");
    }
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn call_gives_an_answer_byte_for_byte_and_posts_what_it_is_given() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "probe", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let bytes = [0, 255, 27, b'[', b'1', b'm', 13, 10, b'x', b'\n', b'\n'];
    let echo = feed(dir.path(), &["call", "shop", "/echo", "-d", "@-"], &bytes).unwrap();
    assert_eq!(echo.stdout, bytes, "{echo:?}");
    let method = |flags: &[&str]| {
        let out = platform.cli(&[&["call", "shop", "/request"][..], flags].concat()).unwrap();
        // The first line: `method: Method::Get`.
        String::from_utf8(out.stdout).unwrap().lines().next().unwrap_or_default().to_lowercase()
    };
    for (flags, named) in [(&[][..], "get"), (&["-d", "x"][..], "post"), (&["-d", "x", "-X", "PUT"][..], "put")] {
        assert!(method(flags).ends_with(named), "{flags:?}: {}", method(flags));
    }
    let head = platform.cli(&["call", "shop", "/status", "-i"]).unwrap();
    assert!(head.stdout.starts_with(b"200\n") && head.stdout.ends_with(b"\n\nstatus"), "{head:?}");
}

#[test]
fn what_does_not_serve_is_waited_for_as_long_as_one_says() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    // A server that takes connections and never says anything.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    platform.ok(&["provider", "add", "cache", "--type", "keyvalue-redis", "--url", &url]).unwrap();
    let links = |provider: &str| format!("[components.main.links]\n\"wasi:keyvalue\" = \"{provider}\"");
    write_app(app.path(), "shop", "kv-probe", &links("embedded")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let timed_out = |args: &[&str]| {
        let out = platform.cli(&[args, &["--timeout", "1", "-o", "json"]].concat()).unwrap();
        assert_eq!(envelope::one(&out.stdout)["error"]["code"], "timed-out", "{args:?}: {out:?}");
    };
    timed_out(&["link", "set", "shop", "wasi:keyvalue=cache"]);
    platform.ok(&["link", "set", "shop", "wasi:keyvalue=embedded"]).unwrap();
    timed_out(&["rollback", "shop", "2"]);
    let both = platform.cli(&["link", "set", "shop", "wasi:keyvalue=cache", "--copy-data", "--timeout", "1"]).unwrap();
    assert_eq!(both.status.code(), Some(2), "a move goes on as long as it takes: {both:?}");
}

#[test]
fn a_missing_component_is_said_with_the_command_that_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["sign", "inspect"] {
        let out = cli(dir.path(), &[command, "missing.wasm"]).unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(text.contains(&format!("`sidereal {command} counter.wasm`")), "{text}");
    }
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
        assert!(!text.contains("For more information") && !text.contains("  "), "{args:?}: {text}");
        let out = cli(dir.path(), &[&["-o", "json"], args].concat()).unwrap();
        let envelope = envelope::one(&out.stdout);
        assert_eq!(envelope["error"]["code"], "request-invalid", "{args:?}");
        // The same words as without the flag before it.
        let (detail, help) =
            (envelope["error"]["detail"].as_str().unwrap(), envelope["error"]["help"].as_str().unwrap());
        assert!(text.contains(detail) && text.contains(help), "{args:?}: {text} {envelope}");
    }
    let link = cli(dir.path(), &["link"]).unwrap();
    assert!(String::from_utf8_lossy(&link.stderr).contains("`sidereal link set`"), "{link:?}");
    let bare = cli(dir.path(), &[]).unwrap();
    assert!(String::from_utf8_lossy(&bare.stderr).contains("up --demo"));
}

#[test]
fn the_exit_code_says_what_kind_of_failure_it_was() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let run = |args: &[&str]| {
        let out = platform.cli(&[args, &["-o", "json"]].concat()).unwrap();
        (out.status.code(), envelope::one(&out.stdout))
    };
    write_app(app.path(), "shop", "probe", "").unwrap();
    let (code, envelope) = run(&["deploy", folder, "--no-sign"]);
    assert_eq!((code, envelope["error"]["code"].as_str()), (Some(5), Some("artifact-unsigned")));

    // What is found is an answer, and what it is worth is the exit code.
    platform.ok(&["deploy", folder]).unwrap();
    let (code, envelope) = run(&["call", "shop", "/nothing"]);
    assert_eq!((code, envelope["ok"].as_bool(), &envelope["data"]["status"]), (Some(1), Some(true), &404.into()));

    // Every problem, with what to do, for programs too.
    write_app(app.path(), "shop", "probe", "limits = { cpu = \"2h\" }\nreuze = 1").unwrap();
    for command in ["plan", "deploy"] {
        let (code, envelope) = run(&[command, folder]);
        assert_eq!(code, Some(if command == "plan" { 255 } else { 1 }), "{envelope}");
        assert_eq!(envelope["error"]["code"], "manifest-invalid");
        let findings: Vec<&str> =
            envelope["error"]["findings"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
        assert!(findings.len() >= 2 && findings.iter().any(|f| f.contains("did you mean `reuse`?")), "{findings:?}");
    }

    // A server that takes connections and never says anything.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    platform.ok(&["provider", "add", "cache", "--type", "keyvalue-redis", "--url", &url]).unwrap();
    write_app(app.path(), "stuck", "kv-probe", "[components.main.links]\n\"wasi:keyvalue\" = \"cache\"").unwrap();
    let (code, envelope) = run(&["deploy", folder, "--timeout", "1"]);
    assert_eq!((code, envelope["error"]["code"].as_str()), (Some(7), Some("timed-out")), "{envelope}");

    assert_eq!(platform.get("shop.localhost", "/log").unwrap().status, 200);
    let mut follow = Command::new(sidereal_tests::binary())
        .args(["logs", "shop", "-f", "-o", "json"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    assert_eq!(envelope::one(lines.next().unwrap().unwrap().as_bytes())["ok"], true);
    Platform::signal(follow.id(), rustix::process::Signal::INT).unwrap();
    let last = lines.map_while(Result::ok).last().unwrap();
    assert_eq!(follow.wait().unwrap().code(), Some(130));
    assert_eq!(envelope::one(last.as_bytes())["error"]["code"], "interrupted");
}

/// What a command shows on a terminal, stdout and stderr together.
fn on_terminal(dir: &std::path::Path, args: &str, env: &[(&str, &str)]) -> String {
    let line = format!("{} {args}", sidereal_tests::binary().display());
    let out = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("SIDEREAL_DATA_DIR", dir)
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn colour_is_for_terminals_and_obeys() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "reuze = 1").unwrap();
    let colour = "\u{1b}[";
    let plan = |flags: &str, env: &[(&str, &str)]| {
        let shown = on_terminal(dir.path(), &format!("{flags} plan {folder}"), env);
        assert!(shown.contains("reuze"), "{flags} {env:?}: no report: {shown}");
        shown.contains(colour)
    };
    assert!(plan("", &[]));
    assert!(
        !plan("--color never", &[]) && !plan("", &[("NO_COLOR", "1")]) && !plan("", &[("SIDEREAL_COLOR", "never")])
    );
    assert!(plan("--color always", &[("NO_COLOR", "1")]), "the flag goes before the environment");
    let piped = |flags: &[&str]| {
        let out = platform.cli(&[flags, &["plan", folder]].concat()).unwrap();
        String::from_utf8(out.stderr).unwrap().contains(colour)
    };
    assert!(!piped(&[]) && piped(&["--color", "always"]));

    // Steps are told on a terminal, unless nobody wants them.
    write_app(app.path(), "shop", "hello", "").unwrap();
    assert!(on_terminal(dir.path(), &format!("deploy {folder}"), &[]).contains('✓'));
    write_app(app.path(), "shop", "hello", "limits = { cpu = \"90ms\" }").unwrap();
    let quiet = on_terminal(dir.path(), &format!("--quiet deploy {folder}"), &[]);
    assert!(quiet.contains("serves as revision 2") && !quiet.contains('✓'), "{quiet}");

    // Nor where nobody watches: a pipe has the result, and nothing of how it came to be.
    write_app(app.path(), "shop", "hello", "limits = { cpu = \"80ms\" }").unwrap();
    let out = platform.cli(&["deploy", folder]).unwrap();
    let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(stdout.contains("serves as revision 3"), "{stdout}{stderr}");
    assert!(!stderr.contains('✓') && !stderr.contains("serving") && !stderr.contains("starting"), "{stderr}");
}

#[test]
fn programs_are_told_what_people_are() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "limits = { cpu = \"2s\", wall = \"1s\" }").unwrap();
    let warned = |data: &serde_json::Value| data["warnings"][0].as_str().is_some_and(|text| text.contains("`wall`"));
    let out = platform.cli(&["plan", folder, "-o", "json"]).unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(warned(&plan["data"]), "{plan}");
    let deployed = platform.ok(&["deploy", folder, "--message", "as it was"]).unwrap();
    assert!(warned(&deployed), "{deployed}");
    write_app(app.path(), "shop", "hello", "").unwrap();
    let deployed = platform.ok(&["deploy", folder]).unwrap();
    assert!(deployed.get("warnings").is_none(), "{deployed}");

    // What was wanted before, and what made it.
    platform.ok(&["rollback", "shop"]).unwrap();
    let status = platform.ok(&["status", "shop"]).unwrap();
    let history = status["history"].as_array().unwrap();
    let numbers: Vec<u64> = history.iter().filter_map(|past| past["revision"].as_u64()).collect();
    assert_eq!(numbers, [3, 2, 1], "{status}");
    assert_eq!((&history[0]["origin"]["to"], &history[2]["message"]), (&1.into(), &"as it was".into()));
    let shown = String::from_utf8(platform.cli(&["status", "shop"]).unwrap().stdout).unwrap();
    assert!(shown.contains("rollback to 1") && shown.contains("as it was"), "{shown}");
}

#[test]
fn a_deploy_of_what_must_not_run_ends_with_the_reason_and_status_has_it() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    platform.ok(&["tenant", "suspend", "local", "--reason", "unpaid"]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    // The operator may, and it is placed nowhere: no node will ever say anything of it.
    let out = platform.cli(&["deploy", app.path().to_str().unwrap(), "--timeout", "600", "-o", "json"]).unwrap();
    let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), envelope["error"]["code"].as_str()), (Some(5), Some("suspended")), "{envelope}");
    for command in [&["status"][..], &["status", "shop"]] {
        let shown = String::from_utf8(platform.cli(command).unwrap().stdout).unwrap();
        assert!(shown.contains("suspended by the operator: unpaid"), "{shown}");
        assert!(!shown.contains("waiting for a node"), "{shown}");
    }
}

#[test]
fn the_log_of_the_platform_obeys_the_colour_flag_on_a_terminal() {
    for (flag, coloured) in [("--color=never", false), ("--color=always", true)] {
        let dir = tempfile::tempdir().unwrap();
        let (home, ended) = (dir.path().to_owned(), std::sync::atomic::AtomicBool::new(false));
        let shown = std::thread::scope(|scope| {
            let (home, ended) = (&home, &ended);
            let shown = scope.spawn(move || {
                let args =
                    format!("{flag} up --listen 127.0.0.1:0 --api-listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0");
                let shown = on_terminal(home, &args, &[("SIDEREAL_LOG", "info")]);
                ended.store(true, std::sync::atomic::Ordering::SeqCst);
                shown
            });
            let up = || cli(home, &["status"]).is_ok_and(|out| out.status.success());
            let over = || ended.load(std::sync::atomic::Ordering::SeqCst);
            until(Duration::from_secs(20), || up() || over()).unwrap();
            let running = std::fs::read_to_string(home.join("api.json")).unwrap();
            let running: serde_json::Value = serde_json::from_str(&running).unwrap();
            let pid = u32::try_from(running["pid"].as_u64().unwrap()).unwrap();
            Platform::signal(pid, rustix::process::Signal::TERM).unwrap();
            shown.join().unwrap()
        });
        assert!(shown.contains("INFO"), "{shown}");
        assert_eq!(shown.contains("\u{1b}["), coloured, "{shown}");
    }
}

#[test]
fn plan_call_route_and_logs_speak_of_the_running_app() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "probe", "config = { greeting = \"hi\" }").unwrap();
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
    platform.logged(&["shop"], "out ").expect("its lines are there");
    assert_eq!(platform.cli(&["call", "nobody"]).unwrap().status.code(), Some(3));

    // What a command says to do next works as it stands.
    let out = platform.cli(&["delete", "shop", "--confirm", "shop"]).unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let next: Vec<&str> = said.split('`').nth(1).unwrap_or_else(|| panic!("{said}")).split(' ').skip(1).collect();
    assert!(next.contains(&"--purge-data"), "{said}");
    platform.ok(&next).unwrap();
}
