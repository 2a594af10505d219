//! What a task cannot reach: files outside its directories, whatever links are put in its way; and what stands around its
//! component although it has folders.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::task::{EXIT_FILE, SPEC_FILE, TaskExit, TaskOffer};
use drivers::wasm::config::AgentConfig;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::Mount;
use plugin::error::is_recoverable;
use serde_json::json;

use crate::agent::{Agent, Alloc, host_of, pid_of, sidereal, status, until};

/// Whether this machine has every layer that does not come from the plugin.
fn layers_are_here() -> bool {
    let said = Command::new(sidereal()).arg("layers").output().unwrap();
    let TaskOffer { refused, .. } = serde_json::from_slice(&said.stdout).unwrap();
    refused.is_empty() || {
        crate::not_run(&format!("isolation: of tasks: this machine refuses {refused:?}"));
        false
    }
}

/// Runs the process of a task whose job was checked before, without the plugin; how it ended.
fn run_task(alloc: &Alloc, state: &Path) -> TaskExit {
    let agent: AgentConfig =
        serde_json::from_value(json!({"allow_unsigned": true, "state_dir": state.join("state")})).unwrap();
    let spec = drivers::wasm::spec::spec(&alloc.config, &agent).unwrap();
    let dir = state.join("task");
    std::fs::create_dir_all(&dir).unwrap();
    drop(std::fs::remove_file(dir.join(EXIT_FILE)));
    std::fs::write(dir.join(SPEC_FILE), serde_json::to_vec(&spec).unwrap()).unwrap();
    let ended = Command::new(sidereal()).args(["task", "--dir"]).arg(&dir).stdin(Stdio::null()).output().unwrap();
    let exit = std::fs::read(dir.join(EXIT_FILE));
    let exit = exit.unwrap_or_else(|_| panic!("{ended:?}"));
    serde_json::from_slice(&exit).unwrap()
}

/// Puts something else in the place of a file or folder.
fn exchange(path: &Path, to: impl AsRef<Path>) {
    if path.symlink_metadata().is_ok() {
        std::fs::rename(path, path.with_extension("away")).unwrap();
    }
    symlink(to, path).unwrap();
}

/// Undoes it.
fn restore(path: &Path) {
    std::fs::remove_file(path).unwrap();
    let away = path.with_extension("away");
    if away.symlink_metadata().is_ok() {
        std::fs::rename(away, path).unwrap();
    }
}

