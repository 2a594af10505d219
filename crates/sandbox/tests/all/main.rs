//! A process confined for real, looked at from outside and broken out of from inside. This program starts itself through
//! both stages; what a machine refuses is said and left out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod groups;
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sandbox::cgroup::{Hierarchy, Share};
use sandbox::syscalls::{Role, listed};
use sandbox::{Layer, Spec, View};

use stage::{Confined, start};

/// What no tenant of a real machine has.
const UID: u32 = 1_900_065_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "stage") {
        return stage::run(&args);
    }
    let spec = available();
    for (name, test) in [
        ("the system calls are those of the committed list", calls as fn(&Spec)),
        ("the golden isolation audit", audit),
        ("the escape drill", drill),
        ("folders that are handed over are all there is", folders),
        ("no file of a program is larger than it is said", sizes),
        ("a refused layer is named", refusal),
        ("both stages end together, and with their starter", ends),
        ("what takes more memory than its share is ended, and it is said", groups::memory),
        ("what takes more memory than the group above it may is ended, and it is said", groups::below),
        ("a group is set aside and gets its weight back", groups::aside),
        ("a node moves out of the way also of processes that come and go", groups::busy),
    ] {
        if args.iter().all(|arg| arg.starts_with('-') || name.contains(arg.as_str())) {
            test(&spec);
            println!("test {name} ... ok");
        }
    }
}

/// Everything but what this machine refuses, which is said.
fn available() -> Spec {
    let share = Share { memory: Some(256 << 20), pids: 64, cpu: None };
    let group = Hierarchy::probe().and_then(|found| {
        found.prepare("sidereal-sandbox-test").map_err(|cause| cause.to_string())?;
        found.group(&format!("sidereal-sandbox-test.{}", std::process::id()), &share).map_err(|cause| cause.to_string())
    });
    let mut spec = Spec { waived: BTreeSet::new(), uid: Some(UID), ..Spec::default() };
    match group {
        Ok(group) => spec.cgroups = group.dirs,
        Err(cause) => {
            not_run(&format!("layer cgroup of the sandbox: {cause}"));
            spec.waived.insert(Layer::Cgroup);
        }
    }
    loop {
        let mut tried = start(&spec, "wait", &[]);
        let words = match tried.ready() {
            true => return spec,
            false => tried.words().trim().to_owned(),
        };
        let (layer, cause) = sandbox::refused(&words).unwrap_or_else(|| panic!("no refusal: {words}"));
        not_run(&format!("layer {layer} of the sandbox: {cause}; {}", layer.help()));
        assert!(spec.waived.insert(layer), "{layer} is refused although it is waived: {words}");
    }
}

/// All of this is isolation: where changes are accepted the run has failed then (`xtask/src/must.rs`).
fn not_run(what: &str) {
    not_here(&format!("isolation: {what}"));
}

/// The same of what takes another kind of machine. As the whole-system tests say it: here, and at the end of `cargo xtask test`.
fn not_here(what: &str) {
    println!("NOT RUN: {what}");
    if let Some(list) = std::env::var_os("SIDEREAL_NOT_RUN") {
        let list = fs::OpenOptions::new().create(true).append(true).open(list);
        std::io::Write::write_all(&mut list.unwrap(), format!("{what}\n").as_bytes()).unwrap();
    }
}

/// Compares with a committed file; `UPDATE=1` writes it.
fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(wanted == found, "{name} differs (UPDATE=1 writes it):\n--- committed\n{wanted}\n--- found\n{found}");
}

fn calls(_: &Spec) {
    if cfg!(target_arch = "x86_64") {
        golden("host.calls", &(listed(Role::Host).join("\n") + "\n"));
        golden("folders.calls", &(listed(Role::Folders).join("\n") + "\n"));
        golden("program.calls", &(listed(Role::Program).join("\n") + "\n"));
        golden("compiler.calls", &(listed(Role::Compiler).join("\n") + "\n"));
    }
}

fn audit(spec: &Spec) {
    if !spec.waived.is_empty() {
        return not_run("the golden isolation audit: this machine refuses layers");
    }
    let mut confined = start(spec, "wait", &[]);
    assert!(confined.ready(), "{}", confined.words());
    golden("audit", &look(&confined, confined.inner()));
}

