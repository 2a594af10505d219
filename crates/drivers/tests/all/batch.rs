//! Programs: `wasi:cli/run` of WASI 0.2 and 0.3 and core modules of WASI 0.1 as batch tasks, with their exit codes, their
//! output byte for byte, and their bounds.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{Claims, sign};
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{ExitResult, Mount};
use plugin::error::is_recoverable;
use serde_json::json;

use crate::agent::{Agent, Alloc, host_of, pid_of, until};

/// A module of WASI 0.1 that prints its second argument to standard output and ends with 5: with 1, for the adapter tells only
/// success from failure.
const MODULE: &str = r#"(module
    (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (drop (call $args_get (i32.const 0) (i32.const 100)))
        (i32.store (i32.const 64) (i32.load (i32.const 4)))
        (i32.store (i32.const 68) (i32.const 5))
        (drop (call $fd_write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 72)))
        (call $exit (i32.const 5))))"#;

/// A module of WASI 0.1 that opens the file its second argument names in the first folder it has: one that begins with `+` is
/// made, and gets a line; any other is copied to standard output. What goes wrong is its output: `E` and the number.
pub const FILES: &str = r#"(module
    (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 2000) "line\n")
    (func $length (param $at i32) (result i32) (local $n i32)
        (block $done (loop $more
            (br_if $done (i32.eqz (i32.load8_u (i32.add (local.get $at) (local.get $n)))))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br $more)))
        (local.get $n))
    (func $fail (param $code i32) (if (local.get $code) (then
        (i32.store8 (i32.const 3000) (i32.const 69))
        (i32.store8 (i32.const 3001) (i32.add (i32.const 48) (i32.div_u (local.get $code) (i32.const 10))))
        (i32.store8 (i32.const 3002) (i32.add (i32.const 48) (i32.rem_u (local.get $code) (i32.const 10))))
        (i32.store (i32.const 64) (i32.const 3000))
        (i32.store (i32.const 68) (i32.const 3))
        (drop (call $write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 72)))
        (call $exit (i32.const 1)))))
    (func (export "_start") (local $name i32) (local $make i32)
        (drop (call $args_get (i32.const 0) (i32.const 100)))
        (local.set $name (i32.load (i32.const 4)))
        (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 43)) (then
            (local.set $make (i32.const 1))
            (local.set $name (i32.add (local.get $name) (i32.const 1)))))
        (call $fail (call $open (i32.const 3) (i32.const 1) (local.get $name) (call $length (local.get $name))
            (local.get $make) (select (i64.const 64) (i64.const 2) (local.get $make)) (i64.const 0) (i32.const 0) (i32.const 80)))
        (i32.store (i32.const 64) (i32.const 2000))
        (i32.store (i32.const 68) (i32.const 5))
        (if (local.get $make)
            (then (call $fail (call $write (i32.load (i32.const 80)) (i32.const 64) (i32.const 1) (i32.const 72))))
            (else
                (i32.store (i32.const 68) (i32.const 1000))
                (call $fail (call $read (i32.load (i32.const 80)) (i32.const 64) (i32.const 1) (i32.const 68)))
                (drop (call $write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 72)))))))"#;

