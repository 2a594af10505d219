//! `app.toml`, and what is locked from it: every finding has its place in the text, another reader of TOML agrees, and
//! the control plane admits what the command line locked.

use std::collections::BTreeMap;

use model::component::ComponentInfo;
use model::lock::{ArtifactFacts, lock, lock_draft};
use model::manifest::{Manifest, Report, draft, parse};
use model::tenant::TenantSettings;
use model::{Digest, LockedApp, World, admission};

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::texts(&[
        include_str!("../../../crates/model/tests/all/good/callee.toml"),
        include_str!("../../../crates/model/tests/all/good/counter.toml"),
        include_str!("../../../crates/model/tests/all/good/external.toml"),
        include_str!("../../../crates/model/tests/all/good/low-ceiling.toml"),
        include_str!("../../../crates/model/tests/all/good/mail.toml"),
        include_str!("../../../crates/model/tests/all/good/nightly.toml"),
        include_str!("../../../crates/model/tests/all/good/shop.toml"),
        include_str!("../../../crates/model/tests/all/mistakes/everything-at-once/app.toml"),
        include_str!("../../../crates/model/tests/all/mistakes/duplicate-key/app.toml"),
    ])
}

pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let tenant = TenantSettings::default();
    let manifest = match parse(text, "app.toml") {
        Ok(manifest) => manifest,
        Err(report) => {
            placed(&report, text);
            assert!(report.errors() > 0, "it is refused without an error");
            // What can be read of it is locked all the same, for one report of everything.
            if let Err(report) = lock_draft(draft(text, "app.toml"), &BTreeMap::new(), &tenant) {
                placed(&report, text);
            }
            return;
        }
    };
    assert!(text.parse::<toml_edit::DocumentMut>().is_ok(), "another reader of TOML refuses it");
    let artifacts: BTreeMap<_, _> = facts(&manifest);
    let known = artifacts.iter().map(|(name, facts)| (name.clone(), Ok(facts.clone()))).collect();
    match lock(&manifest, &known, &tenant) {
        Err(report) => placed(&report, text),
        Ok(locked) => {
            placed(&locked.warnings, text);
            let json = serde_json::to_vec(&locked.app).expect("an app is written as JSON");
            let back: LockedApp = serde_json::from_slice(&json).expect("what was written is read");
            assert_eq!(back, locked.app);
            let infos = artifacts.into_values().map(|facts| (facts.digest, facts.info)).collect();
            let owner = "acme".parse().expect("a name");
            let violations = admission::check(&back, &infos, &owner, &tenant, &[]);
            assert!(violations.is_empty(), "what was locked is not admitted: {violations:?}");
            assert!(model::diff::diff(Some(&back), &locked.app).is_empty(), "it differs from itself");
        }
    }
}

/// Components that answer HTTP and import what they are linked to.
fn facts(manifest: &Manifest) -> BTreeMap<model::ComponentName, ArtifactFacts> {
    let one = |component: &model::manifest::Component| {
        let import = |contract: &model::ContractId| format!("{contract}/store@0.2.0-draft").parse().ok();
        let digest = match &component.source.value {
            model::manifest::ComponentSource::Oci(oci) => oci.digest,
            model::manifest::ComponentSource::Path(path) => Digest::of(path.as_bytes()),
        };
        let info = ComponentInfo {
            world: World::P2,
            imports: component.links.iter().filter_map(|link| import(&link.contract.value)).collect(),
            exports: vec!["wasi:http/incoming-handler@0.2.12".parse().expect("an interface")],
            claims: None,
        };
        ArtifactFacts { digest, size: 1000, info }
    };
    manifest.components.iter().map(|(name, component)| (name.clone(), one(component))).collect()
}

fn placed(report: &Report, text: &str) {
    assert_eq!(report.text().len(), text.len(), "what is shown has other offsets than what was written");
    for finding in &report.findings {
        assert!(text.get(finding.span.clone()).is_some(), "{finding:?} is not a place in the text");
        assert!(finding.line >= 1 && finding.column >= 1, "{finding:?}");
        assert!(finding.related.iter().all(|related| text.get(related.span.clone()).is_some()), "{finding:?}");
    }
    drop(report.render());
}
