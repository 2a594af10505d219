//! The settings of providers whose server speaks HTTP: where it is, whom to believe, and for Vault how to log in.

use std::collections::BTreeMap;

use url::{Host, Url};

use crate::app::{ProviderKind, ProviderSpec};
use crate::rules::provider::Setting;
use crate::rules::{Code, Violation, list, shown};
use crate::unit::Millis;

/// The schemes of its URLs and the port of one that names none.
pub const SCHEMES: [(&str, u16); 2] = [("http://", 80), ("https://", 443)];
/// The most bytes of certificates.
const MAX_CA: usize = 64 * 1024;
/// The most bytes of a path.
const MAX_PATH: usize = 256;

pub(crate) const fn optional(name: &'static str, doc: &'static str, example: &'static str) -> Setting {
    Setting { name, required: false, doc, example }
}

const VAULT_URL: Setting = Setting {
    name: "url",
    required: true,
    doc: "where Vault or OpenBao is: `http[s]://host[:port]`, without a password",
    example: "https://vault.internal.example:8200",
};
const CONSUL_URL: Setting = Setting {
    name: "url",
    required: true,
    doc: "where a Consul agent or server is: `http[s]://host[:port]`, without a password",
    example: "http://consul.internal.example:8500",
};
const CA: Setting = optional(
    "ca",
    "certificates in PEM that are believed instead of the public authorities",
    "-----BEGIN CERTIFICATE-----\n…",
);
const PREFIX: Setting =
    optional("prefix", "the path below which all keys are; `sidereal` where absent", "apps/sidereal");
const MOUNT: Setting = optional("mount", "where the `kv` secrets engine is mounted; `secret` where absent", "apps-kv");
const VERSION: Setting = optional("version", "the version of the `kv` engine, 1 or 2; 2 where absent", "2");
const NAMESPACE: Setting = optional("namespace", "the namespace in Vault; none where absent", "team/shop");
const AUTH_MOUNT: Setting = optional(
    "auth_mount",
    "where the login method is mounted, if not at its own name: below `auth/`",
    "nomad-workloads",
);
const ROLE: Setting = optional("role", "the role of a login with `jwt`; the mount's default where absent", "sidereal");

const VAULT_TOKEN: Setting = optional("token", "a token of Vault, always a secret", "vault-token");
const ROLE_ID: Setting = optional("role_id", "the role of an AppRole login, always a secret", "vault-role-id");
const SECRET_ID: Setting = optional("secret_id", "the proof of an AppRole login, always a secret", "vault-secret-id");
const JWT: Setting = optional("jwt", "a signed identity, as Nomad gives to workloads, always a secret", "vault-jwt");
const CONSUL_TOKEN: Setting = optional("token", "an ACL token of Consul, always a secret", "consul-token");

const STORE_MOUNT: Setting = optional("mount", "where the secrets engine is mounted; `secret` where absent", "apps-kv");
const ENGINE: Setting = optional(
    "engine",
    "what is mounted there: `kv-2`, `kv-1`, or `dynamic` for one that makes a credential for whoever asks; `kv-2` where absent",
    "kv-2",
);
const STORE_PREFIX: Setting = optional(
    "prefix",
    "the path below the mount that all secrets are below; `sidereal` where absent, `creds` for a dynamic engine",
    "apps/sidereal",
);
const SCOPE: Setting = optional(
    "scope",
    "whose a secret is: `app` for one of its own for each app, `tenant` for one that all apps of the tenant share; `app` where absent",
    "tenant",
);
const REFRESH: Setting =
    optional("refresh", "how long a value is used before Vault is asked again, 1s to 1h; `10s` where absent", "10s");
const LEASE: Setting = optional(
    "lease",
    "how long a value of `kv` is used while Vault cannot be asked, 0s to 24h; `1h` where absent",
    "1h",
);

/// The settings of `secrets-vault`.
pub const VAULT_STORE: &[Setting] =
    &[VAULT_URL, CA, STORE_MOUNT, ENGINE, STORE_PREFIX, SCOPE, NAMESPACE, AUTH_MOUNT, ROLE, REFRESH, LEASE];
/// What the engine of `secrets-vault` may be.
pub const ENGINES: [&str; 3] = ["kv-2", "kv-1", "dynamic"];
/// Whose a secret of `secrets-vault` may be.
pub const SCOPES: [&str; 2] = ["app", "tenant"];
/// How often `secrets-vault` may be told to ask again.
pub const REFRESHES: std::ops::RangeInclusive<Millis> = Millis(1_000)..=Millis(3_600_000);
/// How long `secrets-vault` may be told to go on without Vault.
pub const LEASES: std::ops::RangeInclusive<Millis> = Millis(0)..=Millis(86_400_000);

