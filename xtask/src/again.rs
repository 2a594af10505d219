//! Runs one test binary, and what failed of it a second time, alone. The machines that test are shared: what they make of one
//! test of two thousand says nothing of the change that is tested. It is never silent: each such test is named as FLAKY at the
//! end of the run, and is a defect to be mended. More than a few are no accident, and `SIDEREAL_STRICT` allows none.

use std::io::{BufRead as _, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// More failed tests of one binary than this are not tried again.
const FEW: usize = 3;
/// Something that a test left running may hold the output open: it is waited for no longer than this once the tests are over.
const LEFT: Duration = Duration::from_secs(5);
/// A test that never ends would cost a run all of its time: a line is written for each that ends, and for one that takes long.
const SILENT: Duration = Duration::from_secs(15 * 60);
/// How often it is looked whether the tests are over.
const OFTEN: Duration = Duration::from_millis(50);

/// Set where a test that fails once has failed.
const STRICT: &str = "SIDEREAL_STRICT";
/// Names the file that gets a line for each test that failed and then passed.
pub const FLAKY: &str = "SIDEREAL_FLAKY";

/// Modules of tests of what keeps strangers apart, and of what nobody may lose, be refused or be let do even once in a thousand
/// times: one that fails now and then may be the hole that opens now and then.
const ONCE: [&str; 19] = [
    "isolation",
    "egress",
    "egress_providers",
    "egress_table",
    "rechecks",
    "accounts",
    "audit",
    "hostile",
    "refusals",
    "trust",
    "tenants",
    "secrets",
    "canaries",
    "guard",
    "external",
    "hosts",
    "apart",
    "deploy",
    "crash",
];

/// Packages whose tests wait for servers, for processes and for time-outs most of the time, and for how many of them at once there is
/// room on each core.
const PATIENT: [(&str, usize); 7] =
    [("providers", 4), ("drivers", 3), ("node", 2), ("control", 2), ("host", 2), ("store", 2), ("sidereal-tests", 2)];

/// Runs one test binary as this process, and says how long it took.
///
/// # Errors
/// When it cannot be run.
pub fn run(command: &[String], stands_in: &str) -> anyhow::Result<()> {
    let (program, args) = command.split_first().context("no program")?;
    let mut test = Command::new(program);
    test.args(args).env_remove("RUSTC_WORKSPACE_WRAPPER").env_remove(stands_in);
    // Cargo says whose tests they are. What was asked for on the command line goes before this.
    let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
    if let Some((_, each)) = PATIENT.iter().find(|(name, _)| *name == package)
        && std::env::var_os("RUST_TEST_THREADS").is_none()
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        test.env("RUST_TEST_THREADS", (cores * each).to_string());
    }
    // Whoever asks for certain tests looks at them, and has them run again himself.
    let all = args.is_empty() && std::env::var_os(STRICT).is_none();
    let begun = Instant::now();
    let (mut code, failed) =
        if all { watched(&mut test, std::io::stdout(), SILENT)? } else { (plain(&mut test)?, Vec::new()) };
    eprintln!("── {package}: {} s", begun.elapsed().as_secs());
    if code != 0 && worth_it(&failed) {
        eprintln!("── {package}: once more, alone: {}", failed.join(" "));
        // As it ran before, but one after the other.
        test.args(&failed).args(["--exact", "--test-threads", "1"]);
        (code, _) = watched(&mut test, std::io::stdout(), SILENT)?;
        if code == 0 {
            note(&package, &failed)?;
        }
    }
    std::process::exit(code)
}

fn worth_it(failed: &[String]) -> bool {
    let once = |name: &String| name.split("::").next().is_some_and(|module| ONCE.contains(&module));
    (1..=FEW).contains(&failed.len()) && !failed.iter().any(once)
}

/// Where nobody collects these lines, only this process says them.
fn note(package: &str, failed: &[String]) -> anyhow::Result<()> {
    let lines: String = failed.iter().map(|name| format!("{package} {name}\n")).collect();
    for line in lines.lines() {
        eprintln!("FLAKY: {line}: it failed among the others and passed alone");
    }
    if let Some(path) = std::env::var_os(FLAKY) {
        let mut file = std::fs::File::options().create(true).append(true).open(&path)?;
        file.write_all(lines.as_bytes()).with_context(|| format!("cannot write to {}", path.display()))?;
    }
    Ok(())
}

fn plain(test: &mut Command) -> anyhow::Result<i32> {
    let status = test.status().with_context(|| format!("cannot run {:?}", test.get_program()))?;
    Ok(status.code().unwrap_or(1))
}

