//! The quota of what a tenant keeps, through the whole platform: keys, objects and databases have one room, the component
//! gets an error it can tell, nothing of a refused write stays, and the neighbour goes on.

use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, write_app};

fn ask(platform: &Platform, app: &str, path: &str, body: &str) -> (u16, String) {
    let mut connection = Connection::open(platform.ingress).unwrap();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let answer = connection.send(method, &format!("{app}.localhost"), path, body.as_bytes()).unwrap();
    (answer.status, answer.body.trim_end().to_owned())
}

#[test]
fn a_tenant_keeps_no_more_than_it_may_and_is_told_so() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    let keys = platform.ok(&["keys", "list"]).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "account").unwrap()["key"].clone();
    platform.ok(&["tenant", "create", "acme", "--trust", key.as_str().unwrap(), "--shards", "1"]).unwrap();
    let deploy = |platform: &Platform, tenant: &str, name: &str, guest: &str, link: &str| {
        write_app(app.path(), name, guest, &format!("[components.main.links]\n{link}")).unwrap();
        platform.ok(&["--tenant", tenant, "deploy", app.path().to_str().unwrap()]).unwrap();
    };
    deploy(&platform, "acme", "keys", "kv-probe", "\"wasi:keyvalue\" = \"embedded\"");
    deploy(&platform, "acme", "objects", "blob-probe", "\"wasi:blobstore\" = \"folder\"");
    deploy(&platform, "acme", "tables", "sql-probe", "\"sidereal:sql\" = \"sqlite\"");
    deploy(&platform, "local", "other", "kv-probe", "\"wasi:keyvalue\" = \"embedded\"");
    let ok = |text: &str| (200, text.to_owned());
    // Without a quota nothing is counted; with one, what is there already counts.
    assert_eq!(ask(&platform, "keys", "/fill/default/10/10000", ""), ok("ok"));
    assert_eq!(ask(&platform, "objects", "/create/c", ""), ok("c"));
    assert_eq!(ask(&platform, "objects", "/fill/c/old/50000", ""), ok("ok"));
    assert_eq!(ask(&platform, "tables", "/execute/-", "CREATE TABLE t (x BLOB)"), ok("0"));
    assert!(platform.ok(&["tenant", "show", "acme"]).unwrap().get("kept").is_none());
    let small = platform.cli(&["tenant", "set", "acme", "--store-bytes", "10KiB"]).unwrap();
    assert!(!small.status.success(), "a quota that cannot be meant");
    platform.ok(&["tenant", "set", "acme", "--store-bytes", "1MiB"]).unwrap();
    let kept = |platform: &Platform| {
        let shown = platform.ok(&["tenant", "show", "acme"]).unwrap();
        assert_eq!(shown["kept"]["most"], 1 << 20, "{shown}");
        shown["kept"]["bytes"].as_u64().unwrap()
    };
    let begun = kept(&platform);
    assert!((160_000..200_000).contains(&begun), "{begun}");

    let over = |(status, text): (u16, String), kind: &str| {
        assert!(status == 502 && text.contains(&format!("{kind}over quota: the tenant keeps")), "{status} {text}");
    };
    over(ask(&platform, "keys", "/fill/default/100/10000", ""), "");
    let full = kept(&platform);
    assert!((1_020_000..=1 << 20).contains(&full), "{full}");
    // It is one room, for all kinds and all apps.
    over(ask(&platform, "objects", "/fill/c/new/100000", ""), "");
    assert_eq!(ask(&platform, "objects", "/has/c/new", ""), ok("false"));
    let row = "INSERT INTO t VALUES (zeroblob(100000))";
    over(ask(&platform, "tables", "/execute/-", row), "too-large: ");
    assert_eq!(ask(&platform, "tables", "/query/-", "SELECT count(*) FROM t"), ok("count(*)\ni:0"));
    assert!(kept(&platform) <= 1 << 20);
    // Reading and removing go on, and the neighbour notices nothing.
    assert_eq!(ask(&platform, "keys", "/exists/default/fill-00000000", ""), ok("true"));
    assert_eq!(ask(&platform, "other", "/fill/default/200/10000", ""), ok("ok"));
    assert_eq!(ask(&platform, "keys", "/delete-many/default/fill-00000000,fill-00000001,fill-00000002", ""), ok("ok"));
    assert!(full - kept(&platform) >= 30_000);
    assert_eq!(ask(&platform, "keys", "/set/default/k/v", ""), ok("ok"));

    // What was counted is counted anew after a kill; the log of a database counts until its first call.
    let before = kept(&platform);
    platform.kill().unwrap();
    platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    let again = kept(&platform);
    assert!((before..before + (128 << 10)).contains(&again), "{before} {again}");
    over(ask(&platform, "keys", "/fill/default/100/10000", ""), "");
    // An app that goes with its data gives its room back.
    platform.ok(&["--tenant", "acme", "delete", "keys", "--confirm", "keys", "--purge-data"]).unwrap();
    sidereal_tests::platform::until(std::time::Duration::from_secs(20), || kept(&platform) < 100_000).unwrap();
    assert_eq!(ask(&platform, "objects", "/fill/c/new/100000", ""), ok("ok"));
    platform.ok(&["tenant", "set", "acme", "--store-bytes", "none"]).unwrap();
    assert_eq!(ask(&platform, "objects", "/fill/c/large/2000000", ""), ok("ok"));
}
