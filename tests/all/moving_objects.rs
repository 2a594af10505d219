//! Objects that move with their link, from the folder of the node to an S3 server and back: while they are written, past
//! an interruption, and never over somebody else's.

use std::path::Path;
use std::time::Duration;

use sidereal_tests::http::Connection;
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::s3::S3;

const LINKS: &str = "limits = { request-body = \"64MiB\", wall = \"5m\", cpu = \"60s\" }\n\
    [components.main.links]\n\
    \"wasi:blobstore\" = [{ provider = \"folder\" }, { label = \"mine\", provider = \"folder\" }]";

fn begin(data: &Path, app: &Path, s3: &S3) -> Platform {
    let platform = Platform::start(data, &[]).unwrap();
    platform.secret("s3-key", "right").unwrap();
    let url = s3.url();
    let add = ["provider", "add", "s3", "--type", "blobstore-s3", "--url", &url, "--set", "bucket=bucket"];
    let keys = ["--set", "access-key-id=AKID", "--secret", "secret-access-key=s3-key"];
    platform.ok(&[&add[..], &keys[..]].concat()).unwrap();
    write_app(app, "blobs", "blob-probe", LINKS).unwrap();
    platform.ok(&["deploy", app.to_str().unwrap()]).unwrap();
    platform
}

fn ask(platform: &Platform, path: &str) -> (u16, String) {
    let answer = platform.get("blobs.localhost", path).unwrap();
    (answer.status, answer.body.trim().to_owned())
}

fn ok(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

#[test]
fn objects_move_to_s3_and_back_while_they_are_written() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let s3 = S3::start("AKID", "right").unwrap();
    let platform = begin(dir.path(), app.path(), &s3);
    for path in ["/create/photos", "/create/empty", "/create/mine"] {
        assert_eq!(ask(&platform, path).0, 200, "{path}");
    }
    for n in 0..20 {
        assert_eq!(ask(&platform, &format!("/fill/photos/dir%2F{n}/{}", n * 1000)), ok("ok"));
    }
    // Of one size, so that only what is in them tells them apart.
    let mut connection = Connection::open(platform.ingress).unwrap();
    for n in 0..10 {
        let path = format!("/put/photos/named%2F{n}");
        assert_eq!(connection.send("PUT", "blobs.localhost", &path, content(n).as_bytes()).unwrap().status, 200);
    }
    assert_eq!(ask(&platform, "/fill/photos/large/12000000"), ok("ok"));
    assert_eq!(ask(&platform, "/fill/mine/stays/10"), ok("ok"));

    let load = Load::start(platform.ingress, "blobs.localhost", "/fill/photos/live/5000", 4, Duration::from_millis(20));
    load.wait(20);
    let moved = platform.ok(&["link", "set", "blobs", "wasi:blobstore#default=s3", "--copy-data"]).unwrap();
    assert_eq!(moved["phase"], "done", "{moved}");
    assert!(moved["bytes"].as_u64().unwrap() >= 12_000_000 + 190_000, "{moved}");
    load.wait(20);
    let check = |platform: &Platform| {
        assert_eq!(ask(platform, "/sum/photos/large"), ok("12000000"));
        assert_eq!(ask(platform, "/sum/photos/dir%2F19"), ok("19000"));
        assert_eq!(ask(platform, "/sum/photos/live"), ok("5000"));
        for n in 0..10 {
            assert_eq!(ask(platform, &format!("/get/photos/named%2F{n}")), ok(&content(n)), "{n}");
        }
        assert_eq!(ask(platform, "/exists/empty"), ok("true"));
        assert_eq!(ask(platform, "/sum/mine/stays"), ok("10"));
    };
    check(&platform);
    // What is in the bucket is what the app finds.
    assert!(s3.bucket().join("local/blobs/s3/photos/objects/large").is_file());
    assert!(!s3.bucket().join("local/blobs/s3/mine").exists(), "another label's container stays");

    // Back: what was removed meanwhile is still in the folder, and nobody said that it may go.
    assert_eq!(ask(&platform, "/delete/photos/dir%2F3"), ok("ok"));
    let refused = platform.cli(&["link", "set", "blobs", "wasi:blobstore#default=folder", "--copy-data"]).unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("photos/dir/3"), "{text}");
    let back = platform.ok(&["link", "set", "blobs", "wasi:blobstore#default=folder", "--copy-data=remove"]).unwrap();
    assert_eq!(back["phase"], "done", "{back}");
    load.wait(20);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    check(&platform);
    assert_eq!(ask(&platform, "/has/photos/dir%2F3"), ok("false"));
}

/// An object whose every part says whose it is.
fn content(n: usize) -> String {
    format!("object {n:03};").repeat(2000)
}

#[test]
fn a_move_of_objects_goes_on_after_kill_9() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let s3 = S3::start("AKID", "right").unwrap();
    let platform = begin(dir.path(), app.path(), &s3);
    assert_eq!(ask(&platform, "/create/c").0, 200);
    let mut connection = Connection::open(platform.ingress).unwrap();
    for n in 0..300 {
        let put = connection.send("PUT", "blobs.localhost", &format!("/put/c/o{n}"), content(n).as_bytes()).unwrap();
        assert_eq!((put.status, put.body.trim()), (200, "ok"));
    }
    drop(connection);
    // For less than what the copy of them asks: it is in the middle when everything is killed.
    s3.answers(200);
    let asked = std::process::Command::new(sidereal_tests::binary())
        .args(["link", "set", "blobs", "wasi:blobstore#default=s3", "--copy-data"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut asked = asked.unwrap();
    let there = s3.bucket().join("local/blobs/s3/c/objects");
    let count = || std::fs::read_dir(&there).map_or(0, Iterator::count);
    until(Duration::from_secs(30), || count() > 20 && s3.stands_still()).unwrap();
    platform.kill().unwrap();
    drop(asked.wait());
    assert!(count() < 300, "all were copied before");
    s3.answers(usize::MAX);

    let platform = Platform::start(dir.path(), &[]).unwrap();
    let moved = || platform.ok(&["link", "list", "blobs"]).unwrap()[0]["link"]["provider"] == "s3";
    until(Duration::from_secs(60), moved).unwrap();
    until(Duration::from_secs(20), || ask(&platform, "/get/c/o299").0 == 200).unwrap();
    assert_eq!(ask(&platform, "/list/c").1.lines().count(), 300);
    let wrong: Vec<usize> = (0..300).filter(|n| ask(&platform, &format!("/get/c/o{n}")) != ok(&content(*n))).collect();
    assert!(wrong.is_empty(), "not what was put there: {wrong:?}");
}