/// The configuration of a program.
fn program(agent: &Agent, alloc: &mut Alloc, args: &[&str]) {
    let config =
        json!({"component": "local/app.wasm", "args": args, "env": ["GRANTED"], "settings": {"colour": "blue"}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    alloc.config.env.insert("GRANTED".into(), "yes".into());
    alloc.config.env.insert("NOT_GRANTED".into(), "no".into());
}

/// Runs a program to its end; how it ended and what it wrote to both outputs.
async fn run(agent: &mut Agent, alloc: &mut Alloc, args: &[&str]) -> (ExitResult, String, String) {
    program(agent, alloc, args);
    alloc.stdout.lock().unwrap().clear();
    alloc.stderr.lock().unwrap().clear();
    agent.start_task(&alloc.config).await.unwrap();
    let result =
        tokio::time::timeout(Duration::from_secs(120), agent.wait(alloc.id())).await.expect("it ends").unwrap();
    alloc.ended().await;
    agent.destroy(alloc.id(), true).await.unwrap();
    alloc.next_id();
    alloc.read();
    let said = (alloc.stdout.lock().unwrap().clone(), alloc.stderr.lock().unwrap().clone());
    (result, said.0, said.1)
}

/// 11, 13, 22, 23: what it is given, what it writes, and how it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_runs_once_with_what_it_was_granted() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("batch", "batch");
    let (result, out, err) =
        run(&mut agent, &mut alloc, &["args", "env", "config:colour", "config:GRANTED", "stdin", "err:oops", "log:hm"])
            .await;
    assert_eq!((result.exit_code, result.signal, result.oom_killed), (0, 0, false), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with(r#"["app.wasm", "args", "env""#), "{out}");
    assert_eq!(lines[1], r#"[("GRANTED", "yes")]"#, "only what was granted");
    assert_eq!(lines[2..], [r#"Ok(Some("blue"))"#, r#"Ok(Some("yes"))"#, "closed: true"]);
    assert!(err.contains("oops\n") && err.contains("hm"), "{err}");
    // Bytes as they are: no line end is added, nothing is escaped.
    let (_, out, _) = run(&mut agent, &mut alloc, &["raw:a\tb", "raw:\u{1b}[1m"]).await;
    assert_eq!(out, "a\tb\u{1b}[1m");
    assert!(agent.left().is_empty());
}

/// 13, 19: exit codes; what went wrong is an event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_ends_with_its_exit_code() {
    let mut agent = Agent::start().await;
    for (guest, ends) in [
        ("batch", [("exit:0", 0), ("exit:3", 3), ("fail", 1), ("trap", 134), ("print:x", 0)]),
        ("batch-p3", [("print", 0), ("exit", 7), ("fail", 1), ("trap", 134), ("more", 0)]),
    ] {
        let mut alloc = agent.alloc(guest, guest);
        for (step, code) in ends {
            let (result, _, err) = run(&mut agent, &mut alloc, &[step]).await;
            assert_eq!((result.exit_code, result.signal), (code, 0), "{guest} {step}: {err}");
        }
        let told = agent.events.clone();
        let told = move || told.lock().unwrap().iter().filter(|event| event.message.contains("trapped")).count();
        until("an event", || told() > 0).await;
        assert_eq!(told(), 1, "{guest}: only the trap is an event");
        agent.events.lock().unwrap().clear();
    }
    let mut alloc = agent.alloc("p3-output", "batch-p3");
    let (_, out, _) = run(&mut agent, &mut alloc, &["one", "two"]).await;
    assert_eq!(out, "one\ntwo\nGRANTED\n");
    assert!(agent.left().is_empty());
}

/// The limits of a call are not those of a program: it computes as long as it likes, and all its output arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_may_take_long_and_write_much() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("long", "batch");
    let (result, out, err) = run(&mut agent, &mut alloc, &["spin:1500", "flood:30000", "print:done"]).await;
    assert_eq!(result.exit_code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines.len(), lines.last()), (30_001, Some(&"done")));
    for (number, line) in lines[..30_000].iter().enumerate() {
        assert!(line.starts_with(&format!("{number:07} ")) && line.len() == 64, "{line}");
    }
}

/// 14: no component can be told of a signal, so a program that is to stop ends at once, even one that only computes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_ended() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("ended", "batch");
    for step in ["sleep:600000", "forever"] {
        program(&agent, &mut alloc, &["print:begun", step]);
        alloc.stdout.lock().unwrap().clear();
        let handle = agent.start_task(&alloc.config).await.unwrap();
        let out = alloc.stdout.clone();
        until("it runs", || out.lock().unwrap().contains("begun")).await;
        let begun = Instant::now();
        agent.stop(alloc.id(), Duration::from_secs(300), "").await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(120), "{step}: {:?}", begun.elapsed());
        assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 130, "{step}");
        agent.destroy(alloc.id(), true).await.unwrap();
        assert!(drivers::wasm::process::Seen::session(pid_of(&handle)).unwrap().is_empty(), "{step}");
        alloc.next_id();
        alloc.read();
    }
    assert!(agent.left().is_empty());
}

/// 14, 22: a stop within a short `kill_timeout` is one, also where nobody reads what the task wrote. One that waits for a reader
/// is killed every time; one that does not may be late once, on a machine with much to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_lines_that_nobody_reads_make_no_kill_of_a_stop() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("unread", "batch");
    program(&agent, &mut alloc, &["flood:200000"]);
    let mut ends = Vec::new();
    while !ends.contains(&(130, 0)) {
        assert!(ends.len() < 4, "{ends:?}");
        let path = alloc.dir().join(format!("alloc/logs/unread-{}", ends.len()));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let reader = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        alloc.config.stdout_path = path.display().to_string();
        agent.start_task(&alloc.config).await.unwrap();
        until("a full pipe", || rustix::io::ioctl_fionread(&reader).unwrap() >= 60_000).await;
        // Longer each time.
        let patience = Duration::from_secs(3 << ends.len());
        agent.stop(alloc.id(), patience, "").await.unwrap();
        let ended = agent.wait(alloc.id()).await.unwrap();
        ends.push((ended.exit_code, ended.signal));
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
    }
}

