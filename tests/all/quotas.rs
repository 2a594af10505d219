//! Quotas of memory and of processor time, on the real binary: a host that takes more memory is ended, comes back, and people
//! are told why; one that computes without end gets what its tenant may have.

use std::path::Path;
use std::time::{Duration, Instant};

use sidereal_tests::hostile::arena::NOISY;
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, alive, set_aside, until, write_app};
use sidereal_tests::{not_isolated, not_run};

/// Where hosts are in the group of their tenant, with cgroups of version 2.
const OWN: &str = "/own";

/// A platform with control groups, and with whatever else this machine has.
fn start(dir: &Path, what: &str) -> Option<Platform> {
    let platform = Platform::start(dir, &["--shards", "1", "--waive", "missing"]).unwrap();
    let status = platform.cli(&["status", "-o", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let node = &status["data"]["nodes"][0];
    if node["layers"].as_array().unwrap().iter().any(|layer| layer == "cgroup") {
        return Some(platform);
    }
    not_isolated(&format!("{what}: control groups, {}", node["waived"]["cgroup"]));
    None
}

/// A tenant with these quotas, and its app of the hostile guest.
fn tenant(platform: &Platform, name: &str, quotas: &[&str], limits: &str) {
    let keys = platform.ok(&["keys", "list"]).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "account").unwrap()["key"].clone();
    let create = ["tenant", "create", name, "--trust", key.as_str().unwrap()];
    platform.ok(&[&create[..], quotas].concat()).unwrap();
    let app = tempfile::tempdir().unwrap();
    let links = "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"\n\"wasi:blobstore\" = \"folder\"";
    write_app(app.path(), name, "hostile", &format!("limits = {{ {limits} }}\n\n{links}")).unwrap();
    platform.ok(&["--tenant", name, "deploy", app.path().to_str().unwrap()]).unwrap();
}

/// The hosts of one tenant, by the group they are in.
fn hosts(platform: &Platform, tenant: &str) -> Vec<u32> {
    let of_tenant = |pid: &u32| {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.lines().any(|line| line.trim_end_matches(OWN).ends_with(&format!("tenant.{tenant}")))
    };
    platform.hosts().into_iter().filter(of_tenant).collect()
}

/// Processor time that these processes have had.
fn used(hosts: &[u32]) -> Duration {
    let ticks = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    Duration::from_millis(hosts.iter().map(ticks).sum::<u64>() * 10)
}

/// Which part of a processor each of the tenants has for the next while.
fn parts<const N: usize>(platform: &Platform, tenants: [&str; N]) -> [f64; N] {
    let hosts = tenants.map(|tenant| hosts(platform, tenant));
    let (begun, before) = (Instant::now(), hosts.clone().map(|hosts| used(&hosts)));
    std::thread::sleep(Duration::from_secs(4));
    let (elapsed, after) = (begun.elapsed(), hosts.map(|hosts| used(&hosts)));
    std::array::from_fn(|at| (after[at] - before[at]).as_secs_f64() / elapsed.as_secs_f64())
}

#[test]
fn memory_beyond_the_quota_ends_the_host_which_comes_back_and_the_reason_is_told() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(platform) = start(dir.path(), "the memory quota of a tenant") else { return };
    write_app(app.path(), "victim", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let limits = "memory = \"1GiB\", cpu = \"20s\", wall = \"60s\"";
    tenant(&platform, NOISY, &["--shards", "1", "--memory", "128MiB"], limits);
    let get = |path: &str| platform.get("noisy.localhost", path).unwrap();
    let fine = "/";
    assert_eq!(get(fine).status, 200);
    let first = hosts(&platform, NOISY);
    assert_eq!(first.len(), 1, "{first:?}");
    let victim = Load::start(platform.ingress, "victim.localhost", "/", 2, Duration::from_millis(5));
    // What its component may have by itself is more than all of the tenant together.
    let told = || {
        let status = get("/allocate").status;
        assert!(matches!(status, 502 | 503), "{status}");
        let said = platform.cli(&["--tenant", NOISY, "status", NOISY]).unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let told = said.contains("its tenant used all the memory of its quota");
        assert!(!told || said.contains("raise `quotas.memory` of the tenant"), "{said}");
        told
    };
    until(Duration::from_secs(60), told).expect("one that is ended again and again is told with its reason");
    assert!(!alive(first[0]));
    until(Duration::from_secs(30), || get(fine).status == 200).expect("it is back");
    let now = hosts(&platform, NOISY);
    assert!(now.len() == 1 && now != first, "{now:?} after {first:?}");
    // With as much as it wants it meets its own limit, and the host lives.
    platform.ok(&["tenant", "set", NOISY, "--memory", "1536MiB"]).unwrap();
    let limited = get("/allocate");
    assert_eq!(limited.header("sidereal-fault"), Some("limit-reached"), "{limited:?}");
    assert_eq!(hosts(&platform, NOISY), now);
    let report = victim.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert!(report.good > 50, "the victim was served {} times", report.good);
}

#[test]
fn endless_loops_get_the_processor_time_that_their_tenants_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let Some(platform) = start(dir.path(), "the processor quotas of a tenant") else { return };
    let cores = std::thread::available_parallelism().unwrap().get();
    let (shards, limits) = (cores.to_string(), "cpu = \"60s\", wall = \"120s\"");
    for (name, weight) in [("light", "50"), ("heavy", "200")] {
        tenant(&platform, name, &["--shards", &shards, "--cpu-weight", weight], limits);
    }
    let ingress = platform.ingress;
    let over = std::sync::atomic::AtomicBool::new(false);
    let over = &over;
    std::thread::scope(|scope| {
        for host in ["light.localhost", "heavy.localhost"] {
            // More than there are shards, so that each of those has one; how they end says nothing here, and others follow.
            for _ in 0..cores * 2 {
                scope.spawn(move || {
                    while !over.load(std::sync::atomic::Ordering::SeqCst) {
                        drop(sidereal_tests::http::get(ingress, host, "/spin"));
                    }
                });
            }
        }
        // On one processor: where there is one for each, none of them has to share.
        for pid in hosts(&platform, "light").into_iter().chain(hosts(&platform, "heavy")) {
            let pinned = std::process::Command::new("taskset").args(["-a", "-c", "-p", "0", &pid.to_string()]).output();
            assert!(pinned.unwrap().status.success(), "host {pid} is not pinned");
        }
        let all_spin = || {
            let [light, heavy] = parts(&platform, ["light", "heavy"]);
            println!("by weight: {light:.2} and {heavy:.2} processors");
            heavy > light * 2.0
        };
        until(Duration::from_secs(30), all_spin).expect("four times the weight is more than twice the time");
        // A ceiling, set while they run, whatever else there is to be had.
        for (millis, least, most) in [("100", 0.02, 0.16), ("500", 0.17, 0.7)] {
            platform.ok(&["tenant", "set", "heavy", "--cpu-millis", millis]).unwrap();
            let held = || {
                let [heavy] = parts(&platform, ["heavy"]);
                println!("at most {millis} thousandths: {heavy:.2} processors");
                (least..=most).contains(&heavy)
            };
            until(Duration::from_secs(30), held).expect("it gets about what it may have");
        }
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        platform.kill().unwrap();
    });
}

