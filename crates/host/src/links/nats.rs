//! What every provider whose server is a NATS is opened with.

use providers::nats::{Client, EndpointError, Login, Options};

use super::{Means, Wanted};
use crate::error::StartError;

fn bad(wanted: &Wanted<'_>, cause: String) -> StartError {
    StartError::Settings { provider: wanted.name.clone(), cause }
}

/// A client of the server that the provider's settings name.
pub(super) fn client(means: &Means, wanted: &Wanted<'_>) -> Result<Client, StartError> {
    let config = &wanted.spec.config;
    let endpoint = config.get("url").map_or("", String::as_str).parse();
    let options = Options {
        tenant: means.tenant.clone(),
        app: wanted.app.clone(),
        provider: wanted.name.clone(),
        endpoint: endpoint.map_err(|cause: EndpointError| bad(wanted, cause.to_string()))?,
        login: Login::Secrets { username: config.get("username").cloned(), secrets: means.credentials(wanted) },
        tls: means.tls.clone(),
    };
    Ok(Client::new(options, means.dialer.clone()))
}

/// How many copies there are of what is made.
pub(super) fn replicas(wanted: &Wanted<'_>) -> Result<u32, StartError> {
    let replicas = wanted.spec.config.get("replicas").map_or(Ok(1), |text| text.parse());
    replicas.map_err(|_| bad(wanted, "`replicas` is not a number".to_owned()))
}

/// The JetStream domain, where it is not the server's own.
pub(super) fn domain<'a>(wanted: &Wanted<'a>) -> Option<&'a str> {
    wanted.spec.config.get("jetstream_domain").map(String::as_str)
}
