//! A control group that a service manager gives away: the platform of an ordinary user who was given one (systemd: `User=` with
//! `Delegate=yes`) bounds its tenants like one of root. Only control groups of version 2 can be given away.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::cgroup::Hierarchy;
use sidereal_tests::not_run;
use sidereal_tests::platform::{Platform, until, write_app};

const USER: u32 = 65_534;

/// The group, and what a service manager makes the user's own in it. Gone when dropped.
struct Given(PathBuf);

impl Given {
    fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("root".to_owned());
        }
        let found = Hierarchy::probe()?;
        let Hierarchy::Unified(own) = &found else { return Err("version 2 of them".to_owned()) };
        let name = "sidereal-tests";
        found.prepare(name).and_then(|()| found.share_cpu(name)).map_err(|cause| cause.to_string())?;
        let given = own.join(format!("given-{}", std::process::id()));
        fs::create_dir(&given).unwrap();
        let given = Self(given);
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(given.0.join(file), Some(USER), Some(USER)).unwrap();
        }
        Ok(given)
    }

    /// What is below it.
    fn groups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let gone = || {
            self.groups().iter().for_each(|group| drop(fs::remove_dir(group)));
            fs::remove_dir(&self.0).is_ok()
        };
        drop(until(Duration::from_secs(10), gone));
    }
}

#[test]
fn an_ordinary_user_who_was_given_a_group_has_its_tenants_in_groups() {
    const WHAT: &str = "the control groups of an ordinary user who was given one";
    let given = match Given::new() {
        Ok(given) => given,
        Err(missing) => return not_run(&format!("{WHAT}: {missing}")),
    };
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    chown(&data, Some(USER), Some(USER)).unwrap();
    // He has no user ids to give, and everything else.
    let mut platform = match Platform::start_in(&given.0, USER, &data, &["--shards", "1", "--waive", "uid"]) {
        Ok(platform) => platform,
        Err(cause) if cause.to_string().contains("isolation-refused") && !cause.to_string().contains("`cgroup`") => {
            return not_run(&format!("{WHAT}: {cause:#}"));
        }
        Err(cause) => panic!("{cause:#}"),
    };
    let nodes = platform.ok(&["status"]).unwrap();
    let node = &nodes["nodes"][0];
    assert_eq!(node["layers"].as_array().unwrap().len(), 10, "{node}");
    assert_eq!(node["groups"].as_str().unwrap(), format!("cgroup v2, below {}", given.0.display()));

    write_app(app.path(), "hello", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(platform.get("hello.localhost", "/").unwrap().status, 200);
    let host = platform.hosts()[0];
    let group = fs::read_to_string(format!("/proc/{host}/cgroup")).unwrap();
    // Hosts are beside the groups of programs, in that of their tenant.
    let (above, own) = group.trim().rsplit_once('/').unwrap();
    let group = given.0.join(Path::new(above).file_name().unwrap());
    assert!(group.to_str().unwrap().ends_with(".tenant.local") && group.is_dir(), "{}", group.display());
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default().trim().to_owned();
    assert!(read(&format!("{own}/cgroup.procs")).lines().any(|line| line == host.to_string()));
    platform.ok(&["tenant", "set", "local", "--memory", "256MiB", "--cpu-weight", "50"]).unwrap();
    until(Duration::from_secs(20), || read("memory.max") == (256u64 << 20).to_string()).expect("its memory is bounded");
    until(Duration::from_secs(20), || read("cpu.weight") == "50").expect("it has its part of the processor");

    assert_eq!(platform.stop(Duration::from_secs(20)).unwrap().code(), Some(0));
    let left: Vec<PathBuf> =
        given.groups().into_iter().filter(|group| !group.to_string_lossy().ends_with(".node")).collect();
    assert_eq!(left, [""; 0].map(PathBuf::from), "no group stays behind");
}
