//! Providers: which settings each type has, and which values they take. No secret may stand in one, since settings are
//! part of the desired state, which is stored and shown.

use url::{Host, Url};

use crate::app::{LockedApp, ProviderKind, ProviderSpec};
use crate::interface::ContractId;
use crate::name::ProviderName;
use crate::rules::external;
use crate::rules::http_server;
use crate::rules::nats;
use crate::rules::{Code, Found, Subject, Unknown, Violation, callee, list, postgres, shown, source, suggest};
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
        ProviderKind::KeyvalueMemory
        | ProviderKind::KeyvalueEmbedded
        | ProviderKind::BlobstoreFolder
        | ProviderKind::MessagingLocal
        | ProviderKind::MessagingDurable
        | ProviderKind::SecretsEmbedded
        | ProviderKind::SqlSqlite => &[],
        ProviderKind::SqlPostgres => postgres::SETTINGS,
        ProviderKind::MessagingNats => &[nats::URL, USERNAME],
        ProviderKind::MessagingJetstream => &[
            nats::URL,
            USERNAME,
            nats::STREAM,
            nats::SUBJECTS,
            nats::RETENTION,
            nats::MAX_AGE,
            nats::MAX_BYTES,
            nats::DELIVER,
            nats::REPLICAS,
            nats::DOMAIN,
        ],
        ProviderKind::Component => &[Setting {
            name: crate::rules::callee::COMPONENT,
            required: true,
            doc: "the component of the app that answers",
            example: "prefixer",
        }],
        ProviderKind::BlobstoreS3 => &[
            Setting {
                name: "url",
                required: true,
                doc: "where the server is: `http[s]://host[:port]`, without the bucket",
                example: "https://s3.eu-central-1.amazonaws.com",
            },
            Setting { name: "bucket", required: true, doc: "the bucket, which must exist", example: "acme-objects" },
            Setting {
                name: "region",
                required: false,
                doc: "the region requests are signed for; `us-east-1` where absent",
                example: "eu-central-1",
            },
            CA,
            ACCESS_KEY,
        ],
        ProviderKind::KeyvalueRedis => &[
            Setting {
                name: "url",
                required: true,
                doc: "where the server is: `redis://host[:port][/database]`, or `rediss://` for TLS, without a password",
                example: "redis://cache.internal.example:6379/0",
            },
            CA,
            USERNAME,
        ],
        ProviderKind::KeyvalueVault => http_server::VAULT,
        ProviderKind::SecretsVault => http_server::VAULT_STORE,
        ProviderKind::KeyvalueConsul => http_server::CONSUL,
        ProviderKind::KeyvalueNats | ProviderKind::BlobstoreNats => {
            &[nats::URL, USERNAME, nats::REPLICAS, nats::DOMAIN]
        }
        ProviderKind::External => external::SETTINGS,
    }
}

/// The settings of a provider type that take a reference to a secret, `{ secret = "NAME" }`. One that [`settings`] has
/// too takes either.
pub fn secret_settings(kind: ProviderKind) -> &'static [Setting] {
    match kind {
        ProviderKind::KeyvalueMemory
        | ProviderKind::KeyvalueEmbedded
        | ProviderKind::BlobstoreFolder
        | ProviderKind::MessagingLocal
        | ProviderKind::MessagingDurable
        | ProviderKind::SecretsEmbedded
        // Its program's settings are of its own choice.
        | ProviderKind::External
        | ProviderKind::SqlSqlite
        | ProviderKind::Component => &[],
        ProviderKind::SqlPostgres => postgres::SECRETS,
        ProviderKind::BlobstoreS3 => &[ACCESS_KEY, SECRET_KEY, SESSION_TOKEN],
        ProviderKind::KeyvalueRedis => &[PASSWORD, USERNAME],
        ProviderKind::KeyvalueVault | ProviderKind::SecretsVault => http_server::VAULT_SECRETS,
        ProviderKind::KeyvalueConsul => http_server::CONSUL_SECRETS,
        ProviderKind::KeyvalueNats
        | ProviderKind::BlobstoreNats
        | ProviderKind::MessagingNats
        | ProviderKind::MessagingJetstream => &[PASSWORD, USERNAME, nats::TOKEN, nats::NKEY, nats::CREDENTIALS],
    }
}

