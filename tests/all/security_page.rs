//! The table of docs/security.md says which test sees which case: each of them exists.

use std::collections::BTreeSet;
use std::path::Path;

use sidereal_tests::workspace;

/// Names of the tests in the sources below a folder.
fn known(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            known(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests_in(&std::fs::read_to_string(&path).unwrap(), names);
        }
    }
}

/// A function is a test where an attribute right before it says so.
fn tests_in(text: &str, names: &mut BTreeSet<String>) {
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((name, _)) =
            line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split_once('('))
        {
            names.extend(is_test.then(|| name.to_owned()));
            is_test = false;
        }
    }
}

/// All tests, by name.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for dir in ["crates", "tests", "fuzz"] {
        known(&workspace().join(dir), &mut names);
    }
    names
}

/// The rows of the table that begins so, each with its cells.
fn table(page: &str, first: &str) -> Vec<Vec<String>> {
    let rows =
        page.lines().skip_while(|line| !line.starts_with(first)).skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands in backticks.
fn named(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn page() -> String {
    std::fs::read_to_string(workspace().join("docs/security.md")).unwrap()
}

/// Where the confinement is tested, files are named too: those of the tests, and their committed answers; and commands.
#[test]
fn every_test_and_file_of_the_confinement_exists() {
    let names = tests();
    let stages = std::fs::read_to_string(workspace().join("crates/sandbox/tests/all/main.rs")).unwrap();
    let main = std::fs::read_to_string(workspace().join("xtask/src/main.rs")).unwrap();
    let tasks: Vec<String> = main
        .lines()
        .filter_map(|line| line.trim().strip_prefix("mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    let rows = table(&page(), "| Case |");
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let [case, tests] = &row[..] else { panic!("not two columns: {row:?}") };
        assert!(named(tests).next().is_some(), "{case}: names no test");
        for name in named(tests) {
            let file = ["", "crates/sandbox/tests/all", "tests/isolation"]
                .iter()
                .any(|dir| workspace().join(dir).join(name).exists());
            // The tests of the sandbox are a program of their own, whose cases are texts.
            let stage = stages.contains(&format!("(\"{name}\""));
            let command = name.strip_prefix("cargo xtask ").is_some_and(|task| tasks.iter().any(|known| known == task));
            assert!(names.contains(name) || file || stage || command, "{case}: there is no `{name}`");
        }
    }
}

#[test]
fn every_test_of_the_table_exists() {
    let mut names = tests();
    names.extend(sidereal_tests::hostile::cases::files().map(|(_, name)| name.to_owned()));
    let rows = table(&page(), "| # |");
    assert_eq!(rows.len(), 68);
    for (number, row) in (1..).zip(rows) {
        let [first, _, done, tests] = &row[..] else { panic!("not four columns: {row:?}") };
        assert_eq!(*first, number.to_string());
        for name in named(tests) {
            assert!(names.contains(name), "case {number}: there is no test `{name}`");
        }
        let said = ["later", "not tested", "above"].iter().any(|word| tests.contains(word));
        let none = done.contains("none") || done.contains("no ");
        assert!(named(tests).next().is_some() || said || none, "case {number}: {row:?}");
    }
}
