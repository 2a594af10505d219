//! docs/quickstart.md, executed.

use std::process::{Command, Stdio};

use sidereal_tests::platform::Platform;
use sidereal_tests::redis::Redis;
use sidereal_tests::{binary, workspace};

/// The fenced blocks of a page: what stands behind the fence, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```sh") {
            let text: Vec<&str> = lines.by_ref().take_while(|l| !l.starts_with("```")).collect();
            blocks.push((kind.trim().to_owned(), text.join("\n")));
        }
    }
    blocks
}

/// What the demo answers before its number.
const COUNTED: &str = "counter: ";

fn number(line: &str) -> Option<u64> {
    line.trim().strip_prefix(COUNTED)?.parse().ok()
}

fn count(platform: &Platform) -> u64 {
    number(&platform.get("counter.localhost", "/").unwrap().body).unwrap()
}

#[test]
fn every_block_does_what_the_page_says() {
    let page = std::fs::read_to_string(workspace().join("docs/quickstart.md")).unwrap();
    let blocks = blocks(&page);
    assert!(blocks.len() >= 7, "the page lost its blocks");
    let (dir, redis) = (tempfile::tempdir().unwrap(), Redis::start().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let mut platform = None;
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    for (kind, text) in blocks {
        if kind == "up" {
            assert_eq!(text.trim(), "sidereal up --demo", "the test starts exactly this, on free ports");
            platform = Some(Platform::start(dir.path(), &["--demo"]).unwrap());
            continue;
        }
        let platform = platform.as_ref().expect("the first block starts the platform");
        let swaps = text.contains("wasi:keyvalue=memory");
        let before = if swaps { count(platform) } else { 0 };
        let script = text
            .replace(":8080", &format!(":{}", platform.ingress.port()))
            .replace("127.0.0.1:6379", &redis.addr.to_string())
            .replace("/tmp/sidereal-quickstart", &scratch.path().join("mine").display().to_string());
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
        if swaps {
            // What the page says below it: one store counts from its own start, the other goes on where it was.
            let answers: Vec<u64> = shown.lines().filter_map(number).collect();
            assert_eq!(answers, [1, before + 1], "{shown}");
            assert_eq!(count(platform), before + 2);
        }
    }
}
