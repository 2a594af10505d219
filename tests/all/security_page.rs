//! The table of docs/security.md says which test sees which case: each of them exists.

use std::collections::BTreeSet;
use std::path::Path;

use sidereal_tests::workspace;

/// Names of functions in the sources below a folder, and of the corpus.
fn known(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            known(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let functions = text.match_indices("fn ").filter_map(|(at, _)| text[at + 3..].split_once('('));
            names.extend(functions.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_test_of_the_table_exists() {
    let mut names = BTreeSet::new();
    for dir in ["crates", "tests", "fuzz"] {
        known(&workspace().join(dir), &mut names);
    }
    names.extend(sidereal_tests::hostile::cases::files().map(|(_, name)| name.to_owned()));
    let page = std::fs::read_to_string(workspace().join("docs/security.md")).unwrap();
    let rows: Vec<&str> = page
        .lines()
        .skip_while(|line| !line.starts_with("| # |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(rows.len(), 68);
    for (number, row) in (1..).zip(rows) {
        let columns: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [first, _, done, tests] = columns[..] else { panic!("not four columns: {row}") };
        assert_eq!(first, number.to_string());
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        for name in &named {
            assert!(names.contains(*name), "case {number}: there is no test `{name}`");
        }
        let said = ["later", "not tested", "above"].iter().any(|word| tests.contains(word));
        assert!(!named.is_empty() || said || done.contains("none") || done.contains("no "), "case {number}: {row}");
    }
}
