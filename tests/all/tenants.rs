//! Two tenants on one platform, each with a token, a key and quotas of its own; and docs/tenants.md, executed.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use sidereal_tests::platform::{Platform, cli, write_app};
use sidereal_tests::{binary, workspace};

/// Somebody with a folder of its own: a key, a token, and the address of the platform.
struct Person {
    dir: tempfile::TempDir,
    api: String,
    token: String,
}

impl Person {
    /// Makes the tenant `name` on the platform, trusting a key of this person.
    fn join(platform: &Platform, name: &str, quotas: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        assert!(cli(dir.path(), &["keys", "generate", "account", "account"]).unwrap().status.success());
        let keys = cli(dir.path(), &["keys", "list", "-o", "json"]).unwrap();
        let keys: serde_json::Value = serde_json::from_slice(&keys.stdout).unwrap();
        let key = keys["data"].as_array().unwrap().iter().find(|k| k["name"] == "account").unwrap()["key"].clone();
        platform.ok(&[&["tenant", "create", name, "--trust", key.as_str().unwrap()], quotas].concat()).unwrap();
        let made = platform.ok(&["--tenant", name, "tenant", "token", "create", "--role", "owner"]).unwrap();
        let (api, token) =
            (platform.info["api"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned());
        Self { dir, api, token }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(binary())
            .args(args)
            .env("SIDEREAL_DATA_DIR", self.dir.path())
            .env("SIDEREAL_API", &self.api)
            .env("SIDEREAL_TOKEN", &self.token)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The exit code and what was printed.
    fn says(&self, args: &[&str]) -> (i32, String) {
        let out = self.run(args);
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.code().unwrap(), text)
    }

    fn deploy(&self, app: &Path) {
        let (code, text) = self.says(&["deploy", app.to_str().unwrap()]);
        assert_eq!(code, 0, "{text}");
    }
}

#[test]
fn two_tenants_share_a_platform_and_nothing_else() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    let small = ["--shards", "1", "--apps", "1", "--requests-per-second", "1"];
    let (acme, beta) = (Person::join(&platform, "acme", &small), Person::join(&platform, "beta", &["--shards", "1"]));
    let (one, two, more) = (app.path().join("one"), app.path().join("two"), app.path().join("more"));
    write_app(&one, "one", "hello", "").unwrap();
    write_app(&two, "two", "hello", "").unwrap();
    write_app(&more, "more", "hello", "").unwrap();
    acme.deploy(&one);
    beta.deploy(&two);

    // Neither sees the other: the same answer as for what is nobody's.
    let (code, theirs) = acme.says(&["--tenant", "beta", "status"]);
    let (_, nobodys) = acme.says(&["--tenant", "nobody", "status"]);
    assert_eq!((code, &theirs), (3, &nobodys));
    let (code, text) = acme.says(&["status"]);
    assert!(code == 0 && text.contains("one") && !text.contains("two"), "{text}");
    let (code, text) = acme.says(&["tenant", "list"]);
    assert_eq!((code, text.trim()), (0, "acme"));

    // Its quotas hold it, and nobody else.
    let (code, text) = acme.says(&["deploy", more.to_str().unwrap()]);
    assert!(code == 5 && text.contains("quota-exceeded") && text.contains("may have 1"), "{code} {text}");
    let statuses = |host: &str| -> Vec<u16> { (0..40).map(|_| platform.get(host, "/").unwrap().status).collect() };
    let limited = statuses("one.localhost");
    assert!(limited.contains(&429) && limited.contains(&200), "{limited:?}");
    assert!(statuses("two.localhost").iter().all(|status| *status == 200));

    // What one signs, the other does not trust.
    let key = |person: &Person| std::fs::read_dir(person.dir.path().join("keys")).unwrap().count();
    assert!(key(&acme) > 0 && key(&beta) > 0);
    let stranger = Person { token: beta.token.clone(), api: beta.api.clone(), dir: tempfile::tempdir().unwrap() };
    assert_eq!(stranger.says(&["keys", "generate", "account", "account"]).0, 0);
    let (code, text) = stranger.says(&["deploy", more.to_str().unwrap()]);
    assert!(code == 5 && text.contains("issuer-untrusted"), "{code} {text}");

