//! Imports: each one offered in its version and, where its contract goes by link, linked.

use std::collections::{BTreeMap, BTreeSet};

use crate::app::LockedApp;
use crate::interface::{ContractId, InterfaceId};
use crate::name::ComponentName;
use crate::offers::{self, Lookup};
use crate::rules::provider::answering;
use crate::rules::{Code, Found, Subject, Unknown, Violation, callee, links, list, shown};

/// Checks the imports of one component.
pub(crate) fn check(
    app: &LockedApp,
    name: &ComponentName,
    imports: &[InterfaceId],
    unknown: &Unknown,
    out: &mut Vec<Found>,
) {
    // By contract, so that imports of other interfaces of it are asked of the same component.
    let callees: BTreeMap<&ContractId, &str> = app
        .links
        .iter()
        .filter(|link| &link.component == name)
        .filter_map(|link| Some((&link.contract, callee::target(app, link)?)))
        .collect();
    let linked: BTreeSet<&ContractId> =
        app.links.iter().filter(|link| &link.component == name).map(|link| &link.contract).collect();
    let mut unlinked: Vec<&InterfaceId> = Vec::new();
    for import in imports {
        let found = offers::lookup(import);
        if let (Some(target), false) =
            (callees.get(&import.contract), matches!(found, Lookup::Offered { by_link: false }))
        {
            out.extend(callee::unserved(app, name, import, target, unknown).map(|violation| at(name, violation)));
            // Of a contract of the platform the version is the platform's too: it stands between the two.
            if !offers::is_by_link(&import.contract) {
                continue;
            }
        }
        match found {
            Lookup::Offered { by_link: true }
                if !linked.contains(&import.contract) && !unknown.links.contains(name) =>
            {
                unlinked.push(import);
            }
            Lookup::Offered { .. } => {}
            Lookup::OtherVersion(offered) => {
                let versions: Vec<String> = offers::versions(import).iter().map(ToString::to_string).collect();
                let message = format!(
                    "component `{name}` imports `{}`; the platform offers `{}/{}` in version {}",
                    shown(&import.to_string()),
                    import.contract,
                    import.interface,
                    versions.join(" or ")
                );
                let help = format!("rebuild the component against `{}@{offered}`", import.contract);
                out.push(at(name, Violation::new(Code::ImportVersion, message).help(help)));
            }
            Lookup::Unknown if !callee::exporters(app, import).is_empty() => {
                let siblings = callee::exporters(app, import);
                let names: Vec<&str> = siblings.iter().map(String::as_str).collect();
                let message = format!(
                    "component `{name}` imports `{}`, which {} of the app exports, and no link says so",
                    shown(&import.to_string()),
                    list(&names)
                );
                let first = names.first().copied().unwrap_or_default();
                let help = format!(
                    "add `\"{}\" = {{ component = \"{first}\" }}` under `[components.{name}.links]`",
                    import.contract
                );
                out.push(at(name, Violation::new(Code::ImportNotLinked, message).help(help)));
            }
            // The link could not be read; it has a finding of its own.
            Lookup::Unknown if unknown.links.contains(name) && !offers::is_known(&import.contract) => {}
            Lookup::Unknown => {
                let message = format!(
                    "component `{name}` imports `{}`, which this version of the platform does not offer",
                    shown(&import.to_string())
                );
                let help = match offers::nearest_interface(import) {
                    Some(near) => {
                        format!("the nearest offered interface is `{near}`; rebuild the component without this import")
                    }
                    None => {
                        "rebuild the component without this import; `docs/manifest.md` lists what is offered".to_owned()
                    }
                };
                out.push(at(name, Violation::new(Code::ImportNotOffered, message).help(help)));
            }
        }
    }
    // One finding per contract: one link carries all its interfaces.
    let contracts: BTreeSet<&ContractId> = unlinked.iter().map(|import| &import.contract).collect();
    for contract in contracts {
        let imports: Vec<String> = unlinked.iter().filter(|i| &i.contract == contract).map(|i| i.to_string()).collect();
        let names: Vec<&str> = imports.iter().map(String::as_str).collect();
        let message = format!(
            "component `{name}` imports {}, and no link says which provider answers `{contract}`",
            list(&names)
        );
        let providers = answering(app, contract);
        let names: Vec<&str> = providers.iter().map(String::as_str).collect();
        let help = match names.as_slice() {
            [] => links::declare(contract),
            [first, ..] => format!(
                "add `\"{contract}\" = \"{first}\"` under `[components.{name}.links]`; providers of it: {}",
                list(&names)
            ),
        };
        out.push(at(name, Violation::new(Code::ImportNotLinked, message).help(help)));
    }
}

fn at(name: &ComponentName, violation: Violation) -> Found {
    Found::at(Subject::Artifact(name.clone()), violation)
}