/// The settings of `keyvalue-vault`.
pub const VAULT: &[Setting] = &[VAULT_URL, CA, MOUNT, VERSION, PREFIX, NAMESPACE, AUTH_MOUNT, ROLE];
/// Those of them that are secrets.
pub const VAULT_SECRETS: &[Setting] = &[VAULT_TOKEN, ROLE_ID, SECRET_ID, JWT];
/// The settings of `keyvalue-consul`.
pub const CONSUL: &[Setting] = &[CONSUL_URL, CA, PREFIX];
/// Those of them that are secrets.
pub const CONSUL_SECRETS: &[Setting] = &[CONSUL_TOKEN];

/// What is wrong with the settings of such a provider, by setting. The text of a URL that may hold a password is never
/// repeated.
pub fn check(spec: &ProviderSpec) -> Vec<(&'static str, Violation)> {
    let config = &spec.config;
    let mut found = Vec::new();
    if let Some(Err(violation)) = config.get("url").map(|text| url(spec.kind, text)) {
        found.push(("url", violation));
    }
    for name in ["prefix", "mount", "namespace", "auth_mount"] {
        if let Some(text) = config.get(name).filter(|text| !is_path(text)) {
            let message = format!("`{name}` is `{}`, which is not a path of plain names", shown(text));
            let help = "use letters, digits, `-`, `_` and `.`, with `/` between names, for example `apps/kv`";
            found.push((name, Violation::new(Code::ProviderSetting, message).help(help)));
        }
    }
    if let Some(text) = config.get("version").filter(|text| !matches!(text.as_str(), "1" | "2")) {
        let message = format!("`version` is `{}`; it is 1 or 2", shown(text));
        let help = "write `version = \"2\"`; `vault secrets list -detailed` says which it is";
        found.push(("version", Violation::new(Code::ProviderSetting, message).help(help)));
    }
    if let Some(Err(violation)) = config.get("ca").map(|text| ca(config, text)) {
        found.push(("ca", violation));
    }
    if spec.kind == ProviderKind::SecretsVault {
        found.extend(choice(config, "engine", &ENGINES));
        found.extend(choice(config, "scope", &SCOPES));
        found.extend(duration(config, "refresh", REFRESHES));
        found.extend(duration(config, "lease", LEASES));
    }
    if matches!(spec.kind, ProviderKind::KeyvalueVault | ProviderKind::SecretsVault) {
        found.extend(login(spec));
    }
    found
}

