//! From what the agent sends to what a task process is told. Pure: where a path of a job leads, the task finds out when it
//! opens it, for whoever looked before would have seen something else.

use std::path::{Component, Path, PathBuf};

use api::run::{Folder, MAX_FOLDERS};
use api::task::{Groups, Place, TaskComponent, TaskFolder, TaskLink, TaskSpec, VERSION};
use model::tenant::TenantSettings;

use super::cgroup::Bounds;
use super::config::{AgentConfig, FolderOptions, LinkOptions, TaskOptions};
use super::dns::dns;
use super::kept;
use super::ports::{beside, listen};
use plugin::Failure;
use plugin::config::decode;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::Mount;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::network_isolation_spec::Mode;
use plugin::driver::TaskConfig;

/// What of the task's directory can be granted.
const FOLDERS: [&str; 4] = ["local", "secrets", "alloc", "tmp"];

/// What the process of a task is told.
///
/// # Errors
/// Unrecoverable: what the job says cannot be done.
pub fn spec(task: &TaskConfig, agent: &AgentConfig) -> Result<TaskSpec, Failure> {
    let options: TaskOptions = decode(&task.msgpack_driver_config)?;
    if !task.devices.is_empty() {
        return Err(Failure::unrecoverable("the task has devices, and a component has no way to reach one"));
    }
    let ceilings = agent.ceilings().map_err(Failure::unrecoverable)?;
    options.check_limits(&ceilings).map_err(Failure::unrecoverable)?;
    let dns = dns(task.dns.as_ref())?;
    let network = network(task)?;
    let listen = options.http.as_ref().map(|http| listen(task, &http.port, network.is_some())).transpose()?;
    let dir = TaskDir { alloc: Path::new(&task.alloc_dir), task: Path::new(&task.alloc_dir).join(&task.name) };
    let component = match options.component.contains("@sha256:") {
        true => TaskComponent::Oci(options.component.clone()),
        false => TaskComponent::Path(dir.path("component", &options.component)?),
    };
    if options.http.is_some() && !options.args.is_empty() {
        return Err(Failure::unrecoverable(
            "`args` are for programs, and the task has an `http` block; take one of the two away",
        ));
    }
    let mut env = std::collections::BTreeMap::new();
    for name in &options.env {
        let value = task.env.get(name).ok_or_else(|| {
            Failure::unrecoverable(format!("`env` names {name}, and the task's environment has no such variable"))
        })?;
        env.insert(name.clone(), value.clone());
    }
    let mut config = env.clone();
    config.extend(options.settings.clone());
    let links = options.link.iter().map(|(written, link)| self::link(written, link, &dir)).collect::<Result<_, _>>()?;
    let folders = folders(task, &options, &dir)?;
    let settings = TenantSettings {
        trust_anchors: agent.trust_anchors.clone(),
        revoked: agent.revoked.clone(),
        allow_unsigned: agent.allow_unsigned,
        ceilings,
        egress: agent.egress.iter().cloned().chain(beside(task)).collect(),
        shards: 1,
        quotas: agent.quotas().map_err(Failure::unrecoverable)?,
        ..TenantSettings::default()
    };
    Ok(TaskSpec {
        version: VERSION,
        id: task.id.clone(),
        component,
        listen,
        args: options.args,
        env,
        folders,
        network,
        dns,
        config,
        links,
        allow_hosts: options.allow_hosts,
        limits: options.limits,
        settings,
        user: Some(task.user.clone()).filter(|user| !user.is_empty()),
        waive: agent.waive(),
        // What the machine refuses is for whoever starts it.
        refused: Default::default(),
        stdout: dir.output(&task.stdout_path),
        stderr: dir.output(&task.stderr_path),
        data: kept::folder(&agent.state_dir(), Path::new(&task.alloc_dir), &task.name),
        code: agent.state_dir().join("code"),
        groups: Groups::default(),
        registry: Default::default(),
    })
}

