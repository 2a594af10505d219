//! Links that watch their bucket: somebody is there to be called, and the provider's changes can be followed.

use crate::InterfaceId;
use crate::app::{Link, LockedApp};
use crate::rules::{Code, Found, Subject, Violation};
use crate::watch::{CONTRACT, SETTING, export, kept};

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
    if kept(spec.kind).is_none() {
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