fn url(kind: ProviderKind, text: &str) -> Result<(), Violation> {
    let kind = kind.as_str();
    let bad = |why: &str| {
        Violation::new(Code::ProviderUrl, format!("the `url` of a `{kind}` provider {why}"))
            .help("write it as `http://host[:port]` or `https://host[:port]`")
    };
    let url = Url::parse(text).map_err(|err| bad(&format!("is not a URL ({err})")))?;
    if url.password().is_some() || !url.username().is_empty() {
        let message = "the `url` of a provider holds a user name or password; settings are stored and shown, so secrets may not stand in them";
        let help =
            "remove everything between `//` and `@`, and name a secret beside it: `token = { secret = \"NAME\" }`";
        return Err(Violation::new(Code::ProviderSecret, message).help(help));
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad(&format!("has the scheme `{}`", shown(url.scheme()))));
    }
    match url.host() {
        None | Some(Host::Domain("")) => return Err(bad("names no host")),
        Some(_) => {}
    }
    if url.port() == Some(0) {
        return Err(bad("has port 0"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has a `?` or `#` part, which would be ignored"));
    }
    Ok(())
}

type At = (&'static str, Violation);

fn choice(config: &BTreeMap<String, String>, name: &'static str, known: &[&str]) -> Option<At> {
    let text = config.get(name).filter(|text| !known.contains(&text.as_str()))?;
    let message = format!("`{name}` is `{}`; it is {}", shown(text), list(known));
    let help = format!("write `{name} = \"{}\"`", known.first().copied().unwrap_or_default());
    Some((name, Violation::new(Code::ProviderSetting, message).help(help)))
}

fn duration(
    config: &BTreeMap<String, String>,
    name: &'static str,
    range: std::ops::RangeInclusive<Millis>,
) -> Option<At> {
    let text = config.get(name)?;
    if text.parse::<Millis>().is_ok_and(|time| range.contains(&time)) {
        return None;
    }
    let (least, most) = (range.start(), range.end());
    let message = format!("`{name}` is `{}`, which is no time from {least} to {most}", shown(text));
    let help = format!("write a whole number and ms, s, m or h, for example `{name} = \"10s\"`");
    Some((name, Violation::new(Code::ProviderSetting, message).help(help)))
}

fn is_path(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.contains("..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let path = text.trim_matches('/');
    path.len() <= MAX_PATH && path.split('/').all(plain)
}

fn ca(config: &BTreeMap<String, String>, text: &str) -> Result<(), Violation> {
    is_certificates(text)?;
    if config.get("url").is_some_and(|url| url.starts_with("http://")) {
        let message = "`ca` proves nothing where `url` is not `https`";
        return Err(Violation::new(Code::ProviderSetting, message).help("write `https` in `url`, or remove `ca`"));
    }
    Ok(())
}

/// Whether a text may be the `ca` of a provider.
pub(crate) fn is_certificates(text: &str) -> Result<(), Violation> {
    let bad = |why: &str, help: &str| Err(Violation::new(Code::ProviderSetting, format!("`ca` {why}")).help(help));
    if text.len() > MAX_CA {
        return bad("has more than 64 KiB", "name the one authority that signed the server's certificate");
    }
    if text.contains("PRIVATE KEY") {
        return bad("holds a private key, which nobody else may see", "remove it, and use another one from now on");
    }
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return bad("holds no certificate in PEM", "write the text of the file, between three quotes: `ca = '''…'''`");
    }
    Ok(())
}

/// One way to log in, whole.
fn login(spec: &ProviderSpec) -> Option<(&'static str, Violation)> {
    let has = |name: &str| spec.secrets.contains_key(name);
    let ways = usize::from(has("token")) + usize::from(has("role_id") || has("secret_id")) + usize::from(has("jwt"));
    let bad = |name: &'static str, message: &str, help: &str| {
        Some((name, Violation::new(Code::ProviderSetting, message.to_owned()).help(help.to_owned())))
    };
    match (ways, has("role_id"), has("secret_id")) {
        (0, ..) => bad(
            "url",
            "nothing says how to log in to Vault",
            "name secrets: `token`, or `role_id` and `secret_id`, or `jwt`; for example `token = { secret = \"vault-token\" }`",
        ),
        (2.., ..) => bad(
            "url",
            "there is more than one way to log in to Vault",
            "keep one of `token`, `role_id` with `secret_id`, and `jwt`",
        ),
        (_, true, false) => {
            bad("role_id", "`role_id` has no `secret_id` beside it", "add `secret_id = { secret = \"NAME\" }`")
        }
        (_, false, true) => {
            bad("secret_id", "`secret_id` has no `role_id` beside it", "add `role_id = { secret = \"NAME\" }`")
        }
        _ if spec.config.contains_key("role") && !has("jwt") => {
            bad("role", "`role` belongs to a login with `jwt`", "remove it, or add `jwt = { secret = \"NAME\" }`")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretRef;

    fn spec(kind: ProviderKind, config: &[(&str, &str)], secrets: &[&str]) -> ProviderSpec {
        let mut spec = ProviderSpec::new(kind);
        spec.config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        spec.secrets =
            secrets.iter().map(|name| ((*name).to_owned(), SecretRef::new("some-secret".parse().unwrap()))).collect();
        spec
    }

    fn wrong(kind: ProviderKind, config: &[(&str, &str)], secrets: &[&str]) -> Vec<&'static str> {
        check(&spec(kind, config, secrets)).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn addresses_and_paths_are_checked() {
        let consul = |config: &[(&str, &str)]| wrong(ProviderKind::KeyvalueConsul, config, &[]);
        for good in ["http://consul:8500", "https://consul.example", "https://[::1]:8501/consul"] {
            assert!(consul(&[("url", good), ("prefix", "apps/si.de_real-1")]).is_empty(), "{good}");
        }
        for bad in
            ["consul:8500", "tcp://consul", "http://", "http://consul:0", "http://consul?dc=a", "http://a:b@consul"]
        {
            assert_eq!(consul(&[("url", bad)]), ["url"], "{bad}");
        }
        for bad in ["", "/", "..", "a/../b", "a//b", "a b", ".a"] {
            assert_eq!(consul(&[("url", "http://c"), ("prefix", bad)]), ["prefix"], "{bad}");
        }
    }

    #[test]
    fn vault_is_logged_in_to_in_one_way() {
        let vault = |secrets: &[&str], more: &[(&str, &str)]| {
            let config: Vec<_> = [("url", "http://vault:8200")].iter().chain(more).copied().collect();
            wrong(ProviderKind::KeyvalueVault, &config, secrets)
        };
        for good in [&["token"][..], &["role_id", "secret_id"], &["jwt"]] {
            assert!(vault(good, &[]).is_empty(), "{good:?}");
        }
        assert!(vault(&["jwt"], &[("role", "workloads"), ("version", "1")]).is_empty());
        assert_eq!(vault(&[], &[]), ["url"]);
        assert_eq!(vault(&["token", "jwt"], &[]), ["url"]);
        assert_eq!(vault(&["role_id"], &[]), ["role_id"]);
        assert_eq!(vault(&["secret_id"], &[]), ["secret_id"]);
        assert_eq!(vault(&["token"], &[("role", "r")]), ["role"]);
        assert_eq!(vault(&["token"], &[("version", "3")]), ["version"]);
    }

    #[test]
    fn certificates_go_with_https_and_no_key_is_repeated() {
        let consul = |url: &str, ca: &str| check(&spec(ProviderKind::KeyvalueConsul, &[("url", url), ("ca", ca)], &[]));
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(consul("https://c", pem).is_empty());
        assert_eq!(consul("http://c", pem).len(), 1);
        assert_eq!(consul("https://c", "hello").len(), 1);
        let said =
            format!("{:?}", consul("https://c", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----"));
        assert!(said.contains("private key") && !said.contains("hunter2"), "{said}");
    }
}
