//! What components wrote, chosen where it is kept: by level, age, component and instance.

use std::collections::BTreeSet;
use std::time::Duration;

use sidereal_tests::platform::{Platform, until, write_app};

/// The lines that `sidereal logs` answers with, as programs read them.
fn lines(platform: &Platform, args: &[&str]) -> Vec<serde_json::Value> {
    let out = platform.cli(&[&["logs", "shop", "-o", "json"][..], args].concat()).unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stdout));
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["data"].clone()).collect()
}

fn texts(platform: &Platform, args: &[&str]) -> Vec<String> {
    lines(platform, args).iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn lines_name_their_instance_and_are_chosen_by_the_platform() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "probe", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    for text in ["one", "two"] {
        assert_eq!(platform.get("shop.localhost", &format!("/log?text={text}")).unwrap().status, 200);
    }
    platform.get("shop.localhost", "/trap").unwrap();
    // Three of each call, and what the platform says of the trap.
    let (mut all, mut last) = (Vec::new(), 0);
    let there = until(Duration::from_secs(20), || {
        last = all.len();
        all = lines(&platform, &[]);
        let said = |line: &serde_json::Value| line["text"].as_str().is_some_and(|text| text.contains("unreachable"));
        all.iter().filter(|line| line["stream"] != "platform").count() >= 6 && all.iter().any(said) && all.len() == last
    });
    there.unwrap_or_else(|_| panic!("{all:#?}"));
    let written: Vec<&serde_json::Value> = all.iter().filter(|line| line["stream"] != "platform").collect();
    assert!(written.iter().all(|line| line["app"] == "shop" && line["component"] == "main"), "{all:#?}");
    let instances: BTreeSet<&str> = written.iter().map(|line| line["instance"].as_str().unwrap()).collect();
    assert_eq!(instances.len(), 2, "one instance for each call: {all:#?}");
    for instance in &instances {
        let own = lines(&platform, &["--instance", instance]);
        assert_eq!(own.len(), 3, "{own:#?}");
        assert!(own.iter().all(|line| line["instance"] == *instance));
    }
    let mut warned = texts(&platform, &["--level", "warn"]);
    warned.retain(|text| text.starts_with("log "));
    warned.sort();
    assert_eq!(warned, ["log one", "log two"], "standard output and error matter less");
    assert!(
        texts(&platform, &["--level", "warn"]).iter().any(|text| text.contains("unreachable")),
        "the trap is there"
    );
    assert_eq!(texts(&platform, &["--level", "critical"]), [""; 0]);
    assert_eq!(lines(&platform, &["--since", "10m"]).len(), all.len());
    assert_eq!(lines(&platform, &["--since", "2099-01-01T00:00:00Z"]).len(), 0);
    assert_eq!(lines(&platform, &["--since", "2020-01-01T00:00:00Z", "-n", "2"]).len(), 2);
    assert_eq!(lines(&platform, &["--component", "main"]).len(), all.len());
    assert_eq!(lines(&platform, &["--component", "other"]).len(), 0);
    for bad in [["--level", "loud"], ["--since", "yesterday"]] {
        assert_eq!(platform.cli(&[&["logs", "shop"][..], &bad].concat()).unwrap().status.code(), Some(2), "{bad:?}");
    }
    // People see the instance too.
    let text = String::from_utf8(platform.cli(&["logs", "shop", "--level", "warn"]).unwrap().stdout).unwrap();
    assert!(
        text.lines().any(|line| instances.iter().any(|instance| line.contains(&format!("main {instance} r1")))),
        "{text}"
    );
}
