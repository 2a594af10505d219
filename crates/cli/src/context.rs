//! What every command that speaks to the running platform needs: where it answers, and as whom to speak.

use std::time::Duration;

use api::client::ControlClient;
use api::{Code, Problem};
use model::TenantName;
use model::access::Token;
use url::{Host, Url};

use crate::args::Global;
use crate::home::{Home, Running};
use crate::output::Output;

/// How long a command waits and asks again where the tenant's tokens ask for too much at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// The flags, opened.
pub struct Context {
    /// Keys, state, the platform's address.
    pub home: Home,
    /// Where results go.
    pub out: Output,
    /// Whom the command acts for.
    pub tenant: TenantName,
    /// The tenant was named, by flag or environment, or is the token's.
    named: bool,
    api: Option<String>,
    /// From a file or the environment.
    token: Option<String>,
}

impl Context {
    /// From the global flags. Whoever starts the platform (`operator`) is not what a token says.
    ///
    /// # Errors
    /// When there is no data directory, or the named token file cannot be read.
    pub fn new(global: &Global, operator: bool) -> anyhow::Result<Self> {
        let home = Home::new(global.data_dir.as_deref())?;
        if operator {
            let (tenant, api, token) = (global.tenant.clone(), None, None);
            let (named, tenant) = (tenant.is_some(), tenant.unwrap_or_else(TenantName::local));
            return Ok(Self { named, tenant, out: Output::new(global), api, home, token });
        }
        let token = match &global.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file).map_err(|cause| {
                    Problem::new(Code::Unauthorized, format!("cannot read the token file {}: {cause}", file.display()))
                        .help("name a file with a token in it, or leave --token-file out")
                })?;
                Some(text.trim().to_owned())
            }
            None => std::env::var("SIDEREAL_TOKEN").ok().filter(|token| !token.is_empty()),
        };
        // One that is damaged is said where it is used: `logout` must work.
        let kept = home.login().ok().flatten();
        let own = token.as_deref().or(kept.as_ref().map(|kept| kept.token.as_str())).and_then(Token::parse);
        let tenant = global.tenant.clone().or(own.map(|token| token.tenant));
        Ok(Self {
            named: tenant.is_some(),
            tenant: tenant.unwrap_or_else(TenantName::local),
            out: Output::new(global),
            api: global.api.clone(),
            home,
            token,
        })
    }

    /// The tenant, where somebody named one.
    pub fn named_tenant(&self) -> Option<&TenantName> {
        self.named.then_some(&self.tenant)
    }

    /// The token that a file or the environment gave.
    pub fn given_token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Where the API answers.
    ///
    /// # Errors
    /// `unreachable` when nothing says where, and nothing runs here.
    pub fn api(&self) -> anyhow::Result<String> {
        match (&self.api, self.home.login()?) {
            (Some(api), _) => Ok(api.clone()),
            (None, Some(kept)) => Ok(kept.api),
            (None, None) => Ok(self.home.running()?.api),
        }
    }

    /// The running platform's API, spoken to with the token that was given, the one of the login, or this machine's own.
    ///
    /// # Errors
    /// `unreachable` when nothing runs; `unauthorized` when no token is known for where the API is said to be.
    pub fn client(&self) -> anyhow::Result<ControlClient> {
        let api = self.api()?;
        let token = match (&self.token, self.home.login()?) {
            (Some(token), _) => token.clone(),
            // A kept token goes to the address that it was kept for, and to no other.
            (None, Some(kept)) if kept.api == api => kept.token,
            (None, _) if self.is_of_this_machine(&url_of(&api)?) => self.home.token(false)?,
            (None, _) => {
                let text = format!("no token is known for {api}; that of this machine's operator goes nowhere else");
                return Err(Problem::new(Code::Unauthorized, text)
                    .help("`sidereal --api URL login` keeps one for it; --token-file or SIDEREAL_TOKEN gives one to a command")
                    .into());
            }
        };
        client_of(&api, &token)
    }

    /// Whether the operator's token may go there: it may everything, and is sent in clear. What else answers on loopback may be
    /// a tunnel to another machine, or somebody else's program.
    fn is_of_this_machine(&self, api: &Url) -> bool {
        let own = self.home.running().ok().and_then(|running| Url::parse(&running.api).ok());
        own.is_some_and(|own| own == *api || is_loopback(api) && may_be_loopback(&own) && own.port() == api.port())
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

/// Whether a platform that says so of itself answers on loopback.
fn may_be_loopback(own: &Url) -> bool {
    let unspecified = match own.host() {
        Some(Host::Ipv4(ip)) => ip.is_unspecified(),
        Some(Host::Ipv6(ip)) => ip.is_unspecified(),
        _ => false,
    };
    unspecified || is_loopback(own)
}

/// A client of the platform that announced itself.
///
/// # Errors
/// When the announcement is damaged.
pub fn connect(running: &Running, token: &str) -> anyhow::Result<ControlClient> {
    client_of(&running.api, token)
}

/// A client of the platform at an address. It is called by the name that it has there, which may be the only one it answers
/// to (`sidereal up --api-name`).
///
/// # Errors
/// When it is none.
pub fn client_of(api: &str, token: &str) -> anyhow::Result<ControlClient> {
    let url = url_of(api)?;
    let host = url.host_str().unwrap_or_default();
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok(ControlClient::named(&authority, token).patient(PATIENCE))
}

fn url_of(api: &str) -> Result<Url, Problem> {
    let invalid = |cause: &str, help: &str| {
        Problem::new(Code::RequestInvalid, format!("`{api}` is no address of an API: {cause}")).help(help)
    };
    let written = "write it as `http://127.0.0.1:8088`";
    let url = Url::parse(api).map_err(|cause| invalid(&cause.to_string(), written))?;
    match url.scheme() {
        "http" if url.has_host() => Ok(url),
        "https" => {
            let help = "open a tunnel that speaks TLS to it, and name the tunnel's end here (docs/tenants.md)";
            Err(invalid("commands speak HTTP without TLS", help))
        }
        _ => Err(invalid("it is not `http://`", written)),
    }
}

/// The problem inside a client's error, as the commands report it.
pub fn refused(error: api::client::ClientError) -> anyhow::Error {
    anyhow::Error::new(error.problem())
}

/// What was to go on until the reader had enough of it has ended: whoever relies on it must not take that for an end of its own.
pub fn broken_off(what: &str) -> anyhow::Error {
    let text = format!("{what} broke off: the platform stopped, or the token that it was asked for with has ended");
    Problem::new(Code::Unreachable, text).help("`sidereal status` says whether it runs; then ask again").into()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn context(home: &std::path::Path, api: &str) -> Context {
        let home = home.to_str().unwrap();
        let cli = Cli::try_parse_from(["sidereal", "--data-dir", home, "--api", api, "status"]).unwrap();
        Context::new(&cli.global, false).unwrap()
    }

    #[test]
    fn the_operators_token_of_this_machine_goes_to_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        Home::new(Some(dir.path())).unwrap().token(true).unwrap();
        let code = |api: &str| {
            let client = context(dir.path(), api).client();
            client.map(|client| client.address().to_owned()).map_err(|error| error.downcast::<Problem>().unwrap())
        };
        let elsewhere = [
            // Nothing of this directory runs: who knows what answers there.
            "http://127.0.0.1:8088",
            "http://localhost:8088",
            "http://192.0.2.1:8088",
            "http://[2001:db8::1]:8088",
            "http://api.example",
            "http://localhost.evil.example:8088",
            "http://127.0.0.1@evil.example:8088",
            "http://0.0.0.0:8088",
        ];
        for other in elsewhere {
            let problem = code(other).unwrap_err();
            assert_eq!(problem.code, Code::Unauthorized, "{other}");
            assert!(problem.help.is_some_and(|help| help.contains("--token-file") && help.contains("login")));
        }
        // Nor is what the last platform of this directory said of itself believed, unless it runs.
        let own = "http://192.0.2.1:8088";
        let said = format!(r#"{{"api":"{own}","ingress":"192.0.2.1:1","pid":1,"since_ms":1}}"#);
        std::fs::write(dir.path().join("api.json"), &said).unwrap();
        std::fs::write(dir.path().join("lock"), &said).unwrap();
        assert_eq!(code(own).unwrap_err().code, Code::Unauthorized);
        let held = std::fs::File::open(dir.path().join("lock")).unwrap();
        held.try_lock().unwrap();
        assert_eq!(code(own).unwrap(), own);
        for other in ["http://192.0.2.1:8089", "http://127.0.0.1:8088"] {
            assert_eq!(code(other).unwrap_err().code, Code::Unauthorized, "{other}");
        }
        // By whichever name of this machine.
        for bound in ["http://127.0.0.1:8088", "http://0.0.0.0:8088"] {
            std::fs::write(dir.path().join("lock"), said.replace(own, bound)).unwrap();
            for same in ["http://127.0.0.1:8088", "http://localhost:8088", "http://[::1]:8088"] {
                assert_eq!(code(same).unwrap(), same);
            }
            assert_eq!(code("http://127.0.0.1:8089").unwrap_err().code, Code::Unauthorized);
        }
    }

    #[test]
    fn what_is_no_address_of_an_api_is_said_with_what_to_write() {
        let dir = tempfile::tempdir().unwrap();
        for (api, word) in [("https://api.example", "TLS"), ("api.example:80", "http://"), ("x", "http://")] {
            let problem = context(dir.path(), api).client().unwrap_err().downcast::<Problem>().unwrap();
            assert_eq!(problem.code, Code::RequestInvalid, "{api}");
            assert!(problem.help.is_some_and(|help| help.contains(word)), "{api}");
        }
    }
}
