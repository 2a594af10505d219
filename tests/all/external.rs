//! A provider that is a process beside the platform: the example as a user deploys it, killed under load, swapped, and
//! programs that do not come up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sidereal_tests::load::Load;
pub(crate) use sidereal_tests::platform::programs as processes;
use sidereal_tests::platform::{self, Platform, alive, until, write_app};
use sidereal_tests::workspace;

const HOST: &str = "external-keyvalue.localhost";

fn example() -> PathBuf {
    workspace().join("examples/external-keyvalue")
}

/// Starts the platform with a program of this name and trusts the signer of the example's component.
fn start(dir: &Path, name: &str, program: &Path) -> Platform {
    start_with(dir, name, program, &[])
}

fn start_with(dir: &Path, name: &str, program: &Path, flags: &[&str]) -> Platform {
    let named = format!("{name}={}", program.display());
    let platform = Platform::start(dir, &[&["--external", &named], flags].concat()).unwrap();
    let key = fs::read_to_string(workspace().join("examples/counter/signer.pub")).unwrap();
    platform.ok(&["tenant-settings", "set", "--trust", key.trim()]).unwrap();
    platform
}

fn count(platform: &Platform) -> u64 {
    let answer = platform.get(HOST, "/").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body.trim().rsplit(' ').next().unwrap().parse().unwrap()
}

/// `status`, as people read it.
fn status(platform: &Platform, app: &str) -> String {
    String::from_utf8_lossy(&platform.cli(&["status", app]).unwrap().stdout).into_owned()
}

#[test]
fn the_example_counts_survives_kills_and_is_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path(), "sqlite", &example().join("provider.py"));
    platform.ok(&["deploy", example().to_str().unwrap()]).unwrap();
    for expected in 1..=3 {
        assert_eq!(count(&platform), expected);
    }
    let process = || processes(platform.pid(), "provider.py");
    assert_eq!(process().len(), 1, "one process, however many hosts");

    // Killed under load: calls in flight fail, and within its budget of prompt restarts it is back each time.
    let load = Load::start(platform.ingress, HOST, "/", 4, Duration::from_millis(10));
    load.wait(20);
    for _ in 0..3 {
        let victim = process()[0];
        Platform::signal(victim, Signal::KILL).unwrap();
        let killed = Instant::now();
        until(Duration::from_secs(10), || process().first().is_some_and(|pid| *pid != victim)).unwrap();
        println!("another process after {:?}", killed.elapsed());
        load.wait(20);
        println!("answers again after {:?}", killed.elapsed());
    }
    let report = load.stop();
    println!("{} answers, failures: {:?}", report.good, report.failures);
    assert!(report.failures.len() < 60, "{:?}", report.failures);
    let total = count(&platform);
    // What was acknowledged is counted; a call that failed may have counted too.
    let failed = report.failures.len() as u64;
    assert!((report.good + 4..=report.good + 4 + failed).contains(&total), "{total} of {} and {failed}", report.good);
    // The node reports it a moment later.
    let well = || {
        let said = status(&platform, "external-keyvalue");
        said.contains("serving") && !said.contains("degraded")
    };
    until(Duration::from_secs(20), well).unwrap_or_else(|_| panic!("{}", status(&platform, "external-keyvalue")));

    // To another provider and back: what it kept is there.
    let link = |provider: &str| {
        platform.ok(&["link", "set", "external-keyvalue", &format!("wasi:keyvalue={provider}")]).unwrap();
    };
    link("embedded");
    until(Duration::from_secs(5), || count(&platform) < total).unwrap();
    until(Duration::from_secs(20), || process().is_empty()).unwrap();
    link("database");
    until(Duration::from_secs(5), || count(&platform) > total).unwrap();
    let total = count(&platform);
    platform
        .ok(&["link", "set", "external-keyvalue", "wasi:keyvalue=embedded", "--copy-data=remove"])
        .unwrap_or_else(|cause| panic!("{cause:#}"));
    assert_eq!(count(&platform), total + 1, "its keys were copied");
    platform
        .ok(&["link", "set", "external-keyvalue", "wasi:keyvalue=database", "--copy-data=remove"])
        .unwrap_or_else(|cause| panic!("{cause:#}"));
    assert_eq!(count(&platform), total + 2, "and copied back to a process that was not there before");

    // Whatever happens to the platform, no process is left behind, and after a start the count goes on.
    let left = process();
    assert_eq!(left.len(), 1);
    platform.kill().unwrap();
    until(Duration::from_secs(5), || left.iter().all(|pid| !alive(*pid))).unwrap();
    let platform = start(dir.path(), "sqlite", &example().join("provider.py"));
    until(Duration::from_secs(20), || platform.get(HOST, "/").is_ok_and(|answer| answer.status == 200)).unwrap();
    assert!(count(&platform) >= total + 4);
}

