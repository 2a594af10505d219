//! The SQL databases of each tenant in a process of their own: what a statement takes of time and memory is its tenant's,
//! and one that nothing in that process can end is ended with it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use sidereal_tests::hostile::arena::NOISY;
use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, children, until, write_app};
use sidereal_tests::{not_isolated, platform};

/// Two tenants with databases: `victim` of the first, `noisy` with four of the other.
fn start(dir: &Path) -> Platform {
    let platform = Platform::start(dir, &["--shards", "1"]).unwrap();
    let keys = platform.ok(&["keys", "list"]).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "account").unwrap()["key"].clone();
    platform.ok(&["tenant", "create", NOISY, "--shards", "1", "--trust", key.as_str().unwrap()]).unwrap();
    let app = tempfile::tempdir().unwrap();
    let links = "[components.main.links]\n\"sidereal:sql\" = \"sqlite\"";
    write_app(app.path(), "victim", "sql-probe", links).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let own = (0..4).map(|n| format!("[providers.d{n}]\ntype = \"sql-sqlite\"\n")).collect::<String>();
    let labels: Vec<String> = (0..4).map(|n| format!("{{ label = \"d{n}\", provider = \"d{n}\" }}")).collect();
    let links = format!("[components.main.links]\n\"sidereal:sql\" = [{}]\n{own}", labels.join(", "));
    write_app(app.path(), "noisy", "sql-probe", &links).unwrap();
    platform.ok(&["--tenant", NOISY, "deploy", app.path().to_str().unwrap()]).unwrap();
    platform
}

/// Status and text of one operation on an app.
fn ask(ingress: SocketAddr, app: &str, path: &str, body: &str) -> (u16, String) {
    let mut connection = Connection::open(ingress).unwrap();
    let answer = connection.send("POST", &format!("{app}.localhost"), path, body.as_bytes()).unwrap();
    (answer.status, answer.body.trim_end().to_owned())
}

/// The processes that have opened databases, by the tenant that their arguments name.
fn processes(up: u32) -> Vec<(String, u32)> {
    let confined = children(up, "databases").into_iter().flat_map(|first| children(first, "databases"));
    let named = confined.filter_map(|pid| {
        let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let mut args = args.split('\0').skip_while(|arg| *arg != "--tenant");
        Some((args.nth(1)?.to_owned(), pid))
    });
    named.collect()
}

#[test]
fn a_process_with_databases_has_nothing_that_only_the_operator_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path());
    if platform.ok(&["status"]).unwrap()["nodes"][0]["waived"] != serde_json::json!({}) {
        return not_isolated("what the process of databases sees: this machine refuses layers");
    }
    assert_eq!(ask(platform.ingress, "victim", "/execute/-", "CREATE TABLE t (n BIGINT)").0, 200);
    let all = processes(platform.pid());
    assert_eq!(all.len(), 1, "{all:?}");
    let root = format!("/proc/{}/root", all[0].1);
    for folder in ["etc", "opt"] {
        let inside: Vec<_> = fs::read_dir(format!("{root}/{folder}")).into_iter().flatten().flatten().collect();
        assert!(inside.is_empty(), "{folder}: {inside:?}");
    }
    assert!(fs::read_dir("/etc").unwrap().next().is_some(), "there is something to see outside");
    let status = fs::read_to_string(format!("/proc/{}/status", all[0].1)).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    for space in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(link(&all[0].1.to_string()), link("self"), "{space}");
    }
}

#[test]
fn a_statement_that_sqlite_cannot_end_is_ended_with_its_process_and_holds_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path());
    let ingress = platform.ingress;
    assert_eq!(ask(ingress, "victim", "/execute/-", "CREATE TABLE t (n BIGINT)").0, 200);
    assert_eq!(ask(ingress, "noisy", "/execute/d1", "CREATE TABLE t (n BIGINT)").0, 200);
    assert_eq!(ask(ingress, "noisy", "/execute/d1", "INSERT INTO t VALUES (7)").0, 200);
    // Each of these compares every byte of one argument with all of the other: hours, in one step.
    let endless = [
        "SELECT instr(zeroblob(16000000), zeroblob(8000000) || x'01')",
        "SELECT length(replace(hex(zeroblob(8000000)), hex(zeroblob(4000000)) || 'x', ''))",
        "SELECT length(trim(hex(zeroblob(8000000)), replace(hex(zeroblob(650000)), '0', 'é') || '0'))",
    ];
    for sql in endless {
        let began = Instant::now();
        let done = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            let stuck = scope.spawn(|| {
                let ended = ask(ingress, "noisy", "/query/d0", sql);
                done.store(true, SeqCst);
                ended
            });
            let mut count = 0;
            while !done.load(SeqCst) {
                assert_eq!(ask(ingress, "victim", "/execute/-", "INSERT INTO t VALUES (1)").0, 200);
                count += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            // One that waited for the other tenant's statement would be the last of few.
            assert!(count > 20, "{count} writes");
            stuck.join().unwrap()
        });
        let took = began.elapsed();
        assert!(ended.1.starts_with("timeout"), "{sql}: {ended:?}");
        assert!(took < Duration::from_millis(model::sql::STATEMENT_MS + 120_000), "{sql}: {took:?}");
        // What was acknowledged is there, and the next one is answered.
        assert_eq!(ask(ingress, "noisy", "/query/d1", "SELECT n FROM t"), (200, "n\ni:7".to_owned()));
        assert_eq!(ask(ingress, "noisy", "/query/d0", "SELECT 1").0, 200);
    }
}

