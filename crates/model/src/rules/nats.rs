//! The settings of providers whose server is a NATS: where it is, and what is asked of its JetStream.

use url::{Host, Url};

use crate::app::{ProviderKind, ProviderSpec};
use crate::rules::provider::Setting;
use crate::rules::{Code, Violation, shown};
use crate::stream::StreamSettings;

/// The port of a URL that names none.
pub const PORT: u16 = 4222;
/// The schemes of its URLs: TLS where the server asks for it, and TLS always.
pub const SCHEMES: [&str; 2] = ["nats://", "tls://"];
/// The most copies of what JetStream keeps.
const MAX_REPLICAS: u32 = 5;

/// Where the server is: a setting of every provider that is a NATS.
pub const URL: Setting = Setting {
    name: "url",
    required: true,
    doc: "where the server is: `nats://host[:port]`, or `tls://host[:port]` to insist on TLS; without a password",
    example: "nats://bus.internal.example:4222",
};
/// The domain of JetStream.
pub const DOMAIN: Setting = Setting {
    name: "jetstream_domain",
    required: false,
    doc: "the JetStream domain, where it is not the one of the server that `url` names",
    example: "hub",
};
/// How many copies JetStream keeps of what it makes.
pub const REPLICAS: Setting = Setting {
    name: "replicas",
    required: false,
    doc: "how many servers of the cluster keep a copy of what is made, 1 to 5; 1 where absent",
    example: "3",
};

/// The stream of messages.
pub const STREAM: Setting = Setting {
    name: "stream",
    required: true,
    doc: "the stream that keeps the messages: letters, digits, `-` and `_`",
    example: "ORDERS",
};
/// What a stream that is made keeps.
pub const SUBJECTS: Setting = Setting {
    name: "subjects",
    required: false,
    doc: "subjects of the stream, with commas between them: where it is not there it is made with them; a stream that must exist where absent",
    example: "orders.>",
};
/// When a stream that is made lets messages go.
pub const RETENTION: Setting = Setting {
    name: "retention",
    required: false,
    doc: "how a stream that is made lets messages go: `limits` (by age and size), `interest` (handled by every group) or `workqueue` (handled once); `limits` where absent",
    example: "interest",
};
/// How long a stream that is made keeps a message.
pub const MAX_AGE: Setting = Setting {
    name: "max-age",
    required: false,
    doc: "how long a stream that is made keeps a message, in ms, s, m or h; for ever where absent",
    example: "168h",
};
/// How much a stream that is made keeps.
pub const MAX_BYTES: Setting = Setting {
    name: "max-bytes",
    required: false,
    doc: "how much a stream that is made keeps, in B, KiB, MiB or GiB; as much as the server lets it where absent",
    example: "10GiB",
};
/// Where a group that is new begins.
pub const DELIVER: Setting = Setting {
    name: "deliver",
    required: false,
    doc: "where a queue group that is new begins: `new` messages, or `all` that the stream has; `new` where absent",
    example: "all",
};

/// A token to log in with.
pub const TOKEN: Setting =
    Setting { name: "token", required: false, doc: "the token to log in with, always a secret", example: "bus-token" };
/// The seed of a key.
pub const NKEY: Setting = Setting {
    name: "nkey",
    required: false,
    doc: "the seed (`SU…`) of the key to log in with, always a secret",
    example: "bus-seed",
};
/// A credentials file.
pub const CREDENTIALS: Setting = Setting {
    name: "credentials",
    required: false,
    doc: "the text of a `.creds` file, a JWT and a seed, always a secret",
    example: "bus-creds",
};

/// Whether the server of the provider is a NATS.
pub fn is_nats(kind: ProviderKind) -> bool {
    matches!(
        kind,
        ProviderKind::KeyvalueNats
            | ProviderKind::BlobstoreNats
            | ProviderKind::MessagingNats
            | ProviderKind::MessagingJetstream
    )
}

/// What is wrong with the settings of a provider whose server is a NATS, by setting. The text of a URL that may hold a
/// password is never repeated.
pub fn check(spec: &ProviderSpec) -> Vec<(&'static str, Violation)> {
    let (kind, config) = (spec.kind, &spec.config);
    let mut found = login(spec);
    if let Some(Err(violation)) = config.get(URL.name).map(|text| url(kind, text)) {
        found.push((URL.name, violation));
    }
    if let Some(text) = config.get(REPLICAS.name)
        && !text.parse().is_ok_and(|count: u32| (1..=MAX_REPLICAS).contains(&count))
    {
        let message = format!("`replicas` is `{}`; it is a number from 1 to {MAX_REPLICAS}", shown(text));
        found.push((REPLICAS.name, Violation::new(Code::ProviderSetting, message).help("write `replicas = \"3\"`")));
    }
    if kind == ProviderKind::MessagingJetstream
        && config.contains_key(STREAM.name)
        && let Err((setting, cause)) = StreamSettings::read(config)
    {
        let help = format!("read about `{setting}` in docs/providers/messaging.md");
        found.push((setting, Violation::new(Code::ProviderSetting, cause.to_string()).help(help)));
    }
    if let Some(text) = config.get(DOMAIN.name)
        && (text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)))
    {
        let message = format!("`jetstream_domain` is `{}`, which is not the name of a domain", shown(text));
        let help = "use letters, digits, `-` and `_`, as in the server's configuration";
        found.push((DOMAIN.name, Violation::new(Code::ProviderSetting, message).help(help)));
    }
    found
}

