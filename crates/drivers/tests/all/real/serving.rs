//! Components that serve, as jobs of a real agent: what they are granted, what is seen of them, and how they end.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, get};
use super::job::Job;
use crate::servers::Server;

/// 8, 14, 18–24, 30, 31: environment, settings and templates reach the component; logs, events and figures reach people; what
/// the driver does not do is said; a template that changes restarts it; a stop lets calls in flight finish.
#[test]
fn a_real_agent_serves_what_its_job_says() {
    let Some(nomad) = super::nomad("services") else { return };
    let cluster = Cluster::start(nomad);
    let watched = cluster.dir().join("watched");
    std::fs::write(&watched, "one").unwrap();
    let job = Job::service("probe")
        .config(r#"settings = { who = "${NOMAD_META_who}", "dotted.key" = "v" }"#)
        .config(r#"env = ["NOMAD_ALLOC_ID", "GREETING"]"#)
        .task(&format!(
            r#"meta {{
                who = "meta"
            }}
            template {{
                data        = "GREETING={{{{ file \"{}\" }}}}"
                destination = "secrets/env"
                env         = true
                change_mode = "restart"
                splay       = "0s"
            }}
            kill_timeout = "20s""#,
            watched.display()
        ));
    let alloc = cluster.run("probe", &job, "running");
    let address = cluster.address(&alloc);
    let config = |key: &str| get(address, &format!("/config?key={key}")).unwrap_or_default().1;
    assert_eq!(
        (config("who"), config("dotted.key"), config("NOMAD_ALLOC_ID")),
        ("meta".into(), "v".into(), alloc.0.clone())
    );
    assert_eq!(config("GREETING"), "one");
    assert_eq!(get(address, "/config?key=NOMAD_JOB_NAME").unwrap().0, 404, "not granted");

    assert_eq!(get(address, "/log?text=hello").unwrap().0, 200);
    cluster.output(&alloc, "stdout", |said| said.contains("out hello\n"));
    cluster.output(&alloc, "stderr", |said| said.contains("err hello") && said.contains("log hello"));
    let events = cluster.events(&alloc);
    assert!(events.contains("\"Driver\": \"Bringing"), "{events}");
    cluster.until("figures", |cluster| {
        let seen =
            cluster.api(&format!("/v1/client/allocation/{}/stats", alloc.0))["Tasks"]["task"]["ResourceUsage"].clone();
        seen["MemoryStats"]["RSS"].as_u64().is_some_and(|rss| rss > 1 << 20)
            && seen["CpuStats"]["Measured"].as_array().is_some_and(|measured| measured.len() == 4)
    });
    let said = cluster.cli(&["alloc", "exec", "-i=false", "-t=false", &alloc.0, "ls"]);
    assert!(said.contains("not support"), "{said}");
    let said = cluster.cli(&["alloc", "signal", "-s", "SIGHUP", &alloc.0]);
    assert!(said.contains("not support"), "{said}");

    // A call that traps and one that only computes are one call each.
    for (path, why) in [("/trap", "trapped"), ("/spin", "CPU time")] {
        assert!(get(address, path).unwrap().0 >= 500, "{path}");
        cluster.output(&alloc, "stderr", |said| said.contains(why));
        assert_eq!(get(address, "/").unwrap().0, 200, "after {path}");
    }

    std::fs::write(&watched, "two").unwrap();
    cluster.until("the template restarts the task", |_| config("GREETING") == "two");
    let events = cluster.events(&alloc);
    assert!(events.contains("Restart Signaled") && cluster.tasks("main").len() == 1, "{events}");

    // Half of a call, and then the job is stopped.
    let mut call = TcpStream::connect(address).unwrap();
    call.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    call.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nhalf").unwrap();
    let mut seen = Vec::new();
    while !seen.windows(4).any(|bytes| bytes == b"half") {
        let mut byte = [0];
        call.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    cluster.cli(&["job", "stop", "-detach", "probe"]);
    let begun = Instant::now();
    cluster.until("nobody new is let in", |_| TcpStream::connect(address).is_err());
    call.write_all(b"done").unwrap();
    let mut rest = String::new();
    call.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("done") && rest.ends_with("0\r\n\r\n"), "{rest}");
    let alloc = cluster.comes_to("probe", "complete");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let events = cluster.events(&alloc);
    assert!(events.contains("Exit Code: 0"), "{events}");
    cluster.until("nothing is left", |cluster| cluster.tasks("main").is_empty());
}

/// 24, 27, 31: a link gets its address from `meta` and its password from a template; a task that is restarted finds its data; a
/// node that is drained ends what it runs; a system job runs on every node.
#[test]
fn a_real_agent_restarts_and_drains_tasks_that_keep_their_data() {
    const PASSWORD: &str = "correct-horse";
    let Some(nomad) = super::nomad("links, restarts and drains") else { return };
    let redis = Server::redis(PASSWORD);
    let mut cluster = Cluster::alone(nomad);
    let config = format!(
        "allow_unsigned = true\nsidereal = \"{}\"\negress = [\"127.0.0.0/8\"]",
        crate::agent::sidereal().display()
    );
    cluster.join("main", &config);
    cluster.until("the driver is healthy", |cluster| cluster.driver("main")["Healthy"] == true);
    let linked = Job::service("kv-counter")
        .config(
            r#"link "wasi:keyvalue" {
                provider     = "redis"
                url          = "redis://${NOMAD_META_redis}"
                secret_files = { password = "secrets/redis" }
            }"#,
        )
        .task(&format!(
            r#"meta {{
                redis = "{}"
            }}
            template {{
                data        = "{PASSWORD}\n"
                destination = "secrets/redis"
                perms       = "0600"
            }}"#,
            redis.addr
        ));
    let kept = Job::service("kv-counter")
        .config("link \"wasi:keyvalue\" {\n provider = \"embedded\"\n}")
        .config("link \"wasi:keyvalue#cache\" {\n provider = \"memory\"\n}")
        .config("allow_hosts = [\"https://example.com\"]")
        .kind("system");
    cluster.submit("linked", &linked);
    cluster.submit("kept", &kept);
    for name in ["linked", "kept"] {
        let alloc = cluster.comes_to(name, "running");
        let address = cluster.address(&alloc);
        let count = || get(address, "/").map(|(status, body)| (status, body.trim().to_owned()));
        assert_eq!(count(), Some((200, "1".into())), "{name}");
        let said = cluster.cli(&["alloc", "restart", &alloc.0]);
        cluster.until(&format!("{name} is restarted: {said}"), |cluster| {
            cluster.alloc(&alloc)["TaskStates"]["task"]["Restarts"] == 1
                && get(address, "/none").is_some_and(|(status, _)| status == 200)
        });
        // The second call is the one that looked whether it is there.
        assert_eq!(count(), Some((200, "3".into())), "{name} has what it had");
    }
    let node = cluster.node("main")["ID"].as_str().unwrap().to_owned();
    let said = cluster.cli(&["node", "drain", "-enable", "-detach", "-yes", "-deadline", "30s", &node]);
    cluster.until(&format!("the node is empty: {said}"), |cluster| cluster.tasks("main").is_empty());
    for name in ["linked", "kept"] {
        cluster.comes_to(name, "complete");
    }
}
