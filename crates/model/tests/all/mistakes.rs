//! Seeded mistakes: each folder holds a manifest with something wrong, what is known of its artifacts, and the whole report
//! a person gets.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use model::lock::lock_draft;
use model::manifest::{Report, draft};
use model::rules::Code;

use crate::{facts, golden};

/// Codes of which no manifest is guilty: what is sent to the control plane can be, and the file has its own test.
const NOT_HERE: [Code; 10] = [
    Code::ArtifactUnknown,
    Code::ProviderForged,
    Code::RouteHostTaken,
    Code::RouteHostLeft,
    Code::RouteHostNotGiven,
    Code::LinkComponent,
    Code::LimitFixed,
    Code::Reuse,
    Code::ManifestTooLarge,
    Code::AppTooLarge,
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all/mistakes")
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn report(case: &Path) -> Report {
    let text = fs::read_to_string(case.join("app.toml")).unwrap();
    let facts = facts::read(fs::read_to_string(case.join("facts.toml")).ok().as_deref());
    let draft = draft(&text, "app.toml");
    let artifacts = draft.manifest.as_ref().map(|manifest| facts.artifacts(manifest)).unwrap_or_default();
    match lock_draft(draft, &artifacts, &facts.tenant) {
        Ok(locked) => locked.warnings,
        Err(report) => report,
    }
}

#[test]
fn every_mistake_is_explained() {
    let cases = cases();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut differ = Vec::new();
    for case in &cases {
        let report = report(case);
        let name = case.file_name().unwrap().to_string_lossy();
        assert!(!report.findings.is_empty(), "{name}: nothing found");
        for finding in &report.findings {
            assert!(finding.help.as_ref().is_some_and(|h| !h.is_empty()), "{name}: no help for {finding}");
            assert!(
                finding.span.end <= report.text().len() && finding.span.start <= finding.span.end,
                "{name}: {finding:?}"
            );
        }
        differ.extend(golden::compare(&case.join("expected.txt"), &report.render()).err());
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
}

#[test]
fn every_code_has_a_mistake() {
    let seen: BTreeSet<&str> = cases().iter().flat_map(|case| report(case).findings).map(|f| f.code).collect();
    let missing: Vec<&Code> =
        Code::ALL.iter().filter(|code| !seen.contains(code.as_str()) && !NOT_HERE.contains(code)).collect();
    assert!(missing.is_empty(), "no seeded mistake for {missing:?}");
}

/// The same report as the cli draws it.
#[test]
fn miette_draws_a_report() {
    let report = report(&folder().join("route-collision"));
    let mut drawn = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::none())
        .render_report(&mut drawn, &report)
        .unwrap();
    for part in ["route-collision", "app.toml:", "the other route", "help:"] {
        assert!(drawn.contains(part), "no `{part}` in\n{drawn}");
    }
}
