//! The settings of `sql-postgres`: where the server is, which database, whom to believe. A URL with a password in it is
//! refused before anybody stores it.

use url::{Host, Url};

use crate::app::ProviderSpec;
use crate::rules::http_server::{is_certificates, optional};
use crate::rules::provider::{PASSWORD, Setting};
use crate::rules::{Code, Violation, shown};

/// The port of a URL that names none.
pub const PORT: u16 = 5432;
/// The schemes of its URLs, which mean the same.
pub const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
/// The most bytes in the name of a database: Postgres cuts longer ones.
const MAX_NAME: usize = 63;

const USERNAME: Setting =
    Setting { name: "username", required: true, doc: "the role to log in as, a text or a secret", example: "shop" };

/// What may be set.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "url",
        required: true,
        doc: "where the server is and which database: `postgres://host[:port]/database`, without a password",
        example: "postgres://db.internal.example:5432/shop",
    },
    USERNAME,
    optional(
        "tls",
        "`on`, where absent: every connection is encrypted and the server proves its name; `off`: none is",
        "off",
    ),
    optional(
        "ca",
        "certificates in PEM that are believed instead of the public authorities",
        "-----BEGIN CERTIFICATE-----\n…",
    ),
];
/// What may be set as a secret.
pub const SECRETS: &[Setting] = &[USERNAME, PASSWORD];

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: String,
}

/// What is wrong with the settings, by setting. The text of a URL that may hold a password is never repeated.
pub fn check(spec: &ProviderSpec) -> Vec<(&'static str, Violation)> {
    let config = &spec.config;
    let mut found = Vec::new();
    if let Some(Err(violation)) = config.get("url").map(|text| place(text)) {
        found.push(("url", violation));
    }
    if let Some(text) = config.get("tls").filter(|text| !matches!(text.as_str(), "on" | "off")) {
        let message = format!("`tls` is `{}`; it is `on` or `off`", shown(text));
        let help = "write `tls = \"off\"` for a server without TLS on a network you trust, or remove it";
        found.push(("tls", Violation::new(Code::ProviderSetting, message).help(help)));
    }
    if let Some(text) = config.get("ca") {
        if let Err(violation) = is_certificates(text) {
            found.push(("ca", violation));
        } else if config.get("tls").is_some_and(|tls| tls == "off") {
            let message = "`ca` proves nothing where `tls` is `off`";
            found.push(("ca", Violation::new(Code::ProviderSetting, message).help("remove one of the two")));
        }
    }
    found
}

/// Reads the `url` of a provider.
///
/// # Errors
/// `provider-secret` for a password, `provider-url` for everything else.
pub fn place(text: &str) -> Result<Place, Violation> {
    let bad = |why: &str| {
        Violation::new(Code::ProviderUrl, format!("the `url` of a `sql-postgres` provider {why}"))
            .help("write it as `postgres://host[:port]/database`, for example `postgres://127.0.0.1:5432/shop`")
    };
    let url = Url::parse(text).map_err(|err| bad(&format!("is not a URL ({err})")))?;
    if url.password().is_some() || !url.username().is_empty() {
        let message = "the `url` of a provider holds a user name or password; settings are stored and shown, so secrets may not stand in them";
        let help = "remove everything between `//` and `@`, and write `username = \"NAME\"` and `password = { secret = \"NAME\" }` beside it";
        return Err(Violation::new(Code::ProviderSecret, message).help(help));
    }
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(bad(&format!("has the scheme `{}`", shown(url.scheme()))));
    }
    let host = match url.host() {
        None | Some(Host::Domain("")) => return Err(bad("names no host")),
        Some(Host::Domain(name)) if name.contains(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c)) => {
            return Err(bad("names no single host: a list of servers or a socket is not taken"));
        }
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
    };
    if url.port() == Some(0) {
        return Err(bad("has port 0"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has a `?` or `#` part, which would be ignored"));
    }
    let database = url.path().trim_start_matches('/');
    if database.is_empty() {
        return Err(bad("names no database"));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if database.len() > MAX_NAME || !database.bytes().all(plain) {
        return Err(bad("names a database of other characters than letters, digits, `-`, `_` and `.`, or a long one"));
    }
    Ok(Place { host, port: url.port().unwrap_or(PORT), database: database.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_one_host_and_one_database() {
        let is =
            |host: &str, port, database: &str| Ok(Place { host: host.to_owned(), port, database: database.to_owned() });
        assert_eq!(place("postgres://db.example/shop"), is("db.example", 5432, "shop"));
        assert_eq!(place("postgresql://[::1]:6000/my-shop_2"), is("::1", 6000, "my-shop_2"));
        for wrong in [
            "db.example/shop",
            "mysql://db.example/shop",
            "postgres:///shop",
            "postgres://db.example",
            "postgres://db.example/",
            "postgres://db.example:0/shop",
            "postgres://db.example/shop?sslmode=disable",
            "postgres://a,b/shop",
            "postgres://db.example/a/b",
            "postgres://db.example/a%20b",
        ] {
            assert_eq!(place(wrong).map_err(|v| v.code), Err(Code::ProviderUrl), "{wrong}");
        }
        let secret = place("postgres://me:hunter2@db.example/shop").unwrap_err();
        assert_eq!(secret.code, Code::ProviderSecret);
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
