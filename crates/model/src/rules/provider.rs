//! Providers: which settings each type has, and which values they take. No secret may stand in one, since settings are
//! part of the desired state, which is stored and shown.

use url::{Host, Url};

use crate::app::{LockedApp, ProviderKind, ProviderSpec};
use crate::interface::ContractId;
use crate::name::ProviderName;
use crate::rules::{Code, Found, Subject, Violation, list, shown, suggest};
use crate::tenant::TenantSettings;

/// One setting of a provider type or of a contract's links.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The key.
    pub name: &'static str,
    /// Whether it must be there.
    pub required: bool,
    /// What it is.
    pub doc: &'static str,
    /// A value that works.
    pub example: &'static str,
}

/// The settings of a provider type.
pub fn settings(kind: ProviderKind) -> &'static [Setting] {
    match kind {
        ProviderKind::KeyvalueMemory | ProviderKind::KeyvalueEmbedded => &[],
        ProviderKind::KeyvalueRedis => &[Setting {
            name: "url",
            required: true,
            doc: "where the server is: `redis://host[:port][/database]`, without a password",
            example: "redis://cache.internal.example:6379/0",
        }],
    }
}

/// The built-in provider of a name.
pub fn built_in(name: &str) -> Option<ProviderSpec> {
    let (_, kind) = ProviderKind::BUILT_IN.into_iter().find(|(n, _)| *n == name)?;
    Some(ProviderSpec { kind, config: std::collections::BTreeMap::new(), operator: false })
}

/// The names of the providers of `app` that answer `contract`, built-in ones first.
pub(crate) fn answering(app: &LockedApp, contract: &ContractId) -> Vec<String> {
    let contract = contract.to_string();
    let mut names: Vec<String> = ["embedded", "memory"]
        .into_iter()
        .filter(|name| built_in(name).is_some_and(|spec| spec.kind.contract() == contract))
        .map(str::to_owned)
        .collect();
    for (name, spec) in &app.providers {
        if spec.kind.contract() == contract && built_in(name.as_str()).is_none() {
            names.push(name.to_string());
        }
    }
    names
}

/// Checks every provider of an app.
pub(crate) fn check(app: &LockedApp, tenant: &TenantSettings, out: &mut Vec<Found>) {
    for (name, spec) in &app.providers {
        if !origin(name, spec, tenant, out) {
            continue;
        }
        check_settings(name, spec, out);
        if !spec.operator && built_in(name.as_str()).is_none() && !app.links.iter().any(|l| &l.provider == name) {
            let message = format!("provider `{name}` is declared, and no link names it");
            let help = format!(
                "link a component to it (`\"{}\" = \"{name}\"`), or remove `[providers.{name}]`",
                spec.kind.contract()
            );
            out.push(Found::at(
                Subject::Provider(name.clone()),
                Violation::new(Code::ProviderUnused, message).help(help),
            ));
        }
    }
}

/// Whose provider it is: a name has one meaning, and only the operator's own carry the operator's grant.
fn origin(name: &ProviderName, spec: &ProviderSpec, tenant: &TenantSettings, out: &mut Vec<Found>) -> bool {
    let subject = Subject::Provider(name.clone());
    let rename = format!("give it another name, for example `my-{name}`, or link to `{name}` without declaring it");
    let refused =
        |code, message: String, help: String| Found::at(subject.clone(), Violation::new(code, message).help(help));
    if let Some(own) = built_in(name.as_str()) {
        if *spec != own {
            out.push(refused(
                Code::ProviderName,
                format!("`{name}` is a built-in provider and cannot be declared"),
                rename,
            ));
            return false;
        }
        return true;
    }
    match tenant.providers.get(name) {
        Some(_) if !spec.operator => {
            let message = format!("`{name}` is a provider that the operator declares for this tenant");
            out.push(refused(Code::ProviderName, message, rename));
            false
        }
        Some(own) if own.kind != spec.kind || own.config != spec.config => {
            let message = format!("provider `{name}` is not as the operator declares it now");
            out.push(refused(Code::ProviderForged, message, "lock the app again".to_owned()));
            false
        }
        None if spec.operator => {
            let message = format!("provider `{name}` claims to be the operator's, who does not declare it");
            let help = "declare it in the app, or have the operator declare it for the tenant".to_owned();
            out.push(refused(Code::ProviderForged, message, help));
            false
        }
        _ => true,
    }
}

