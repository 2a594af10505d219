//! Components that misbehave end in a typed error and hurt nobody.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fuzz::malformed;
use sidereal_tests::hostile::arena::{self, Arena, NOISY};
use sidereal_tests::hostile::cases;
use sidereal_tests::hostile::soak::{Bounds, PROMISED, ROUGH, Report, Served, Victim, soak};
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, set_aside, until, write_app};

#[test]
fn four_endless_loops_per_core_slow_nobody_else_and_do_not_keep_the_platform_from_stopping() {
    let (dir, evil, good) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut platform = Platform::start(dir.path(), &[]).unwrap();
    let account = platform.ok(&["keys", "list"]).unwrap();
    let account = account.as_array().unwrap().iter().find(|k| k["name"] == "account").unwrap()["key"]
        .as_str()
        .unwrap()
        .to_owned();
    platform.ok(&["tenant", "create", "noisy", "--trust", &account]).unwrap();
    write_app(evil.path(), "evil", "probe", "limits = { cpu = \"20s\", wall = \"60s\" }").unwrap();
    platform.ok(&["--tenant", "noisy", "deploy", evil.path().to_str().unwrap()]).unwrap();
    write_app(good.path(), "good", "hello", "").unwrap();
    platform.ok(&["deploy", good.path().to_str().unwrap()]).unwrap();

    let cores = std::thread::available_parallelism().unwrap().get();
    let ingress = platform.ingress;
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for _ in 0..4 * cores {
        // One that has had all of its time is followed by another one.
        let over = over.clone();
        std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                drop(sidereal_tests::http::get(ingress, "evil.localhost", "/spin"));
            }
        });
    }
    let load = Load::start(platform.ingress, "good.localhost", "/", 4, Duration::from_millis(2));
    load.wait(500);
    let hosts = platform.hosts();
    let of = |tenant: &str| hosts.iter().find_map(|host| set_aside(*host, tenant));
    if may_raise_limits() {
        let gives_way = || platform.hosts().into_iter().any(|host| policy(host) == Some(SCHED_IDLE));
        until(Duration::from_secs(20), gives_way).expect("a host that computes gives way to all others");
    } else if of("noisy").is_none() {
        sidereal_tests::not_run(
            "that a host which computes gives way: a node without CAP_SYS_RESOURCE cannot let its hosts come back from there, \
             and this one has no control groups that share the processor",
        );
    } else {
        until(Duration::from_secs(20), || of("noisy") == Some(true)).expect("one that computes is set aside");
        assert_eq!(of("local"), Some(false), "one that serves does not");
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    over.store(true, Ordering::SeqCst);
    assert_eq!(platform.stop(Duration::from_secs(30)).unwrap().code(), Some(0), "loops do not keep it from stopping");
}

const SCHED_IDLE: u32 = 5;

/// Of a process's first thread, from field 41 of its stat.
fn policy(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(38)?.parse().ok()
}

/// `CAP_SYS_RESOURCE` is capability 24. A host has no capability: it comes back by its `RLIMIT_NICE`, which its node raises.
fn may_raise_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 24 != 0
}

/// The files of the corpus, folder and name.
fn corpus() -> BTreeSet<(String, String)> {
    let mut files = BTreeSet::new();
    for folder in ["requests", "streams", "components"] {
        for entry in std::fs::read_dir(sidereal_tests::workspace().join("guests/hostile").join(folder)).unwrap() {
            let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
            files.insert((folder.to_owned(), name));
        }
    }
    files
}

#[test]
fn every_case_of_the_corpus_has_its_own_end_and_hurts_nobody() {
    let named: BTreeSet<_> = cases::files().map(|(folder, name)| (folder.to_owned(), name.to_owned())).collect();
    assert_eq!(corpus(), named, "every file of guests/hostile is a case, and every case a file");

    let arena = Arena::start().unwrap();
    let victim = Victim::start(arena.platform.ingress);
    let mut wrong = Vec::new();
    // Several at once: most of them wait for their limit.
    let list: Vec<_> = arena::all().collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(&mut wrong);
    std::thread::scope(|scope| {
        // A component has one last failure, so that each is asked by one lane only.
        for lane in 0..3 {
            let mine: Vec<_> =
                list.iter().filter(|(_, place)| place.app == ["hostile", "streams", "components"][lane]).collect();
            let (arena, found, next) = (&arena, &found, &next);
            scope.spawn(move || {
                for (case, place) in mine {
                    next.fetch_add(1, Ordering::Relaxed);
                    if let Err(cause) = arena.check(case, *place) {
                        found.lock().unwrap().push(format!("{}/{}: {cause:#}", place.app, case.name));
                    }
                }
            });
        }
    });
    assert_eq!(next.into_inner(), list.len());
    for case in cases::REFUSED {
        if let Err(cause) = arena.refused(case) {
            wrong.push(format!("{}: {cause:#}", case.name));
        }
    }
    for case in malformed::ALL.iter().filter(|case| !case.large) {
        match arena.attempt(&(case.bytes)(), false) {
            Ok((code, _)) if REASONS.contains(&code.as_str()) => {}
            other => wrong.push(format!("{}: {other:?}", case.name)),
        }
    }
    let served = victim.stop();
    assert!(served.failures.is_empty(), "the victim: {:?}", served.failures);
    assert!(served.latencies.len() > 100, "the victim was asked {} times", served.latencies.len());
    logs(&arena);
    arena.unharmed().unwrap();
    assert!(wrong.is_empty(), "{} of them end otherwise:\n{}", wrong.len(), wrong.join("\n"));
}