const CA: Setting = Setting {
    name: "ca",
    required: false,
    doc: "certificates in PEM that alone are believed; the public authorities where absent",
    example: "-----BEGIN CERTIFICATE-----…",
};

const ACCESS_KEY: Setting = Setting {
    name: "access-key-id",
    required: true,
    doc: "the name of the access key, a text or a secret",
    example: "AKIAIOSFODNN7EXAMPLE",
};

const SECRET_KEY: Setting = Setting {
    name: "secret-access-key",
    required: true,
    doc: "the access key itself, always a secret",
    example: "s3-access-key",
};

const SESSION_TOKEN: Setting = Setting {
    name: "session-token",
    required: false,
    doc: "the token of a temporary access key, always a secret",
    example: "s3-session-token",
};

const USERNAME: Setting = Setting {
    name: "username",
    required: false,
    doc: "the user to log in as, a text or a secret; the server's default user where absent",
    example: "shop",
};

pub(crate) const PASSWORD: Setting =
    Setting { name: "password", required: false, doc: "the password, always a secret", example: "cache-password" };

/// The names of settings that hold secrets only, of all types: a text under one of them is a mistake and must not be
/// shown.
pub(crate) fn hidden_settings() -> std::collections::BTreeSet<&'static str> {
    let only = |kind: ProviderKind| {
        let texts = settings(kind);
        secret_settings(kind).iter().map(|s| s.name).filter(move |name| texts.iter().all(|s| s.name != *name))
    };
    ProviderKind::ALL.into_iter().flat_map(only).collect()
}

/// Everything that is wrong with the settings of one provider.
pub fn problems(name: &ProviderName, spec: &ProviderSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    check_settings(name, spec, &mut found);
    found.into_iter().map(|found| found.violation).collect()
}

/// The built-in provider of a name.
pub fn built_in(name: &str) -> Option<ProviderSpec> {
    let (_, kind) = ProviderKind::BUILT_IN.into_iter().find(|(n, _)| *n == name)?;
    Some(ProviderSpec::new(kind))
}

/// The names of the providers of `app` that answer `contract`, built-in ones first.
pub(crate) fn answering(app: &LockedApp, contract: &ContractId) -> Vec<String> {
    let contract = contract.to_string();
    let mut names: Vec<String> = ProviderKind::BUILT_IN
        .into_iter()
        .filter(|(_, kind)| kind.contracts().contains(&contract.as_str()))
        .map(|(name, _)| name.to_owned())
        .collect();
    for (name, spec) in &app.providers {
        if spec.contracts().contains(&contract.as_str()) && built_in(name.as_str()).is_none() {
            names.push(name.to_string());
        }
    }
    names
}

