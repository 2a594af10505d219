//! What cannot run: the right sentence, the right retry class, and nothing left behind.

use drivers::wasm::WasmDriver;
use plugin::Driver as _;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::exec_task_streaming_request::Setup;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    CreateNetworkRequest, DnsConfig, ExecTaskRequest, ExecTaskStreamingRequest, Mount, Nothing, SignalTaskRequest,
};
use plugin::error::is_recoverable;
use serde_json::json;
use tonic::Code;

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::SeqCst;

use crate::agent::{Agent, PROGRAM, live};
use crate::block::block;
use crate::registry::Shop;

/// 8, 11: jobs that cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_cannot_run_is_told_why_and_not_tried_again() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("refused", "hello");
    std::fs::write(alloc.task_dir().join("local/text.wasm"), "no wasm").unwrap();
    std::fs::copy(crate::agent::guest("wants-unknown"), alloc.task_dir().join("local/unknown.wasm")).unwrap();
    std::fs::copy(crate::agent::guest("command"), alloc.task_dir().join("local/command.wasm")).unwrap();
    std::fs::copy(crate::agent::guest("kv-counter"), alloc.task_dir().join("local/kv.wasm")).unwrap();
    let http = json!({"port": "http"});
    for (config, why) in [
        (json!({"component": "local/none.wasm", "http": http}), "there is no component at"),
        (json!({"component": "../../../etc/passwd", "http": http}), "leads out of the task's directory"),
        (json!({"component": "local/text.wasm", "http": http}), "not WebAssembly"),
        (json!({"component": "local/app.wasm", "http": {"port": "admin"}}), "it has http"),
        (json!({"component": "local/app.wasm"}), "no `http` block"),
        (json!({"component": "local/command.wasm", "http": http}), "it is a program"),
        (json!({"component": "local/unknown.wasm", "http": http}), "import"),
        (json!({"component": "local/kv.wasm", "http": http}), "wasi:keyvalue"),
        (
            json!({"component": "local/kv.wasm", "http": http, "link": {"wasi:keyvalue": {"provider": "mongo"}}}),
            "`mongo` is no provider for wasi:keyvalue",
        ),
        (json!({"component": "local/kv.wasm", "http": http, "link": {"wasi:keyvalue": {"provider": "redis"}}}), "url"),
        (json!({"component": "registry.example/a/b@sha256:12", "http": http}), "digest"),
        (
            json!({"component": "registry.example/a/b:1.2", "http": http}),
            "named by its digest, `registry/repository@sha256:…`",
        ),
        (json!({"component": "localhost:5000/a", "http": http}), "named by its digest, `registry/repository@sha256:…`"),
        (json!({"component": "local/app.wasm", "http": http, "limits": {"cpu": "5s.5"}}), "`limits` has cpu"),
    ] {
        let mut task = alloc.config.clone();
        task.msgpack_driver_config = block(&agent.schema, &config).unwrap();
        let refused = agent.start_task(&task).await.expect_err(&config.to_string());
        assert!(refused.message().contains(why), "{config}: {refused}");
        assert!(!is_recoverable(&refused), "{config}: {refused}");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(agent.left().is_empty(), "{config}: {:?}", agent.left());
    }
    // What the schema lacks, agents refuse themselves.
    assert!(block(&agent.schema, &json!({"component": "a", "image": "x"})).is_err());
    assert!(block(&agent.schema, &json!({})).is_err());

    let mut task = alloc.config.clone();
    task.mounts = vec![Mount { task_path: "/data".into(), host_path: "/etc/hostname".into(), ..Mount::default() }];
    assert!(agent.start_task(&task).await.unwrap_err().message().contains("is no folder"));
    let mut task = alloc.config.clone();
    task.dns = Some(DnsConfig { servers: vec!["dns.example".into()], ..DnsConfig::default() });
    assert!(agent.start_task(&task).await.unwrap_err().message().contains("which is no IP address"));
    let mut task = alloc.config.clone();
    task.id.clear();
    assert!(agent.start_task(&task).await.is_err());
}