/// Runs it and passes on what it writes, line by line; with the names of the tests that failed. One that writes nothing for
/// `silent` is ended, and has failed.
fn watched(
    test: &mut Command,
    mut out: impl Write + Send + 'static,
    silent: Duration,
) -> anyhow::Result<(i32, Vec<String>)> {
    let program = test.get_program().to_owned();
    let mut child = test.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {program:?}"))?;
    let output = child.stdout.take().context("no output")?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut failures = Failures::default();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            // Where nobody reads, the tests are run all the same.
            drop(out.write_all(&[&line, &b"\n"[..]].concat()));
            failures.line(&String::from_utf8_lossy(&line));
            drop(tell.send(failures.whole.then(|| failures.names.clone())));
        }
    });
    let (mut names, mut heard) = (Vec::new(), Instant::now());
    let status = loop {
        match told.recv_timeout(OFTEN) {
            Ok(so_far) => (names, heard) = (so_far.unwrap_or(names), Instant::now()),
            // It may have closed its output, and run on.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(OFTEN),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {program:?}"))? {
            break status;
        }
        if heard.elapsed() > silent {
            eprintln!("── {} has written nothing for {} s and was ended", program.display(), silent.as_secs());
            child.kill().with_context(|| format!("cannot end {program:?}"))?;
            child.wait().with_context(|| format!("cannot wait for {program:?}"))?;
            test.stdout(Stdio::inherit());
            return Ok((1, Vec::new()));
        }
    };
    // The list comes last; the channel ends with the output.
    let until = Instant::now() + LEFT;
    while let Ok(so_far) = told.recv_timeout(until.saturating_duration_since(Instant::now())) {
        names = so_far.unwrap_or(names);
    }
    test.stdout(Stdio::inherit());
    Ok((status.code().unwrap_or(1), names))
}

/// The list that a run ends with: `failures:`, and a name a line, indented. What failed tests wrote stands before it under the
/// same word, and may look like anything. Until the line with the result has come, more may follow.
#[derive(Default)]
struct Failures {
    open: bool,
    whole: bool,
    names: Vec<String>,
}

impl Failures {
    fn line(&mut self, line: &str) {
        self.whole = line.starts_with("test result: ");
        if line == "failures:" {
            (self.open, self.names) = (true, Vec::new());
        } else if self.open {
            match line.strip_prefix("    ").filter(|name| !name.contains(char::is_whitespace)) {
                Some(name) => self.names.push(name.to_owned()),
                None => self.open = line.is_empty() && self.names.is_empty(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(output: &str) -> Vec<String> {
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.line(line));
        failures.names
    }

    #[test]
    fn failed_tests_are_read_from_the_last_list() {
        let output = "test a::b ... ok\ntest c ... FAILED\n\nfailures:\n\n---- c stdout ----\n    indented\nfailures:\n    no\n\n\
            failures:\n    c\n    d::e\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\n\n";
        assert_eq!(names(output), ["c", "d::e"]);
        assert!(names("test a ... ok\n\ntest result: ok. 1 passed; 0 failed\n").is_empty());
        assert!(names("    c\n").is_empty());
    }

    #[test]
    fn only_few_are_tried_again() {
        let many: Vec<String> = (0..=FEW).map(|number| number.to_string()).collect();
        assert!(!worth_it(&[]) && !worth_it(&many));
        assert!(many.get(1..).is_some_and(worth_it));
        let once = |name: &str| !worth_it(&["c::d".to_owned(), name.to_owned()]);
        assert!(["isolation::a", "refusals::a", "trust::a", "deploy::a", "crash::a"].into_iter().all(once));
        assert!(!once("wiring::crash") && !once("deployed::a"));
    }

    /// A run whose output something holds open after its end does not wait for ever; its failures are known.
    #[test]
    fn what_a_test_left_running_is_not_waited_for() {
        let script = "printf 'failures:\\n    a::b\\n\\ntest result: FAILED\\n\\n'; sleep 60 & exit 101";
        let begun = Instant::now();
        let (code, failed) = watched(Command::new("sh").args(["-c", script]), std::io::sink(), SILENT).unwrap();
        assert_eq!((code, failed), (101, vec!["a::b".to_owned()]));
        assert!(begun.elapsed() < Duration::from_secs(55), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_test_that_never_ends_is_ended() {
        let script = "echo 'test a ... ok'; exec sleep 600";
        let ended = watched(Command::new("sh").args(["-c", script]), std::io::sink(), Duration::from_millis(300));
        assert_eq!(ended.unwrap(), (1, Vec::new()));
    }
}
