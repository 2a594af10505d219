//! Components from OCI registries: pinned by manifest digest, and hashed again here, whatever the client library checked.

use std::time::Duration;

use anyhow::Context as _;
use api::{Code, Problem};
use data_encoding::BASE64;
use futures::StreamExt as _;
use model::Digest;
use model::manifest::OciReference;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

/// The layer of a component, and the older name of it.
const LAYERS: [&str; 2] = ["application/wasm", "application/vnd.module.wasm.content.layer.v1+wasm"];
/// Manifest types that can carry one.
const MANIFESTS: [&str; 1] = ["application/vnd.oci.image.manifest.v1+json"];
/// The largest artifact, bytes.
const MAX_ARTIFACT: usize = 50 << 20;

/// Brings the component of a pinned reference.
///
/// # Errors
/// When the registry does not answer, refuses, or answers with other bytes than those pinned.
pub async fn pull(reference: &OciReference) -> anyhow::Result<Vec<u8>> {
    let shown = format!("{}/{}@{}", reference.registry, reference.repository, reference.digest);
    // A second installation loses and is harmless: there is one provider in this program.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = ClientConfig {
        protocol: if loopback(&reference.registry) { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(Duration::from_secs(10)),
        read_timeout: Some(Duration::from_secs(60)),
        ..ClientConfig::default()
    };
    let client = Client::new(config);
    let image =
        Reference::with_digest(reference.registry.clone(), reference.repository.clone(), reference.digest.to_string());
    let auth = credentials(&reference.registry);
    let failed = |cause: OciDistributionError| match unknown(&cause) {
        true => Problem::new(Code::ArtifactMissing, format!("the registry does not have {shown}"))
            .help("check repository and digest; `oras manifest fetch --descriptor` shows the digest of a tag"),
        false => Problem::new(Code::Unreachable, format!("cannot bring {shown}: {cause}"))
            .help("check the reference and the registry's credentials (docker config.json)"),
    };
    let (raw, _) = client.pull_manifest_raw(&image, &auth, &MANIFESTS).await.map_err(failed)?;
    matches(&raw, reference.digest, &shown)?;
    let manifest: OciManifest = serde_json::from_slice(&raw).with_context(|| format!("the manifest of {shown}"))?;
    let OciManifest::Image(OciImageManifest { layers, .. }) = manifest else {
        return Err(Problem::new(Code::ArtifactInvalid, format!("{shown} is an index, not one artifact")).into());
    };
    let layer = layers.iter().find(|layer| LAYERS.contains(&layer.media_type.as_str())).ok_or_else(|| {
        Problem::new(Code::ArtifactInvalid, format!("{shown} has no layer of type application/wasm"))
            .help("push the component with `wkg oci push` or `oras push`")
    })?;
    let wanted: Digest = layer.digest.parse().with_context(|| format!("the layer digest of {shown}"))?;
    let mut stream = client.pull_blob_stream(&image, layer).await.map_err(failed)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.stream.next().await {
        bytes.extend_from_slice(&chunk.with_context(|| format!("reading {shown}"))?);
        if bytes.len() > MAX_ARTIFACT {
            return Err(
                Problem::new(Code::TooLarge, format!("{shown} is larger than {} MiB", MAX_ARTIFACT >> 20)).into()
            );
        }
    }
    matches(&bytes, wanted, &shown)?;
    Ok(bytes)
}

/// Whether the registry answered that it has no such thing.
fn unknown(cause: &OciDistributionError) -> bool {
    match cause {
        OciDistributionError::ImageManifestNotFoundError(_) | OciDistributionError::ServerError { code: 404, .. } => {
            true
        }
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|error| {
            matches!(
                error.code,
                OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown
            )
        }),
        _ => false,
    }
}

fn matches(bytes: &[u8], wanted: Digest, shown: &str) -> Result<(), Problem> {
    let found = Digest::of(bytes);
    if found == wanted {
        return Ok(());
    }
    Err(Problem::new(Code::ArtifactTampered, format!("the registry answered {shown} with other bytes: {found}"))
        .help("do not use this registry or mirror until that is explained"))
}

/// Registries on this machine are spoken to without TLS.
fn loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The user's docker credentials for a registry, if there are any.
fn credentials(registry: &str) -> RegistryAuth {
    let read = || -> Option<(String, String)> {
        let dir = std::env::var_os("DOCKER_CONFIG")
            .map(std::path::PathBuf::from)
            .or_else(|| Some(etcetera::home_dir().ok()?.join(".docker")))?;
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).ok()?).ok()?;
        let auth = config.get("auths")?.get(registry)?.get("auth")?.as_str()?;
        let plain = String::from_utf8(BASE64.decode(auth.as_bytes()).ok()?).ok()?;
        let (user, password) = plain.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    };
    read().map_or(RegistryAuth::Anonymous, |(user, password)| RegistryAuth::Basic(user, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for here in ["localhost:5000", "127.0.0.1:5000", "localhost", "[::1]:5000"] {
            assert!(loopback(here), "{here}");
        }
        for elsewhere in ["registry.example", "127.0.0.1.example:5000", "localhost.example"] {
            assert!(!loopback(elsewhere), "{elsewhere}");
        }
    }
}