/// 11: a port that somebody has may be free the next time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_tried_again() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("taken", "hello");
    let held = std::net::TcpListener::bind(alloc.address).unwrap();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(is_recoverable(&refused), "{refused}");
    assert!(refused.message().contains(&alloc.address.to_string()), "{refused}");
    assert!(agent.left().is_empty());
    drop(held);
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// 11: nor is a component that came half one that cannot be; one of the same length that is another is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_breaks_off_is_tried_again() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("broken", "hello");
    let wasm = std::fs::read(crate::agent::guest("hello")).unwrap();
    let shop = Shop::of(&wasm);
    shop.breaks.store(true, SeqCst);
    let config = json!({"component": shop.pinned(shop.open()), "http": {"port": "http"}});
    alloc.config.msgpack_driver_config = block(&agent.schema, &config).unwrap();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    let half = format!("broke off after {} of {} bytes", wasm.len() / 2, wasm.len());
    assert!(refused.message().contains(&half) && is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty());
    shop.breaks.store(false, SeqCst);
    shop.lies.store(true, SeqCst);
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("[artifact-tampered]") && !is_recoverable(&refused), "{refused}");
    shop.lies.store(false, SeqCst);
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// Signatures: whom the operator trusts decides, not the job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsigned_code_runs_only_where_the_operator_says_so() {
    let mut agent = Agent::with(json!({})).await;
    let alloc = agent.alloc("unsigned", "hello");
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("[artifact-unsigned]") && !is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty());
}

/// 9: agent configurations that cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_configuration_that_cannot_be_is_refused() {
    let agent = Agent::start().await;
    let mut base = agent.clients.base.clone();
    let spec = base
        .config_schema(plugin::contracts::hashicorp::nomad::plugins::base::proto::ConfigSchemaRequest {})
        .await
        .unwrap()
        .into_inner()
        .spec
        .unwrap();
    for (config, why) in [
        (json!({"egress": ["10.0.0.1/8"]}), "egress"),
        (json!({"egress": ["10.0.0.0/8:32000-20000"]}), "`egress`: `10.0.0.0/8:32000-20000` is not an address range"),
        (json!({"revoked": ["sha256:12"]}), "`revoked`: revoked entry `sha256:12` is not a whole digest"),
        (json!({"ceilings": {"processor": "1s"}}), "`ceilings` names processor, which is none; there are cpu"),
        (json!({"ceilings": {"memory": "2GiB"}}), "`ceilings` has memory = \"2GiB\"; write 64KiB to 1GiB"),
        (json!({"store_bytes": "much"}), "`store_bytes`: `much` is not a size"),
        (json!({"store_bytes": "1KiB"}), "`store_bytes`: quotas.store_bytes is at least 64KiB"),
        (json!({"trust_anchors": ["SAANOTAKEY"]}), "trust_anchors"),
        (json!({"state_dir": "var/wasm"}), "`state_dir`: var/wasm is no absolute path"),
        (json!({"state_dir": format!("/{}", "d".repeat(100))}), "is longer than 78 characters"),
        (json!({"waive": ["seccomp", "everything"]}), "`waive`: `everything` is no layer of the sandbox"),
    ] {
        let refused = base.set_config(crate::agent::set(&spec, &config, None)).await.unwrap_err();
        assert!(refused.message().contains(why) && !refused.message().contains("SAANOT"), "{refused}");
    }
    let mut other = crate::agent::set(&spec, &json!({}), None);
    other.plugin_api_version = "v0.2.0".into();
    assert!(base.set_config(other).await.unwrap_err().message().contains("v0.1.0"));
}

/// 10: without its program the driver is there and not detected; with it, it is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_program_is_said_in_the_fingerprint() {
    let agent = Agent::with(json!({"sidereal": "/nonexistent/sidereal"})).await;
    assert_eq!(agent.first.health, 0);
    let said = &agent.first.health_description;
    assert!(
        said.starts_with("/nonexistent/sidereal is no file of this machine"),
        "it names what is configured: {said}"
    );
    let agent = Agent::with(json!({"sidereal": "/bin/false"})).await;
    assert_eq!(agent.first.health, 1, "{:?}", agent.first);
}

/// 10: a program of another release, which would refuse each task, is said to be that; an agent places nothing there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_another_release_is_said_in_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("sidereal");
    let offer = json!({"tasks": api::task::VERSION + 1, "refused": {}});
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = layers ]; then echo '{offer}'; exit; fi\nexec {} \"$@\"\n",
        crate::agent::sidereal().display()
    );
    std::fs::write(&other, text).unwrap();
    std::fs::set_permissions(&other, PermissionsExt::from_mode(0o755)).unwrap();
    let agent = Agent::with(json!({"sidereal": other.display().to_string()})).await;
    assert_eq!(agent.first.health, 1, "{:?}", agent.first);
    let said = format!("{} cannot run tasks: it runs tasks of version", other.display());
    assert!(agent.first.health_description.starts_with(&said), "{:?}", agent.first);
    assert!(agent.first.health_description.ends_with("of one release"), "{:?}", agent.first);
}