/// What the task's `resources` block bounds.
pub fn bounds(task: &TaskConfig) -> Bounds {
    let linux = task.resources.as_ref().and_then(|resources| resources.linux_resources.as_ref());
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    Bounds {
        memory: linux.and_then(|linux| positive(linux.memory_limit_bytes)),
        cpu_shares: linux.and_then(|linux| positive(linux.cpu_shares)),
        given: linux.map(|linux| PathBuf::from(&linux.cpuset_cgroup)).filter(|dir| dir.is_absolute()),
    }
}

/// The namespace the agent made for the group; `None` for the machine's network.
fn network(task: &TaskConfig) -> Result<Option<PathBuf>, Failure> {
    let Some(spec) = &task.network_isolation_spec else { return Ok(None) };
    match Mode::try_from(spec.mode) {
        Ok(Mode::Host) => Ok(None),
        Ok(Mode::Group | Mode::None) if !spec.path.is_empty() => Ok(Some(PathBuf::from(&spec.path))),
        Ok(mode) => Err(Failure::unrecoverable(format!(
            "the group's network has the mode {}, which this driver does not support: use host, bridge or a CNI network",
            mode.as_str_name().to_ascii_lowercase()
        ))),
        Err(_) => Err(Failure::unrecoverable("the group's network has a mode this driver does not know")),
    }
}

struct TaskDir<'a> {
    alloc: &'a Path,
    task: PathBuf,
}

impl TaskDir<'_> {
    /// What the tasks of the group share.
    fn shared(&self) -> PathBuf {
        self.alloc.join("alloc")
    }

    /// A path as a job writes it: in the task's directory, or from one of the roots that the environment names (`/local`,
    /// `/secrets`, `/alloc`).
    fn path(&self, what: &str, written: &str) -> Result<Place, Failure> {
        let outside = || {
            Failure::unrecoverable(format!(
                "`{what}` is `{written}`, which leads out of the task's directory; name a file below local/, secrets/ or alloc/"
            ))
        };
        let relative = Path::new(written.strip_prefix('/').unwrap_or(written));
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if written.is_empty() || !plain {
            return Err(outside());
        }
        let relative: PathBuf = relative.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        // The agent's own tokens are there, which no task is to see.
        if relative.starts_with("private") {
            return Err(outside());
        }
        Ok(match relative.strip_prefix("alloc") {
            Ok(rest) => Place { root: self.shared(), path: rest.to_owned() },
            Err(_) => Place { root: self.task.clone(), path: relative },
        })
    }

    /// An output as the agent names it: below what others of the group may change, or wherever it keeps such things.
    fn output(&self, named: &str) -> Place {
        let (shared, named) = (self.shared(), Path::new(named));
        if let Ok(rest) = named.strip_prefix(&shared) {
            return Place { path: rest.to_owned(), root: shared };
        }
        let root = named.parent().unwrap_or(Path::new("/")).to_owned();
        Place { root, path: named.file_name().map(PathBuf::from).unwrap_or_default() }
    }

    /// A folder as a job grants it. One that is to be written is made where it is not there.
    fn folder(&self, written: &str, writable: bool) -> Result<TaskFolder, Failure> {
        let bad = |why: String| Failure::unrecoverable(format!("folder \"{written}\": {why}"));
        let parts = Path::new(written).components().filter_map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        });
        let parts: Vec<&str> = parts.collect();
        if !parts.first().is_some_and(|first| FOLDERS.contains(first)) {
            return Err(bad(format!("it is in none of {}", FOLDERS.join(", "))));
        }
        let place = self.path("folder", written)?;
        Ok(TaskFolder { place, folder: Folder { name: format!("/{}", parts.join("/")), writable }, make: writable })
    }
}

