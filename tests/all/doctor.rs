//! Seeded faults: each is found under its own code, and nothing is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use sidereal_tests::platform::{Platform, as_user, cli, mounts};

fn codes(out: &std::process::Output) -> Vec<String> {
    let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    envelope["data"].as_array().unwrap().iter().map(|d| d["code"].as_str().unwrap().to_owned()).collect()
}

/// What a healthy directory cannot help: the machine, and the shell the tests run in.
const OF_THE_MACHINE: [&str; 12] = [
    "disk-scarce",
    "port-taken",
    "isolation-missing",
    "few-files",
    "few-maps",
    "few-processes",
    "kernel-old",
    "kernel-slower",
    "overcommit-strict",
    "address-space-limited",
    "backtrace-set",
    "tmpdir-missing",
];

/// What lies in a folder: names, sizes, modes.
fn listing(dir: &Path) -> Vec<(String, u64, u32)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        all.push((entry.path().display().to_string(), meta.len(), meta.permissions().mode()));
        if meta.is_dir() {
            all.extend(listing(&entry.path()));
        }
    }
    all.sort();
    all
}

#[test]
fn seeded_faults_are_found_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    // As `up` makes it where there is none.
    fs::set_permissions(home, fs::Permissions::from_mode(0o700)).unwrap();
    Platform::start(home, &["--demo"]).unwrap();
    let healthy = codes(&cli(home, &["doctor", "-o", "json"]).unwrap());
    assert!(healthy.iter().all(|code| OF_THE_MACHINE.contains(&code.as_str())), "healthy at first: {healthy:?}");

    let mode = |name: &str, mode: u32| fs::set_permissions(home.join(name), fs::Permissions::from_mode(mode)).unwrap();
    mode(".", 0o755);
    mode("token", 0o644);
    fs::write(home.join("keys/account.nk"), "not a seed").unwrap();
    fs::write(home.join("store.redb"), "").unwrap();
    fs::write(home.join("data.redb"), "garbage that is no database").unwrap();
    let future = SystemTime::now() + Duration::from_secs(86_400);
    fs::File::options().append(true).open(home.join("store.redb")).unwrap().set_modified(future).unwrap();
    let blob = fs::read_dir(home.join("blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    fs::write(&blob, "other bytes").unwrap();
    // Left behind by a power cut; the number is that of another process by now, which nobody is to be told to end.
    let pid = std::process::id();
    let left = format!(r#"{{"api":"http://127.0.0.1:1","ingress":"127.0.0.1:1","pid":{pid},"since_ms":1}}"#);
    fs::write(home.join("api.json"), left).unwrap();
    let app = tempfile::tempdir().unwrap();
    fs::write(app.path().join("app.toml"), "schema = 1\nnam = \"x\"\n").unwrap();
    let _taken = std::net::TcpListener::bind("127.0.0.1:8080");

    let before = listing(home);
    // A shell lowers the limits, since a process cannot raise them again.
    let script = "ulimit -n 256; ulimit -v 80000000; exec \"$0\" doctor -o json";
    let out = Command::new("sh")
        .args(["-c", script])
        .arg(sidereal_tests::binary())
        .current_dir(app.path())
        .env("SIDEREAL_DATA_DIR", home)
        .env("RUST_BACKTRACE", "1")
        .env("TMPDIR", home.join("no-such-folder"))
        .output()
        .unwrap();
    let found = codes(&out);
    for code in [
        "data-dir-open",
        "secret-open",
        "key-damaged",
        "store-damaged",
        "data-damaged",
        "clock-behind",
        "artifact-damaged",
        "stopped-hard",
        "manifest-invalid",
        "few-files",
        "address-space-limited",
        "backtrace-set",
        "tmpdir-missing",
        "port-taken",
    ] {
        assert!(found.iter().any(|f| f == code), "{code} was not found in {found:?}");
    }
    assert!(!found.iter().any(|f| f == "api-silent"), "nothing runs: {found:?}");
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(listing(home), before, "nothing was changed");
    // And a damaged store is refused by `up`, not emptied.
    fs::remove_file(home.join("api.json")).unwrap();
    let up = cli(home, &["up"]).unwrap();
    assert!(!up.status.success());
    assert_eq!(fs::metadata(home.join("store.redb")).unwrap().len(), 0);
}

#[test]
fn faults_around_a_directory_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    drop(Platform::start(home, &[]).unwrap());
    let doctor = || codes(&cli(home, &["doctor", "-o", "json"]).unwrap());
    fs::rename(home.join("blobs"), home.join("elsewhere")).unwrap();
    fs::write(home.join("token"), "short").unwrap();
    let found = doctor();
    for code in ["artifacts-missing", "token-damaged"] {
        assert!(found.iter().any(|f| f == code), "{code} was not found in {found:?}");
    }
    fs::rename(home.join("elsewhere"), home.join("blobs")).unwrap();
    // One that has the directory, and no API. Until it has said where that is, there is nothing to find.
    let nobody = sidereal_tests::ports::free();
    let pid = std::process::id();
    let running = format!(r#"{{"api":"http://{nobody}","ingress":"{nobody}","pid":{pid},"since_ms":1}}"#);
    let held = fs::File::create(home.join("lock")).unwrap();
    held.try_lock().unwrap();
    fs::write(home.join("api.json"), &running).unwrap();
    assert!(!doctor().iter().any(|f| ["api-silent", "store-busy", "stopped-hard"].contains(&f.as_str())));
    fs::write(home.join("lock"), &running).unwrap();
    assert!(doctor().iter().any(|f| f == "api-silent"), "{:?}", doctor());
    drop(held);
    assert!(doctor().iter().any(|f| f == "stopped-hard"), "{:?}", doctor());
    fs::remove_file(home.join("api.json")).unwrap();
    // A small file system, in mounts of the command's own: few bytes, then few files.
    let Some(own) = mounts() else { return };
    for (options, code) in [("size=8m", "disk-full"), ("size=512m,nr_inodes=600", "inodes-full")] {
        let script =
            format!("mount -t tmpfs -o mode=700,{options} none \"$SIDEREAL_DATA_DIR\" && exec \"$0\" doctor -o json");
        let out = Command::new("unshare")
            .args([own, "sh", "-c", &script])
            .arg(sidereal_tests::binary())
            .env("SIDEREAL_DATA_DIR", home)
            .output()
            .unwrap();
        let found = codes(&out);
        assert!(found.iter().any(|f| f == code), "{code} was not found in {found:?}");
    }
}

#[test]
fn a_directory_of_somebody_else_is_found() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let out = as_user(54_321).args(["doctor", "-o", "json"]).env("SIDEREAL_DATA_DIR", dir.path()).output().unwrap();
    let found = codes(&out);
    for code in ["data-dir-owner", "data-dir-read-only"] {
        assert!(found.iter().any(|f| f == code), "{code} was not found in {found:?}");
    }
}