/// 23: the job was checked, and then somebody puts a link in the place of what it names. Nothing outside is read or written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_put_in_its_way_lead_a_task_nowhere() {
    let agent = Agent::start().await;
    let mut alloc = agent.alloc("links", "batch");
    let outside = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let out = outside.path();
    for folder in ["local", "granted"] {
        std::fs::create_dir_all(out.join(folder)).unwrap();
    }
    std::fs::copy(crate::agent::guest("batch"), out.join("local/app.wasm")).unwrap();
    std::fs::write(out.join("secret"), "of the machine").unwrap();
    std::fs::create_dir(alloc.task_dir().join("local/granted")).unwrap();
    std::fs::write(alloc.task_dir().join("secrets/token"), "of the task").unwrap();
    let output = alloc_file(&alloc.dir().join("alloc/logs/out"));
    alloc.config.stdout_path.clone_from(&output);
    alloc.config.stderr_path.clone_from(&output);
    let config =
        json!({"component": "local/app.wasm", "args": ["print:ran"], "folder": {"/local/granted": {"writable": true}}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let (task, shared) = (alloc.task_dir(), alloc.dir().join("alloc"));
    let ran = || std::fs::read_to_string(shared.join("logs/out")).unwrap_or_default().contains("ran");
    let exit = run_task(&alloc, state.path());
    assert!(exit.code == 0 && ran(), "without links it runs: {exit:?}");
    let contents = |folder: &str| std::fs::read_dir(out.join(folder)).unwrap().count();
    for (place, to, why) in [
        ("web/local/app.wasm", "local/app.wasm", "leads out"),
        ("web/local", "local", "is a link"),
        ("web/local/granted", "granted", "is a link"),
    ] {
        let place = alloc.dir().join(place);
        exchange(&place, out.join(to));
        let exit = run_task(&alloc, state.path());
        restore(&place);
        let said = exit.problem.map(|problem| problem.detail).unwrap_or_default();
        assert!(exit.code != 0 && said.contains(why), "{}: {said}", place.display());
    }
    assert_eq!((contents("granted"), contents("local")), (0, 1), "nothing was made outside");
    // A secret of a link.
    std::fs::copy(crate::agent::guest("kv-counter"), task.join("local/kv.wasm")).unwrap();
    let redis =
        json!({"provider": "redis", "url": "redis://127.0.0.1:1", "secret_files": {"password": "secrets/token"}});
    let config = json!({"component": "local/kv.wasm", "http": {"port": "http"}, "link": {"wasi:keyvalue": redis}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    exchange(&task.join("secrets/token"), out.join("secret"));
    let said = run_task(&alloc, state.path()).problem.unwrap().detail;
    assert!(said.contains("leads out") && !said.contains("of the machine"), "{said}");
    restore(&task.join("secrets/token"));
}

/// 23: another task of the group runs as root in a container, so what it puts into the allocation has the owner and the mode of
/// whatever the driver would make. None of it is followed, read or believed: what the driver keeps is elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_neighbour_prepares_is_taken_for_the_driver_s() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("prepared", "kv-counter");
    let machine = tempfile::tempdir().unwrap();
    std::fs::create_dir(machine.path().join("precious")).unwrap();
    std::fs::write(machine.path().join("precious/file"), "precious").unwrap();
    let config = json!({"component": "local/app.wasm", "http": {"port": "http"},
        "link": {"wasi:keyvalue": {"provider": "embedded"}}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    // Wherever data of providers are or were kept below an allocation.
    let places = ["alloc/data/.sidereal/web", "alloc/data/web", "web/private", "alloc/.sidereal/web"];
    for place in places.map(|place| alloc.dir().join(place)) {
        std::fs::create_dir_all(place.join("objects")).unwrap();
        for folder in [&place, place.parent().unwrap()] {
            std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700)).unwrap();
        }
        // What a start removes; whom the component is run as; and data of somebody else.
        symlink(machine.path(), place.join("objects/.partial")).unwrap();
        std::fs::write(place.join("uids.json"), r#"{"range":{"first":1,"last":2},"ids":{"tenant.nomad":0}}"#).unwrap();
        symlink(machine.path().join("precious/file"), place.join("data.redb")).unwrap();
    }
    std::fs::set_permissions(alloc.dir().join("alloc/data"), PermissionsExt::from_mode(0o777)).unwrap();
    for count in ["1", "2"] {
        let handle = agent.start_task(&alloc.config).await.unwrap();
        assert_eq!(alloc.get("/").await.unwrap(), (200, count.to_owned()), "over restarts it counts on");
        if layers_are_here() {
            let uid: u32 = status(host_of(pid_of(&handle)), "Uid").split(' ').next().unwrap().parse().unwrap();
            assert!(uid >= 1_900_000_000, "a user of its own: {uid}");
        }
        assert_eq!(std::fs::read_to_string(machine.path().join("precious/file")).unwrap(), "precious");
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
        alloc.read();
    }
    let data = kept_of(&agent, &alloc);
    assert!(data.join("web/data.redb").is_file() && !data.starts_with(alloc.dir()), "{data:?}");
    for folder in [data.parent().unwrap(), &data, &data.join("web")] {
        let mode = std::fs::metadata(folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder:?} is the driver's alone");
    }
}

/// Where the driver keeps what lives as long as an allocation.
pub fn kept_of(agent: &Agent, alloc: &Alloc) -> PathBuf {
    drivers::wasm::kept::folder(&agent.state_dir(), alloc.dir(), "web").parent().unwrap().to_owned()
}

fn alloc_file(path: &Path) -> String {
    std::fs::write(path, "").unwrap();
    path.display().to_string()
}

/// 23, 27: folders are handed to the host; every layer stands around it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_with_folders_has_every_layer() {
    if !layers_are_here() {
        return;
    }
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("layers", "batch");
    let volume = tempfile::tempdir().unwrap();
    std::fs::set_permissions(volume.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let config = json!({"component": "local/app.wasm", "args": ["print:begun", "sleep:600000"],
        "folder": {"/local": {"writable": true}, "/secrets": {"writable": false}}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    alloc.config.mounts =
        vec![Mount { task_path: "/data".into(), host_path: volume.path().display().to_string(), ..Mount::default() }];
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let out = alloc.stdout.clone();
    until("it runs", || out.lock().unwrap().contains("begun")).await;
    let host = host_of(pid_of(&handle));
    let own = |space: &str| {
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        link(&host.to_string()) != link("self")
    };
    for space in ["ipc", "mnt", "net", "pid", "user", "uts"] {
        assert!(own(space), "the namespace {space} is its own");
    }
    let uid: u32 = status(host, "Uid").split(' ').next().unwrap().parse().unwrap();
    assert!(uid >= 1_900_000_000, "a user of its own: {uid}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(host, set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (status(host, "NoNewPrivs"), status(host, "Seccomp"), status(host, "Groups")),
        ("1".into(), "2".into(), String::new())
    );
    let mounts = std::fs::read_to_string(format!("/proc/{host}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 2, "its empty root, and its own descriptors: {mounts}");
    let root: Vec<_> =
        std::fs::read_dir(format!("/proc/{host}/root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(root, ["proc"]);
    let open = std::fs::read_dir(format!("/proc/{host}/fd")).unwrap();
    let open = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let mut folders: Vec<_> = open.filter(|path| path.is_absolute() && path.is_dir()).collect();
    folders.sort();
    // What it was handed, and what the program has open of it.
    folders.dedup();
    let mut granted = vec![alloc.task_dir().join("local"), alloc.task_dir().join("secrets"), volume.path().to_owned()];
    granted.sort();
    assert_eq!(folders, granted, "the folders that were granted, and no other");
    let said = alloc.stderr.lock().unwrap().clone();
    assert!(!said.contains("not isolated"), "{said}");
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// The job's `user` is whom its component runs as; that of the machine's root is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_runs_as_the_user_of_its_job() {
    if !layers_are_here() {
        return;
    }
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("user", "batch");
    std::fs::write(alloc.task_dir().join("local/app.wasm"), wat::parse_str(crate::batch::FILES).unwrap()).unwrap();
    // Of somebody else, and open to nobody.
    let volume = tempfile::tempdir().unwrap();
    std::fs::set_permissions(volume.path(), PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(volume.path(), Some(12_345), Some(12_346)).unwrap();
    alloc.config.mounts =
        vec![Mount { task_path: "/data".into(), host_path: volume.path().display().to_string(), ..Mount::default() }];
    let config = json!({"component": "local/app.wasm", "args": ["+new"]});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    for (user, code) in [("", 1), ("12345:12346", 0), ("12345", 0), ("54321", 1)] {
        alloc.config.user = user.into();
        agent.start_task(&alloc.config).await.unwrap();
        assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, code, "{user}");
        alloc.ended().await;
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
        alloc.read();
    }
    use std::os::unix::fs::MetadataExt as _;
    let made = std::fs::metadata(volume.path().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (12_345, 12_346));
    for (user, why) in [("root", "as root"), ("0:0", "as root"), ("nobody-of-that-name", "no such user")] {
        alloc.config.user = user.into();
        let refused = agent.start_task(&alloc.config).await.unwrap_err();
        assert!(refused.message().contains(why) && !is_recoverable(&refused), "{user}: {refused}");
    }
    assert!(agent.left().is_empty());
}

/// 9, 10: what isolates tasks is in the fingerprint, and what an operator does without is not tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fingerprint_says_which_layers_there_are() {
    use plugin::contracts::hashicorp::nomad::plugins::shared::structs::attribute::Value;
    let flags = |agent: &Agent| {
        let flag = |layer: &str| match agent.first.attributes.get(&format!("driver.wasm.isolation.{layer}")) {
            Some(attribute) => matches!(attribute.value, Some(Value::BoolVal(true))),
            None => panic!("nothing is said of {layer}: {:?}", agent.first),
        };
        ["uid", "user", "pid", "root", "net", "ipc", "uts", "caps", "landlock", "seccomp"]
            .map(|layer| (layer.to_owned(), flag(layer)))
    };
    let here = layers_are_here();
    let agent = Agent::start().await;
    assert_eq!(flags(&agent).iter().all(|(_, on)| *on), here);
    let page = include_str!("../../../../docs/nomad.md");
    for name in agent.first.attributes.keys().filter(|name| !name.starts_with("driver.wasm.isolation.")) {
        assert!(page.contains(&format!("`{name}`")) || name == "driver.wasm", "the page does not name {name}");
    }
    drop(agent);
    let mut agent = Agent::with(json!({"allow_unsigned": true, "waive": ["seccomp", "uid", "missing"]})).await;
    for (layer, on) in flags(&agent) {
        assert!(!on || !["seccomp", "uid"].contains(&layer.as_str()), "{layer}");
        assert!(on || !here || ["seccomp", "uid"].contains(&layer.as_str()), "{layer}");
    }
    // What it says is what a task has.
    let alloc = agent.alloc("waived", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let host = host_of(pid_of(&handle));
    assert_eq!(status(host, "Seccomp"), "0");
    assert_eq!(status(host, "Uid").split(' ').next().unwrap(), rustix::process::geteuid().as_raw().to_string());
    let said = alloc.stderr.clone();
    until("a line", || said.lock().unwrap().contains("sidereal: the component is not isolated by `seccomp`: waived"))
        .await;
    let mut named = agent.alloc("named", "hello");
    named.config.user = "nobody".into();
    let refused = agent.start_task(&named.config).await.unwrap_err();
    assert!(refused.message().contains("runs every component as its own") && !is_recoverable(&refused), "{refused}");
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// 11: what lets no compilation begin says nothing of its component, whatever words it has: its exit code is its own.
#[test]
fn a_compilation_that_cannot_be_confined_is_told_from_one_that_is_refused() {
    use std::io::Write as _;
    let compile = |waived: &[&str], groups: &[&str]| {
        let spec = json!({"waived": waived, "cgroups": groups}).to_string();
        // The platform holds the other end of a socket there, by which it sees when that is gone.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let child = Command::new(sidereal())
            .args(["compile", "--world", "p2", "--sandbox", &spec])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop((&ours).write_all(b"no component"));
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let out = child.wait_with_output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let all = ["uid", "user", "pid", "root", "net", "ipc", "uts", "caps", "landlock", "seccomp", "cgroup"];
    let (code, said) = compile(&all[..10], &["/nonexistent"]);
    assert_eq!(code, Some(i32::from(sandbox::NOT_READY)), "{said}");
    assert!(said.contains("sandbox layer refused: cgroup"), "{said}");
    let (code, said) = compile(&all, &[]);
    assert_eq!(code, Some(1), "it is no component: {said}");
}
