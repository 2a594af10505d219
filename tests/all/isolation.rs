//! What really stands around the processes that a platform starts: looked at from outside and compared with committed lists,
//! and broken out of from inside.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use node::confine::{Confinement, Waiver, Wanted, Who};
use rustix::process::Signal;
use sidereal_tests::not_isolated;
use sidereal_tests::platform::{Platform, alive, children, cli, until, write_app};

/// With every layer, or what this machine refuses.
fn start(dir: &Path) -> Option<Platform> {
    match Platform::start(dir, &[]) {
        Ok(platform) => Some(platform),
        Err(cause) if cause.to_string().contains("isolation-refused") => {
            not_isolated(&format!("the processes of a platform: {cause}"));
            None
        }
        Err(cause) => panic!("{cause:#}"),
    }
}

/// Compares with a committed file; `UPDATE=1` writes it.
fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("isolation").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(wanted == found, "{name} differs (UPDATE=1 writes it):\n--- committed\n{wanted}\n--- found\n{found}");
}

/// What `/proc` says of a process, without what differs from run to run.
fn look(pid: u32, mounts: impl Fn(u32) -> String) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let mut text = String::new();
    for space in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        let own = link(&pid.to_string()) != link("self");
        text += &format!("namespace {space}: {}\n", if own { "its own" } else { "THE MACHINE'S" });
    }
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for name in ["Uid", "Gid"] {
        let ids = field(name);
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        text +=
            &format!("{name}: {}\n", if ids[0].parse::<u32>().unwrap() < 1000 { "THE MACHINE'S" } else { "its own" });
    }
    for name in ["Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"] {
        text += &format!("{name}: {}\n", field(name).join(" "));
    }
    text += &format!("its own number: {}\n", field("NSpid").last().unwrap());
    text += &mounts(pid);
    let mut open = BTreeMap::<String, usize>::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // One that was closed since is not open.
        let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
        let target = target.display().to_string();
        // Compiled code is there once it was called for.
        if target.ends_with(".cwasm") {
            continue;
        }
        let kind = match target.split_once(':') {
            Some((kind, _)) => kind.to_owned(),
            None => target.replace(&format!("/proc/{pid}/"), "/proc/<pid>/"),
        };
        *open.entry(kind).or_default() += 1;
    }
    // How many connections it has depends on what it was asked.
    let open: Vec<&String> = open.keys().collect();
    text += &format!("open, by kind: {open:?}\n");
    let env = read("environ");
    let env: Vec<&str> = env.split('\0').filter(|one| !one.is_empty() && !one.starts_with("SIDEREAL_LOG=")).collect();
    text += &format!("environment: {env:?}\n");
    let limits = read("limits");
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    for name in [
        "Max core file size",
        "Max file size",
        "Max open files",
        "Max processes",
        "Max locked memory",
        "Max msgqueue size",
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        // A machine may allow fewer than we do.
        let line = match files {
            Some(fewer) if name == "Max open files" && fewer < 65_536 => line.replace(&fewer.to_string(), "65536"),
            _ => line,
        };
        text += &format!("limit {}\n", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    text
}

/// Every mount of a process, and what is in its root.
fn all_mounts(pid: u32) -> String {
    let mut text = String::new();
    for line in fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines() {
        let (left, right) = line.split_once(" - ").unwrap();
        let left: Vec<&str> = left.split(' ').collect();
        let of: Vec<&str> =
            left[3].split('/').map(|part| if part.parse::<u32>().is_ok() { "<pid>" } else { part }).collect();
        text += &format!("mount {} of {} ({}): {}\n", left[4], of.join("/"), right.split(' ').next().unwrap(), left[5]);
    }
    let mut root: Vec<String> = fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    root.sort();
    text += &format!("in its root: {root:?}\n");
    text
}

/// What a program that is not ours has of the machine: that which systems have is read-only, whatever of it there is.
fn mounts_of_a_program(pid: u32, named: &[(&Path, &str)]) -> String {
    const SYSTEM: [&str; 11] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "gnu"];
    let mut lines = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (at, flags): (&str, Vec<&str>) = (fields[4], fields[5].split(',').collect());
        let is = |flag: &str| flags.contains(&flag);
        if SYSTEM.iter().any(|name| at.trim_start_matches('/').split('/').next() == Some(name)) {
            assert!(is("ro") && is("nosuid") && is("nodev"), "{line}");
            continue;
        }
        let at = named.iter().fold(at.to_owned(), |at, (path, name)| at.replace(path.to_str().unwrap(), name));
        let at = match at.split_once("/run/x.") {
            Some((before, _)) => format!("{before}/run/<its socket>"),
            None => at,
        };
        // Device files of the machine's, and its /proc, which is covered: with what it mounts them.
        let machines = at.starts_with("/dev/") && !at.starts_with("/dev/shm") || at == "/proc" && is("rw");
        let kept = ["ro", "rw", "nosuid", "nodev"]
            .into_iter()
            .filter(|flag| is(flag) && !(machines && flag.starts_with("no")));
        lines.push(format!("mount {at}: {}\n", kept.collect::<Vec<_>>().join(",")));
    }
    lines.sort();
    let root = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
    let mut root: Vec<String> = root.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // Nor what leads to its own folders.
    let leads = |name: &str| named.iter().any(|(path, _)| path.starts_with(format!("/{name}")));
    root.retain(|name| !SYSTEM.contains(&name.as_str()) && (name == "tmp" || !leads(name)));
    root.sort();
    lines.concat() + &format!("in its root beside the system: {root:?}\n")
}