/// Checks every provider of an app.
pub(crate) fn check(app: &LockedApp, unknown: &Unknown, tenant: &TenantSettings, out: &mut Vec<Found>) {
    for (name, spec) in &app.providers {
        if !origin(name, spec, tenant, out) {
            continue;
        }
        check_settings(name, spec, out);
        source::check(app, name, spec, unknown, out);
        if let Some(target) = callee::component_of(spec) {
            callee::check_provider(app, name, target, unknown, out);
        }
        let used = || app.links.iter().any(|l| &l.provider == name) || source::is_named(app, name);
        if !spec.operator && built_in(name.as_str()).is_none() && !used() {
            let message = format!("provider `{name}` is declared, and no link names it");
            let contract = match spec.kind {
                ProviderKind::Component => "<contract>",
                _ => spec.contracts().first().copied().unwrap_or("<contract>"),
            };
            let help =
                format!("link a component to it (`\"{contract}\" = \"{name}\"`), or remove `[providers.{name}]`");
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
        Some(own) if own.kind != spec.kind || own.config != spec.config || own.secrets != spec.secrets => {
            let message = format!("provider `{name}` is not as the operator declares it now");
            out.push(refused(Code::ProviderForged, message, "`sidereal deploy` takes the provider as it is now; an app that has it is deployed anew by itself when the operator changes it".to_owned()));
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
    let (kind, texts, secrets) = (spec.kind.as_str(), settings(spec.kind), secret_settings(spec.kind));
    let has = |settings: &[Setting], key: &str| settings.iter().any(|s| s.name == key);
    let key = |key: &str| Subject::ProviderKey(name.clone(), key.to_owned());
    let value = |key: &str| Subject::ProviderValue(name.clone(), key.to_owned());
    let own = |written: &str| spec.kind == ProviderKind::External && external::is_own(written);
    for written in spec.config.keys().filter(|written| !has(texts, written) && !own(written)) {
        out.push(match has(secrets, written) {
            true => Found::at(value(written), plain_text(name, written)),
            false => Found::at(key(written), unknown_setting(name, spec.kind, written)),
        });
    }
    for written in spec.secrets.keys().filter(|written| !has(secrets, written) && !own(written)) {
        out.push(match has(texts, written) {
            true => {
                let message = format!("the `{written}` of provider `{name}` is a text, and not a secret");
                let help = format!("write `{written} = \"{}\"`", example(texts, written));
                Found::at(value(written), Violation::new(Code::ProviderSetting, message).help(help))
            }
            false => Found::at(key(written), unknown_setting(name, spec.kind, written)),
        });
    }
    for written in spec.secrets.keys().filter(|written| spec.config.contains_key(*written)) {
        let message = format!("the `{written}` of provider `{name}` is there both as a text and as a secret");
        out.push(Found::at(
            value(written),
            Violation::new(Code::ProviderSetting, message).help("remove one of the two"),
        ));
    }
    let missing = |setting: &&Setting| {
        setting.required && !spec.config.contains_key(setting.name) && !spec.secrets.contains_key(setting.name)
    };
    for setting in texts.iter().filter(missing) {
        let message = format!("provider `{name}` of type `{kind}` has no `{}`", setting.name);
        let help = format!("add `{} = \"{}\"`, {}", setting.name, setting.example, setting.doc);
        out.push(Found::at(Subject::Provider(name.clone()), Violation::new(Code::ProviderSetting, message).help(help)));
    }
    for setting in secrets.iter().filter(|s| !has(texts, s.name)).filter(missing) {
        let message = format!("provider `{name}` of type `{kind}` has no `{}`", setting.name);
        let help = format!("add `{} = {{ secret = \"{}\" }}`, {}", setting.name, setting.example, setting.doc);
        out.push(Found::at(Subject::Provider(name.clone()), Violation::new(Code::ProviderSetting, message).help(help)));
    }
    match spec.kind {
        ProviderKind::KeyvalueRedis => check_redis(name, spec, out),
        ProviderKind::BlobstoreS3 => {
            if let Some(Err(violation)) = spec.config.get("url").map(|url| http_url(spec.kind, url)) {
                out.push(Found::at(value("url"), violation));
            }
        }
        ProviderKind::External => {
            let found = external::check(spec).into_iter();
            out.extend(found.map(|(setting, violation)| Found::at(value(&setting), violation)));
        }
        _ => {}
    }
    if nats::is_nats(spec.kind) {
        for (key, violation) in nats::check(spec) {
            out.push(Found::at(Subject::ProviderValue(name.clone(), key.to_owned()), violation));
        }
    }
    if spec.kind == ProviderKind::SqlPostgres {
        let found = postgres::check(spec).into_iter();
        out.extend(found.map(|(setting, violation)| Found::at(value(setting), violation)));
    }
    let over_http = [ProviderKind::KeyvalueVault, ProviderKind::SecretsVault, ProviderKind::KeyvalueConsul];
    if over_http.contains(&spec.kind) {
        let found = http_server::check(spec).into_iter();
        out.extend(found.map(|(setting, violation)| Found::at(value(setting), violation)));
    }
}

/// A text where a secret is needed. It may be the secret itself, so it is not repeated.
fn plain_text(name: &ProviderName, key: &str) -> Violation {
    let message = format!(
        "the `{key}` of provider `{name}` is written as a text; settings are stored and shown, so secrets may not stand in them"
    );
    let help = format!(
        "keep it with `sidereal secret set {name}-{key}`, and write `{key} = {{ secret = \"{name}-{key}\" }}`; if what stands here is the real one, change it where it is used"
    );
    Violation::new(Code::ProviderSecret, message).help(help)
}

fn unknown_setting(name: &ProviderName, kind: ProviderKind, key: &str) -> Violation {
    let mut names: Vec<&str> = settings(kind).iter().chain(secret_settings(kind)).map(|s| s.name).collect();
    if kind == ProviderKind::External {
        names.push(external::CONFIG);
    }
    names.sort_unstable();
    names.dedup();
    let kind = kind.as_str();
    let message = format!("provider `{name}` has a setting `{}` that `{kind}` does not know", shown(key));
    let help = if names.is_empty() {
        format!("`{kind}` has no settings: remove it")
    } else {
        suggest(key, &names, "its settings")
    };
    Violation::new(Code::ProviderSetting, message).help(help)
}

fn example<'a>(settings: &'a [Setting], key: &str) -> &'a str {
    settings.iter().find(|s| s.name == key).map_or("…", |s| s.example)
}

fn check_redis(name: &ProviderName, spec: &ProviderSpec, out: &mut Vec<Found>) {
    let named = spec.config.contains_key("username") || spec.secrets.contains_key("username");
    if named && !spec.secrets.contains_key("password") {
        let message = format!("provider `{name}` has a `username` and no `password`, so it could not log in");
        let help = format!("add `password = {{ secret = \"{name}-password\" }}`, or remove `username`");
        let subject = Subject::ProviderKey(name.clone(), "username".to_owned());
        out.push(Found::at(subject, Violation::new(Code::ProviderSetting, message).help(help)));
    }
    let secure = spec.config.get("url").is_some_and(|url| url.starts_with("rediss:"));
    if spec.config.contains_key("ca") && !secure {
        let message = format!("the `ca` of provider `{name}` proves nothing: its `url` is not `rediss`");
        let help = "write the `url` as `rediss://host[:port][/database]`, or remove `ca`".to_owned();
        let subject = Subject::ProviderKey(name.clone(), "ca".to_owned());
        out.push(Found::at(subject, Violation::new(Code::ProviderSetting, message).help(help)));
    }
    if let Some(url) = spec.config.get("url")
        && let Err(violation) = redis_url(url)
    {
        out.push(Found::at(Subject::ProviderValue(name.clone(), "url".to_owned()), violation));
    }
}

/// Checks the `url` of a provider whose server speaks HTTP. The text of a URL that may hold a password is never repeated.
///
/// # Errors
/// `provider-secret` for a password, `provider-url` for everything else.
fn http_url(kind: ProviderKind, text: &str) -> Result<(), Violation> {
    let bad = |why: &str| {
        Violation::new(Code::ProviderUrl, format!("the `url` of a `{}` provider {why}", kind.as_str()))
            .help("write it as `https://host[:port]`")
    };
    let url = Url::parse(text).map_err(|err| bad(&format!("is not a URL ({err})")))?;
    if url.password().is_some() || !url.username().is_empty() {
        let message = "the `url` of a provider holds a user name or password; settings are stored and shown, so secrets may not stand in them";
        let help = "remove everything between `//` and `@`; the provider has settings for secrets";
        return Err(Violation::new(Code::ProviderSecret, message).help(help));
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad(&format!("has the scheme `{}`", shown(url.scheme()))));
    }
    if url.host_str().is_none_or(str::is_empty) || url.port() == Some(0) {
        return Err(bad("names no host, or port 0"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has a `?` or `#` part"));
    }
    Ok(())
}

const REDIS_EXAMPLE: &str = "write it as `redis[s]://host[:port][/database]`, for example `redis://127.0.0.1:6379/0`";

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
        let help = "remove everything between `//` and `@`, and name a secret beside it: `password = { secret = \"cache-password\" }`, kept with `sidereal secret set cache-password`";
        return Err(Violation::new(Code::ProviderSecret, message).help(help));
    }
    match url.scheme() {
        "redis" | "rediss" => {}
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
