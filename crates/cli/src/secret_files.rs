//! Secrets that the operator keeps in files, such as an identity that Nomad writes anew before it ends: each is set in the
//! sealed store when the platform starts and again whenever its file holds something else. Which files, only the command
//! line that starts the platform says: no API names one.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::{Code, Problem};
use control::Audit;
use model::secret::MAX_SECRET;
use model::{SecretName, SecretValue, TenantName};
use store::Expect;
use store::secrets::Secrets;

/// How often a file is read again.
const AGAIN: Duration = Duration::from_secs(1);

/// `NAME=PATH`.
#[derive(Debug, Clone)]
pub struct SecretFile {
    name: SecretName,
    path: PathBuf,
}

impl std::str::FromStr for SecretFile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected NAME=PATH, NAME being of a-z, 0-9 and inner hyphens";
        let (name, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or(expected)?;
        Ok(Self { name: name.parse().map_err(|_| expected)?, path: path.into() })
    }
}

/// Sets what the files hold now, and follows them until the platform stops.
///
/// # Errors
/// Where a file cannot be read, is empty or too large, or the store cannot be written.
pub async fn follow(
    secrets: &Arc<Secrets>,
    audit: &Arc<Audit>,
    tenant: &TenantName,
    files: &[SecretFile],
) -> anyhow::Result<()> {
    for file in files {
        let refused = |cause: String| {
            Problem::new(Code::RequestInvalid, format!("the secret `{}` cannot be set: {cause}", file.name))
                .help("correct the file, or start without its `--secret-file`")
        };
        set(secrets, audit, tenant, file).await.map_err(refused)?;
    }
    for file in files.iter().cloned() {
        let (secrets, audit, tenant) = (Arc::downgrade(secrets), Arc::downgrade(audit), tenant.clone());
        tokio::spawn(async move {
            let mut said = None;
            loop {
                tokio::time::sleep(AGAIN).await;
                let (Some(secrets), Some(audit)) = (secrets.upgrade(), audit.upgrade()) else { return };
                let failed = set(&secrets, &audit, &tenant, &file).await.err();
                // Once, and again when it is another reason.
                if let Some(cause) = failed.as_ref().filter(|_| failed != said) {
                    tracing::warn!(secret = %file.name, %cause, "the file of a secret is not used; what it held before stays");
                }
                said = failed;
            }
        });
    }
    Ok(())
}

/// Sets one, if it is another than is kept; the audit log says so.
async fn set(secrets: &Secrets, audit: &Audit, tenant: &TenantName, file: &SecretFile) -> Result<(), String> {
    let path = file.path.clone();
    let read = tokio::task::spawn_blocking(move || read(&path)).await;
    let value = read.map_err(|cause| cause.to_string())??;
    let kept = secrets.reveal(tenant, &file.name).await.map_err(|cause| cause.to_string())?;
    if kept.is_some_and(|kept| kept.value == value) {
        return Ok(());
    }
    let store = async {
        let set = secrets.set(tenant, &file.name, &value, Expect::Any).await;
        set.map_err(|cause| Problem::new(Code::StoreUnavailable, cause.to_string()))
    };
    let what = format!("sets the secret {} from its file", file.name);
    let set = audit.platform(tenant, what, store).await.map_err(|problem| problem.detail)?;
    tracing::info!(secret = %file.name, version = set.version, "a secret is set from its file");
    Ok(())
}

/// What a file holds, without the line break at its end.
fn read(path: &Path) -> Result<SecretValue, String> {
    let shown = path.display();
    let failed = |cause: std::io::Error| format!("{shown}: {cause}");
    // As large as it may be: growing would leave copies behind.
    let mut bytes = Vec::with_capacity(MAX_SECRET + 3);
    let file = std::fs::File::open(path).map_err(failed)?;
    let outcome = file.take(MAX_SECRET as u64 + 3).read_to_end(&mut bytes).map_err(failed);
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    // Wiped from here on, whatever becomes of it.
    let value = SecretValue::new(bytes);
    outcome?;
    match value.expose().len() {
        0 => Err(format!("{shown} is empty")),
        n if n > MAX_SECRET => Err(format!("{shown} has more than {MAX_SECRET} bytes")),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_without_its_last_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for (held, value) in [(&b"hunter2\n"[..], Some(&b"hunter2"[..])), (b"a\r\n", Some(b"a")), (b"\n", None)] {
            std::fs::write(&path, held).unwrap();
            assert_eq!(read(&path).ok().map(|value| value.expose().to_vec()).as_deref(), value);
        }
        std::fs::write(&path, vec![b'x'; MAX_SECRET + 1]).unwrap();
        assert!(read(&path).unwrap_err().contains("more than"));
        assert!(read(&dir.path().join("none")).is_err());
        for bad in ["a", "A=/x", "=x", "a="] {
            assert!(bad.parse::<SecretFile>().is_err(), "{bad}");
        }
    }
}