/// Control groups of this machine whose name begins so, but the one that the node itself moved into (version 2): whoever started it
/// may have moved with it.
fn groups(prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < 4 {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(prefix) && !name.ends_with(".node") {
                    found.push(entry.path());
                }
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

fn prefix(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap();
    format!("sidereal-{}.", model::Digest::of(dir.as_os_str().as_encoded_bytes()).short())
}

#[test]
fn the_golden_isolation_audit() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(mut platform) = start(dir.path()) else { return };
    write_app(app.path(), "hello", "hello", "").unwrap();
    // The compiler is caught while it works.
    let (up, folder) = (platform.pid(), app.path().to_str().unwrap().to_owned());
    let stopped = Arc::new(AtomicBool::new(false));
    let found = stopped.clone();
    let watching = std::thread::spawn(move || {
        let mut seen = None;
        let caught = || {
            let compilers = children(up, "compile").into_iter().flat_map(|first| children(first, "compile"));
            seen = compilers.into_iter().find(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                status.contains("Seccomp:\t2") && Platform::signal(*pid, Signal::STOP).is_ok() && alive(*pid)
            });
            found.store(seen.is_some(), SeqCst);
            seen.is_some()
        };
        until(Duration::from_secs(30), caught).unwrap();
        let pid = seen.unwrap();
        let text = look(pid, all_mounts);
        Platform::signal(pid, Signal::CONT).unwrap();
        text
    });
    platform.ok(&["deploy", &folder]).unwrap();
    // One that was done between two looks is followed by another one.
    for guest in ["probe", "hello-p3"].into_iter().filter(|_| !stopped.load(SeqCst)) {
        let other = tempfile::tempdir().unwrap();
        write_app(other.path(), guest, guest, "").unwrap();
        platform.ok(&["deploy", other.path().to_str().unwrap()]).unwrap();
        platform.ok(&["delete", guest, "--confirm", guest]).unwrap();
    }
    golden("compiler", &watching.join().unwrap());
    assert_eq!(platform.get("hello.localhost", "/").unwrap().status, 200);
    let hosts = platform.hosts();
    assert_eq!(hosts.len(), 2);
    for host in &hosts {
        golden("host", &look(*host, all_mounts));
        let sooner = fs::read_to_string(format!("/proc/{host}/oom_score_adj")).unwrap();
        assert_eq!(sooner.trim(), "300", "without memory the kernel ends it and not the node");
        let group = fs::read_to_string(format!("/proc/{host}/cgroup")).unwrap();
        assert!(group.contains(&format!("{}tenant.local", prefix(dir.path()))), "{group}");
    }
    let uid = |pid: u32| std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/task")).unwrap());
    assert_eq!(uid(hosts[0]), uid(hosts[1]));
    let nodes = platform.cli(&["status", "-o", "json"]).unwrap();
    let nodes: serde_json::Value = serde_json::from_slice(&nodes.stdout).unwrap();
    assert_eq!(nodes["data"]["nodes"][0]["layers"].as_array().unwrap().len(), 11, "{nodes}");
    assert_eq!(nodes["data"]["nodes"][0]["waived"], serde_json::json!({}));
    let version = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "cgroup v2, " } else { "cgroup v1, " };
    let said = nodes["data"]["nodes"][0]["groups"].as_str().unwrap();
    assert!(said.starts_with(version), "{said}");
    let text = platform.cli(&["status"]).unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&format!("  control groups: {said}")), "{text}");
    assert!(!groups(&prefix(dir.path())).is_empty());
    assert_eq!(platform.stop(Duration::from_secs(20)).unwrap().code(), Some(0));
    assert!(hosts.iter().all(|pid| !alive(*pid)));
    assert_eq!(groups(&prefix(dir.path())), [""; 0].map(PathBuf::from), "no group stays behind");
}

