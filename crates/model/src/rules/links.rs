//! Links: each one from a component that exists, for a contract that goes by link, to a provider that answers it.

use std::collections::BTreeMap;

use crate::app::{Link, LockedApp, ProviderKind};
use crate::messaging::{self, Subscription};
use crate::name::{Label, SecretName};
use crate::offers;
use crate::rules::provider::{Setting, answering};
use crate::rules::watch as rules_watch;
use crate::rules::{Code, Found, Subject, Unknown, Violation, callee, list, shown, suggest};
use crate::secret::{self, SecretField};
use crate::watch;

/// The settings of a link of a contract.
pub fn settings(contract: &str) -> &'static [Setting] {
    match contract {
        "wasi:keyvalue" => &[
            Setting {
                name: "bucket",
                required: false,
                doc: "the bucket in the provider, where it differs from the label",
                example: "sessions",
            },
            Setting {
                name: watch::SETTING,
                required: false,
                doc: "keys of whose changes the component is told: a key, or the beginning of keys and `*`",
                example: "orders/*",
            },
        ],
        "wasi:blobstore" => &[Setting {
            name: "container",
            required: false,
            doc: "the container in the provider, where it differs from the label",
            example: "photos",
        }],
        messaging::CONTRACT => &[
            Setting {
                name: "subscriptions",
                required: false,
                doc: "subjects of the messages the component takes: a list; `*` stands for one token, a last `>` for all that follow",
                example: "orders.new",
            },
            Setting {
                name: "queue-group",
                required: false,
                doc: "links of the app with the same group share their messages; a group of its own where absent",
                example: "workers",
            },
            Setting {
                name: "max-tries",
                required: false,
                doc: "how often a message is handed to the component before it is put away, 1 to 100; 5 where absent",
                example: "5",
            },
            Setting {
                name: "max-in-flight",
                required: false,
                doc: "messages one host handles at once, 1 to 256; 16 where absent",
                example: "16",
            },
        ],
        crate::secret::CONTRACT => &[
            Setting {
                name: "secret",
                required: false,
                doc: "the secret of the tenant, where it is not named like the label",
                example: "stripe-key",
            },
            Setting {
                name: "key",
                required: false,
                doc: "the key the component asks for, where it is not the label",
                example: "STRIPE_KEY",
            },
            Setting {
                name: "field",
                required: false,
                doc: "which field of a secret that has several, where the provider is one of Vault; `value`, or the only one, where absent",
                example: "password",
            },
        ],
        _ => &[],
    }
}

/// Settings of links that may be written as a list of texts; kept as one text with commas.
pub(crate) const LISTS: [&str; 1] = ["subscriptions"];

/// The longest value of a link's setting, bytes.
const MAX_SETTING: usize = 256;
/// As [`MAX_SETTING`], for one that is a list.
const MAX_LIST: usize = messaging::MAX_PATTERNS * (messaging::MAX_SUBJECT + 2);

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
    check_groups(app, out);
}

/// Members of a queue group are interchangeable: what one of them would not get, the group must not take.
fn check_groups(app: &LockedApp, out: &mut Vec<Found>) {
    let mut first: BTreeMap<messaging::Group, (usize, Subscription)> = BTreeMap::new();
    for (index, link) in app.links.iter().enumerate().filter(|(_, l)| l.contract.to_string() == messaging::CONTRACT) {
        let Ok(Some(subscription)) = Subscription::of(&app.name, link) else { continue };
        let Some((other, known)) = first.get(&subscription.group) else {
            first.insert(subscription.group.clone(), (index, subscription));
            continue;
        };
        let same_provider = app.links.get(*other).is_some_and(|other| other.provider == link.provider);
        if known.patterns == subscription.patterns && known.tries == subscription.tries && same_provider {
            continue;
        }
        let message = format!(
            "two links share the queue group `{}` and differ in `subscriptions`, `max-tries` or provider",
            subscription.group.name
        );
        let help = "write the same for both, or give each a group of its own";
        out.push(Found {
            subject: Subject::LinkValue(index, "queue-group".to_owned()),
            related: Some((Subject::Link(*other), "the other link".to_owned())),
            violation: Violation::new(Code::LinkSubscription, message).help(help),
        });
    }
}

