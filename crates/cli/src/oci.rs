//! Components from OCI registries: pinned by manifest digest, and hashed again here, whatever the client library checked.

use std::time::Duration;

use api::{Code, Problem};
use futures::StreamExt as _;
use model::Digest;
use model::manifest::OciReference;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciEnvelope, OciErrorCode};
use oci_client::manifest::{OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

/// The layer of a component, and the older name of it.
const LAYERS: [&str; 2] = ["application/wasm", "application/vnd.module.wasm.content.layer.v1+wasm"];
/// Manifest types that can carry one.
const MANIFESTS: [&str; 1] = ["application/vnd.oci.image.manifest.v1+json"];
/// How long a registry may take to be connected to.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may be silent, before it answers and in the middle of it; one that never answers is asked twice, for the client
/// library asks first who may. Whoever stops a task that starts waits for that.
const SILENT: Duration = Duration::from_secs(15);
/// How long a registry may take for all of a component: one that sends a byte now and then is never silent.
pub const WHOLE: Duration = Duration::from_secs(300);
/// The largest artifact, bytes.
const MAX_ARTIFACT: usize = 50 << 20;

/// Brings the component of a pinned reference as the one that `auth` says, which may take no longer than `whole`.
///
/// # Errors
/// When the registry does not answer, refuses, answers with other bytes than those pinned, or takes longer.
pub async fn pull(reference: &OciReference, auth: &RegistryAuth, whole: Duration) -> anyhow::Result<Vec<u8>> {
    tokio::time::timeout(whole, asked(reference, auth)).await.unwrap_or_else(|_| Err(late(reference, whole).into()))
}

/// It took too long.
pub fn late(reference: &OciReference, whole: Duration) -> Problem {
    let what = format!("{} did not send {} within {whole:?}", reference.registry, reference.repository);
    Problem::new(Code::TimedOut, what).help("look whether the registry answers from this machine")
}

async fn asked(reference: &OciReference, auth: &RegistryAuth) -> anyhow::Result<Vec<u8>> {
    let shown = format!("{}/{}@{}", reference.registry, reference.repository, reference.digest);
    // A second installation loses and is harmless: there is one provider in this program.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = ClientConfig {
        protocol: if loopback(&reference.registry) { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENT),
        ..ClientConfig::default()
    };
    let client = Client::new(config);
    let image =
        Reference::with_digest(reference.registry.clone(), reference.repository.clone(), reference.digest.to_string());
    let failed = |cause: OciDistributionError| match () {
        () if unknown(&cause) => Problem::new(Code::ArtifactMissing, format!("the registry does not have {shown}"))
            .help("check repository and digest; `oras manifest fetch --descriptor` shows the digest of a tag"),
        () if denies(&cause) => {
            let help = match auth {
                RegistryAuth::Anonymous => {
                    "log in there, or name a helper: the docker configuration of this user has no credentials"
                }
                _ => {
                    "log in there again: the credentials of this user's docker configuration may not read the repository"
                }
            };
            Problem::new(Code::Forbidden, format!("the registry does not give {shown} to whoever asks: {cause}"))
                .help(help)
        }
        () => Problem::new(Code::Unreachable, format!("cannot bring {shown}: {cause}"))
            .help("check the reference, and whether the registry answers from this machine"),
    };
    let (raw, _) = client.pull_manifest_raw(&image, auth, &MANIFESTS).await.map_err(failed)?;
    matches(&raw, reference.digest, &shown)?;
    let unreadable = |cause: &dyn std::fmt::Display| {
        Problem::new(Code::ArtifactInvalid, format!("the manifest of {shown} cannot be read: {cause}"))
    };
    let manifest: OciManifest = serde_json::from_slice(&raw).map_err(|cause| unreadable(&cause))?;
    let OciManifest::Image(OciImageManifest { layers, .. }) = manifest else {
        return Err(Problem::new(Code::ArtifactInvalid, format!("{shown} is an index, not one artifact")).into());
    };
    let layer = layers.iter().find(|layer| LAYERS.contains(&layer.media_type.as_str())).ok_or_else(|| {
        Problem::new(Code::ArtifactInvalid, format!("{shown} has no layer of type application/wasm"))
            .help("push the component with `wkg oci push` or `oras push`")
    })?;
    let wanted: Digest = layer.digest.parse().map_err(|cause| unreadable(&cause))?;
    let size = u64::try_from(layer.size).unwrap_or_default();
    if size > MAX_ARTIFACT as u64 {
        return Err(Problem::new(Code::TooLarge, format!("{shown} is larger than {} MiB", MAX_ARTIFACT >> 20)).into());
    }
    let mut stream = client.pull_blob_stream(&image, layer).await.map_err(failed)?;
    let mut bytes = Vec::new();
    let mut broken = None;
    while let Some(chunk) = stream.stream.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            // Also that all of it is something else than the digest says.
            Err(cause) => {
                broken = Some(cause);
                break;
            }
        }
        // It has another digest already, however much more there is.
        if bytes.len() as u64 > size {
            let what = format!("the registry sent more of {shown} than the {size} bytes that its manifest says");
            return Err(Problem::new(Code::ArtifactTampered, what)
                .help("do not use this registry or mirror until that is explained")
                .into());
        }
    }
    // Half of it has another digest, and nobody has tampered with it.
    if let Some(cause) = broken.filter(|_| (bytes.len() as u64) < size) {
        let what = format!("{shown} broke off after {} of {} bytes: {cause}", bytes.len(), layer.size);
        return Err(Problem::new(Code::Unreachable, what).help("the registry's connection ended; try again").into());
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

/// Whether the registry answered that it is not for whoever asks.
fn denies(cause: &OciDistributionError) -> bool {
    let denied = |envelope: &OciEnvelope| {
        envelope.errors.iter().any(|error| matches!(error.code, OciErrorCode::Unauthorized | OciErrorCode::Denied))
    };
    match cause {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::ServerError { code: 401 | 403, .. } => {
            true
        }
        OciDistributionError::RegistryError { envelope, .. } => denied(envelope),
        // Which status that had is not told, and it may be out of order.
        OciDistributionError::AuthenticationFailure(said) => {
            serde_json::from_str(said).is_ok_and(|envelope| denied(&envelope))
                || said.contains("incorrect username or password")
        }
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
pub fn loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};

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

    /// What a registry does that is asked for a manifest or a component.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Does {
        Sends,
        SendsWithoutEnd,
        SendsAByteAtATime,
        SendsElsewhere,
    }

    /// A registry of one component; how many bytes it sent of what it was asked for.
    async fn registry(manifest: Does, component: Does) -> (OciReference, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let layer = vec![7_u8; 1000];
        let text = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFESTS[0],
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": Digest::of(b"{}"), "size": 2},
            "layers": [{"mediaType": LAYERS[0], "digest": Digest::of(&layer), "size": layer.len()}],
        })
        .to_string();
        let digest = Digest::of(text.as_bytes());
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (text, layer, counted) = (text.clone(), layer.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if !matches!(stream.read_line(&mut head).await, Ok(1..)) {
                            return;
                        }
                    }
                    let (does, kind, body) = match () {
                        () if head.contains("/manifests/") => (manifest, MANIFESTS[0], text.into_bytes()),
                        () if head.contains("/blobs/") => (component, "application/octet-stream", layer),
                        () => (Does::Sends, "text/plain", Vec::new()),
                    };
                    drop(answer(stream.into_inner(), does, (kind, &body), &counted).await);
                });
            }
        });
        (OciReference { registry: address.to_string(), repository: "shop".into(), tag: None, digest }, sent)
    }

    async fn answer(
        mut stream: TcpStream,
        does: Does,
        (kind, body): (&str, &[u8]),
        sent: &AtomicUsize,
    ) -> std::io::Result<()> {
        let ends = match does {
            Does::SendsElsewhere => {
                // Of either kind, as it was asked for.
                let here = if kind == MANIFESTS[0] { "/v2/shop/manifests/again" } else { "/v2/shop/blobs/again" };
                let head =
                    format!("HTTP/1.1 307 x\r\nlocation: {here}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                return stream.write_all(head.as_bytes()).await;
            }
            Does::SendsWithoutEnd => String::new(),
            Does::Sends | Does::SendsAByteAtATime => format!("content-length: {}\r\n", body.len()),
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{ends}connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        match does {
            Does::Sends | Does::SendsElsewhere => stream.write_all(body).await?,
            Does::SendsWithoutEnd => loop {
                stream.write_all(&[b' '; 65_536]).await?;
                sent.fetch_add(65_536, Ordering::Relaxed);
            },
            Does::SendsAByteAtATime => {
                for byte in body {
                    stream.write_all(&[*byte]).await?;
                    sent.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        Ok(())
    }

    /// What a person has to change is told from what passes.
    #[test]
    fn who_may_not_is_told_from_who_cannot() {
        let server = |code| OciDistributionError::ServerError { code, url: String::new(), message: String::new() };
        let said = |text: &str| OciDistributionError::AuthenticationFailure(text.to_owned());
        for refused in [
            server(401),
            server(403),
            OciDistributionError::UnauthorizedError { url: String::new() },
            said(r#"{"errors":[{"code":"DENIED","message":"denied"}]}"#),
            said(r#"{"details":"incorrect username or password"}"#),
        ] {
            assert!(denies(&refused), "{refused}");
        }
        let busy = r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#;
        for passes in [server(500), server(429), said(busy), said("<html>bad gateway</html>")] {
            assert!(!denies(&passes), "{passes}");
        }
    }

    fn code(brought: anyhow::Result<Vec<u8>>) -> Code {
        crate::output::problem_of(&brought.unwrap_err()).code
    }

    #[tokio::test]
    async fn a_registry_that_does_what_it_should_is_believed() {
        let (reference, _) = registry(Does::Sends, Does::Sends).await;
        assert_eq!(pull(&reference, &RegistryAuth::Anonymous, WHOLE).await.unwrap(), vec![7; 1000]);
    }

    #[tokio::test]
    async fn a_component_without_end_is_read_no_further_than_its_manifest_says() {
        let (reference, sent) = registry(Does::Sends, Does::SendsWithoutEnd).await;
        assert_eq!(code(pull(&reference, &RegistryAuth::Anonymous, WHOLE).await), Code::ArtifactTampered);
        // What lies in the buffers of a connection is sent, and read by nobody.
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < MAX_ARTIFACT, "{sent} bytes");
    }

    #[tokio::test]
    async fn what_comes_a_byte_at_a_time_has_its_time_all_the_same() {
        // Of a thousand bytes, one in 50 ms, a second sees twenty.
        let whole = Duration::from_secs(1);
        for (manifest, component) in [(Does::SendsAByteAtATime, Does::Sends), (Does::Sends, Does::SendsAByteAtATime)] {
            let (reference, sent) = registry(manifest, component).await;
            assert_eq!(code(pull(&reference, &RegistryAuth::Anonymous, whole).await), Code::TimedOut, "{manifest:?}");
            assert!(sent.load(Ordering::Relaxed) < 200, "{manifest:?}");
        }
    }

    #[tokio::test]
    async fn a_registry_that_sends_from_itself_to_itself_is_left() {
        for (manifest, component) in [(Does::SendsElsewhere, Does::Sends), (Does::Sends, Does::SendsElsewhere)] {
            let (reference, _) = registry(manifest, component).await;
            assert_eq!(
                code(pull(&reference, &RegistryAuth::Anonymous, WHOLE).await),
                Code::Unreachable,
                "{manifest:?}"
            );
        }
    }
}