#[test]
fn two_tenants_have_two_users_and_keep_them_and_a_kill_leaves_nothing() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(platform) = start(dir.path()) else { return };
    let uid = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u32>().unwrap()
    };
    write_app(app.path(), "hello", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let first = uid(platform.hosts()[0]);
    let keys = platform.ok(&["keys", "list"]).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "account").unwrap()["key"].clone();
    platform.ok(&["tenant", "create", "other", "--trust", key.as_str().unwrap()]).unwrap();
    write_app(app.path(), "second", "hello", "").unwrap();
    platform.ok(&["--tenant", "other", "deploy", app.path().to_str().unwrap()]).unwrap();
    let mut uids: Vec<u32> = platform.hosts().into_iter().map(uid).collect();
    uids.sort_unstable();
    uids.dedup();
    assert_eq!(uids.len(), 2, "{uids:?}");
    let hosts = platform.hosts();
    platform.kill().unwrap();
    until(Duration::from_secs(10), || hosts.iter().all(|pid| !alive(*pid))).unwrap();
    let mut platform = start(dir.path()).unwrap();
    until(Duration::from_secs(20), || platform.get("hello.localhost", "/").is_ok_and(|a| a.status == 200)).unwrap();
    let again: Vec<u32> = platform.hosts().into_iter().map(uid).collect();
    assert!(again.contains(&first) && again.iter().all(|id| uids.contains(id)), "{again:?} after {uids:?}");
    platform.stop(Duration::from_secs(20)).unwrap();
    assert_eq!(groups(&prefix(dir.path())).len(), 0, "no group stays behind");
}

