//! Links to other components of the app: the target is there, exports what is imported in a version that agrees, and no
//! component ends up calling itself.

use std::collections::BTreeMap;

use crate::app::{Link, LockedApp, ProviderKind, ProviderSpec};
use crate::interface::{ContractId, InterfaceId};
use crate::name::{ComponentName, ProviderName};
use crate::offers;
use crate::rules::{Code, Found, Subject, Unknown, Violation, list, shown, suggest};

/// The setting of a component provider that names the component.
pub const COMPONENT: &str = "component";
/// The contracts of the platform that a component can answer in the place of a provider; any other interface is called
/// directly.
pub const ANSWERED: &[&str] = &[
    "wasi:keyvalue",
    "wasi:blobstore",
    crate::messaging::CONTRACT,
    crate::secret::CONTRACT,
    crate::sql::CONTRACT,
    crate::sql::POSTGRES,
];
/// Interfaces of these that have types and no functions: a component imports them and need not export them.
const TYPES_ONLY: &[(&str, &str)] =
    &[(crate::messaging::CONTRACT, "types"), (crate::sql::CONTRACT, "types"), (crate::sql::POSTGRES, "types")];
/// Components that may call one another in a row.
pub const MAX_CALL_DEPTH: u32 = 16;

/// Whether a component can answer a contract.
pub(crate) fn answers(contract: &ContractId) -> bool {
    !offers::is_by_link(contract) || ANSWERED.contains(&contract.to_string().as_str())
}

/// The provider that a link to `component` goes to.
pub fn provider(component: &str) -> ProviderSpec {
    let config = BTreeMap::from([(COMPONENT.to_owned(), component.to_owned())]);
    ProviderSpec { config, ..ProviderSpec::new(ProviderKind::Component) }
}

/// The component behind a link, where it goes to one.
pub fn target<'a>(app: &'a LockedApp, link: &Link) -> Option<&'a str> {
    component_of(app.providers.get(&link.provider)?)
}

/// The component behind a provider, where it is one.
pub fn component_of(spec: &ProviderSpec) -> Option<&str> {
    (spec.kind == ProviderKind::Component).then(|| spec.config.get(COMPONENT).map(String::as_str))?
}

/// Whether what is exported as `export` serves what is imported as `import`: the same interface, and a version of the
/// same track that is not older.
pub fn agrees(import: &InterfaceId, export: &InterfaceId) -> bool {
    if (&import.contract, &import.interface) != (&export.contract, &export.interface) {
        return false;
    }
    match (&import.version, &export.version) {
        (None, None) => true,
        (Some(import), Some(export)) if import.pre.is_empty() && export.pre.is_empty() => {
            let track = |v: &semver::Version| match (v.major, v.minor) {
                (0, 0) => (0, 0, v.patch),
                (0, minor) => (0, minor, 0),
                (major, _) => (major, 0, 0),
            };
            track(import) == track(export) && export >= import
        }
        (import, export) => import == export,
    }
}

/// The components of `app` that export what is imported as `import`.
pub(crate) fn exporters(app: &LockedApp, import: &InterfaceId) -> Vec<String> {
    let exports = app.components.iter().filter(|(_, c)| c.exports.iter().any(|export| agrees(import, export)));
    exports.map(|(name, _)| name.to_string()).collect()
}

/// What is wrong with a link that goes to a component. Which imports it serves is [`unserved`]'s to say.
pub(crate) fn check_link(app: &LockedApp, index: usize, link: &Link, out: &mut Vec<Found>) {
    let contract = link.contract.to_string();
    if !offers::is_by_link(&link.contract) && link.label != crate::Label::default_label() {
        let message = format!("a link of `{contract}` to a component has no label");
        let help = "remove `label`: labels are for contracts of the platform that have buckets or containers";
        out.push(Found::at(Subject::Link(index), Violation::new(Code::LinkSetting, message).help(help)));
    }
    let Some(target) = target(app, link) else { return };
    if target == link.component.as_str() {
        let message = format!("component `{target}` is linked to itself");
        let help = "link it to another component, or call the function directly";
        out.push(Found::at(Subject::LinkProvider(index), Violation::new(Code::CalleeCycle, message).help(help)));
    }
}

/// Checks the component that a provider names.
pub(crate) fn check_provider(
    app: &LockedApp,
    name: &ProviderName,
    target: &str,
    unknown: &Unknown,
    out: &mut Vec<Found>,
) {
    if app.components.keys().any(|known| known.as_str() == target) || unknown.components.contains(target) {
        return;
    }
    let names: Vec<&str> = app.components.keys().map(ComponentName::as_str).collect();
    let missing = |what: &str| {
        let message = format!("{what} component `{}`, which the app does not have", shown(target));
        Violation::new(Code::CalleeUnknown, message).help(suggest(target, &names, "its components"))
    };
    // Where no table declares it, a link says it: there the mistake is to be seen.
    match app.links.iter().position(|link| &link.provider == name) {
        Some(index) if name.as_str() == target => {
            out.push(Found::at(Subject::LinkProvider(index), missing("the link goes to")));
        }
        _ => {
            let subject = Subject::ProviderValue(name.clone(), COMPONENT.to_owned());
            out.push(Found::at(subject, missing(&format!("provider `{name}` is"))));
        }
    }
}

