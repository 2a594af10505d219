//! Whatever is written, the answer is a manifest or a report: no panic, no place outside the file.

use model::lock::lock_draft;
use model::manifest::{Report, draft};
use proptest::prelude::*;

use crate::{facts, good};

fn read(text: &str) -> Option<Report> {
    let facts = facts::read(None);
    let draft = draft(text, "app.toml");
    let artifacts = draft.manifest.as_ref().map(|manifest| facts.artifacts(manifest)).unwrap_or_default();
    lock_draft(draft, &artifacts, &facts.tenant).err()
}

fn check(text: &str) {
    let Some(report) = read(text) else { return };
    assert!(report.errors() > 0, "an error without a finding for {text:?}");
    assert_eq!(report.text().len(), text.len());
    for finding in &report.findings {
        assert!(finding.span.start <= finding.span.end && finding.span.end <= text.len(), "{finding:?}");
        assert!(text.is_char_boundary(finding.span.start) && text.is_char_boundary(finding.span.end), "{finding:?}");
        assert!(finding.line >= 1 && finding.column >= 1);
    }
    let mut drawn = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::none())
        .render_report(&mut drawn, &report)
        .unwrap();
    assert!(report.render().ends_with('\n'));
}

fn shop() -> String {
    good::manifests().into_iter().find(|(name, ..)| name == "shop").unwrap().1
}

/// Pieces that mean something in TOML or in the format.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => ".{0,6}",
        1 => prop::sample::select(vec![
            "\"", "'", "[", "]", "{", "}", "=", ".", ",", "\n", "\r\n", "\t", "\"\"\"", "''", "#", "é", "\u{0}", "-1", "1e9",
            "0x7fffffffffffffffff", "true", "1979-05-27", "[[routes]]\n", "[components.cart]\n", "..", "://u:p@", "{}", "[]",
            "provider = 1\n", "99999999999999999999",
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_edits_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, piece()), 1..6)) {
        let mut text: Vec<char> = shop().chars().collect();
        for (at, cut, piece) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + cut).min(text.len());
            text.splice(at..end, piece.chars());
        }
        check(&text.into_iter().collect::<String>());
    }

    #[test]
    fn lines_in_another_order_never_panic(order in Just(shop().lines().map(str::to_owned).collect::<Vec<_>>()).prop_shuffle()) {
        check(&order.join("\n"));
    }

    #[test]
    fn any_text_never_panics(text in any::<String>()) {
        check(&text);
    }
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let report = read(&"#".repeat(2 * 1024 * 1024)).unwrap();
    assert_eq!(report.findings[0].code, "manifest-too-large");
}

#[test]
fn a_password_is_in_no_part_of_a_report() {
    let text =
        shop().replace("redis://carts", "redis://app:hunter2@carts").replace("build/front", "http://a:hunter2@b/front");
    let report = read(&text).unwrap();
    let mut drawn = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::none())
        .render_report(&mut drawn, &report)
        .unwrap();
    for shown in [report.render(), drawn, report.to_string()] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert!(report.findings.iter().any(|f| f.code == "provider-secret"));
}