/// A volume where the job mounts it.
fn volume(mount: &Mount) -> Result<TaskFolder, Failure> {
    let bad = |why: String| Err(Failure::unrecoverable(format!("the volume mounted at `{}`: {why}", mount.task_path)));
    if !mount.task_path.starts_with('/') {
        return bad("write an absolute `destination` in its `volume_mount`, such as \"/data\"".to_owned());
    }
    // What agents say where the job says nothing is `private`, or nothing at all.
    if !matches!(mount.propagation_mode.as_str(), "" | "private") {
        let mode = &mount.propagation_mode;
        return bad(format!(
            "`propagation_mode` is `{mode}`, and a component sees what is in the folder as it is opened, by no mount of its own; \
             write `private`, or take it away"
        ));
    }
    if !mount.selinux_label.is_empty() {
        return bad("this driver labels nothing for SELinux; take `selinux_label` away".to_owned());
    }
    let place = Place { root: PathBuf::from(&mount.host_path), path: PathBuf::new() };
    if !place.root.is_absolute() {
        return bad(format!("its place on the client, `{}`, is no absolute path", mount.host_path));
    }
    let folder = Folder { name: mount.task_path.clone(), writable: !mount.readonly };
    Ok(TaskFolder { place, folder, make: false })
}

/// The folders that the job grants: those of the task that its `config` names, and volumes where it mounts them.
fn folders(task: &TaskConfig, options: &TaskOptions, dir: &TaskDir<'_>) -> Result<Vec<TaskFolder>, Failure> {
    let own = options.folder.iter().map(|(written, FolderOptions { writable })| dir.folder(written, *writable));
    let folders: Vec<TaskFolder> = own.chain(task.mounts.iter().map(volume)).collect::<Result<_, _>>()?;
    if folders.len() > MAX_FOLDERS {
        return Err(Failure::unrecoverable(format!(
            "the task has {} folders, and {MAX_FOLDERS} are the most",
            folders.len()
        )));
    }
    let mut names: Vec<&str> = folders.iter().map(|folder| folder.folder.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| matches!(pair, [a, b] if a == b)) {
        Some(pair) => Err(Failure::unrecoverable(format!("two folders are called {}", pair.concat()))),
        None => Ok(folders),
    }
}

