//! Programs as jobs of a real agent: how they end, and what the agent makes of it.

use super::cluster::Cluster;
use super::job::Job;

/// 11, 13, 14, 19, 22, 26, 31: exit codes, traps, memory, endless ones; each with its event, its output and its status.
#[test]
fn a_real_agent_is_told_how_programs_end() {
    let Some(nomad) = super::nomad("programs") else { return };
    let cluster = Cluster::start(nomad);
    let greet = "print:from ${NOMAD_META_who}";
    let meta = "meta {\n who = \"meta\"\n}";
    let bounded = drivers::wasm::cgroup::available();
    let all = [
        ("well", "exit:0", "complete", "Exit Code: 0"),
        ("ill", "exit:3", "failed", "Exit Code: 3"),
        ("trap", "trap", "failed", "trapped"),
        ("eats", "eat:200", "failed", "\"oom_killed\":\"true\""),
        ("long", "spin:1500", "complete", "Exit Code: 0"),
        ("flood", "flood:20000", "complete", "Exit Code: 0"),
        ("endless", "forever", "running", "Started"),
    ];
    for (name, step, ..) in all {
        cluster.submit(name, &Job::batch("batch", &[greet, step]).task(meta));
    }
    for (name, _, status, said) in all {
        if name == "eats" && !bounded {
            crate::not_run("memory bounds under a real Nomad agent: this user cannot make control groups");
            continue;
        }
        let alloc = cluster.comes_to(name, status);
        let events = cluster.events(&alloc);
        assert!(events.contains(said), "{name}: {events}");
        let lines = if name == "flood" { 20_001 } else { 1 };
        let out = cluster.output(&alloc, "stdout", |out| out.lines().count() >= lines);
        assert!(out.starts_with("from meta\n") && out.lines().count() == lines, "{name}: {out}");
    }
    // One that only computes is stopped at once, and failed by nothing of its own.
    cluster.stop("endless");
    let alloc = cluster.comes_to("endless", "complete");
    assert!(cluster.events(&alloc).contains("Exit Code: 130"), "{}", cluster.events(&alloc));
    cluster.until("nothing is left", |cluster| cluster.tasks("main").is_empty());
}

/// 11, 31: a program that fails is run again as its `restart` block says; dispatched and periodic jobs run, with their payload
/// and meta.
#[test]
fn a_real_agent_runs_programs_again_and_on_demand() {
    let Some(nomad) = super::nomad("restarts, dispatched and periodic jobs") else { return };
    let cluster = Cluster::start(nomad);
    let module = cluster.dir().join("files.wasm");
    std::fs::write(&module, wat::parse_str(crate::batch::FILES).unwrap()).unwrap();
    let again = Job::batch("batch", &["print:once", "exit:4"]).restarts(1);
    cluster.submit("again", &again);
    let periodic = Job::batch("batch", &["print:due"]).job("periodic {\n cron = \"0 0 1 1 *\"\n}");
    cluster.submit("periodic", &periodic);
    let payload = Job::batch(&format!("file{}", module.display()), &["${NOMAD_META_file}"])
        .config("folder \"/local\" {}")
        .job("parameterized {\n payload = \"required\"\n meta_required = [\"file\"]\n}")
        .task("dispatch_payload {\n file = \"payload\"\n}");
    cluster.submit("payload", &payload);

    cluster.cli(&["job", "periodic", "force", "-detach", "periodic"]);
    let sent = cluster.dir().join("sent");
    std::fs::write(&sent, "what was sent\n").unwrap();
    let said = cluster.cli(&["job", "dispatch", "-detach", "-meta", "file=payload", "payload", sent.to_str().unwrap()]);
    let child = |parent: &str| -> String {
        let named = |cluster: &Cluster| cluster.api(&format!("/v1/jobs?prefix={parent}/"))[0]["ID"].clone();
        cluster.until(&format!("{parent} has a child: {said}"), |cluster| named(cluster).is_string());
        named(&cluster).as_str().unwrap().to_owned()
    };
    for (parent, output) in [("payload", "what was sent\n"), ("periodic", "due\n")] {
        let alloc = cluster.comes_to(&child(parent), "complete");
        assert_eq!(cluster.output(&alloc, "stdout", |out| out.ends_with('\n')), output, "{parent}");
    }
    let alloc = cluster.comes_to("again", "failed");
    assert_eq!(cluster.alloc(&alloc)["TaskStates"]["task"]["Restarts"], 1);
    assert_eq!(cluster.output(&alloc, "stdout", |out| out.lines().count() >= 2), "once\nonce\n");
    cluster.until("nothing is left", |cluster| cluster.tasks("main").is_empty());
}