fn check_settings(name: &ProviderName, spec: &ProviderSpec, out: &mut Vec<Found>) {
    let (kind, known) = (spec.kind.as_str(), settings(spec.kind));
    let names: Vec<&str> = known.iter().map(|s| s.name).collect();
    for key in spec.config.keys().filter(|key| !names.contains(&key.as_str())) {
        let message = format!("provider `{name}` has a setting `{}` that `{kind}` does not know", shown(key));
        let help = if names.is_empty() {
            format!("`{kind}` has no settings: remove it")
        } else {
            suggest(key, &names, "its settings")
        };
        out.push(Found::at(
            Subject::ProviderKey(name.clone(), key.clone()),
            Violation::new(Code::ProviderSetting, message).help(help),
        ));
    }
    for setting in known.iter().filter(|s| s.required && !spec.config.contains_key(s.name)) {
        let message = format!("provider `{name}` of type `{kind}` has no `{}`", setting.name);
        let help = format!("add `{} = \"{}\"`, {}", setting.name, setting.example, setting.doc);
        out.push(Found::at(Subject::Provider(name.clone()), Violation::new(Code::ProviderSetting, message).help(help)));
    }
    if let (ProviderKind::KeyvalueRedis, Some(url)) = (spec.kind, spec.config.get("url"))
        && let Err(violation) = redis_url(url)
    {
        out.push(Found::at(Subject::ProviderValue(name.clone(), "url".to_owned()), violation));
    }
}

const REDIS_EXAMPLE: &str = "write it as `redis://host[:port][/database]`, for example `redis://127.0.0.1:6379/0`";

/// Checks the `url` of a Redis provider. The text of a URL that may hold a password is never repeated.
///
/// # Errors
/// `provider-secret` for a password, `provider-url` for everything else.
pub fn redis_url(text: &str) -> Result<(), Violation> {
    let bad = |why: &str| {
        Violation::new(Code::ProviderUrl, format!("the `url` of a `keyvalue-redis` provider {why}")).help(REDIS_EXAMPLE)
    };
    let url = Url::parse(text).map_err(|err| bad(&format!("is not a URL ({err})")))?;
    if url.password().is_some() || !url.username().is_empty() {
        let message = "the `url` of a provider holds a user name or password; settings are stored and shown, so secrets may not stand in them";
        let help = "remove everything between `//` and `@`; let the server accept this machine without a password, and guard it by network policy";
        return Err(Violation::new(Code::ProviderSecret, message).help(help));
    }
    match url.scheme() {
        "redis" => {}
        "rediss" => return Err(bad("uses `rediss`: TLS to Redis is not in this version")),
        other => return Err(bad(&format!("has the scheme `{}`", shown(other)))),
    }
    match url.host() {
        None => return Err(bad("names no host")),
        Some(Host::Domain("")) => return Err(bad("names no host")),
        Some(_) => {}
    }
    if url.port() == Some(0) {
        return Err(bad("has port 0"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has a `?` or `#` part, which would be ignored"));
    }
    let database = url.path().trim_start_matches('/');
    if !database.is_empty() && database.parse::<u16>().is_err() {
        return Err(bad(&format!("names the database `{}`, which is not a number", shown(database))));
    }
    Ok(())
}

/// Says what a wrong provider type was probably meant to be.
pub(crate) fn unknown_kind(written: &str) -> Violation {
    let known: Vec<&str> = ProviderKind::ALL.iter().map(|k| k.as_str()).collect();
    let help = match crate::rules::nearest(written, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => match known.iter().find(|k| k.ends_with(&format!("-{written}"))) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the types are {}", list(&known)),
        },
    };
    Violation::new(Code::ProviderType, format!("`{}` is not a provider type", shown(written))).help(help)
}
