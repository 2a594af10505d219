//! Descriptors for one host: compiled code of artifacts its tenant runs, and sockets the dialer connected.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use api::services::codec::WireError;
use api::services::server::FilesConnection;
use api::services::{FileFault, FileReply, FileRequest};
use model::{Digest, World};

use super::{Client, Services};
use crate::artifacts::CodeKey;

pub(super) async fn serve(
    mut connection: FilesConnection,
    client: Client,
    services: Arc<Services>,
) -> Result<(), WireError> {
    while let Some(request) = connection.next().await? {
        let answer: Result<(OwnedFd, Option<SocketAddr>), FileFault> = match request {
            FileRequest::Compiled { digest, world } => {
                compiled(&client, &services, digest, world).await.map(|fd| (fd, None))
            }
            FileRequest::Dial(dial) => connected(&client, &services, &dial).await.map(|(fd, to)| (fd, Some(to))),
            FileRequest::External(wanted) => external(&client, &services, &wanted).await.map(|fd| (fd, None)),
        };
        match answer {
            Ok((fd, address)) => connection.reply(&FileReply::Ready { address }, Some(fd.as_fd())).await?,
            Err(fault) => connection.reply(&FileReply::Refused(fault), None).await?,
        }
    }
    Ok(())
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
    let file = services.artifacts.open_code(&key).await.map_err(|cause| FileFault::NoCode(cause.to_string()))?;
    Ok(file.into())
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

async fn connected(
    client: &Client,
    services: &Services,
    dial: &api::services::Dial,
) -> Result<(OwnedFd, SocketAddr), FileFault> {
    let (stream, address) = services.dialer.dial(&client.tenant, dial).await?;
    let stream = stream.into_std();
    let stream =
        stream.map_err(|cause| FileFault::Connect { address: address.to_string(), cause: cause.to_string() })?;
    Ok((stream.into(), address))
}
