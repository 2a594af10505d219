//! The control group that agents (1.7 and newer) make for each task where the machine has control groups of version 2: the driver
//! bounds it, puts the component there, and leaves it to the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::{Agent, groups, host_of, pid_of, status, until};

/// A group as the agent makes it: below two slices that hand its controllers on, and on the cores that the task may use. Removed
/// when dropped, as the agent does.
struct Given {
    slice: PathBuf,
    scope: PathBuf,
}

impl Given {
    fn new(task: &str) -> std::io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        // Without it this is a folder like any other, where files can be made.
        if !root.join("cgroup.controllers").is_file() {
            return Err(std::io::Error::other("there are none"));
        }
        let slice = root.join(format!("nomad-test-{}-{task}.slice", std::process::id()));
        let share = slice.join("share.slice");
        let scope = share.join(format!("{task}.web.scope"));
        let this = Self { slice: slice.clone(), scope: scope.clone() };
        for (parent, dir) in [(root, &slice), (&slice, &share), (&share, &scope)] {
            fs::write(parent.join("cgroup.subtree_control"), "+cpuset +cpu +io +memory +pids")?;
            fs::create_dir(dir)?;
        }
        fs::write(scope.join("cpuset.cpus"), "0")?;
        Ok(this)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.scope.join(file)).unwrap().trim().to_owned()
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        for dir in [&self.scope, &self.slice.join("share.slice"), &self.slice] {
            drop(fs::remove_dir(dir));
        }
    }
}

/// 26: on machines with control groups of version 2 as well a task has the memory, the share and the cores of its job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_bounded_by_the_group_that_the_agent_made_for_it() {
    let given = match Given::new("given") {
        Ok(given) => given,
        Err(cause) => {
            return crate::not_run(&format!("the group of an agent: control groups of version 2, as root ({cause})"));
        }
    };
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("given", "probe");
    let linux = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    (linux.cpu_shares, linux.memory_limit_bytes) = (1024, 40 << 20);
    linux.cpuset_cgroup = given.scope.display().to_string();
    let handle = agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200, "it serves within its bound");
    assert_eq!((given.read("memory.max"), given.read("cpu.weight")), ((40 << 20).to_string(), "39".to_owned()));
    let host = host_of(pid_of(&handle));
    let group = fs::read_to_string(format!("/proc/{host}/cgroup")).unwrap();
    assert!(given.scope.ends_with(group.trim().trim_start_matches("0::/")), "{group}");
    assert_eq!(status(host, "Cpus_allowed_list"), "0");
    // What the platform does for the task is not charged to its memory.
    assert!(given.read("cgroup.procs").lines().all(|pid| pid != pid_of(&handle).to_string()));
    assert!(groups(alloc.id()).is_empty(), "none of the driver's own is made");

    drop(alloc.get("/hostcopy?mib=60").await);
    let result =
        tokio::time::timeout(Duration::from_secs(120), agent.wait(alloc.id())).await.expect("it ends").unwrap();
    assert!(result.oom_killed && result.exit_code == 137, "{result:?}");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(given.scope.is_dir(), "it is the agent's to remove");
    until("everybody has left it", || given.read("cgroup.procs").is_empty()).await;
}