/// Those that take seconds each, where `SIDEREAL_LARGE` says so: every night.
#[test]
fn components_as_large_as_they_may_be_end_with_a_reason_and_hurt_nobody() {
    if std::env::var_os("SIDEREAL_LARGE").is_none() {
        return sidereal_tests::not_run(
            "components of many megabytes: SIDEREAL_LARGE=1 runs them, and every night does",
        );
    }
    let arena = Arena::start().unwrap();
    let victim = Victim::start(arena.platform.ingress);
    let mut wrong = Vec::new();
    for case in malformed::ALL.iter().filter(|case| case.large) {
        let begun = std::time::Instant::now();
        let end = arena.put(&(case.bytes)(), false);
        println!(
            "{}: {:?} in {:?}",
            case.name,
            end.as_ref().map(|end| end.as_ref().map(|(code, _)| code)),
            begun.elapsed()
        );
        match end {
            Ok(Some((code, _))) if REASONS.contains(&code.as_str()) => {}
            other => wrong.push(format!("{}: {other:?}", case.name)),
        }
    }
    // Well-formed: whoever may have it or not, it is one of the two.
    match arena.put(&malformed::large_custom_section(), false) {
        Ok(end) => println!("40 MB beside the code: {:?}", end.map(|(code, _)| code)),
        Err(cause) => wrong.push(format!("40 MB beside the code: {cause:#}")),
    }
    let served = victim.stop();
    assert!(served.failures.is_empty(), "the victim: {:?}", served.failures);
    assert!(served.latencies.len() > 100, "the victim was asked {} times", served.latencies.len());
    arena.unharmed().unwrap();
    assert!(wrong.is_empty(), "{} of them end otherwise:\n{}", wrong.len(), wrong.join("\n"));
}

/// The codes of what is no component.
const REASONS: [&str; 3] = ["manifest-invalid", "artifact-invalid", "compile-failed"];

/// What the corpus wrote reaches a terminal without its escapes, and nobody takes it for the platform's.
fn logs(arena: &Arena) {
    let text = arena.platform.cli(&["--tenant", NOISY, "logs", "hostile"]).unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    // A tab only moves to the right.
    let bad = text.chars().find(|c| (c.is_control() && !matches!(c, '\n' | '\t')) || *c == '\u{202e}');
    assert_eq!(bad, None, "a control character reaches the terminal");
    let lines = arena.platform.cli(&["--tenant", NOISY, "logs", "hostile", "-o", "json"]).unwrap().stdout;
    let lines: Vec<serde_json::Value> =
        String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["data"]["stream"] == "platform"), "the platform's remarks are there");
    for line in &lines {
        let line = &line["data"];
        assert_eq!(line["app"], "hostile", "{line}");
        let text = line["text"].as_str().unwrap();
        assert!(line["stream"] != "platform" || !text.contains("forged"), "{line}");
        assert!(text.len() <= 65 << 10, "a line of {} bytes", text.len());
    }
}

/// As long as `SIDEREAL_SOAK_MINUTES` says: `cargo xtask soak`. A few seconds where nobody asks.
#[test]
fn a_victim_is_served_while_the_corpus_runs_without_a_pause() {
    let minutes = std::env::var("SIDEREAL_SOAK_MINUTES").ok();
    let long =
        minutes.as_ref().map_or(Duration::from_secs(5), |text| Duration::from_secs(60 * text.parse::<u64>().unwrap()));
    let arena = Arena::start().unwrap();
    // What is wrong by much is wrong every time; a moment in which the machine did something else is in one of a few.
    let (bounds, tries) = if minutes.is_some() { (&PROMISED, 1) } else { (&ROUGH, 10) };
    let mut wrong = Vec::new();
    for _ in 0..tries {
        let report = soak(&arena, long).unwrap();
        println!("{report}");
        assert!(report.hostile > 10, "{report}");
        let failed = report.victim.iter().flat_map(|served| &served.failures).collect::<Vec<_>>();
        assert!(failed.is_empty(), "{failed:?}\n{report}");
        wrong = report.check(bounds);
        if wrong.is_empty() {
            return;
        }
    }
    panic!("{}", wrong.join("\n"));
}

#[test]
fn a_report_that_is_not_as_promised_is_named_for_each_reason() {
    let served = |latency: u64, requests: usize| Served {
        latencies: vec![Duration::from_millis(latency); requests],
        failures: Vec::new(),
        within: Duration::from_secs(10),
    };
    let report = |meanwhile: Served, over_run: u64, samples: usize, memory: [u64; 2]| Report {
        hostile: 100,
        turned_away: 0,
        victim: [served(2, 1000), meanwhile],
        over_run: vec![Duration::from_millis(over_run); samples],
        memory,
    };
    let wrong = |report: Report, bounds: &Bounds| report.check(bounds).len();
    let same = [1000, 1050];
    assert_eq!(wrong(report(served(4, 900), 20, 100, same), &PROMISED), 0);
    for (case, off) in [
        ("p99 3x", report(served(6, 1000), 0, 100, same)),
        ("nothing served", report(served(0, 0), 0, 100, same)),
        ("rate 80 %", report(served(2, 800), 0, 100, same)),
        ("over-run 50 ms", report(served(2, 1000), 50, 100, same)),
        ("few samples", report(served(2, 1000), 0, 99, same)),
        ("memory", report(served(2, 1000), 0, 100, [1000, 1051])),
        ("a failure", report(Served { failures: vec!["503".into()], ..served(2, 1000) }, 0, 100, same)),
    ] {
        assert!(wrong(off, &PROMISED) > 0, "{case}");
    }
    assert_eq!(wrong(report(served(20, 500), 200, 1, [1000, 9000]), &ROUGH), 0);
    assert_eq!(wrong(report(served(21, 499), 201, 1, [1000, 9000]), &ROUGH), 3);
    assert_eq!(wrong(report(served(20, 500), 0, 0, [1000, 9000]), &ROUGH), 1);
}