/// One way to log in, and that one whole.
fn login(spec: &ProviderSpec) -> Vec<(&'static str, Violation)> {
    let has = |name: &str| spec.config.contains_key(name) || spec.secrets.contains_key(name);
    let (user, password) = (has("username"), has("password"));
    let mut found = Vec::new();
    if user != password {
        let (there, missing) = if user { ("username", "password") } else { ("password", "username") };
        let message = format!("there is a `{there}` and no `{missing}`, so the provider could not log in");
        let help = format!("add `{missing}`, or remove `{there}`");
        found.push((there, Violation::new(Code::ProviderSetting, message).help(help)));
    }
    let ways: Vec<&'static str> =
        ["password", TOKEN.name, NKEY.name, CREDENTIALS.name].into_iter().filter(|name| has(name)).collect();
    if let [one, other, ..] = ways.as_slice() {
        let message = format!("both `{one}` and `{other}` say how to log in");
        found.push((other, Violation::new(Code::ProviderSetting, message).help("keep one of them")));
    }
    found
}

fn url(kind: ProviderKind, text: &str) -> Result<(), Violation> {
    let kind = kind.as_str();
    let bad = |why: &str| {
        Violation::new(Code::ProviderUrl, format!("the `url` of a `{kind}` provider {why}"))
            .help("write it as `nats://host[:port]` or `tls://host[:port]`, for example `nats://127.0.0.1:4222`")
    };
    let url = Url::parse(text).map_err(|err| bad(&format!("is not a URL ({err})")))?;
    if url.password().is_some() || !url.username().is_empty() {
        let message = "the `url` of a provider holds a user name or password; settings are stored and shown, so secrets may not stand in them";
        let help = "remove everything between `//` and `@`";
        return Err(Violation::new(Code::ProviderSecret, message).help(help));
    }
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err(bad(&format!("has the scheme `{}`", shown(url.scheme()))));
    }
    match url.host() {
        None | Some(Host::Domain("")) => return Err(bad("names no host")),
        Some(Host::Domain(name)) if name.contains(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c)) => {
            return Err(bad("names no single host: a list of servers is not taken"));
        }
        Some(_) => {}
    }
    if url.port() == Some(0) {
        return Err(bad("has port 0"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has more after the port, which would be ignored"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretRef;

    fn spec(settings: &[(&str, &str)], secrets: &[&str]) -> ProviderSpec {
        let config = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let secrets = secrets.iter().map(|key| ((*key).to_owned(), SecretRef::new("s".parse().unwrap()))).collect();
        ProviderSpec { config, secrets, ..ProviderSpec::new(ProviderKind::KeyvalueNats) }
    }

    fn codes(settings: &[(&str, &str)]) -> Vec<Code> {
        check(&spec(settings, &[])).into_iter().map(|(_, violation)| violation.code).collect()
    }

    #[test]
    fn there_is_one_way_to_log_in() {
        let wrong = |settings: &[(&str, &str)], secrets: &[&str]| -> Vec<&'static str> {
            check(&spec(settings, secrets)).into_iter().map(|(key, _)| key).collect()
        };
        assert!(wrong(&[("username", "ann")], &["password"]).is_empty());
        for one in ["token", "nkey", "credentials"] {
            assert!(wrong(&[], &[one]).is_empty());
        }
        assert_eq!(wrong(&[("username", "ann")], &[]), ["username"]);
        assert_eq!(wrong(&[], &["password"]), ["password"]);
        assert_eq!(wrong(&[], &["token", "nkey"]), ["nkey"]);
    }

    #[test]
    fn settings_are_checked_one_by_one() {
        for good in ["nats://bus", "nats://bus:1/", "tls://bus.example", "nats://[::1]:4222"] {
            assert_eq!(codes(&[("url", good), ("replicas", "5"), ("jetstream_domain", "hub_1")]), []);
        }
        for bad in ["bus", "http://bus", "nats://", "nats://bus:0", "nats://bus/x", "nats://bus?a=1", "nats://bus,b"] {
            assert_eq!(codes(&[("url", bad)]), [Code::ProviderUrl], "{bad}");
        }
        assert_eq!(codes(&[("url", "nats://ann:hunter2@bus")]), [Code::ProviderSecret]);
        assert_eq!(codes(&[("replicas", "0"), ("jetstream_domain", "a.b")]), [Code::ProviderSetting; 2]);
    }

    #[test]
    fn a_password_is_not_repeated() {
        let said = format!("{:?}", check(&spec(&[("url", "nats://ann:hunter2@bus")], &[])));
        assert!(!said.contains("hunter2"), "{said}");
    }
}