fn link(written: &str, link: &LinkOptions, dir: &TaskDir<'_>) -> Result<TaskLink, Failure> {
    let (contract, label) = written.split_once('#').unwrap_or((written, "default"));
    let bad = |cause: &dyn std::fmt::Display| {
        Failure::unrecoverable(format!(
            "link \"{written}\": {cause}; write a contract such as `wasi:keyvalue`, or `wasi:keyvalue#<label>`"
        ))
    };
    let mut settings = link.settings.clone();
    if let Some(url) = &link.url {
        settings.insert("url".to_owned(), url.clone());
    }
    let secret_files = link.secret_files.iter().map(|(key, file)| Ok((key.clone(), dir.path(key, file)?)));
    Ok(TaskLink {
        contract: contract.parse().map_err(|cause| bad(&cause))?,
        label: label.parse().map_err(|cause| bad(&cause))?,
        provider: link.provider.clone(),
        settings,
        secret_files: secret_files.collect::<Result<_, Failure>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Limits;
    use model::unit::ByteSize;
    use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
        AllocatedTaskResources, NetworkIsolationSpec, NetworkPort, NetworkResource, PortMapping, Resources,
    };
    use serde_json::json;

    fn task(config: serde_json::Value) -> TaskConfig {
        let port = PortMapping { label: "http".into(), value: 20000, to: 8080, host_ip: "10.1.2.3".into() };
        TaskConfig {
            id: "a/web/1".into(),
            name: "web".into(),
            alloc_dir: "/nonexistent/alloc".into(),
            env: [("NOMAD_REGION".to_owned(), "global".to_owned())].into(),
            resources: Some(Resources { ports: vec![port], ..Resources::default() }),
            msgpack_driver_config: rmp_serde::to_vec(&config).unwrap(),
            ..TaskConfig::default()
        }
    }

    fn in_task(path: &str) -> Place {
        Place { root: "/nonexistent/alloc/web".into(), path: path.into() }
    }

    #[test]
    fn outputs_are_opened_from_where_nobody_else_writes() {
        let mut task = task(json!({"component": "a.wasm"}));
        task.stdout_path = "/nonexistent/alloc/alloc/logs/.web.stdout.fifo".into();
        task.stderr_path = "/dev/null".into();
        let told = spec(&task, &AgentConfig::default()).unwrap();
        let shared = PathBuf::from("/nonexistent/alloc/alloc");
        assert_eq!(told.stdout, Place { root: shared, path: "logs/.web.stdout.fifo".into() });
        assert_eq!(told.stderr, Place { root: "/dev".into(), path: "null".into() });
    }

    /// What a job asks of a volume is done, or refused with what to write instead.
    #[test]
    fn volumes_are_mounted_as_the_job_says_or_not_at_all() {
        let told = |mount: Mount| {
            let mut task = task(json!({"component": "a.wasm"}));
            task.mounts = vec![mount];
            spec(&task, &AgentConfig::default()).map(|spec| spec.folders)
        };
        let mount = Mount { task_path: "/data".into(), host_path: "/srv/data".into(), ..Mount::default() };
        for mode in ["", "private"] {
            let folders = told(Mount { propagation_mode: mode.into(), readonly: true, ..mount.clone() }).unwrap();
            assert_eq!((folders[0].folder.name.as_str(), folders[0].folder.writable), ("/data", false), "{mode}");
        }
        for (odd, said) in [
            (Mount { propagation_mode: "host-to-task".into(), ..mount.clone() }, "write `private`"),
            (Mount { propagation_mode: "bidirectional".into(), ..mount.clone() }, "`bidirectional`"),
            (Mount { selinux_label: "z".into(), ..mount.clone() }, "take `selinux_label` away"),
            (Mount { task_path: "data".into(), ..mount.clone() }, "write an absolute `destination`"),
            (Mount { host_path: "data".into(), ..mount.clone() }, "no absolute path"),
        ] {
            let refused = told(odd.clone()).unwrap_err();
            assert_eq!(refused.class, plugin::Class::Unrecoverable);
            assert!(refused.message.contains(said), "{odd:?}: {}", refused.message);
        }
        // Who asked for it changes nothing.
        assert!(told(Mount { request_name: "data".into(), ..mount }).is_ok());
    }

    #[test]
    fn too_many_folders_are_refused() {
        let folders = |count: usize| -> serde_json::Value {
            (0..count)
                .map(|number| (format!("/local/{number}"), json!({"writable": false})))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let told =
            |count| spec(&task(json!({"component": "a.wasm", "folder": folders(count)})), &AgentConfig::default());
        assert_eq!(told(MAX_FOLDERS).unwrap().folders.len(), MAX_FOLDERS);
        assert!(told(MAX_FOLDERS + 1).unwrap_err().message.contains("64 are the most"));
    }

    #[test]
    fn ports_are_those_of_the_network_the_task_is_in() {
        let config =
            json!({"component": "local/a.wasm", "http": {"port": "http"}, "link": null, "env": ["NOMAD_REGION"]});
        let mut task = task(config);
        let told = spec(&task, &AgentConfig::default()).unwrap();
        assert_eq!(told.listen, Some("10.1.2.3:20000".parse().unwrap()));
        assert_eq!(told.component, TaskComponent::Path(in_task("local/a.wasm")));
        for granted in [&told.config, &told.env] {
            assert_eq!(granted.get("NOMAD_REGION").map(String::as_str), Some("global"));
        }
        task.network_isolation_spec =
            Some(NetworkIsolationSpec { mode: Mode::Group.into(), path: "/run/netns/x".into(), ..Default::default() });
        let told = spec(&task, &AgentConfig::default()).unwrap();
        assert_eq!((told.listen, told.network), (Some("0.0.0.0:8080".parse().unwrap()), Some("/run/netns/x".into())));
        task.network_isolation_spec = Some(NetworkIsolationSpec { mode: Mode::Task.into(), ..Default::default() });
        assert!(spec(&task, &AgentConfig::default()).unwrap_err().message.contains("mode task"));
        // As agents before port mappings say it.
        task.network_isolation_spec = None;
        let reserved_ports = vec![NetworkPort { label: "http".into(), value: 21000 }];
        let network = NetworkResource { ip: "10.9.9.9".into(), reserved_ports, ..Default::default() };
        let allocated = AllocatedTaskResources { networks: vec![network], ..Default::default() };
        task.resources = Some(Resources { allocated_resources: Some(allocated), ..Default::default() });
        assert_eq!(spec(&task, &AgentConfig::default()).unwrap().listen, Some("10.9.9.9:21000".parse().unwrap()));
    }

    #[test]
    fn what_the_operator_says_of_all_tasks_holds_for_each() {
        let agent =
            json!({"revoked": ["MREVOKED"], "ceilings": [{"cpu": "1s", "memory": "64MiB"}], "store_bytes": "1MiB"});
        let agent: AgentConfig = decode(&rmp_serde::to_vec(&agent).unwrap()).unwrap();
        let told = |limits: serde_json::Value| spec(&task(json!({"component": "a.wasm", "limits": limits})), &agent);
        let settings = told(json!([{"cpu": "1s"}])).unwrap().settings;
        assert_eq!((settings.revoked, settings.quotas.store_bytes), (vec!["MREVOKED".into()], Some(ByteSize::mib(1))));
        assert_eq!((settings.ceilings.cpu.0, settings.ceilings.memory), (1000, ByteSize::mib(64)));
        assert_eq!(settings.ceilings.wall, Limits::ceiling().wall, "what is not named has the platform's");
        let refused = told(json!([{"cpu": "2s"}])).unwrap_err().message;
        assert_eq!(refused, "`limits` has cpu = \"2s\"; write 10ms to 1s");
        let plain = spec(&task(json!({"component": "a.wasm"})), &AgentConfig::default()).unwrap().settings;
        assert_eq!((plain.quotas.store_bytes, plain.ceilings), (Some(ByteSize::mib(1024)), Limits::ceiling()));
    }

    #[test]
    fn a_program_gets_the_environment_it_was_granted() {
        let told = spec(
            &task(json!({"component": "a.wasm", "args": ["-v"], "env": ["NOMAD_REGION"]})),
            &AgentConfig::default(),
        );
        let told = told.unwrap();
        assert_eq!((told.listen, told.args.as_slice()), (None, &["-v".to_owned()][..]));
        assert_eq!(told.env, [("NOMAD_REGION".to_owned(), "global".to_owned())].into());
    }

    #[test]
    fn what_a_job_cannot_have_is_said() {
        for (config, why) in [
            (json!({"component": "../a.wasm"}), "leads out"),
            (json!({"component": ""}), "leads out"),
            (json!({"component": "./private/token"}), "name a file below local/"),
            (json!({"component": "a", "http": {"port": "admin"}}), "it has http"),
            (json!({"component": "a", "http": {"port": "http"}, "args": ["x"]}), "`args` are for programs"),
            (json!({"component": "a", "env": ["HOME"]}), "no such variable"),
            (json!({"component": "a", "link": {"keyvalue": {"provider": "redis"}}}), "write a contract"),
            (json!({"component": null}), "does not fit"),
            (
                json!({"component": "a", "limits": [{"processor": "1s"}]}),
                "names processor, which is none; there are cpu",
            ),
            (json!({"component": "a", "limits": [{"cpu": "fast"}]}), "has cpu = \"fast\"; write 10ms to 1m"),
            (json!({"component": "a", "limits": [{"memory": "2GiB"}]}), "has memory = \"2GiB\"; write 64KiB to 1GiB"),
            (json!({"component": "a", "limits": [{"handles": 1}]}), "has handles = \"1\"; write 16 to 65536"),
        ] {
            let said = spec(&task(config.clone()), &AgentConfig::default()).unwrap_err().message;
            assert!(said.contains(why), "{config}: {said}");
        }
    }

    #[test]
    fn links_carry_labels_settings_and_secret_files() {
        let told = spec(
            &task(json!({"component": "r.example/a@sha256:00", "link": {"wasi:keyvalue#cache": {
                "provider": "redis", "url": "redis://10.0.0.1:6379", "settings": [{"bucket": "b"}],
                "secret_files": [{"password": "secrets/redis"}],
            }}})),
            &AgentConfig::default(),
        );
        let told = told.unwrap();
        assert_eq!(told.component, TaskComponent::Oci("r.example/a@sha256:00".into()));
        let [link] = &told.links[..] else { panic!("{:?}", told.links) };
        assert_eq!((link.label.as_str(), link.settings.len()), ("cache", 2));
        assert_eq!(link.secret_files["password"], in_task("secrets/redis"));
    }
}