/// What a messaging link takes, and that somebody is there to take it.
fn check_subscription(
    app: &LockedApp,
    index: usize,
    link: &Link,
    exports: Option<&[crate::InterfaceId]>,
    out: &mut Vec<Found>,
) {
    let at = |setting: &str, violation| Found::at(Subject::LinkValue(index, setting.to_owned()), violation);
    match Subscription::of(&app.name, link) {
        Err((setting, cause)) => {
            let known = settings(messaging::CONTRACT).iter().find(|s| s.name == setting);
            let help = known
                .map_or_else(String::new, |s| format!("`{}` is {}; for example `\"{}\"`", s.name, s.doc, s.example));
            out.push(at(setting, Violation::new(Code::LinkSubscription, cause.to_string()).help(help)));
        }
        Ok(Some(_)) if callee::target(app, link).is_some() => {
            let message = format!(
                "component `{}` is to take messages of component `{}`, by which others send and which brings none",
                link.component,
                callee::target(app, link).unwrap_or_default()
            );
            let help = "take them by a link of its own to a broker, and remove `subscriptions` here";
            out.push(at("subscriptions", Violation::new(Code::LinkSubscription, message).help(help)));
        }
        Ok(Some(_)) if exports.is_some_and(|exports| !exports.iter().any(offers::is_message_handler)) => {
            let message = format!(
                "component `{}` is to take messages and does not export `wasmcloud:messaging/handler@0.2.0`",
                link.component
            );
            let help = "export the handler, or remove `subscriptions` where the component only sends";
            out.push(at("subscriptions", Violation::new(Code::LinkSubscription, message).help(help)));
        }
        Ok(_) => {}
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
    let to_component = callee::target(app, link).is_some();
    if to_component {
        callee::check_link(app, index, link, out);
    }
    if !offers::is_by_link(&link.contract) && (!to_component || is_free(link)) {
        out.push(Found::at(Subject::Link(index), not_by_link(link)));
        return;
    }
    check_provider(app, index, link, unknown, out);
    check_settings(index, link, out);
    check_secret(app, index, link, out);
    let known = !unknown.artifacts.contains(&link.component);
    rules_watch::check(app, index, link, known.then_some(component.exports.as_slice()), out);
    if link.contract.to_string() == messaging::CONTRACT {
        check_subscription(app, index, link, known.then_some(component.exports.as_slice()), out);
    }
    let uses = |interfaces: &[crate::InterfaceId]| interfaces.iter().any(|one| one.contract == link.contract);
    if known && !uses(&component.imports) && !uses(&component.exports) {
        let message =
            format!("component `{}` does not import `{}`, so this link carries nothing", link.component, link.contract);
        out.push(Found::at(
            Subject::Link(index),
            Violation::new(Code::LinkUnused, message).help("remove the link, or build the component with the import"),
        ));
    }
}

/// Whether every component has the contract without a link.
fn is_free(link: &Link) -> bool {
    let contract = link.contract.to_string();
    offers::OFFERS.iter().any(|o| o.contract == contract && !o.by_link)
}

fn not_by_link(link: &Link) -> Violation {
    let (contract, by_link) = (link.contract.to_string(), offers::contracts_by_link().collect::<Vec<_>>());
    if is_free(link) {
        return Violation::new(
            Code::LinkNotOffered,
            format!("`{contract}` is there for every component and takes no link"),
        )
        .help("remove the link");
    }
    let help = match crate::rules::nearest(&contract, by_link.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "contracts that go by link: {}; another component of the app can answer it: `{{ component = \"<name>\" }}`",
            list(&by_link)
        ),
    };
    Violation::new(Code::LinkNotOffered, format!("no provider of this version answers `{}`", shown(&contract)))
        .help(help)
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
        Some(spec) if !spec.answers(&link.contract) => {
            let contract = &link.contract;
            let message = match callee::component_of(spec) {
                Some(target) => format!(
                    "component `{target}` cannot answer `{contract}`: of the platform's contracts components answer {}",
                    list(callee::ANSWERED)
                ),
                None => format!(
                    "provider `{}` answers {}, and the link is for `{contract}`",
                    link.provider,
                    list(spec.contracts()),
                ),
            };
            let help = match names.as_slice() {
                [] => declare(&link.contract),
                names => format!("use one of {}", list(names)),
            };
            out.push(Found::at(
                Subject::LinkProvider(index),
                Violation::new(Code::ProviderContract, message).help(help),
            ));
        }
        Some(_) => {}
    }
}