#[test]
fn a_tenant_that_computes_is_set_aside_until_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let what = "that a tenant which computes is set aside";
    let Some(platform) = start(dir.path(), what) else { return };
    let limits = "cpu = \"2s\", wall = \"60s\"";
    // A quota of one of them: from then on all share the processor by their groups, whoever may give way by themselves.
    tenant(&platform, NOISY, &["--shards", "1", "--cpu-millis", "2000"], limits);
    tenant(&platform, "quiet", &["--shards", "1"], limits);
    // This one is looked at from outside, while it computes.
    let long = "cpu = \"6s\", wall = \"60s\"";
    tenant(&platform, "weighed", &["--shards", "1", "--cpu-weight", "200"], long);
    let hosts = [NOISY, "quiet", "weighed"].map(|name| hosts(&platform, name)[0]);
    let [noisy, quiet, weighed] =
        [(0, NOISY), (1, "quiet"), (2, "weighed")].map(|(n, name)| move || set_aside(hosts[n], name));
    if noisy().is_none() {
        return not_run(&format!("{what}: its groups have no part of the processor"));
    }
    let ingress = platform.ingress;
    let spin = move |host: &'static str| std::thread::spawn(move || sidereal_tests::http::get(ingress, host, "/spin"));
    // One that had all of its time before anybody looked is followed by another one.
    let spins = |loops: &mut std::thread::JoinHandle<_>, host: &'static str| {
        if loops.is_finished() {
            *loops = spin(host);
        }
    };
    for _ in 0..2 {
        let mut loops = spin("noisy.localhost");
        until(Duration::from_secs(20), || {
            spins(&mut loops, "noisy.localhost");
            noisy() == Some(true)
        })
        .expect("it is set aside");
        assert_eq!(quiet(), Some(false));
        assert_eq!(loops.join().unwrap().unwrap().header("sidereal-fault"), Some("limit-reached"));
        until(Duration::from_secs(20), || noisy() == Some(false)).expect("it stands with the others again");
    }
    // What an operator gave a tenant is what it has, also while it computes; once that is taken back, it is as all others.
    let mut loops = spin("weighed.localhost");
    until(Duration::from_secs(10), || used(&[hosts[2]]) > Duration::from_millis(500)).expect("it computes");
    assert_eq!(weighed(), Some(false));
    platform.ok(&["tenant", "set", "weighed", "--cpu-weight", "none"]).unwrap();
    until(Duration::from_secs(10), || {
        spins(&mut loops, "weighed.localhost");
        weighed() == Some(true)
    })
    .expect("it gives way");
    assert_eq!(loops.join().unwrap().unwrap().header("sidereal-fault"), Some("limit-reached"));
    until(Duration::from_secs(20), || weighed() == Some(false)).expect("it stands with the others again");
    // One whose host is gone.
    let mut loops = spin("quiet.localhost");
    until(Duration::from_secs(20), || {
        spins(&mut loops, "quiet.localhost");
        quiet() == Some(true)
    })
    .expect("it is set aside");
    Platform::signal(hosts[1], rustix::process::Signal::KILL).unwrap();
    let again = || self::hosts(&platform, "quiet").first().is_some_and(|host| set_aside(*host, "quiet") == Some(false));
    until(Duration::from_secs(20), again).expect("the next one stands with the others");
}

