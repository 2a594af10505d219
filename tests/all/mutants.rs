//! Components changed at random: whatever is left of them, no process of the platform goes down by it.
//!
//! Every mutant is read as an upload is (in this process: the reader's rules are those of `fuzz`); of those that can be read
//! some are compiled as the node does, by a `sidereal compile` of their own; and of those that compile, some are deployed
//! with a route, and called.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fuzz::components::{assemble, sections};
use fuzz::mutate::{Random, mutate};
use model::World;
use model::component::inspect;
use sidereal_tests::hostile::arena::Arena;
use sidereal_tests::hostile::soak::Victim;

/// Mutants in CI, the same ones each time; `SIDEREAL_MUTANTS` raises it, and takes others each time.
const MUTANTS: usize = 2000;
/// How long CI goes on with it, where nobody asks for more.
const PATIENCE: Duration = Duration::from_secs(10);
/// One of so many that can be read is compiled, and one of so many that compile is deployed.
const EVERY: (usize, usize) = (8, 40);

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, not a number")))
}

/// The corpus and the examples, as they are built.
fn originals() -> Vec<Vec<u8>> {
    let guests = sidereal_tests::guest("hello");
    let folder = guests.parent().unwrap();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    for example in ["counter/counter.wasm", "prefix-keyvalue/prefixer.wasm"] {
        files.push(sidereal_tests::workspace().join("examples").join(example));
    }
    files.retain(|file| file.extension().is_some_and(|kind| kind == "wasm"));
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// A mutant: bytes changed anywhere, or whole sections left out, doubled, put elsewhere or taken from another component.
fn mutant(originals: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let (one, other) = (&originals[random.below(originals.len())], &originals[random.below(originals.len())]);
    if random.below(3) > 0 {
        return mutate(one, other, 1 << 20, random);
    }
    let (mut list, others) = (sections(one), sections(other));
    for _ in 0..1 + random.below(3) {
        let (at, to, last) = (random.below(list.len()), random.below(list.len() + 1), list.len().saturating_sub(1));
        match random.below(4) {
            0 if !list.is_empty() => drop(list.remove(at)),
            1 if !list.is_empty() => {
                let one = list[at];
                list.insert(to, one);
            }
            2 if !list.is_empty() => list.swap(at, to.min(last)),
            _ if !others.is_empty() => list.insert(to, others[random.below(others.len())]),
            _ => {}
        }
    }
    assemble(list)
}

#[derive(Debug, Default)]
struct Counts {
    mutants: AtomicUsize,
    read: AtomicUsize,
    compiled: AtomicUsize,
    refused: AtomicUsize,
    panicked: AtomicUsize,
    deployed: AtomicUsize,
    turned_down: AtomicUsize,
    called: AtomicUsize,
    failed: AtomicUsize,
}

impl Counts {
    fn some(count: &AtomicUsize) -> bool {
        count.load(Relaxed) > 0
    }

    /// Deploys one that compiles, and calls it where it comes to be.
    fn deploy(&self, arena: &Arena, bytes: &[u8]) -> Result<(), String> {
        if arena.put(bytes, true).map_err(|cause| format!("{cause:#}"))?.is_some() {
            self.turned_down.fetch_add(1, Relaxed);
            return Ok(());
        }
        self.deployed.fetch_add(1, Relaxed);
        // Whatever it answers: somebody does.
        let seen = arena.call().map_err(|cause| format!("the ingress does not answer for it: {cause:#}"))?;
        self.called.fetch_add(1, Relaxed);
        if seen.status >= 500 || !seen.whole {
            self.failed.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

/// Whether a compiler of its own makes code of it.
fn compiles(bytes: &[u8], world: World, counts: &Counts) -> Result<bool, String> {
    let mut child = Command::new(sidereal_tests::binary())
        // What a compiler makes of it, and not what confines one.
        .args(["compile", "--world", world.as_str(), "--inner", "--sandbox"])
        .arg(r#"{"waived":["uid","user","pid","root","net","ipc","uts","caps","landlock","seccomp","cgroup"]}"#)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It need not read it all to refuse it.
    drop(child.stdin.take().unwrap().write_all(bytes));
    let out = child.wait_with_output().unwrap();
    match out.status.code() {
        Some(0) => Ok(true),
        // A panic of the compiler is caught by its process and harms nobody; it is counted, because it is a defect of its.
        Some(101) => {
            counts.panicked.fetch_add(1, Relaxed);
            Ok(false)
        }
        Some(_) => Ok(false),
        None => Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr))),
    }
}

#[test]
fn no_mutant_brings_a_process_down() {
    let wanted = asked("SIDEREAL_MUTANTS").map(|count| usize::try_from(count).unwrap());
    let seed = fuzz::seed(wanted.is_some());
    let (originals, arena, counts) = (originals(), Arena::start().unwrap(), Counts::default());
    let reader = fuzz::target("component").unwrap();
    let victim = Victim::start(arena.platform.ingress);
    let begun = Instant::now();
    let compiled = |bytes: &[u8], world| {
        compiles(bytes, world, &counts).unwrap_or_else(|died| {
            let kept = std::env::temp_dir().join(format!("sidereal-mutant-{seed}.wasm"));
            std::fs::write(&kept, bytes).unwrap();
            panic!("the compiler died of {}: {died}", kept.display())
        })
    };
    // Most of what can be read and compiled names imports that nobody linked. One that needs none is changed until
    // it is served, one in a thousand of a long run.
    let (hello, mut random) = (std::fs::read(sidereal_tests::guest("hello")).unwrap(), Random::new(!seed));
    let calls = wanted.map_or(1, |wanted| wanted.div_ceil(1000));
    while counts.called.load(Relaxed) < calls && counts.mutants.fetch_add(1, Relaxed) < calls * MUTANTS {
        let bytes = mutate(&hello, &hello, 1 << 20, &mut random);
        let Ok(info) = inspect(&bytes) else { continue };
        counts.read.fetch_add(1, Relaxed);
        if bytes != hello && compiled(&bytes, info.world) {
            counts.compiled.fetch_add(1, Relaxed);
            counts.deploy(&arena, &bytes).unwrap();
        }
    }
    println!("{counts:?} when so many were called");
    counts.mutants.store(0, Relaxed);
    let lane = &|lane: u64| {
        let mut random = Random::new(seed ^ lane << 32);
        while counts.mutants.fetch_add(1, Relaxed) < wanted.unwrap_or(MUTANTS)
            && (wanted.is_some() || begun.elapsed() < PATIENCE)
        {
            let bytes = mutant(&originals, &mut random);
            (reader.run)(&bytes);
            let Ok(info) = inspect(&bytes) else { continue };
            if counts.read.fetch_add(1, Relaxed) % EVERY.0 != 0 {
                continue;
            }
            if !compiled(&bytes, info.world) {
                counts.refused.fetch_add(1, Relaxed);
            } else if counts.compiled.fetch_add(1, Relaxed) % EVERY.1 == 0 && lane == 0 {
                counts.deploy(&arena, &bytes).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..2).map(|at| scope.spawn(move || lane(at))).collect();
        lanes.into_iter().for_each(|one| one.join().unwrap());
    });
    println!("{counts:?} in {:?}", begun.elapsed());
    let served = victim.stop();
    assert!(served.failures.is_empty(), "the victim: {:?}", served.failures);
    arena.unharmed().unwrap();
    assert!(counts.read.load(Relaxed) > 10, "hardly any mutant can be read: {counts:?}");
    for (what, count) in [("compiled", &counts.compiled), ("deployed", &counts.deployed), ("called", &counts.called)] {
        assert!(Counts::some(count), "no mutant was {what}: {counts:?}");
    }
}
