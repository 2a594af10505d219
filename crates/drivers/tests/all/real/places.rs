//! Folders and networks that a real agent makes for a task.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use super::cluster::{Cluster, get};
use super::job::Job;

/// A network of one namespace, in which everything stays: an address on a loopback of its own.
const NETWORK: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "alone",
  "plugins": [{"type": "alone"}]
}
"#;
const PLUGIN: &str = r#"#!/bin/sh
name=$(basename "$CNI_NETNS")
case "$CNI_COMMAND" in
ADD)
  ip -n "$name" link set lo up && ip -n "$name" addr add 10.213.77.2/32 dev lo || exit 1
  echo "{\"cniVersion\": \"0.4.0\", \"interfaces\": [{\"name\": \"$CNI_IFNAME\", \"sandbox\": \"$CNI_NETNS\"}],"
  echo " \"ips\": [{\"version\": \"4\", \"interface\": 0, \"address\": \"10.213.77.2/32\"}]}" ;;
VERSION) echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0"]}' ;;
esac
"#;

/// 23, 24, 27: what templates wrote and what volumes hold, for reading or for writing, as the job grants it.
#[test]
fn a_real_agent_s_folders_and_volumes_are_there_as_granted() {
    let Some(nomad) = super::nomad("folders and volumes") else { return };
    let cluster = Cluster::start(nomad);
    let module = cluster.dir().join("files.wasm");
    std::fs::write(&module, wat::parse_str(crate::batch::FILES).unwrap()).unwrap();
    let volume = cluster.dir().join("volume");
    std::fs::write(volume.join("in"), "volume\n").unwrap();
    std::fs::set_permissions(&volume, PermissionsExt::from_mode(0o777)).unwrap();
    let program = |file: &str| Job::batch(&format!("file{}", module.display()), &[file]);
    let folder = |file: &str, name: &str, writable: bool| {
        program(file).config(&format!("folder \"{name}\" {{\n writable = {writable}\n}}"))
    };
    let mounted = |file: &str, read_only: bool| {
        program(file)
            .group(&format!("volume \"data\" {{\n type = \"host\"\n source = \"volume\"\n read_only = {read_only}\n}}"))
            .task("volume_mount {\n volume = \"data\"\n destination = \"/data\"\n}")
    };
    let template = "template {\n data = \"of a template\\n\"\n destination = \"local/in\"\n}";
    let secret = "template {\n data = \"a secret\\n\"\n destination = \"secrets/in\"\n}";
    let all = [
        ("local", folder("in", "/local", false).task(template), "complete", "of a template\n"),
        ("secrets", folder("in", "/secrets", false).task(secret), "complete", "a secret\n"),
        ("not-granted", program("in").task(template), "failed", "E08"),
        ("not-writable", folder("+new", "/local", false), "failed", "E63"),
        ("shared", folder("+new", "/alloc/data/app", true), "complete", ""),
        ("volume", mounted("in", true), "complete", "volume\n"),
        ("volume-read-only", mounted("+new", true), "failed", "E63"),
        ("volume-writable", mounted("+made", false), "complete", ""),
    ];
    for (name, job, ..) in &all {
        cluster.submit(name, job);
    }
    for (name, _, status, out) in all {
        let alloc = cluster.comes_to(name, status);
        assert_eq!(cluster.output(&alloc, "stdout", |said| said.len() >= out.len()), out, "{name}");
    }
    assert_eq!(std::fs::read_to_string(volume.join("made")).unwrap(), "line\n");
    assert!(!volume.join("new").exists());
    cluster.until("nothing is left", |cluster| cluster.tasks("main").is_empty());
}

/// 25: a service lives in the namespace that the agent made for its group, and is reached there alone.
#[test]
fn a_real_agent_s_network_is_where_a_task_lives() {
    let Some(nomad) = super::nomad("networks of groups") else { return };
    if std::process::Command::new("ip").arg("netns").output().is_err() || !rustix::process::geteuid().is_root() {
        return crate::not_run("networks of groups under a real Nomad agent: `ip` as root");
    }
    let mut cluster = Cluster::alone(nomad);
    std::fs::write(cluster.dir().join("networks/alone.conflist"), NETWORK).unwrap();
    std::fs::write(cluster.dir().join("cni/alone"), PLUGIN).unwrap();
    std::fs::set_permissions(cluster.dir().join("cni/alone"), PermissionsExt::from_mode(0o755)).unwrap();
    cluster.join("main", &format!("allow_unsigned = true\nsidereal = \"{}\"", crate::agent::sidereal().display()));
    cluster.until("the driver is healthy", |cluster| cluster.driver("main")["Healthy"] == true);
    let job = Job::service("hello").network("mode = \"cni/alone\"\n port \"http\" {\n to = 8080\n}");
    let alloc = cluster.run("inside", &job, "running");
    let inside: SocketAddr = "10.213.77.2:8080".parse().unwrap();
    let file = std::fs::File::open(format!("/var/run/netns/{}", alloc.0)).unwrap();
    let asked = std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).unwrap();
        get(inside, "/")
    });
    assert_eq!(asked.join().unwrap().unwrap().0, 200);
    let port = cluster.alloc(&alloc)["AllocatedResources"]["Shared"]["Ports"][0]["Value"].as_u64().unwrap();
    let outside: SocketAddr = ([127, 0, 0, 1], u16::try_from(port).unwrap()).into();
    assert!(get(outside, "/").is_none(), "nothing listens on the machine's own network");
    cluster.stop("inside");
    // The namespace is the agent's, which removes it when it has closed it.
    cluster.until("nothing is left", |cluster| cluster.tasks("main").is_empty());
}