/// What `/proc` says of a process, without what differs from run to run.
fn look(confined: &Confined, pid: i32) -> String {
    let proc = |file: &str| format!("/proc/{pid}/{file}");
    let read = |file: &str| fs::read_to_string(proc(file)).unwrap();
    let mut text = String::new();
    for space in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        let own = link(&pid.to_string()) != link("self");
        text += &format!("namespace {space}: {}\n", if own { "its own" } else { "THE MACHINE'S" });
    }
    let status = read("status");
    let wanted =
        ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Threads"];
    for line in status.lines().filter(|line| wanted.contains(&line.split(':').next().unwrap())) {
        text += &format!("{}\n", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    text += &format!("its own number: {}\n", numbers.split_whitespace().last().unwrap());
    for line in read("mountinfo").lines() {
        let (left, right) = line.split_once(" - ").unwrap();
        let left: Vec<&str> = left.split(' ').collect();
        let of = left[3].split('/').map(|part| if part.parse::<u32>().is_ok() { "<pid>" } else { part });
        let of: Vec<&str> = of.collect();
        text += &format!("mount {} of {} ({}): {}\n", left[4], of.join("/"), right.split(' ').next().unwrap(), left[5]);
    }
    let mut root: Vec<String> =
        fs::read_dir(proc("root")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    root.sort();
    text += &format!("in its root: {root:?}\n");
    let mut open: Vec<(u32, String)> = fs::read_dir(proc("fd"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).unwrap().display().to_string();
            let target = if target.starts_with('/') { "a file".to_owned() } else { target };
            let kind = target.split(':').next().unwrap().to_owned();
            (entry.file_name().to_str().unwrap().parse().unwrap(), kind)
        })
        .collect();
    open.sort();
    text += &format!("open: {open:?}\n");
    text +=
        &format!("environment: {:?}\n", read("environ").split('\0').filter(|one| !one.is_empty()).collect::<Vec<_>>());
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
    let group = read("cgroup");
    let dir = confined.spec.cgroups[0].file_name().unwrap().to_str().unwrap();
    text += &format!("in the cgroup of its tenant: {}\n", group.contains(dir));
    text
}

fn drill(spec: &Spec) {
    if !spec.waived.is_empty() {
        return not_run("the escape drill: this machine refuses layers");
    }
    if Command::new("cc").arg("--version").output().is_err() || !cfg!(target_arch = "x86_64") {
        return not_run("the escape drill: a C compiler on x86-64");
    }
    // Whoever is confined has to be able to load it.
    let dir = std::env::temp_dir().join(format!("sandbox-drill-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let library = dir.join("drill.so");
    let numbers: Vec<String> =
        listed(Role::Host).iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-w"])
        .arg(format!("-DALLOWED={}", numbers.join(",")))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all/drill.c"))
        .arg("-o")
        .arg(&library)
        .status()
        .unwrap();
    assert!(built.success());
    let mut confined = start(spec, "yield", &[("LD_PRELOAD", library.to_str().unwrap())]);
    let said = confined.output();
    let status = confined.ended();
    fs::remove_dir_all(&dir).unwrap();
    assert!(status.success(), "{status}: {said} {}", confined.words());
    let escaped: Vec<&str> = said.lines().filter(|line| line.ends_with("DONE")).collect();
    assert!(escaped.is_empty(), "the kernel let it: {escaped:?}");
    golden("drill", &said);
}

/// A folder to read and one to change, for a process with every layer, and what is beside them.
fn folders(spec: &Spec) {
    if !spec.waived.is_empty() {
        return not_run("folders of confined processes: this machine refuses layers");
    }
    let dir = std::env::temp_dir().join(format!("sandbox-folders-{}", std::process::id()));
    let opened = ["readable", "writable"].map(|name| {
        let folder = dir.join(name);
        fs::create_dir_all(&folder).unwrap();
        for file in ["in", "old"] {
            fs::write(folder.join(file), "content").unwrap();
            fs::set_permissions(folder.join(file), PermissionsExt::from_mode(0o666)).unwrap();
        }
        fs::write(folder.join("private"), "content").unwrap();
        fs::set_permissions(folder.join("private"), PermissionsExt::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("../secret", folder.join("out")).unwrap();
        // Nothing but the layers keeps it from either.
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        fs::File::open(&folder).unwrap()
    });
    fs::write(dir.join("secret"), "secret").unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
    let mut confined = stage::with(spec, "files", &[], &opened);
    let said = confined.output();
    let status = confined.ended();
    let above: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    fs::remove_dir_all(&dir).unwrap();
    assert!(status.success(), "{status}: {said} {}", confined.words());
    assert_eq!(above.len(), 3, "{above:?}");
    golden("folders", &said);
}

fn sizes(_: &Spec) {
    for (largest, wanted) in [(Some(1 << 20), ["1048576", "1048576"]), (None, ["unlimited", "unlimited"])] {
        let view = Some(View { largest, ..View::default() });
        let mut confined = start(&Spec { waived: Layer::ALL.into(), view, ..Spec::default() }, "wait", &[]);
        assert!(confined.ready(), "{}", confined.words());
        let limits = fs::read_to_string(format!("/proc/{}/limits", confined.inner())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
        assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), wanted);
    }
}

fn refusal(spec: &Spec) {
    if spec.waived.contains(&Layer::Cgroup) {
        return not_run("that a refused cgroup is named: there is none here");
    }
    let broken = Spec { cgroups: vec!["/nowhere".into()], ..spec.clone() };
    let mut confined = start(&broken, "wait", &[]);
    assert!(!confined.ready());
    let words = confined.words();
    let (layer, cause) = sandbox::refused(&words).unwrap();
    assert!(layer == Layer::Cgroup && cause.contains("No such file"), "{words}");
    let without = Spec { waived: Layer::ALL.into(), ..Spec::default() };
    assert!(start(&without, "wait", &[]).ready(), "nothing is refused that is waived");
}

fn ends(spec: &Spec) {
    let gone = |pid: i32| {
        let begun = Instant::now();
        while Path::new(&format!("/proc/{pid}")).exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "process {pid} outlives the other");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let kill = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let mut first = start(spec, "wait", &[]);
    assert!(first.ready());
    let inner = first.inner();
    kill(first.pid());
    assert_eq!(first.ended().signal(), Some(9));
    gone(inner);

    let mut second = start(spec, "wait", &[]);
    assert!(second.ready());
    kill(second.inner());
    assert_eq!(second.ended().signal(), Some(9), "the first stage ends as the second did");

    let mut third = start(spec, "stay", &[]);
    assert!(third.ready());
    let inner = third.inner();
    third.hang_up();
    assert!(!third.ended().success());
    gone(inner);
}

/// Descriptors for a process that is handed some: a listener, a connected UDP socket, a folder.
fn hand(line: &std::os::unix::net::UnixStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.connect(listener.local_addr().unwrap()).unwrap();
    let folder = fs::File::open("/usr").unwrap();
    sandbox::handoff::send(line, &[listener.as_fd(), udp.as_fd(), folder.as_fd()]).unwrap();
}