/// 26: memory is that of the `resources` block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_eats_too_much_is_killed() {
    if !drivers::wasm::cgroup::available() {
        crate::not_run("memory bounds of programs: this user cannot make control groups");
        return;
    }
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("eats", "batch");
    let linux = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    linux.memory_limit_bytes = 64 << 20;
    let (result, out, _) = run(&mut agent, &mut alloc, &["eat:10", "print:fine", "eat:200", "print:never"]).await;
    assert!(result.oom_killed && result.exit_code == 137, "{result:?}");
    assert_eq!(out, "fine\n", "what it wrote before is not lost");
    let told = agent.events.clone();
    until("an event", || told.lock().unwrap().iter().any(|event| event.message.contains("memory"))).await;
    // More than any program may have, where nobody bounds it.
    let linux = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    linux.memory_limit_bytes = 0;
    let (result, _, err) = run(&mut agent, &mut alloc, &["eat:2000"]).await;
    assert_eq!((result.exit_code, result.oom_killed), (134, false), "{err}");
    assert!(err.contains("memory"), "{err}");
}

/// Lines that a program logs right before its end come another way than what it writes, and all of them come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_lines_of_a_program_are_not_lost() {
    const LINES: usize = 200;
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("last", "batch");
    let mut steps: Vec<String> = (0..LINES).map(|line| format!("log:line {line}.")).collect();
    steps.push("trap".to_owned());
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    for _ in 0..5 {
        let (result, _, err) = run(&mut agent, &mut alloc, &steps).await;
        assert_eq!(result.exit_code, 134);
        let came = (0..LINES).filter(|line| err.contains(&format!("line {line}."))).count();
        assert_eq!(came, LINES, "{err}");
        assert!(err.contains("unreachable"), "{err}");
    }
}

/// 16, 17: the plugin is killed, the program ends meanwhile; its exit code is known, and it is not run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_code_that_nobody_saw_is_reported() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("unseen", "batch");
    program(&agent, &mut alloc, &["print:begun", "sleep:700", "exit:9"]);
    let handle = agent.start_task(&alloc.config).await.unwrap();
    drop(agent.process.take());
    until("the end", || drivers::wasm::process::Seen::of(pid_of(&handle)).unwrap().is_none_or(|seen| seen.dead)).await;
    let mut agent = agent.relaunch().await;
    agent.recover(&handle).await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 9);
    alloc.ended().await;
    assert_eq!(*alloc.stdout.lock().unwrap(), "begun\n");
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// What its job names bounds a program too, and nothing else does of what bounds a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_has_the_limits_that_its_job_names() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("named", "batch");
    for (limits, step, why) in [
        (json!({"memory": "64MiB"}), "eat:100", "memory"),
        (json!({"cpu": "300ms"}), "forever", "its 300ms of CPU time"),
    ] {
        let config = json!({"component": "local/app.wasm", "args": [step], "limits": limits});
        alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
        agent.start_task(&alloc.config).await.unwrap();
        assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 134, "{step}");
        let told = agent.events.clone();
        until("an event", || told.lock().unwrap().iter().any(|event| event.message.contains(why))).await;
        alloc.ended().await;
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
        alloc.read();
    }
    assert!(agent.left().is_empty());
}

/// 13, 17: the process that ran a program is gone, and the program with it: it has failed, people are told, and it is not run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_whose_host_dies_has_failed() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("hostless", "batch");
    program(&agent, &mut alloc, &["print:begun", "sleep:600000", "print:never"]);
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let out = alloc.stdout.clone();
    until("it runs", || out.lock().unwrap().contains("begun")).await;
    let host = rustix::process::Pid::from_raw(host_of(pid_of(&handle))).unwrap();
    rustix::process::kill_process(host, rustix::process::Signal::KILL).unwrap();
    let ended = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((ended.exit_code, ended.signal, ended.oom_killed), (1, 0, false));
    let told = agent.events.clone();
    until("an event", || told.lock().unwrap().iter().any(|event| !event.message.starts_with("Bringing"))).await;
    alloc.ended().await;
    assert_eq!(*alloc.stdout.lock().unwrap(), "begun\n", "once");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(drivers::wasm::process::Seen::session(pid_of(&handle)).unwrap().is_empty() && agent.left().is_empty());
}

