//! What people see of a provider whose server is away: the reason, for as long as it is.

use std::time::Duration;

use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;

#[test]
fn status_says_why_a_link_does_not_work_until_it_does() {
    let redis = Redis::start().unwrap();
    let address = redis.addr;
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    let links = "[components.main.links]\n\"wasi:keyvalue\" = [{ label = \"default\", provider = \"redis\" }, { label = \"other\", provider = \"embedded\" }]";
    write_app(app.path(), "probe", "kv-probe", links).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |path: &str| platform.get("probe.localhost", path).unwrap();
    let told = || {
        let text = platform.cli(&["status", "probe"]).unwrap();
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        (platform.ok(&["status", "probe"]).unwrap()["shards"][0][0]["troubles"].clone(), text)
    };
    assert_eq!(get("/set/default/k/1").body, "ok");
    let (troubles, text) = told();
    assert!(troubles.is_null() && !text.contains("does not work"), "{troubles} {text}");

    drop(redis);
    assert_ne!(get("/get/default/k").status, 200);
    let (troubles, text) = told();
    assert_eq!(troubles.as_array().map(Vec::len), Some(1), "{troubles}");
    let trouble = &troubles[0];
    assert_eq!((&trouble["provider"], &trouble["kind"]), (&"redis".into(), &"unavailable".into()), "{trouble}");
    assert!(trouble["since_ms"].as_u64().unwrap() > 0);
    let reason = trouble["reason"].as_str().unwrap();
    assert!(reason.contains("not available") && text.contains(reason), "{text}");
    // The other link of the same component has nothing to do with it.
    assert_eq!(get("/set/other/k/2").body, "ok");
    assert_eq!(told().0.as_array().map(Vec::len), Some(1));

    let _redis = Redis::at(address, "").unwrap();
    until(Duration::from_secs(20), || get("/set/default/k/3").status == 200).unwrap();
    let (troubles, text) = told();
    assert!(troubles.is_null() && !text.contains("does not work"), "{troubles} {text}");
}
