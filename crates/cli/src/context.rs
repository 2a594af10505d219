//! What every command that speaks to the running platform needs: where it answers, and as whom to speak.

use std::time::Duration;

use anyhow::Context as _;
use api::client::ControlClient;
use api::{Code, Problem};
use model::TenantName;
use model::access::Token;
use url::Url;

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
    /// `unreachable` when nothing runs.
    pub fn client(&self) -> anyhow::Result<ControlClient> {
        let api = self.api()?;
        let token = match (&self.token, self.home.login()?) {
            (Some(token), _) => token.clone(),
            // A kept token goes to the address that it was kept for, and to no other.
            (None, Some(kept)) if kept.api == api => kept.token,
            (None, _) => self.home.token(false)?,
        };
        client_of(&api, &token)
    }
}

/// A client of the platform that announced itself.
///
/// # Errors
/// When the announcement is damaged.
pub fn connect(running: &Running, token: &str) -> anyhow::Result<ControlClient> {
    client_of(&running.api, token)
}

/// A client of the platform at an address.
///
/// # Errors
/// When it is none.
pub fn client_of(api: &str, token: &str) -> anyhow::Result<ControlClient> {
    let invalid = |cause: String| {
        Problem::new(Code::RequestInvalid, format!("`{api}` is no address of an API: {cause}"))
            .help("write it as `http://127.0.0.1:8088`")
    };
    let url = Url::parse(api).map_err(|cause| invalid(cause.to_string()))?;
    if url.scheme() != "http" {
        return Err(invalid("it is not `http://`".to_owned()).into());
    }
    let addresses = url.socket_addrs(|| None).map_err(|cause| invalid(cause.to_string()))?;
    let address = *addresses.first().with_context(|| format!("`{url}` has no address"))?;
    Ok(ControlClient::new(address, token).patient(PATIENCE))
}

/// The problem inside a client's error, as the commands report it.
pub fn refused(error: api::client::ClientError) -> anyhow::Error {
    anyhow::Error::new(error.problem())
}