/// Core modules of WASI 0.1 run as the components they become; what is signed is the module.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_module_runs_and_is_trusted_by_its_own_signature() {
    let module = wat::parse_str(MODULE).unwrap();
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("module", "batch");
    let file = alloc.task_dir().join("local/app.wasm");
    std::fs::write(&file, &module).unwrap();
    let (result, out, err) = run(&mut agent, &mut alloc, &["hello"]).await;
    assert_eq!((result.exit_code, out.as_str()), (1, "hello"), "{err}");
    // No program, and nothing that could become one.
    for (text, why) in [
        ("(module)", "_start"),
        (r#"(module (import "env" "f" (func)) (memory (export "memory") 1) (func (export "_start")))"#, "env"),
    ] {
        std::fs::write(&file, wat::parse_str(text).unwrap()).unwrap();
        program(&agent, &mut alloc, &[]);
        let refused = agent.start_task(&alloc.config).await.unwrap_err();
        assert!(refused.message().contains(why) && !is_recoverable(&refused), "{refused}");
    }

    let key = |seed| KeyPair::from_entropy(KeyKind::Account, [seed; 32]);
    let subject = KeyPair::from_entropy(KeyKind::Module, [9; 32]).public();
    let mut agent = Agent::with(json!({"trust_anchors": [key(1).public_key()]})).await;
    let mut alloc = agent.alloc("signed", "batch");
    let file = alloc.task_dir().join("local/app.wasm");
    let signed = |seed| sign(&module, Claims::new("module", &subject, "1", 1), &key(seed)).unwrap();
    let mut tampered = signed(1);
    let at = tampered.windows(5).position(|bytes| bytes == b"_star").unwrap();
    tampered[at + 4] = b's';
    for (bytes, code) in
        [(module.clone(), "artifact-unsigned"), (signed(2), "issuer-untrusted"), (tampered, "artifact")]
    {
        std::fs::write(&file, bytes).unwrap();
        program(&agent, &mut alloc, &[]);
        let refused = agent.start_task(&alloc.config).await.unwrap_err();
        assert!(refused.message().contains(&format!("[{code}")) && !is_recoverable(&refused), "{code}: {refused}");
    }
    std::fs::write(&file, signed(1)).unwrap();
    let (result, out, err) = run(&mut agent, &mut alloc, &["trust"]).await;
    assert_eq!((result.exit_code, out.as_str()), (1, "trust"), "{err}");
}

/// 23, 27: folders of the task and volumes as they are granted, and nothing around them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_are_there_as_granted() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("folders", "batch");
    std::fs::write(alloc.task_dir().join("local/app.wasm"), wat::parse_str(FILES).unwrap()).unwrap();
    std::fs::write(alloc.task_dir().join("secrets/key"), "secret").unwrap();
    std::os::unix::fs::symlink("../secrets/key", alloc.task_dir().join("local/way-out")).unwrap();
    std::fs::write(alloc.task_dir().join("local/in"), "content\n").unwrap();
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("in"), "volume\n").unwrap();
    std::fs::set_permissions(volume.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let (read, write) = (json!({}), json!({"writable": true}));
    let mount = |readonly| Mount {
        task_path: "/data".into(),
        host_path: volume.path().display().to_string(),
        readonly,
        ..Mount::default()
    };
    for (folder, mounts, file, code, out) in [
        (json!({"/local": read}), vec![], "in", 0, "content\n"),
        (json!({"local": read}), vec![], "none", 1, "E44"),
        (json!({"/local": read}), vec![], "+new", 1, "E63"),
        (json!({"/local": write}), vec![], "+new", 0, ""),
        (json!({"/local": read}), vec![], "new", 0, "line\n"),
        (json!({"/local": write}), vec![], "way-out", 1, "E63"),
        (json!({"/local": write}), vec![], "../secrets/key", 1, "E63"),
        (json!({"secrets": read}), vec![], "key", 0, "secret"),
        (json!({"/alloc/data/app": write}), vec![], "+made", 0, ""),
        (json!({"/alloc/data/app": read}), vec![], "made", 0, "line\n"),
        (json!({}), vec![], "in", 1, "E08"),
        (json!({}), vec![mount(true)], "in", 0, "volume\n"),
        (json!({}), vec![mount(true)], "+new", 1, "E63"),
        (json!({}), vec![mount(false)], "+new", 0, ""),
    ] {
        let config = json!({"component": "local/app.wasm", "args": [file], "folder": folder});
        alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
        alloc.config.mounts = mounts;
        alloc.stdout.lock().unwrap().clear();
        agent.start_task(&alloc.config).await.unwrap();
        let result = agent.wait(alloc.id()).await.unwrap();
        alloc.ended().await;
        assert_eq!((result.exit_code, alloc.stdout.lock().unwrap().as_str()), (code, out), "{file} in {folder}");
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
        alloc.read();
    }
    assert_eq!(std::fs::read_to_string(volume.path().join("new")).unwrap(), "line\n");
    for (folder, why) in [
        (json!({"/": read}), "it is in none of"),
        (json!({"private": read}), "it is in none of"),
        (json!({"../other/local": read}), "it is in none of"),
        (json!({"/local/way-out": read}), "is a link"),
        (json!({"/local/none": read}), "No such file"),
        (json!({"/local": read, "local": write}), "two folders are called /local"),
    ] {
        let config = json!({"component": "local/app.wasm", "folder": folder});
        alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
        alloc.config.mounts = Vec::new();
        let refused = agent.start_task(&alloc.config).await.unwrap_err();
        assert!(refused.message().contains(why) && !is_recoverable(&refused), "{folder}: {refused}");
    }
    assert!(agent.left().is_empty());
}
