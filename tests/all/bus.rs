//! Components written for wasmCloud choose among several links of one contract with `wasmcloud:bus`.

use sidereal_tests::platform::{Platform, write_app};

const LINKS: &str = r#"
[components.main.links]
"wasi:keyvalue" = [
  { provider = "embedded" },
  { provider = "memory", label = "cache" },
  { provider = "embedded", label = "carts", bucket = "carts-v2" },
]
"wasi:blobstore" = [
  { provider = "folder" },
  { provider = "folder", label = "photos", container = "album" },
]
"wasmcloud:messaging" = { provider = "local", label = "events" }
"#;

#[test]
fn a_component_chooses_among_its_links_by_label_in_both_versions() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "bus", "bus-probe", LINKS).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |target: &str| {
        let answer = platform.get("bus.localhost", target).unwrap();
        (answer.status, answer.body)
    };
    let ok = |text: &str| (200, text.to_owned());

    // Each store counts for itself; a choice ends with its call.
    for version in ["", "&v1=1"] {
        let first = if version.is_empty() { 1 } else { 2 };
        assert_eq!(get(&format!("/kv?link=cache{version}")), ok(&first.to_string()), "cache {version}");
        assert_eq!(get(&format!("/kv?link=carts&open={version}")), ok(&first.to_string()), "carts {version}");
        assert_eq!(get(&format!("/kv?link=default{version}")), ok(&(2 * first - 1).to_string()), "default {version}");
        assert_eq!(get("/kv"), ok(&(2 * first).to_string()), "no choice {version}");
    }
    assert_eq!(get("/kv?open=cache"), ok("3"), "opened by its label it is the same");
    assert_eq!(get("/kv?link=default&open=cache"), ok("4"), "what is opened by a label is that link");

    assert_eq!(get("/blob?link=photos"), ok("made"));
    assert_eq!(get("/blob?open=photos"), ok("there"), "the container of the link that was chosen");
    assert_eq!(get("/blob"), ok("made"), "not that of the default link");

    let (status, why) = get("/send?open=orders.new");
    assert!(status == 502 && why.contains("linked: events"), "{why}");
    assert_eq!(get("/send?open=orders.new&link=events"), ok("sent"));
    assert_eq!(get("/send?open=orders.new&link=events&v1=1"), ok("sent"));

    // A label that is none: the new version says so, the old one cannot, and the log does.
    let (status, why) = get("/kv?link=nothing");
    assert_eq!(
        (status, why.as_str()),
        (502, "no link of wasi:keyvalue has the label `nothing`; linked: cache, carts, default")
    );
    assert_eq!(get("/kv?link=nothing&v1=1").0, 200, "the choice was not made");
    platform.logged(&["bus", "--level", "warn"], "[wasmcloud:bus] no link of wasi:keyvalue").unwrap();
}