/// Why a link of `component` that goes to another component does not serve `import`; `None` where it does, or where it
/// cannot be known.
pub(crate) fn unserved(
    app: &LockedApp,
    component: &ComponentName,
    import: &InterfaceId,
    target: &str,
    unknown: &Unknown,
) -> Option<Violation> {
    let (name, callee) = app.components.iter().find(|(name, _)| name.as_str() == target)?;
    let contract = import.contract.to_string();
    if TYPES_ONLY.contains(&(contract.as_str(), import.interface.as_str())) {
        return None;
    }
    if unknown.artifacts.contains(name) || callee.exports.iter().any(|export| agrees(import, export)) {
        return None;
    }
    let message = format!("component `{component}` imports `{}` from component `{name}`", shown(&import.to_string()));
    let others = callee.exports.iter();
    let others = others.filter(|e| (&e.contract, &e.interface) == (&import.contract, &import.interface));
    let versions: Vec<String> = others.map(ToString::to_string).collect();
    let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
    Some(if versions.is_empty() {
        let exports: Vec<String> = callee.exports.iter().map(ToString::to_string).collect();
        let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
        let help = match exports.is_empty() {
            true => format!("`{name}` exports no interface; link to a component that exports it"),
            false => format!("`{name}` exports {}; link to a component that exports it", list(&exports)),
        };
        Violation::new(Code::CalleeExport, format!("{message}, which does not export it")).help(help)
    } else {
        let help = "rebuild one of the two: the export must be of the same track and not older than the import";
        Violation::new(Code::CalleeExport, format!("{message}, which exports {}", list(&versions))).help(help)
    })
}

/// Finds components that call themselves by way of others, and rows of calls that are too long.
pub(crate) fn check_depth(app: &LockedApp, out: &mut Vec<Found>) {
    let mut edges: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    for (index, link) in app.links.iter().enumerate() {
        if let Some(target) = target(app, link).filter(|target| *target != link.component.as_str()) {
            edges.entry(link.component.as_str()).or_default().push((index, target));
        }
    }
    let mut depth: BTreeMap<&str, u32> = BTreeMap::new();
    for start in edges.keys() {
        let mut path = vec![*start];
        if let Some((index, violation)) = walk(&edges, &mut path, &mut depth) {
            // One circle is found from each component in it: said once.
            out.push(Found::at(Subject::LinkProvider(index), violation));
            return;
        }
    }
}

/// How many components stand below the last of `path`, in `depth`; or the link that makes it too many.
fn walk<'a>(
    edges: &BTreeMap<&'a str, Vec<(usize, &'a str)>>,
    path: &mut Vec<&'a str>,
    depth: &mut BTreeMap<&'a str, u32>,
) -> Option<(usize, Violation)> {
    let at = *path.last()?;
    if depth.contains_key(at) {
        return None;
    }
    let mut most = 1;
    for (index, next) in edges.get(at).into_iter().flatten() {
        if path.contains(next) {
            let from = path.iter().skip_while(|name| *name != next);
            let names: Vec<String> = from.chain([next]).map(|name| format!("`{name}`")).collect();
            let message = format!("components call one another in a circle: {}", names.join(" to "));
            let help = "take one of these links away; what both need can be a third component";
            return Some((*index, Violation::new(Code::CalleeCycle, message).help(help)));
        }
        path.push(next);
        let found = walk(edges, path, depth);
        path.pop();
        if found.is_some() {
            return found;
        }
        most = most.max(depth.get(next).copied().unwrap_or(1) + 1);
        if most > MAX_CALL_DEPTH {
            let message = format!("more than {MAX_CALL_DEPTH} components call one another in a row, from `{at}` on");
            let help = "let fewer components stand between the first and the last";
            return Some((*index, Violation::new(Code::CalleeCycle, message).help(help)));
        }
    }
    depth.insert(at, most);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_serves_its_track() {
        let serves = |import: &str, export: &str| agrees(&import.parse().unwrap(), &export.parse().unwrap());
        for (import, export) in [
            ("a:b/c", "a:b/c"),
            ("a:b/c@1.0.0", "a:b/c@1.0.0"),
            ("a:b/c@1.0.0", "a:b/c@1.9.2"),
            ("a:b/c@0.2.1", "a:b/c@0.2.3"),
            ("a:b/c@0.2.0-draft", "a:b/c@0.2.0-draft"),
        ] {
            assert!(serves(import, export), "{import} {export}");
        }
        for (import, export) in [
            ("a:b/c", "a:b/c@1.0.0"),
            ("a:b/c@1.2.0", "a:b/c@1.0.0"),
            ("a:b/c@1.0.0", "a:b/c@2.0.0"),
            ("a:b/c@0.1.0", "a:b/c@0.2.0"),
            ("a:b/c@0.0.1", "a:b/c@0.0.2"),
            ("a:b/c@0.2.0-draft", "a:b/c@0.2.0"),
            ("a:b/c", "a:b/d"),
            ("a:b/c", "a:x/c"),
        ] {
            assert!(!serves(import, export), "{import} {export}");
        }
    }
}
