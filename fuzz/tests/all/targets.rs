//! The short run of the fuzz targets.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use fuzz::mutate::{Random, mutate};
use fuzz::{TARGETS, committed, corpus, corpus_folder};

/// Executions of each target, and how long they may take: whichever comes first, but some in any case.
const EXECUTIONS: u64 = 20_000;
const LEAST: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(3);

/// Committed inputs of a target, and bytes of the file of each: a corpus that is read by people and run by every test stays small.
const FILES: usize = 40;
const SIZE: u64 = 4 << 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, not a number")))
}

#[test]
fn every_target_holds_over_its_corpus_and_mutations_of_it() {
    let asked = number("SIDEREAL_FUZZ_EXECUTIONS");
    let seed = fuzz::seed(asked.is_some());
    for target in TARGETS {
        let inputs = corpus(target);
        assert!(!inputs.is_empty(), "{} has nothing to begin with", target.name);
        let check = |input: &[u8]| {
            if catch_unwind(|| (target.run)(input)).is_err() {
                panic!("target {} (seed {seed}) fails for the input {:?}", target.name, String::from_utf8_lossy(input));
            }
        };
        inputs.iter().for_each(|input| check(input));
        let (mut random, begun, mut done) = (Random::new(seed), Instant::now(), 0);
        while done < asked.unwrap_or(EXECUTIONS) && (asked.is_some() || done < LEAST || begun.elapsed() < PATIENCE) {
            let (one, other) = (random.below(inputs.len()), random.below(inputs.len()));
            check(&mutate(&inputs[one], &inputs[other], target.longest, &mut random));
            done += 1;
        }
        println!("{}: {} inputs, {done} mutations in {:?}", target.name, inputs.len(), begun.elapsed());
    }
}

#[test]
fn every_committed_input_holds() {
    let mut findings = Vec::new();
    for target in TARGETS {
        let inputs = committed(target);
        assert!(!inputs.is_empty() && inputs.len() <= FILES, "{} has {} inputs", target.name, inputs.len());
        for (file, input) in inputs {
            let size = std::fs::metadata(&file).unwrap().len();
            assert!(size <= SIZE, "{} has {size} bytes", file.display());
            assert!(input.len() <= target.longest, "{} is longer than what the target tries", file.display());
            if catch_unwind(|| (target.run)(&input)).is_err() {
                findings.push(file);
            }
        }
    }
    assert!(findings.is_empty(), "inputs that show a defect: {findings:#?}");
    // A folder that no target has would never be run.
    let all = std::fs::read_dir(corpus_folder(&TARGETS[0]).parent().unwrap()).unwrap();
    for folder in all.map(|entry| entry.unwrap().file_name()) {
        assert!(TARGETS.iter().any(|target| folder == target.name), "{folder:?} is of no target");
    }
}