#[test]
fn only_the_operators_programs_run_and_secrets_go_by_stdin_alone() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in
        ["sqlite", "sqlite=provider.py", "sqlite=/nowhere/provider.py", "sqlite=/etc/passwd", "no name=/bin/true"]
    {
        let out = platform::cli(dir.path(), &["up", "--external", wrong]).unwrap();
        assert!(!out.status.success(), "{wrong}");
    }
    for wrong in ["sqlite=network", "sqlite=/nowhere"] {
        let out =
            platform::cli(dir.path(), &["up", "--external", "other=/bin/true", "--external-allow", wrong]).unwrap();
        assert!(!out.status.success(), "{wrong}");
    }
    let platform = start(dir.path(), "sqlite", &example().join("provider.py"));
    let app = tempfile::tempdir().unwrap();
    let links = |program: &str, contract: &str| {
        format!(
            "[components.main.links]\n\"wasi:keyvalue\" = \"mine\"\n\n[providers.mine]\ntype = \"external\"\n\
             program = \"{program}\"\ncontract = \"{contract}\"\nconfig = {{ token = {{ secret = \"kv-token\" }} }}"
        )
    };
    let folder = app.path().to_str().unwrap();
    let canary = "canary-9e6d2c";
    platform.secret("kv-token", canary).unwrap();
    let deploy = |program: &str, contract: &str| {
        write_app(app.path(), "counter", "kv-counter", &links(program, contract)).unwrap();
        let out = platform.cli(&["deploy", folder]).unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        (out.status.success(), said)
    };
    let (done, said) = deploy("postgres", "wasi:keyvalue");
    assert!(!done && said.contains("`postgres`") && said.contains("there are: `sqlite`"), "{said}");
    let (done, said) = deploy("/bin/sh", "wasi:keyvalue");
    assert!(!done && said.contains("is not the name of a program"), "{said}");
    let (done, said) = deploy("sqlite", "wasmcloud:postgres");
    assert!(!done && said.contains("do not answer `wasmcloud:postgres` in this version"), "{said}");
    let (done, said) = deploy("sqlite", "wasi:keyvalue");
    assert!(done, "{said}");
    assert_eq!(platform.get("counter.localhost", "/").unwrap().status, 200);
    let pid = processes(platform.pid(), "provider.py")[0];
    for place in ["cmdline", "environ"] {
        let seen = fs::read(format!("/proc/{pid}/{place}")).unwrap();
        assert!(!String::from_utf8_lossy(&seen).contains(canary), "{place}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.contains("Max data size") && limits.contains("2147483648"), "{limits}");
    for asked in [&["status", "counter"][..], &["logs", "counter"], &["provider", "list"]] {
        let said = platform.cli(asked).unwrap();
        assert!(!String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).contains(canary), "{asked:?}");
    }
}

#[test]
fn a_program_that_ends_again_and_again_is_degraded_with_its_reason() {
    let (dir, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (program, real) = (bin.path().join("flaky"), bin.path().join("provider.py"));
    let broken = dir.path().join("externals/local/external-keyvalue/database/broken");
    let script = format!(
        "#!/bin/sh\nif [ -e broken ]; then echo 'the licence has expired' >&2; exit 3; fi\nexec /usr/bin/python3 -I {}\n",
        real.display()
    );
    fs::write(&program, script).unwrap();
    fs::copy(example().join("provider.py"), &real).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    // It runs as a user of its own, who sees nothing but it and what is allowed.
    let named = format!("sqlite={}", program.display());
    let out = platform::cli(dir.path(), &["up", "--external", &named]).unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if said.contains("isolation-refused") {
        sidereal_tests::not_run(&format!("that a program only its owner may run is refused: {said}"));
    } else {
        assert!(!out.status.success() && said.contains("chmod o+rx"), "{said}");
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let allowed = format!("sqlite={}", real.display());
    let platform = start_with(dir.path(), "sqlite", &program, &["--external-allow", &allowed]);
    // At deploy: refused with the reason, and nothing serves. What is in its folder already is its own then.
    fs::create_dir_all(broken.parent().unwrap()).unwrap();
    fs::write(&broken, "").unwrap();
    let out = platform.cli(&["deploy", example().to_str().unwrap()]).unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success() && said.contains("the licence has expired"), "{said}");
    fs::remove_file(&broken).unwrap();
    platform.ok(&["deploy", example().to_str().unwrap()]).unwrap();
    assert_eq!(count(&platform), 1);
    // While it serves: the app is degraded, says why, and recovers by itself.
    fs::write(&broken, "").unwrap();
    Platform::signal(processes(platform.pid(), "provider.py")[0], Signal::KILL).unwrap();
    let says = |what: &[&str]| {
        let said = status(&platform, "external-keyvalue");
        what.iter().all(|what| said.contains(what))
    };
    until(Duration::from_secs(20), || says(&["degraded", "the licence has expired", "provider-unavailable"])).unwrap();
    // One that waits for the program waits each time; one that does not may meet a machine that does something else.
    let took = (0..4).map(|_| {
        let begun = Instant::now();
        assert_ne!(platform.get(HOST, "/").unwrap().status, 200, "no answer is made up");
        begun.elapsed()
    });
    let took: Vec<_> = took.collect();
    assert!(took.iter().any(|took| *took < Duration::from_secs(5)), "calls fail at once: {took:?}");
    platform.logged(&["external-keyvalue"], "the licence has expired").unwrap();
    fs::remove_file(&broken).unwrap();
    until(Duration::from_secs(60), || platform.get(HOST, "/").is_ok_and(|answer| answer.status == 200)).unwrap();
    until(Duration::from_secs(30), || !says(&["degraded"])).unwrap();
    assert!(count(&platform) >= 2);
}
