//! Links: each one from a component that exists, for a contract that goes by link, to a provider that answers it.

use std::collections::BTreeMap;

use crate::app::{Link, LockedApp};
use crate::offers;
use crate::rules::provider::{Setting, answering};
use crate::rules::{Code, Found, Subject, Unknown, Violation, list, shown, suggest};

/// The settings of a link of a contract.
pub fn settings(contract: &str) -> &'static [Setting] {
    match contract {
        "wasi:keyvalue" => &[Setting {
            name: "bucket",
            required: false,
            doc: "the bucket in the provider, where it differs from the label",
            example: "sessions",
        }],
        "wasi:blobstore" => &[Setting {
            name: "container",
            required: false,
            doc: "the container in the provider, where it differs from the label",
            example: "photos",
        }],
        _ => &[],
    }
}

/// The longest value of a link's setting, bytes.
const MAX_SETTING: usize = 256;

/// Checks every link of an app.
pub(crate) fn check(app: &LockedApp, unknown: &Unknown, out: &mut Vec<Found>) {
    let mut seen = BTreeMap::new();
    for (index, link) in app.links.iter().enumerate() {
        if let Some(first) = seen.insert((&link.component, &link.contract, &link.label), index) {
            let message = format!(
                "component `{}` has two links of `{}` with the label `{}`",
                link.component, link.contract, link.label
            );
            let help = "give each link of a contract its own `label`, or remove one";
            out.push(Found {
                subject: Subject::Link(index),
                related: Some((Subject::Link(first), "the other link".to_owned())),
                violation: Violation::new(Code::LinkDuplicate, message).help(help),
            });
        }
        check_one(app, index, link, unknown, out);
    }
}

fn check_one(app: &LockedApp, index: usize, link: &Link, unknown: &Unknown, out: &mut Vec<Found>) {
    let Some(component) = app.components.get(&link.component) else {
        let message = format!(
            "a link of `{}` belongs to component `{}`, which the app does not have",
            link.contract, link.component
        );
        out.push(Found::at(Subject::Link(index), Violation::new(Code::LinkComponent, message).help("remove the link")));
        return;
    };
    if !offers::is_by_link(&link.contract) {
        out.push(Found::at(Subject::Link(index), not_by_link(link)));
        return;
    }
    check_provider(app, index, link, unknown, out);
    check_settings(index, link, out);
    let known = !unknown.artifacts.contains(&link.component);
    if known && !component.imports.iter().any(|import| import.contract == link.contract) {
        let message =
            format!("component `{}` does not import `{}`, so this link carries nothing", link.component, link.contract);
        out.push(Found::at(
            Subject::Link(index),
            Violation::new(Code::LinkUnused, message).help("remove the link, or build the component with the import"),
        ));
    }
}

fn not_by_link(link: &Link) -> Violation {
    let (contract, by_link) = (link.contract.to_string(), offers::contracts_by_link().collect::<Vec<_>>());
    if offers::OFFERS.iter().any(|o| o.contract == contract) {
        return Violation::new(
            Code::LinkNotOffered,
            format!("`{contract}` is there for every component and takes no link"),
        )
        .help("remove the link");
    }
    Violation::new(Code::LinkNotOffered, format!("no provider of this version answers `{}`", shown(&contract)))
        .help(suggest(&contract, &by_link, "contracts that go by link"))
}

fn check_provider(app: &LockedApp, index: usize, link: &Link, unknown: &Unknown, out: &mut Vec<Found>) {
    let answering = answering(app, &link.contract);
    let names: Vec<&str> = answering.iter().map(String::as_str).collect();
    match app.providers.get(&link.provider) {
        None if unknown.providers.contains(link.provider.as_str()) => {}
        None => {
            let message = format!(
                "component `{}` is linked to provider `{}`, which nobody declares",
                link.component, link.provider
            );
            let help = match crate::rules::nearest(link.provider.as_str(), names.iter().copied()) {
                Some(near) => {
                    format!("did you mean `{near}`? Otherwise declare it under `[providers.{}]`", link.provider)
                }
                None => format!("declare it under `[providers.{}]`, or use one of {}", link.provider, list(&names)),
            };
            out.push(Found::at(
                Subject::LinkProvider(index),
                Violation::new(Code::UnknownProvider, message).help(help),
            ));
        }
        Some(spec) if spec.kind.contract() != link.contract.to_string() => {
            let message = format!(
                "provider `{}` answers `{}`, and the link is for `{}`",
                link.provider,
                spec.kind.contract(),
                link.contract
            );
            let help = format!("use one of {}", list(&names));
            out.push(Found::at(
                Subject::LinkProvider(index),
                Violation::new(Code::ProviderContract, message).help(help),
            ));
        }
        Some(_) => {}
    }
}

fn check_settings(index: usize, link: &Link, out: &mut Vec<Found>) {
    let names: Vec<&str> = settings(&link.contract.to_string()).iter().map(|s| s.name).collect();
    for (key, value) in &link.config {
        if !names.contains(&key.as_str()) {
            let message = format!("a link of `{}` has no setting `{}`", link.contract, shown(key));
            let known: Vec<&str> = ["label", "provider"].into_iter().chain(names.iter().copied()).collect();
            let help = suggest(key, &known, "what it has");
            let subject = Subject::LinkKey(index, key.clone());
            out.push(Found::at(subject, Violation::new(Code::LinkSetting, message).help(help)));
        } else if value.is_empty() || value.len() > MAX_SETTING || value.chars().any(char::is_control) {
            let message = format!("the `{key}` of a link has 1 to {MAX_SETTING} characters and no control characters");
            let subject = Subject::LinkValue(index, key.clone());
            out.push(Found::at(subject, Violation::new(Code::LinkSetting, message).help("shorten or remove it")));
        }
    }
}
