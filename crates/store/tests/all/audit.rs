//! The audit log: what was written is found again, and nothing done to the files afterwards goes unnoticed.

use std::path::{Path, PathBuf};

use store::audit::{Act, Log, Outcome, Tail, last, measured, verify, verify_measured};

fn act(n: u64) -> Act {
    Act {
        who: "operator".into(),
        tenant: n.is_multiple_of(2).then(|| "acme".parse().unwrap()),
        from: "127.0.0.1:1".into(),
        what: format!("PUT /v1/{n}"),
        outcome: Outcome::Done,
        status: Some(200),
        code: None,
        begun: None,
        left_out: 0,
    }
}

/// A log of twenty lines in several files.
fn written() -> (tempfile::TempDir, Tail) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open_with(dir.path(), None, 1, 800).unwrap();
    for n in 0..20 {
        assert_eq!(log.append(&[act(n)], n).unwrap(), n + 1);
    }
    let tail = log.tail();
    assert!(files(dir.path()).len() > 3);
    (dir, tail)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn edit(file: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    std::fs::write(file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[test]
fn what_was_written_is_found_again_over_files_and_restarts() {
    let (dir, tail) = written();
    let report = verify(dir.path(), Some(tail)).unwrap();
    assert_eq!((report.lines, report.tail, report.problems), (20, tail, vec![]));
    let mut log = Log::open_with(dir.path(), Some(tail), 1, 800).unwrap();
    assert_eq!(log.append(&[act(20), act(21)], 5).unwrap(), 21);
    assert_eq!(verify(dir.path(), Some(log.tail())).unwrap().problems, [""; 0]);
    let found = last(dir.path(), 3, usize::MAX, |record| record.act.tenant.is_some()).unwrap();
    assert_eq!(found.iter().map(|record| record.number).collect::<Vec<_>>(), [21, 19, 17]);
    assert_eq!(last(dir.path(), 100, usize::MAX, |_| true).unwrap().len(), 22);
    let newest = last(dir.path(), 100, 1, |_| true).unwrap();
    assert!((1..22).contains(&newest.len()), "of the newest file alone: {}", newest.len());
}

#[test]
fn edited_removed_moved_and_cut_lines_are_found() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 8] = [
        ("edited", |dir| edit(&files(dir)[1], |lines| lines[0] = lines[0].replace("operator", "somebody"))),
        ("removed", |dir| edit(&files(dir)[1], |lines| drop(lines.remove(1)))),
        ("moved", |dir| edit(&files(dir)[1], |lines| lines.swap(0, 1))),
        ("put in", |dir| {
            edit(&files(dir)[1], |lines| {
                let line = lines[0].clone();
                lines.insert(0, line);
            });
        }),
        ("the last one edited", |dir| {
            edit(files(dir).last().unwrap(), |lines| {
                let last = lines.pop().unwrap();
                lines.push(last.replace("200", "201"));
            });
        }),
        ("cut off", |dir| edit(files(dir).last().unwrap(), |lines| drop(lines.pop()))),
        ("a file gone", |dir| std::fs::remove_file(&files(dir)[1]).unwrap()),
        ("the first file gone", |dir| std::fs::remove_file(&files(dir)[0]).unwrap()),
    ];
    for (what, damage) in damages {
        let (dir, tail) = written();
        damage(dir.path());
        assert!(!verify(dir.path(), Some(tail)).unwrap().problems.is_empty(), "{what}");
        // Going on does not cover it up.
        let mut log = Log::open_with(dir.path(), Some(tail), 1, 800).unwrap();
        log.append(&[act(99)], 1).unwrap();
        assert!(!verify(dir.path(), Some(log.tail())).unwrap().problems.is_empty(), "{what}, later");
    }
}

#[test]
fn a_log_that_is_gone_or_does_not_end_as_the_store_says_says_so_for_ever() {
    let (dir, tail) = written();
    for file in files(dir.path()) {
        std::fs::remove_file(file).unwrap();
    }
    let mut log = Log::open(dir.path(), Some(tail), 1).unwrap();
    assert_eq!(log.append(&[act(1)], 1).unwrap(), 22, "a number never means two things");
    let problems = verify(dir.path(), Some(log.tail())).unwrap().problems;
    assert!(problems[0].contains("the log ended at line 0 and not at line 20"), "{problems:?}");
}

#[test]
fn a_line_that_was_not_acknowledged_breaks_nothing() {
    let (dir, tail) = written();
    let newest = files(dir.path()).pop().unwrap();
    let whole = std::fs::read(&newest).unwrap();
    // Half a line, as a crash leaves it.
    std::fs::write(&newest, [&whole[..], b"{\"number\":21,\"ti"].concat()).unwrap();
    let mut log = Log::open(dir.path(), Some(tail), 1).unwrap();
    log.append(&[act(20)], 1).unwrap();
    assert_eq!(verify(dir.path(), Some(log.tail())).unwrap().problems, [""; 0]);
    // On the disk, and the store does not know yet.
    let ahead = log.tail();
    log.append(&[act(21)], 1).unwrap();
    drop(log);
    let log = Log::open(dir.path(), Some(ahead), 1).unwrap();
    let report = verify(dir.path(), Some(log.tail())).unwrap();
    assert_eq!(report.problems, [""; 0]);
    assert_eq!(report.found, ["line 23: lines 22 to 22 were here at a start, and the store did not know of them"]);
}

#[test]
fn lines_that_were_added_while_nothing_ran_do_not_pass_for_others() {
    let (dir, tail) = written();
    // Whoever may write the files can write lines that follow; the store does not know of them.
    let mut forger = Log::open_with(dir.path(), Some(tail), 1, 800).unwrap();
    forger.append(&[act(90), act(91)], 1).unwrap();
    drop(forger);
    let log = Log::open_with(dir.path(), Some(tail), 1, 800).unwrap();
    let report = verify(dir.path(), Some(log.tail())).unwrap();
    assert_eq!(report.problems, [""; 0]);
    assert!(report.found[0].contains("lines 21 to 22"), "{report:?}");
    // Said once, and for ever.
    let log = Log::open_with(dir.path(), Some(log.tail()), 1, 800).unwrap();
    assert_eq!(verify(dir.path(), Some(log.tail())).unwrap().found, report.found);
}

#[test]
fn what_is_added_while_it_is_verified_is_left_alone() {
    let (dir, tail) = written();
    let before = measured(dir.path()).unwrap();
    let mut log = Log::open_with(dir.path(), Some(tail), 1, 800).unwrap();
    for n in 20..30 {
        log.append(&[act(n)], n).unwrap();
    }
    let report = verify_measured(&before, Some(tail)).unwrap();
    assert_eq!((report.lines, report.problems), (20, vec![]));
}
