//! Many tenants on one machine, each with an app and a host of its own: all of them serve at once within their quotas, each
//! host is confined, its tenant's, and small, and after a crash of the platform all of them are back. `SIDEREAL_TENANTS` says
//! how many there are.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use sidereal_tests::http::Connection;
use sidereal_tests::not_isolated;
use sidereal_tests::platform::{Platform, until, write_app};

const TENANTS: usize = 25;
/// Requests of each tenant, one after the other while those of all others are under way.
const REQUESTS: usize = 20;
/// Of a tenant: several times what an idle host has, and too little to take the machine.
const MEMORY: u64 = 128;
/// The most an idle host has for itself, KiB.
const IDLE: u64 = 15 << 10;

/// Kibibytes that only this process has.
fn private(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    of("Private_Clean:") + of("Private_Dirty:")
}

fn uid(pid: u32) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/task")).unwrap())
}

/// The tenant whose control group a process is in, where it is in one.
fn tenant(pid: u32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().find_map(|line| Some(line.trim_end_matches("/own").rsplit_once(".tenant.")?.1.to_owned()))
}

/// Everybody at once: a connection for each tenant, all of them asked before the first is asked again.
fn all_ask(ingress: SocketAddr, tenants: usize) {
    let begun = Instant::now();
    let lane = |n: usize| {
        let host = format!("app-{n}.localhost");
        let mut connection = Connection::open(ingress).unwrap();
        let asked = (0..REQUESTS).map(|_| {
            let begun = Instant::now();
            let answer = connection.send("GET", &host, "/", &[]).unwrap();
            assert_eq!(answer.status, 200, "{host}: {}", answer.body);
            begun.elapsed()
        });
        asked.max().unwrap()
    };
    let slowest = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..tenants).map(|n| scope.spawn(move || lane(n))).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).max().unwrap()
    });
    let all = tenants * REQUESTS;
    println!("{all} requests of {tenants} tenants in {:?}, the slowest took {slowest:?}", begun.elapsed());
}

fn memory(hosts: &[u32], when: &str) -> u64 {
    let mut kib: Vec<u64> = hosts.iter().copied().map(private).collect();
    kib.sort_unstable();
    let (half, most) = (kib[kib.len() / 2], kib[kib.len() - 1]);
    println!("private memory of a host {when}: p50 {half} KiB, most {most} KiB");
    most
}

fn start(dir: &Path) -> Platform {
    let platform = Platform::start(dir, &["--shards", "1", "--waive", "missing"]).unwrap();
    println!("ready in {:?}", platform.ready);
    platform
}

#[test]
fn many_tenants_serve_at_once_within_their_quotas() {
    let tenants = std::env::var("SIDEREAL_TENANTS").map_or(TENANTS, |count| count.parse().unwrap());
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = start(dir.path());
    let keys = platform.ok(&["keys", "list"]).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "account").unwrap()["key"].clone();
    let mut took = Vec::new();
    for n in 0..tenants {
        let (name, memory) = (format!("tenant-{n}"), format!("{MEMORY}MiB"));
        let quotas = ["--shards", "1", "--memory", &memory, "--apps", "1", "--concurrent-requests", "2"];
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
    let nodes = platform.ok(&["status"]).unwrap();
    let without = |layer: &str| nodes["nodes"][0]["waived"].get(layer).cloned();
    match without("uid") {
        None => assert_eq!(hosts.iter().copied().map(uid).collect::<BTreeSet<_>>().len(), tenants, "users"),
        Some(why) => not_isolated(&format!("that each of many tenants has a user of its own: {why}")),
    }
    match without("cgroup") {
        None => {
            let groups: BTreeSet<_> = hosts.iter().copied().filter_map(tenant).collect();
            assert_eq!(groups, (0..tenants).map(|n| format!("tenant-{n}")).collect(), "control groups");
        }
        Some(why) => not_isolated(&format!("that each of many tenants has a control group of its own: {why}")),
    }
    assert!(memory(&hosts, "before its first request") <= IDLE);
    all_ask(platform.ingress, tenants);
    all_ask(platform.ingress, tenants);
    memory(&hosts, "after its requests");
    assert_eq!(platform.hosts(), hosts, "no host ended");
    let open = fs::read_dir(format!("/proc/{}/fd", platform.pid())).unwrap().count();
    println!("{open} descriptors are open in the node, {} of each tenant", open / tenants);

    // All of them are started at once.
    platform.kill().unwrap();
    let begun = Instant::now();
    let mut platform = start(dir.path());
    let serves = |n: usize| platform.get(&format!("app-{n}.localhost"), "/").is_ok_and(|answer| answer.status == 200);
    until(Duration::from_secs(60), || (0..tenants).all(serves)).expect("all of them are back");
    println!("all {tenants} are back in {:?}", begun.elapsed());
    all_ask(platform.ingress, tenants);
    assert_eq!(platform.hosts().len(), tenants);
    assert_eq!(platform.stop(Duration::from_secs(30)).unwrap().code(), Some(0));
}
