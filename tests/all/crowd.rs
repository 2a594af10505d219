//! Many tenants on one machine, each with an app and a host of its own: all of them serve at once within their quotas, and
//! each host is confined, its tenant's, and small. `SIDEREAL_TENANTS` says how many.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, write_app};

const TENANTS: usize = 10;
/// Requests of each tenant, one after the other while those of all others are under way.
const REQUESTS: usize = 20;
/// Of a tenant, bytes: more than an idle host has, and less than would let one take the machine.
const MEMORY: &str = "128MiB";

/// Kibibytes that only this process has.
fn private(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    of("Private_Clean:") + of("Private_Dirty:")
}

fn uid(pid: u32) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/task")).unwrap())
}

#[test]
fn many_tenants_serve_at_once_within_their_quotas() {
    let tenants = std::env::var("SIDEREAL_TENANTS").map_or(TENANTS, |count| count.parse().unwrap());
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1", "--waive", "missing"]).unwrap();
    let keys = platform.ok(&["keys", "list"]).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "account").unwrap()["key"].clone();
    let mut took = Vec::new();
    for n in 0..tenants {
        let name = format!("tenant-{n}");
        let quotas = ["--shards", "1", "--memory", MEMORY, "--concurrent-requests", "2"];
        platform.ok(&[&["tenant", "create", &name, "--trust", key.as_str().unwrap()][..], &quotas].concat()).unwrap();
        write_app(app.path(), &format!("app-{n}"), "hello", "").unwrap();
        let begun = Instant::now();
        platform.ok(&["--tenant", &name, "deploy", app.path().to_str().unwrap()]).unwrap();
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    println!("deploy to serving: p50 {:?}, longest {:?}", took[tenants / 2], took[tenants - 1]);
    let hosts = platform.hosts();
    assert_eq!(hosts.len(), tenants, "a host for each tenant that has an app");
    let users: BTreeSet<u32> = hosts.iter().copied().map(uid).collect();
    let nodes = platform.ok(&["status"]).unwrap();
    if nodes["nodes"][0]["waived"].get("uid").is_none() {
        assert_eq!(users.len(), tenants, "each has a user of its own");
    }
    let memory = |when: &str| {
        let mut kib: Vec<u64> = hosts.iter().copied().map(private).collect();
        kib.sort_unstable();
        println!("private memory of a host {when}: p50 {} KiB, most {} KiB", kib[tenants / 2], kib[tenants - 1]);
    };
    memory("before its first request");

    // Everybody at once: one connection each, all of them asked before the first is asked again.
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..tenants)
            .map(|n| {
                let ingress = platform.ingress;
                scope.spawn(move || {
                    let host = format!("app-{n}.localhost");
                    let mut connection = Connection::open(ingress).unwrap();
                    let mut slowest = Duration::ZERO;
                    for _ in 0..REQUESTS {
                        let begun = Instant::now();
                        let answer = connection.send("GET", &host, "/", &[]).unwrap();
                        assert_eq!(answer.status, 200, "{host}: {}", answer.body);
                        slowest = slowest.max(begun.elapsed());
                    }
                    slowest
                })
            })
            .collect();
        let slowest = lanes.into_iter().map(|lane| lane.join().unwrap()).max().unwrap();
        let all = tenants * REQUESTS;
        println!("{all} requests of {tenants} tenants in {:?}, the slowest took {slowest:?}", begun.elapsed());
    });
    memory("after its requests");
    assert_eq!(platform.hosts(), hosts, "no host ended");
}