/// 10, 26: where no task could be bounded, none would start: the client is not healthy, and says what to do. It is, where the
/// operator does without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_can_bound_no_task_is_not_healthy() {
    const WHAT: &str = "clients on which no task can be bounded";
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let (mut program, state) = (PROGRAM.to_owned(), dir.path().join("state"));
    if rustix::process::geteuid().is_root() {
        // As an ordinary user.
        const USER: u32 = 12_345;
        std::fs::create_dir(&state).unwrap();
        std::fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&state, Some(USER), Some(USER)).unwrap();
        let script = dir.path().join("plugin");
        let become_it =
            format!("setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps=-all --bounding-set=-all");
        std::fs::write(&script, format!("#!/bin/sh\nexec {become_it} {PROGRAM} \"$@\"\n")).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        program = script.display().to_string();
        let runs = std::process::Command::new("setpriv")
            .args(["--reuid", "12345", "--regid", "12345", "--clear-groups", "test", "-x", PROGRAM, "-a", "-x"])
            .arg(crate::agent::sidereal())
            .status();
        if !runs.is_ok_and(|status| status.success()) {
            return crate::not_run(&format!("{WHAT}: no other user can be, or run the binaries"));
        }
    } else if drivers::wasm::cgroup::available() {
        return crate::not_run(&format!("{WHAT}: this user was given control groups"));
    }
    for (enforce, health) in [(json!(null), 1), (json!(true), 1), (json!(false), 2)] {
        let config = json!({"enforce_resources": enforce, "state_dir": state.display().to_string()});
        let agent = Agent::launched(&program, &[], config).await;
        assert_eq!(agent.first.health, health, "{:?}", agent.first);
        let said = agent.first.health_description.contains("set `enforce_resources = false` in the plugin's");
        assert_eq!(said, health == 1, "{:?}", agent.first);
    }
}

/// 10: an agent hears something before any look at the machine has ended; and then what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_not_kept_waiting_for_the_first_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let (waits, goes) = (dir.path().join("waits"), dir.path().join("goes"));
    // It answers when it is let.
    let text = format!(
        "#!/bin/sh\nwhile [ ! -e {} ]; do sleep 0.02; done\nexec {} \"$@\"\n",
        goes.display(),
        crate::agent::sidereal().display()
    );
    std::fs::write(&waits, text).unwrap();
    std::fs::set_permissions(&waits, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config =
        json!({"sidereal": waits.display().to_string(), "state_dir": dir.path().join("state").display().to_string()});
    let (_process, mut clients) = live(PROGRAM, &WasmDriver::new().agent_schema(), &config).await;
    let mut fingerprints = clients.driver.fingerprint(Nothing {}).await.unwrap().into_inner();
    let first = fingerprints.message().await.unwrap().unwrap();
    assert!(first.health == 1 && first.health_description.contains("has not answered yet"), "{first:?}");
    std::fs::write(&goes, "").unwrap();
    let second = fingerprints.message().await.unwrap().unwrap();
    assert_eq!((second.health, second.health_description.as_str()), (2, "Healthy"), "{second:?}");
}

/// 20, 21: what the driver does not do it does not say it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_supported_is_said() {
    let mut agent = Agent::start().await;
    let driver = &mut agent.clients.driver;
    let capabilities = driver.capabilities(Nothing {}).await.unwrap().into_inner().capabilities.unwrap();
    assert!(!capabilities.send_signals && !capabilities.exec && !capabilities.must_create_network);
    assert_eq!((capabilities.fs_isolation, capabilities.mount_configs), (2, 0));
    assert_eq!(capabilities.network_isolation_modes, [0, 1, 3]);
    let signal = SignalTaskRequest { task_id: "x".into(), signal: "SIGHUP".into() };
    assert_eq!(driver.signal_task(signal).await.unwrap_err().code(), Code::Unimplemented);
    let command = ExecTaskRequest { task_id: "x".into(), command: vec!["true".into()], timeout: None };
    assert_eq!(driver.exec_task(command).await.unwrap_err().code(), Code::Unimplemented);
    let setup = Setup { task_id: "x".into(), command: vec!["true".into()], tty: false };
    let first = ExecTaskStreamingRequest { setup: Some(setup), ..ExecTaskStreamingRequest::default() };
    let refused = driver.exec_task_streaming(futures::stream::iter([first])).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(driver.create_network(CreateNetworkRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
}
