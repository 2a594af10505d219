//! What every command that speaks to the running platform needs.

use anyhow::Context as _;
use api::client::ControlClient;
use model::TenantName;
use url::Url;

use crate::args::Global;
use crate::home::{Home, Running};
use crate::output::Output;

/// The flags, opened.
pub struct Context {
    /// Keys, state, the platform's address.
    pub home: Home,
    /// Where results go.
    pub out: Output,
    /// Whom the command acts for.
    pub tenant: TenantName,
}

impl Context {
    /// From the global flags.
    ///
    /// # Errors
    /// When there is no data directory.
    pub fn new(global: &Global) -> anyhow::Result<Self> {
        Ok(Self {
            home: Home::new(global.data_dir.as_deref())?,
            out: Output::new(global),
            tenant: global.tenant.clone(),
        })
    }

    /// The running platform's API.
    ///
    /// # Errors
    /// `unreachable` when nothing runs.
    pub fn client(&self) -> anyhow::Result<ControlClient> {
        let running = self.home.running()?;
        connect(&running, &self.home.token(false)?)
    }
}

/// A client of the platform that announced itself.
///
/// # Errors
/// When the announcement is damaged.
pub fn connect(running: &Running, token: &str) -> anyhow::Result<ControlClient> {
    let url = Url::parse(&running.api).with_context(|| format!("`{}` is no URL", running.api))?;
    let addresses = url.socket_addrs(|| None).with_context(|| format!("`{url}` has no address"))?;
    Ok(ControlClient::new(*addresses.first().with_context(|| format!("`{url}` has no address"))?, token))
}

/// The problem inside a client's error, as the commands report it.
pub fn refused(error: api::client::ClientError) -> anyhow::Error {
    anyhow::Error::new(error.problem())
}
