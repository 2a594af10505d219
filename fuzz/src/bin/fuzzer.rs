//! LLVM's fuzzer around one target, named by `SIDEREAL_FUZZ_TARGET`: one program for all, linked once.
#![no_main]
#![allow(clippy::panic, reason = "a fuzzer without a target has nothing to do")]

use std::path::PathBuf;
use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn chosen() -> &'static Target {
    let name = std::env::var("SIDEREAL_FUZZ_TARGET").unwrap_or_default();
    let target = fuzz::target(&name).unwrap_or_else(|| panic!("SIDEREAL_FUZZ_TARGET is `{name}`, which is no target"));
    // What the target begins with, as files that the fuzzer reads; and how long an input is worth trying.
    if let Some(folder) = std::env::var_os("SIDEREAL_FUZZ_SEEDS").map(PathBuf::from) {
        for (at, seed) in fuzz::corpus(target).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{at:02}")), seed).unwrap_or_else(|cause| panic!("{cause}"));
        }
        println!("{}", target.longest);
    }
    target
}

fuzz_target!(|bytes: &[u8]| (TARGET.get_or_init(chosen).run)(bytes));