/// The types of provider that could be declared for a contract that nothing declared answers.
pub(crate) fn declare(contract: &crate::ContractId) -> String {
    let own = |kind: &ProviderKind| *kind != ProviderKind::Component && kind.answers(contract);
    let kinds: Vec<&str> = ProviderKind::ALL.into_iter().filter(own).map(ProviderKind::as_str).collect();
    format!("declare a provider of type {} under `[providers.<name>]`, and link to that one", list(&kinds))
}

/// Each link of secrets names one secret, under a key that no other of the component has.
fn check_secret(app: &LockedApp, index: usize, link: &Link, out: &mut Vec<Found>) {
    if link.contract.to_string() != secret::CONTRACT {
        return;
    }
    let named = link.config.get("secret");
    if link.label == Label::default_label() && named.is_none() {
        let message = format!("component `{}` is linked to secrets, and the link names none", link.component);
        let help = format!("name each it may see: `{{ provider = \"{}\", label = \"stripe-key\" }}`", link.provider);
        out.push(Found::at(Subject::Link(index), Violation::new(Code::LinkSetting, message).help(help)));
    } else if let Some(named) = named
        && named.parse::<SecretName>().is_err()
    {
        // It may be the secret itself: not repeated.
        let message = "this is not the name of a secret: 1 to 40 characters of a-z, 0-9 and inner hyphens";
        let help = "write the name under which it was kept with `sidereal secret set NAME`";
        let subject = Subject::LinkValue(index, "secret".to_owned());
        out.push(Found::at(subject, Violation::new(Code::LinkSetting, message).help(help)));
    }
    if let Some(written) = link.config.get("field") {
        let bad = match written.parse::<SecretField>() {
            Err(cause) => Some(cause.to_string()),
            Ok(_)
                if matches!(
                    secret::kind_of(app, &link.provider),
                    Some(ProviderKind::SecretsEmbedded | ProviderKind::Component)
                ) =>
            {
                Some(format!("secrets of `{}` have one value and no fields", link.provider))
            }
            Ok(_) => None,
        };
        if let Some(message) = bad {
            let help = "remove `field`, or write the name of the field as the secret in Vault has it";
            let subject = Subject::LinkValue(index, "field".to_owned());
            out.push(Found::at(subject, Violation::new(Code::LinkSetting, message).help(help)));
        }
    }
    let Some((key, _)) = secret::of_link(link) else { return };
    let same = |other: &&Link| {
        other.component == link.component
            && other.label != link.label
            && secret::of_link(other).is_some_and(|(theirs, _)| theirs == key)
    };
    if let Some(first) = app.links.iter().take(index).find(same) {
        let message = format!("two links of component `{}` give a secret for the key `{}`", link.component, shown(key));
        let help = format!("give this one or `{}` another `key`", first.label);
        out.push(Found::at(Subject::Link(index), Violation::new(Code::LinkDuplicate, message).help(help)));
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
            continue;
        }
        let longest = if LISTS.contains(&key.as_str()) { MAX_LIST } else { MAX_SETTING };
        if value.is_empty() || value.len() > longest || value.chars().any(char::is_control) {
            let message = format!("the `{key}` of a link has 1 to {longest} characters and no control characters");
            let subject = Subject::LinkValue(index, key.clone());
            out.push(Found::at(subject, Violation::new(Code::LinkSetting, message).help("shorten or remove it")));
        }
    }
}