#[test]
fn a_layer_that_is_waived_is_named_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &["--waive", "cgroup,missing"]).unwrap();
    let status = platform.cli(&["status"]).unwrap();
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(said.contains("NOT by:") && said.contains("cgroup: waived by the operator"), "{said}");
    let doctor = platform.cli(&["doctor"]).unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("[isolation-waived] tenants are not isolated by `cgroup`"), "{said}");
    drop(platform);
    let wrong = cli(dir.path(), &["up", "--waive", "everything"]).unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_start_that_is_refused_leaves_no_group_behind() {
    let (dir, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    if !rustix::process::geteuid().is_root() || sandbox::cgroup::Hierarchy::probe().is_err() {
        return not_isolated("that a refused start leaves no control group behind: root, and a hierarchy of them");
    }
    // A program that the user of a tenant cannot run.
    let program = bin.path().join("sidereal");
    fs::copy(sidereal_tests::binary(), &program).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut up = Command::new(&program);
    up.args(["up", "-o", "json", "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"]);
    up.args(["--metrics-listen", "127.0.0.1:0"]).env("SIDEREAL_DATA_DIR", dir.path()).stdin(Stdio::null());
    let out = up.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("isolation-refused"), "{said}");
    assert_eq!(groups(&prefix(dir.path())), [""; 0].map(PathBuf::from), "no group stays behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_escape_drill_in_the_place_of_a_host() {
    if Command::new("cc").arg("--version").output().is_err() || !cfg!(target_arch = "x86_64") {
        return not_isolated("the escape drill in the place of a host: a C compiler on x86-64");
    }
    let dir = tempfile::tempdir().unwrap();
    // Whoever is confined has to be able to load it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    // What a platform really has, beside which it is tried: nothing that is only named so.
    let home = dir.path().join("platform");
    let Some(mut platform) = start(&home) else { return };
    let real = real(&platform, &home, dir.path());
    let drill = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/sandbox/tests/all");
    let calls = fs::read_to_string(drill.join("host.calls")).unwrap();
    let allowed: Vec<&str> = calls.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    let library = dir.path().join("drill.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-w", "-DENTRY=epoll_wait(int a, void *b, int c, int d)", "-DCONNECTED=6"])
        .arg(format!("-DALLOWED={}", allowed.join(",")))
        .args(["-DFOLDER=7", "-include"])
        .arg(&real)
        .arg(drill.join("drill.c"))
        .arg("-o")
        .arg(&library)
        .status()
        .unwrap();
    assert!(built.success());

    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let wanted = Wanted {
        exe: sidereal_tests::binary(),
        data_dir: data,
        waiver: Waiver::default(),
        uids: None,
        user: None,
        join: Vec::new(),
        command: String::new(),
    };
    let confinement: Arc<Confinement> = match Confinement::establish(&wanted).await {
        Ok(confinement) => confinement,
        Err(problem) => return not_isolated(&format!("the escape drill in the place of a host: {}", problem.detail)),
    };
    let spec = confinement.spec(Who::Tenant(&"drill".parse().unwrap())).unwrap();
    let listen = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
    let (agent, calls, line) = (listen("agent"), listen("calls"), listen("line"));
    let (_node, first) = UnixStream::pair().unwrap();
    let code = fs::File::open(home.join("cache")).unwrap();
    let (starter, theirs) = UnixStream::pair().unwrap();
    let handed = [agent.as_fd(), calls.as_fd(), line.as_fd(), first.as_fd(), code.as_fd()];
    sandbox::handoff::send(&starter, &handed).unwrap();
    let host = Command::new(sidereal_tests::binary())
        .args(["host", "--tenant", "drill", "--shard", "0", "--sandbox", &spec.encode()])
        .env_clear()
        .env("LD_PRELOAD", &library)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = host.wait_with_output().unwrap();
    let (said, words) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{}: {said} {words}", out.status);
    let escaped: Vec<&str> = said.lines().filter(|line| line.ends_with("DONE")).collect();
    assert!(escaped.is_empty(), "the kernel let it: {escaped:?}");
    let wanted = fs::read_to_string(drill.join("drill")).unwrap();
    let more = said.strip_prefix(&wanted);
    let more = more.unwrap_or_else(|| panic!("not the answers that the sandbox's own drill gets:\n{said}"));
    golden("host-drill", more);
    assert_eq!(
        platform.get("victim.localhost", "/get/default/secret").unwrap().body,
        "canary",
        "the platform is as it was"
    );
    assert_eq!(platform.stop(Duration::from_secs(20)).unwrap().code(), Some(0));
    for dir in spec.cgroups {
        until(Duration::from_secs(5), || fs::remove_dir(&dir).is_ok() || !dir.exists()).unwrap();
    }
}

