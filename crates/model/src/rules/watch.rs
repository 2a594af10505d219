//! Links that watch their bucket: somebody is there to be called, and the provider's changes can be followed.

use crate::InterfaceId;
use crate::app::{Link, LockedApp};
use crate::rules::{Code, Found, Subject, Violation, callee, list};
use crate::watch::{CONTRACT, SETTING, export, kept};

/// A watched bucket of a component: what that writes, and where, is known only to whoever it writes to.
fn behind(app: &LockedApp, link: &Link, target: &str) -> Violation {
    let message = format!(
        "component `{}` is to be told of changes in a bucket of component `{target}`, which is called and tells nobody: \
         a change that it makes by itself, or that was made when its host ended, would never be told",
        link.component
    );
    let own = app.links.iter().filter(|own| own.component.as_str() == target && own.contract == link.contract);
    let own: Vec<&str> = own.map(|own| own.provider.as_str()).collect();
    let below = match own.is_empty() {
        true => format!("the provider that `{target}` writes to"),
        false => format!("{}, which `{target}` writes to", list(&own)),
    };
    let help = format!("remove `watch` here, and watch by a link of its own to {below}, under the keys it has there");
    Violation::new(Code::LinkWatch, message).help(help)
}

pub(super) fn check(app: &LockedApp, index: usize, link: &Link, exports: Option<&[InterfaceId]>, out: &mut Vec<Found>) {
    if link.contract.to_string() != CONTRACT || !link.config.contains_key(SETTING) {
        return;
    }
    if exports.is_some_and(|exports| export(exports).is_none()) {
        let message = format!(
            "component `{}` is to be told of changes and does not export `wasi:keyvalue/watcher@0.2.0-draft`",
            link.component
        );
        let help = "export it, or remove `watch` where the component only reads and writes";
        let subject = Subject::LinkValue(index, SETTING.to_owned());
        out.push(Found::at(subject, Violation::new(Code::LinkWatch, message).help(help)));
    }
    // One that nobody declares is another finding.
    let Some(spec) = app.providers.get(&link.provider) else { return };
    if let Some(target) = callee::component_of(spec) {
        out.push(Found::at(Subject::LinkProvider(index), behind(app, link, target)));
    } else if kept(spec.kind).is_none() {
        let message = format!(
            "provider `{}` is of type {}, whose changes this version does not follow",
            link.provider,
            spec.kind.as_str()
        );
        let help = "watch a bucket of `embedded`, `memory`, or of a provider of type keyvalue-nats, keyvalue-redis or keyvalue-consul, or remove `watch` from this link";
        let subject = Subject::LinkProvider(index);
        out.push(Found::at(subject, Violation::new(Code::LinkWatch, message).help(help)));
    }
}