    // Suspended: not served, and told why; the other goes on. Resumed: served.
    platform.ok(&["tenant", "suspend", "beta", "--reason", "a test"]).unwrap();
    sidereal_tests::platform::until(std::time::Duration::from_secs(10), || {
        platform.get("two.localhost", "/").is_ok_and(|answer| answer.header("sidereal-fault") == Some("suspended"))
    })
    .unwrap();
    let (code, text) = beta.says(&["delete", "two", "--confirm", "two"]);
    assert!(code == 5 && text.contains("a test"), "{code} {text}");
    platform.ok(&["tenant", "resume", "beta"]).unwrap();
    sidereal_tests::platform::until(std::time::Duration::from_secs(10), || {
        platform.get("two.localhost", "/").is_ok_and(|answer| answer.status == 200)
    })
    .unwrap();

    // Each reads what is about itself; the whole is as it was written.
    let (code, text) = acme.says(&["audit", "-n", "1000"]);
    assert!(code == 0 && text.contains("/v1/tenants/acme/apps/one/revisions") && !text.contains("beta/apps"), "{text}");
    assert_eq!(platform.ok(&["audit", "verify"]).unwrap()["problems"], serde_json::json!([]));
    platform.ok(&["tenant", "delete", "acme", "--confirm", "acme"]).unwrap();
    assert_eq!(acme.says(&["status"]).0, 5);
    assert_eq!(platform.cli(&["tenant", "create", "acme"]).unwrap().status.code(), Some(2));
    let gone = || platform.get("one.localhost", "/").is_ok_and(|answer| answer.status == 404);
    sidereal_tests::platform::until(std::time::Duration::from_secs(20), gone).expect("nothing of it is served");
    // Once its last host is gone, the node speaks of it no more.
    let url = platform.info["metrics"].as_str().unwrap();
    let address = url.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    let scrape = || sidereal_tests::http::get(address.parse().unwrap(), address, "/metrics").unwrap().body;
    assert!(scrape().contains("\"beta\""));
    sidereal_tests::platform::until(std::time::Duration::from_secs(30), || !scrape().contains("\"acme\"")).unwrap();
    assert_eq!(beta.says(&["status"]).0, 0);

    // What it had is not the next one's at once, unless the operator says so.
    let (code, text) = beta.says(&["deploy", one.to_str().unwrap()]);
    assert!(code == 4 && text.contains("sidereal route free 'one.localhost'"), "{code} {text}");
    assert_eq!(beta.says(&["route", "free", "one.localhost"]).0, 5);
    platform.ok(&["route", "free", "one.localhost"]).unwrap();
    beta.deploy(&one);
    // Nor is what nobody has.
    write_app(&more, "more", "hello", "[[routes]]\nhost = \"*.localhost\"\ncomponent = \"main\"").unwrap();
    let (code, text) = beta.says(&["deploy", more.to_str().unwrap()]);
    assert!(code == 5 && text.contains("host-not-given") && text.contains("`*.localhost`"), "{code} {text}");
}

#[test]
fn a_tenant_without_bounds_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    let text =
        |out: Output| format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let doctor = || text(platform.cli(&["doctor"]).unwrap());
    assert!(!doctor().contains("tenant-unbounded"));
    let said = text(platform.cli(&["tenant", "create", "open"]).unwrap());
    assert!(said.contains("warning") && said.contains("memory") && said.contains("--store-bytes"), "{said}");
    let bounds = ["--store-bytes", "1GiB", "--requests-per-second", "100", "--concurrent-requests", "10"];
    let said = text(platform.cli(&[&["tenant", "create", "half"][..], &bounds].concat()).unwrap());
    assert!(said.contains("nothing bounds memory of"), "{said}");
    let said = doctor();
    assert!(said.contains("tenant-unbounded") && said.contains("store_bytes of tenant open"), "{said}");
    assert!(said.contains("nothing bounds memory of tenant half"), "{said}");
}

#[test]
fn every_block_of_the_page_does_what_it_says() {
    let page = std::fs::read_to_string(workspace().join("docs/tenants.md")).unwrap();
    let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut ran = 0;
    for block in page.split("```sh").skip(1) {
        let (kind, text) = block.split_once('\n').unwrap();
        let text = text.split("```").next().unwrap();
        if kind.trim() == "up" {
            assert_eq!(text.trim(), "sidereal up", "the test starts this, on free ports");
            continue;
        }
        let script = text.replace("/tmp/sidereal-acme", &scratch.path().join("acme").display().to_string());
        let out = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &script])
            .current_dir(workspace())
            .env("PATH", &path)
            .env("SIDEREAL_DATA_DIR", dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let shown = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "this block failed ({}):\n{text}\n---\n{shown}", out.status);
        ran += 1;
    }
    assert!(ran >= 7, "the page lost its blocks");
    drop(platform);
}