/// For the compiler of the drill: the files, folders, sockets and the address of a platform on which another tenant runs.
fn real(platform: &Platform, home: &Path, above: &Path) -> PathBuf {
    let app = tempfile::tempdir().unwrap();
    write_app(app.path(), "victim", "kv-probe", "links = { \"wasi:keyvalue\" = \"embedded\" }").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(platform.get("victim.localhost", "/set/default/secret/canary").unwrap().status, 200);
    platform.secret("canary", "canary").unwrap();
    let artifact = fs::read_dir(home.join("blobs/sha256")).unwrap().next().unwrap().unwrap().file_name();
    let audit = fs::read_dir(home.join("audit")).unwrap().next().unwrap().unwrap().file_name();
    let files = [
        ("the data folder", String::new()),
        ("the store", "/store.redb".into()),
        ("the embedded data", "/data.redb".into()),
        ("the audit log", format!("/audit/{}", audit.display())),
        ("the operator's token", "/token".into()),
        ("the operator's key", "/keys/operator.nk".into()),
        ("the key of all secrets", "/keys/secrets.key".into()),
        ("the key of compiled code", "/keys/mac.key".into()),
        ("the user ids", "/uids.json".into()),
        ("an artifact", format!("/blobs/sha256/{}", artifact.display())),
        ("the objects", "/objects".into()),
        ("the run folders", "/run".into()),
        ("another tenant's run folder", "/run/local.0".into()),
        ("another tenant's agent socket", "/run/local.0/agent.sock".into()),
    ];
    let there = |path: &str| format!("{}{path}", home.display());
    let text = |text: &str| format!("{text:?}");
    let rows = files.map(|(what, path)| {
        assert!(Path::new(&there(&path)).exists(), "{what} is not at {path}: the drill would find nothing");
        format!("{{{}, {}, {}}}", text(what), text(&there(&path)), text(&format!("..{path}")))
    });
    let sockets = [
        ("another tenant's agent", "/run/local.0/agent.sock"),
        ("another tenant's ingress", "/run/local.0/data.sock"),
        ("another tenant's line", "/run/local.0/data.line"),
    ];
    let sockets = sockets.map(|(what, path)| {
        UnixStream::connect(there(path)).unwrap_or_else(|cause| panic!("{what} does not listen at {path}: {cause}"));
        format!("{{{}, {}}}", text(what), text(&there(path)))
    });
    let api = platform.info["api"].as_str().unwrap().rsplit(':').next().unwrap();
    let header = above.join("real.h");
    let lines = [("REAL", rows.join(", ")), ("SOCKETS", sockets.join(", ")), ("API", api.to_owned())];
    fs::write(&header, lines.map(|(name, value)| format!("#define {name} {value}\n")).concat()).unwrap();
    header
}