#[test]
fn what_one_tenant_s_statements_gather_is_not_the_memory_of_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path());
    let ingress = platform.ingress;
    let stop = AtomicBool::new(false);
    let greedy = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
                  SELECT zeroblob(1000000) FROM c ORDER BY random()"
        .replace('\n', " ");
    // Needs some 20 MB to sort.
    let modest = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100) SELECT sum(length(b)) FROM \
                  (SELECT zeroblob(1000000) AS b FROM c ORDER BY random() LIMIT 20)";
    std::thread::scope(|scope| {
        let mut all = Vec::new();
        for n in 0..4 {
            let (greedy, stop) = (&greedy, &stop);
            all.push(scope.spawn(move || {
                let mut refused = 0;
                while !stop.load(SeqCst) {
                    let (_, text) = ask(ingress, "noisy", &format!("/query/d{n}"), greedy);
                    // Where there is little of the processor to be had, its time may be up first.
                    assert!(["too-large", "timeout"].iter().any(|end| text.starts_with(end)), "{text}");
                    refused += i32::from(text.starts_with("too-large"));
                }
                refused
            }));
        }
        let asked: Vec<_> = (0..100).map(|_| ask(ingress, "victim", "/query/-", modest)).collect();
        stop.store(true, SeqCst);
        let refused: Vec<i32> = all.into_iter().map(|one| one.join().unwrap()).collect();
        assert!(refused.iter().any(|times| *times > 0), "{refused:?}");
        let failed: Vec<_> = asked.iter().filter(|answer| answer.0 != 200).collect();
        let late = failed.iter().filter(|(_, text)| text.starts_with("timeout")).count();
        assert!(failed.len() == late && late < 50, "{} of 100 failed: {:?}", failed.len(), failed.first());
    });
}

#[test]
fn a_process_of_databases_sees_those_of_its_tenant_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let platform = start(dir.path());
    let (ingress, up) = (platform.ingress, platform.pid());
    assert_eq!(ask(ingress, "victim", "/query/-", "SELECT 1").0, 200);
    assert_eq!(ask(ingress, "noisy", "/query/d0", "SELECT 1").0, 200);
    let found = processes(up);
    assert_eq!(found.len(), 2, "{found:?}");
    let nodes = platform.ok(&["status"]).unwrap();
    let layers = nodes["nodes"][0]["layers"].as_array().unwrap().clone();
    let has = |layer: &str| layers.iter().any(|one| one == layer);
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
    for host in platform.hosts() {
        assert_eq!(score(host), "300", "the kernel ends a host before the node");
    }
    for (tenant, pid) in &found {
        assert_eq!(score(*pid), "500", "and this before a host");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t")).unwrap();
        for (layer, name, value) in
            [("caps", "CapEff", "0000000000000000"), ("caps", "NoNewPrivs", "1"), ("seccomp", "Seccomp", "2")]
        {
            match has(layer) {
                true => assert_eq!(field(name), value, "{tenant}: {name}"),
                false => not_isolated(&format!("{layer} of a process of databases: this machine refuses it")),
            }
        }
        match has("root") {
            true => {
                let sql = dir.path().canonicalize().unwrap().join("sql");
                let seen = fs::read_dir(format!("/proc/{pid}/root{}", sql.display())).unwrap();
                let seen: Vec<_> = seen.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
                assert_eq!(seen, [tenant.as_str()], "no other tenant's");
                let data = sql.parent().unwrap();
                let seen = fs::read_dir(format!("/proc/{pid}/root{}", data.display())).unwrap();
                assert_eq!(seen.count(), 1, "nothing else of the platform");
            }
            false => not_isolated("what a process of databases sees: this machine refuses `root`"),
        }
        match has("cgroup") {
            true => {
                let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
                assert!(group.contains(&format!("tenant.{tenant}")), "{group}");
            }
            false => not_isolated("the control group of a process of databases: this machine refuses `cgroup`"),
        }
    }
    let noisy = || processes(up).iter().any(|(tenant, _)| tenant == NOISY);
    platform.ok(&["--tenant", NOISY, "delete", "noisy", "--confirm", "noisy"]).unwrap();
    until(Duration::from_secs(60), || !noisy()).expect("it ends with the last host of its tenant");
    assert_eq!(processes(up).len(), 1);
    let left = processes(up)[0].1;
    platform.kill().unwrap();
    until(Duration::from_secs(10), || !platform::alive(left)).expect("it does not outlive the platform");
}
