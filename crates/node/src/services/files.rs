//! Descriptors for one host: compiled code of artifacts its tenant runs, and connections the dialer made.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use api::services::codec::WireError;
use api::services::server::FilesConnection;
use api::services::{Dial, FileFault, FileReply, FileRequest};
use model::egress::Destination;
use model::{Digest, World};

use super::share::take;
use super::{Client, Services};
use crate::artifacts::CodeKey;

pub(super) async fn serve(
    mut connection: FilesConnection,
    client: Client,
    services: Arc<Services>,
) -> Result<(), WireError> {
    while let Some(request) = connection.next().await? {
        match request {
            FileRequest::Compiled { digest, world } => {
                answer(&mut connection, compiled(&client, &services, digest, world).await).await?;
            }
            FileRequest::External(wanted) => {
                answer(&mut connection, external(&client, &services, &wanted).await).await?
            }
            FileRequest::Dial(dial) => match services.dialer.dial(&client.tenant, client.shard, &dial).await {
                Ok(dialled) => {
                    let ready = FileReply::Ready { address: Some(dialled.address) };
                    connection.reply(&ready, Some(dialled.as_fd()))?;
                    dialled.handed_over();
                }
                Err(fault) => connection.reply(&FileReply::Refused(untold(&dial, fault)), None)?,
            },
        }
    }
    Ok(())
}

/// Where a dial names something that has to be resolved: what was asked for.
fn named(dial: &Dial) -> Option<String> {
    let name = matches!(Destination::parse(&dial.host), Ok(Destination::Name(_)));
    name.then(|| format!("{}:{}", dial.host, dial.port))
}

/// What a name resolves to is not told where it was not connected to, neither to a host nor to the tenant by way of its words: some names are the
/// operator's own.
fn untold(dial: &Dial, fault: FileFault) -> FileFault {
    let told = |address: String| named(dial).unwrap_or(address);
    match fault {
        FileFault::Denied { address, what } => FileFault::Denied { address: told(address), what },
        FileFault::Connect { address, cause } => FileFault::Connect { address: told(address), cause },
        other => other,
    }
}

async fn answer(connection: &mut FilesConnection, made: Result<OwnedFd, FileFault>) -> Result<(), WireError> {
    match made {
        Ok(fd) => connection.reply(&FileReply::Ready { address: None }, Some(fd.as_fd())),
        Err(fault) => connection.reply(&FileReply::Refused(fault), None),
    }
}

async fn compiled(client: &Client, services: &Services, digest: Digest, world: World) -> Result<OwnedFd, FileFault> {
    if !client.tenant.may_have(&(digest, world)) {
        return Err(FileFault::NoCode(format!("no app of this tenant runs the artifact {digest} here")));
    }
    let info = client.info.load_full();
    let fingerprint = info.as_ref().and_then(|info| info.fingerprints.get(&world)).cloned();
    let Some(fingerprint) = fingerprint else {
        return Err(FileFault::NoCode(format!("the host has not said which {} engine it has", world.as_str())));
    };
    let key = CodeKey { digest, world, fingerprint };
    let _load = take(&client.tenant.share.loads, 1).await.map_err(|cause| FileFault::NoCode(cause.to_string()))?;
    let opened = services.artifacts.open_code(&client.tenant.name, &key).await;
    match opened.map_err(|cause| FileFault::NoCode(cause.to_string()))? {
        Some(file) => Ok(file.into()),
        None => Err(FileFault::NotReady { why: format!("the artifact {digest} is being compiled"), soon: true }),
    }
}

async fn external(
    client: &Client,
    services: &Services,
    wanted: &api::services::External,
) -> Result<OwnedFd, FileFault> {
    let stream = services.externals.connect(&client.tenant.name, wanted).await?;
    let stream = stream.into_std().map_err(|cause| FileFault::NotReady { why: cause.to_string(), soon: true })?;
    Ok(stream.into())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use api::services::Caller;
    use model::egress::Transport;

    use super::*;

    #[test]
    fn what_a_name_resolves_to_is_not_told() {
        let at: SocketAddr = "10.0.0.1:5432".parse().unwrap();
        let denied = || FileFault::Denied { address: at.to_string(), what: "a private address".to_owned() };
        let connect = || FileFault::Connect { address: at.to_string(), cause: "refused".to_owned() };
        for (host, told) in [("db.internal", "db.internal:5432"), ("10.0.0.1", "10.0.0.1:5432")] {
            let dial = Dial {
                app: "a".parse().unwrap(),
                caller: Caller::Component("main".parse().unwrap()),
                transport: Transport::Tcp,
                host: host.to_owned(),
                port: 5432,
            };
            for fault in [denied(), connect()] {
                let said = untold(&dial, fault).to_string();
                assert!(said.contains(told), "{said}");
                assert_eq!(said.contains("10.0.0.1"), host == "10.0.0.1", "{said}");
            }
        }
    }
}