#[test]
fn an_external_program_is_confined_and_finds_no_way_out() {
    let (dir, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = bin.path().join("drill.py");
    fs::copy(sidereal_tests::workspace().join("tests/isolation/drill.py"), &program).unwrap();
    let flags = [
        "--external".to_owned(),
        format!("drill={}", program.display()),
        "--external".to_owned(),
        format!("open={}", program.display()),
        "--external-allow".to_owned(),
        "open=network".to_owned(),
        "--external-allow".to_owned(),
        format!("open={}", sidereal_tests::workspace().join("examples").display()),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut platform = match Platform::start(dir.path(), &flags) {
        Ok(platform) => platform,
        Err(cause) if cause.to_string().contains("isolation-refused") => {
            return not_isolated(&format!("the confinement of external programs: {cause}"));
        }
        Err(cause) => panic!("{cause:#}"),
    };
    if !cfg!(target_arch = "x86_64") {
        return not_isolated("the escape drill of an external program: x86-64");
    }
    let calls = sidereal_tests::workspace().join("crates/sandbox/tests/all/program.calls");
    let calls = fs::read_to_string(calls).unwrap();
    let allowed: Vec<&str> = calls.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    let api = platform.info["api"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    // Where another drill runs beside this one, the name is that one's.
    let listener = UnixListener::bind_addr(&abstract_name());
    let is_there = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::AddrInUse;
    assert!(listener.as_ref().map_or_else(is_there, |_| true), "{listener:?}");
    let deploy = |program: &str| {
        let app = tempfile::tempdir().unwrap();
        let rest = format!(
            "[components.main.links]\n\"wasi:keyvalue\" = \"mine\"\n\n[providers.mine]\ntype = \"external\"\n\
             program = \"{program}\"\ncontract = \"wasi:keyvalue\"\n\
             config = {{ allowed = \"{}\", api = \"{api}\", home = \"{}\" }}",
            allowed.join(","),
            dir.path().display(),
        );
        write_app(app.path(), program, "kv-counter", &rest).unwrap();
        platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
        let pid = crate::external::processes(platform.pid(), "drill.py");
        let of = |pid: &u32| {
            let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
            folder.ends_with(format!("{program}/mine"))
        };
        let pid = pid.into_iter().find(of).unwrap();
        (pid, fs::read_to_string(dir.path().join(format!("externals/local/{program}/mine/drill"))).unwrap())
    };
    let (pid, said) = deploy("drill");
    let escaped: Vec<&str> = said.lines().filter(|line| line.ends_with("DONE")).collect();
    assert!(escaped.is_empty(), "the kernel let it: {escaped:?}");
    golden("drill", &said);
    let named = [(dir.path(), "<data>"), (bin.path(), "<folder of the program>")];
    golden("program", &look(pid, |pid| mounts_of_a_program(pid, &named)));
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let tenant = format!("{}tenant.local", prefix(dir.path()));
    assert!(group.contains(&format!("{tenant}/external.")), "it counts in what its tenant may use: {group}");
    let limit = |dirs: Vec<PathBuf>| {
        let text = |file: &str| dirs.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
        text("memory.limit_in_bytes").or_else(|| text("memory.max")).map(|text| text.trim().to_owned())
    };
    let below = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let is_external =
        |dir: &PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("external."));
    let own: Vec<PathBuf> = groups(&tenant).into_iter().flat_map(below).filter(is_external).collect();
    assert_eq!(limit(own), Some((2u64 << 30).to_string()));
    platform.ok(&["tenant", "set", "local", "--memory", "512MiB"]).unwrap();
    let held = || limit(groups(&tenant)) == Some((512u64 << 20).to_string());
    until(Duration::from_secs(10), held).expect("it is held to the quota of its tenant, with everything else of that");
    assert!(alive(pid));
    let uid = |pid: u32| std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/task")).unwrap());
    assert!(platform.hosts().into_iter().all(|host| uid(host) != uid(pid)), "it is not the user of its tenant's hosts");

    // What the operator lets one have is that one's alone.
    let (open, said) = deploy("open");
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(space(&open.to_string()), space("self"));
    assert!(said.contains("connect to the API: DONE"), "{said}");
    let shown = sidereal_tests::workspace().join("examples/external-keyvalue");
    let seen = |pid: u32| Path::new(&format!("/proc/{pid}/root{}", shown.display())).exists();
    assert!(seen(open) && !seen(pid));

    assert_eq!(platform.stop(Duration::from_secs(20)).unwrap().code(), Some(0));
    assert!(!alive(pid) && !alive(open));
    assert_eq!(groups(&prefix(dir.path())), [""; 0].map(PathBuf::from), "no group stays behind");
}

/// Of a socket that has no file: whoever is in the machine's network could connect to it.
fn abstract_name() -> std::os::unix::net::SocketAddr {
    <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name("sidereal-drill")
        .unwrap()
}

#[test]
fn an_ordinary_user_is_told_what_is_missing_and_goes_on_without_it() {
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    if std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).is_err()
        || sidereal_tests::platform::as_user(NOBODY).arg("--version").output().map_or(true, |out| !out.status.success())
    {
        return not_isolated(
            "a platform of an ordinary user: this one may not become another, or that one may not run the binary",
        );
    }
    let refused = sidereal_tests::platform::as_user(NOBODY)
        .args(["up", "--api-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
        .env("SIDEREAL_DATA_DIR", &data)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("isolation-refused"), "{said}");
    assert!(said.contains("`uid` (") && said.contains("run the platform as root"), "{said}");
    assert!(said.contains("to go on without: `sidereal up --waive"), "{said}");

    let mut platform = Platform::start_as(NOBODY, &data, &["--waive", "missing"]).unwrap();
    let nodes = platform.ok(&["status"]).unwrap();
    let node = &nodes["nodes"][0];
    let (on, off) = (node["layers"].as_array().unwrap(), node["waived"].as_object().unwrap());
    assert_eq!(on.len() + off.len(), 11, "{node}");
    assert!(off.contains_key("uid"), "{node}");
    let app = tempfile::tempdir().unwrap();
    write_app(app.path(), "hello", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(platform.get("hello.localhost", "/").unwrap().status, 200);
    if off.contains_key("user") {
        not_isolated("the layers that an ordinary user has: this machine lets nobody make a user namespace");
    } else {
        for layer in ["user", "pid", "root", "net", "ipc", "uts", "caps"] {
            assert!(on.iter().any(|name| name == layer), "{layer}: {node}");
        }
        for host in platform.hosts() {
            let link = |pid: &str, space: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
            for space in ["user", "pid", "mnt", "net", "ipc", "uts"] {
                assert_ne!(link(&host.to_string(), space), link("self", space), "{space}");
            }
        }
    }
    assert_eq!(platform.stop(Duration::from_secs(20)).unwrap().code(), Some(0));
}