/// The file that says how much memory the group of a host may have.
fn memory_limit(host: u32) -> Option<std::path::PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{host}/cgroup")).ok()?;
    let at = |line: &str| {
        let (trees, path) = line.split_once(':')?.1.split_once(':')?;
        let path = path.trim_start_matches('/').trim_end_matches(OWN);
        let file = match trees.split(',').any(|tree| tree == "memory") {
            true => Path::new("/sys/fs/cgroup/memory").join(path).join("memory.limit_in_bytes"),
            false => Path::new("/sys/fs/cgroup").join(path).join("memory.max"),
        };
        file.exists().then_some(file)
    };
    groups.lines().find_map(at)
}

#[test]
fn a_tenant_that_is_deleted_keeps_its_quotas_until_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let what = "the quotas of a tenant that is deleted";
    let Some(platform) = start(dir.path(), what) else { return };
    tenant(&platform, NOISY, &["--shards", "1", "--memory", "256MiB"], "cpu = \"60s\", wall = \"120s\"");
    let host = hosts(&platform, NOISY)[0];
    let Some(file) = memory_limit(host) else {
        return not_run(&format!("{what}: its group is not where it is looked for"));
    };
    let limit = || std::fs::read_to_string(&file).ok();
    let before = limit().unwrap();
    let ingress = platform.ingress;
    let call = std::thread::spawn(move || sidereal_tests::http::get(ingress, "noisy.localhost", "/spin"));
    until(Duration::from_secs(20), || used(&[host]) > Duration::from_millis(300)).expect("it computes");
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| platform.ok(&["tenant", "delete", NOISY, "--confirm", NOISY]).unwrap());
        let ended = || {
            seen.extend(limit());
            !alive(host) && !file.exists()
        };
        // It does not have the minute and a half that one which is only idle has.
        until(Duration::from_secs(20), ended).expect("it is gone");
    });
    assert!(seen.iter().all(|limit| *limit == before), "{before:?}: {seen:?}");
    drop(call.join());
}

#[test]
fn a_tenant_that_is_resumed_while_its_host_ends_is_held_to_quotas_that_come_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let what = "the quotas of a tenant that is resumed at once";
    let Some(platform) = start(dir.path(), what) else { return };
    tenant(&platform, NOISY, &["--shards", "1", "--memory", "256MiB"], "cpu = \"60s\", wall = \"120s\"");
    for mib in [192, 320] {
        let before = hosts(&platform, NOISY)[0];
        if memory_limit(before).is_none() {
            return not_run(&format!("{what}: its group is not where it is looked for"));
        }
        let ingress = platform.ingress;
        let call = std::thread::spawn(move || sidereal_tests::http::get(ingress, "noisy.localhost", "/spin"));
        until(Duration::from_secs(20), || used(&[before]) > Duration::from_millis(300)).expect("it computes");
        platform.ok(&["tenant", "suspend", NOISY, "--reason", "a test"]).unwrap();
        platform.ok(&["tenant", "resume", NOISY]).unwrap();
        let serves = || platform.get("noisy.localhost", "/").unwrap().status == 200;
        until(Duration::from_secs(60), || !alive(before) && serves()).expect("it is back");
        drop(call.join());
        let now = hosts(&platform, NOISY);
        assert!(now.len() == 1 && now[0] != before, "{now:?} after {before}");
        platform.ok(&["tenant", "set", NOISY, "--memory", &format!("{mib}MiB")]).unwrap();
        let wanted = (mib << 20).to_string();
        let limit = || memory_limit(now[0]).and_then(|file| std::fs::read_to_string(file).ok());
        until(Duration::from_secs(20), || limit().is_some_and(|limit| limit.trim() == wanted))
            .expect("it is held to them");
    }
}
