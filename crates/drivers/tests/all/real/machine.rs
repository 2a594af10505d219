//! What a real agent knows of a machine, and what it says of a configuration that cannot be.

use std::time::{Duration, Instant};

use model::ProviderKind;

use super::cluster::Cluster;
use super::job::Job;

/// 7, 9, 10: versions, contracts, providers and layers are attributes that jobs can ask for; without its program the driver is
/// not detected, and once that is there, it is.
#[test]
fn a_real_agent_knows_what_a_machine_offers() {
    let Some(nomad) = super::nomad("fingerprints") else { return };
    let mut cluster = Cluster::alone(nomad);
    let program = cluster.dir().join("sidereal");
    cluster.join("main", &format!("allow_unsigned = true\nsidereal = \"{}\"", program.display()));
    cluster.until("the driver is looked for", |cluster| cluster.driver("main")["HealthDescription"].is_string());
    let driver = cluster.driver("main");
    assert!(driver["Detected"] == false && driver["Healthy"] == false, "{driver}");
    let said = driver["HealthDescription"].as_str().unwrap();
    assert!(said.contains("sidereal is no file of this machine"), "{said}");
    std::os::unix::fs::symlink(crate::agent::sidereal(), &program).unwrap();
    cluster.until("it is found", |cluster| cluster.driver("main")["Healthy"] == true);
    let attributes = cluster.node("main")["Attributes"].clone();
    assert_eq!(attributes["driver.wasm"], "1");
    assert_eq!(attributes["driver.wasm.version"], env!("CARGO_PKG_VERSION"));
    let list = |name: &str| -> Vec<String> {
        attributes[format!("driver.wasm.{name}")].as_str().unwrap_or_default().split(',').map(str::to_owned).collect()
    };
    let named = ProviderKind::ALL.into_iter().map(ProviderKind::as_str);
    assert!(
        named
            .filter(|name| !["component", "external"].contains(name))
            .all(|name| list("providers").contains(&name.to_owned()))
    );
    for contract in ["wasi:keyvalue", "wasi:blobstore"] {
        assert!(list("contracts").contains(&contract.to_owned()), "{attributes:#}");
    }
    assert!(list("worlds").contains(&"wasi:http@0.2".to_owned()), "{attributes:#}");
    let layer = |name: &str| attributes[format!("driver.wasm.isolation.{name}")].clone();
    for name in ["uid", "user", "pid", "root", "net", "ipc", "uts", "caps", "landlock", "seccomp", "cgroup"] {
        assert!(layer(name) == "true" || layer(name) == "false", "{name}: {attributes:#}");
    }
    // What it says, a job can ask for.
    let ask = |value: &str| {
        format!("constraint {{\n attribute = \"${{attr.driver.wasm.isolation.seccomp}}\"\n value = \"{value}\"\n}}")
    };
    let (has, not) = if layer("seccomp") == "true" { ("true", "false") } else { ("false", "true") };
    cluster.submit("nowhere", &Job::batch("batch", &["print:x"]).group(&ask(not)));
    let alloc = cluster.run("here", &Job::batch("batch", &["print:x"]).group(&ask(has)), "complete");
    assert_eq!(cluster.output(&alloc, "stdout", |out| !out.is_empty()), "x\n");
    assert_eq!(cluster.api("/v1/job/nowhere/allocations").as_array().map(Vec::len), Some(0), "no node is like that");
}

/// 8: every job file of `examples/nomad/` is one for a real agent.
#[test]
fn a_real_agent_takes_every_example() {
    let Some(nomad) = super::nomad("examples") else { return };
    let cluster = Cluster::alone(nomad);
    let said = |file: &std::path::Path| cluster.cli(&["job", "validate", file.to_str().unwrap()]);
    cluster.until("there is a leader", |cluster| {
        cluster.api("/v1/status/leader").as_str().is_some_and(|text| !text.is_empty())
    });
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/nomad");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.to_str().unwrap().ends_with(".nomad.hcl")).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let said = said(&file);
        assert!(said.contains("Job validation successful"), "{}: {said}", file.display());
    }
}

/// 9: an agent does not start with a configuration that cannot be, and says why.
#[test]
fn a_real_agent_refuses_a_configuration_that_cannot_be() {
    let Some(nomad) = super::nomad("configurations of plugins") else { return };
    let cluster = Cluster::alone(nomad);
    for (name, config, why) in [
        ("waives", "waive = [\"everything\"]", "`everything` is no layer of the sandbox"),
        ("ranges", "egress = [\"10.0.0.1/8\"]", "`egress`"),
        ("anchors", "trust_anchors = [\"SAANOTAKEY\"]", "`trust_anchors`"),
        ("keys", "colour = \"blue\"", "colour"),
    ] {
        cluster.configure(name, config);
        let mut agent = cluster.launch(name);
        let until = Instant::now() + Duration::from_secs(30);
        let ended = loop {
            if let Some(status) = agent.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > until {
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        drop(agent.kill());
        drop(agent.wait());
        let log = cluster.log(name);
        assert!(ended.is_some_and(|status| !status.success()) && log.contains(why), "{name}: {ended:?} {log}");
        assert!(!log.contains("SAANOTAKEY"), "{log}");
    }
}
