//! `login` and `logout`: a token that commands use. It comes by stdin, a prompt or a file, never by the command line, where
//! every user of the machine could read it.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use api::control::WhoAmI;
use api::{Code, Problem};

use crate::args::Login;
use crate::context::{Context, client_of, refused};
use crate::home::Kept;

/// Longer than any token is.
const MAX: u64 = 1024;

/// `sidereal login`
///
/// # Errors
/// When the platform does not know the token, or it cannot be kept.
pub async fn login(context: &Context, _args: &Login) -> anyhow::Result<()> {
    let token = match context.given_token() {
        Some(token) => token.to_owned(),
        None => read()?,
    };
    let api = context.api()?;
    let who = client_of(&api, &token)?.whoami().await.map_err(refused)?;
    context.home.keep_login(&Kept { api: api.clone(), token })?;
    context.out.result(&who, || said(&who, &api));
    Ok(())
}

fn said(who: &WhoAmI, api: &str) -> String {
    match (&who.tenant, who.role) {
        (Some(tenant), Some(role)) => format!("commands act for tenant {tenant} as {role}, at {api}"),
        _ => format!("commands act for the operator, at {api}"),
    }
}

fn read() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let text = if stdin.is_terminal() {
        let terminal = console::Term::stderr();
        terminal.write_str("token (not shown): ").context("cannot ask for the token")?;
        terminal.read_secure_line().context("cannot read the token")?
    } else {
        let mut text = String::new();
        stdin.lock().take(MAX).read_to_string(&mut text).context("cannot read the token")?;
        text
    };
    match text.trim() {
        "" => Err(Problem::new(Code::RequestInvalid, "there is no token on stdin")
            .help("`sidereal login < file`, or run the command at a terminal")
            .into()),
        token => Ok(token.to_owned()),
    }
}

/// `sidereal logout`
///
/// # Errors
/// When there is none, or it cannot be removed.
pub fn logout(context: &Context) -> anyhow::Result<()> {
    context.home.forget_login()?;
    context.out.result(&serde_json::json!({ "kept": false }), || "the token is forgotten".to_owned());
    Ok(())
}
