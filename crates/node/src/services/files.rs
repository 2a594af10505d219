//! Descriptors for one host: compiled code of artifacts its tenant runs, and connections the dialer made.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use api::services::codec::WireError;
use api::services::server::FilesConnection;
use api::services::{FileFault, FileReply, FileRequest};
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
                    connection.reply(&ready, Some(dialled.as_fd())).await?;
                    dialled.handed_over();
                }
                Err(fault) => connection.reply(&FileReply::Refused(fault), None).await?,
            },
        }
    }
    Ok(())
}

async fn answer(connection: &mut FilesConnection, made: Result<OwnedFd, FileFault>) -> Result<(), WireError> {
    match made {
        Ok(fd) => connection.reply(&FileReply::Ready { address: None }, Some(fd.as_fd())).await,
        Err(fault) => connection.reply(&FileReply::Refused(fault), None).await,
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
    let file = services
        .artifacts
        .open_code(&client.tenant.name, &key)
        .await
        .map_err(|cause| FileFault::NoCode(cause.to_string()))?;
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
