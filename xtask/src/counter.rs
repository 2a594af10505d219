//! Is the committed demo what its source says? `examples/counter/counter.wasm` is built and signed here, and its lock
//! file lets a machine without a wasm toolchain notice when source and artifact have drifted apart.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail, ensure};
use model::claims::keys::{KeyKind, KeyPair, PublicKey};
use model::claims::{self, Claims, TrustPolicy, Verdict};

use crate::guests::{Toolchain, component, sources, write};

const FOLDER: &str = "examples/counter";
const SOURCES: [&str; 5] =
    ["examples/counter/Cargo.toml", "examples/counter/Cargo.lock", "examples/counter/src", "wit/p2", "wit/keyvalue"];
/// The seed of the account that signs the demo; a new key is made where it is not set.
const SEED: &str = "SIDEREAL_DEMO_SEED";
/// The largest artifact the repository carries, bytes.
const MAX_SIZE: usize = 100 * 1024;

/// Fails when the artifact was not built from the source as it is now, is not the one that was locked, or is not signed
/// by the key in `signer.pub`.
///
/// # Errors
/// What has drifted, and the command that mends it.
pub(crate) fn check_drift(root: &Path) -> Result<()> {
    drift(root).map_err(|what| anyhow!("{FOLDER}: {what:#}; run `cargo xtask guests` and commit what changes"))
}

fn drift(root: &Path) -> Result<()> {
    let folder = root.join(FOLDER);
    let lock = fs::read_to_string(folder.join("counter.lock")).context("counter.lock cannot be read")?;
    let lock: toml::Table = lock.parse().context("counter.lock is not TOML")?;
    let locked = |key: &str| lock.get(key).and_then(toml::Value::as_str).unwrap_or_default();
    ensure!(locked("source") == sources(root, &SOURCES)?, "the source changed after counter.wasm was built");
    let artifact = fs::read(folder.join("counter.wasm")).context("counter.wasm cannot be read")?;
    ensure!(
        locked("artifact") == model::Digest::of(&artifact).to_string(),
        "counter.wasm is not the one that was built"
    );
    ensure!(artifact.len() <= MAX_SIZE, "counter.wasm has {} bytes, {MAX_SIZE} are allowed", artifact.len());
    let anchors =
        [fs::read_to_string(folder.join("signer.pub")).context("signer.pub cannot be read")?.trim().to_owned()];
    let policy = TrustPolicy { anchors: &anchors, revoked: &[], allow_unsigned: false };
    let Verdict::Signed(claims) = claims::verify(&artifact, &policy, now()).context("counter.wasm")? else {
        bail!("counter.wasm is not signed");
    };
    ensure!(claims.expires.is_none(), "the demo's signature expires");
    Ok(())
}

/// Builds and signs the demo again when it has drifted; says whether it did.
///
/// # Errors
/// When there is no toolchain, or it does not compile, or the seed is not an account's.
pub(crate) fn refresh(root: &Path) -> Result<bool> {
    if drift(root).is_ok() {
        return Ok(false);
    }
    let folder = root.join(FOLDER);
    let artifact = folder.join("counter.wasm");
    let target = root.join("target/wasm");
    let module = Toolchain::find(&folder)?.cargo(root, &folder, &target, &[])?.join("counter.wasm");
    let unsigned = component(&module).context("the demo")?;
    let key = match std::env::var(SEED) {
        Ok(seed) => KeyPair::from_seed(seed.trim()).with_context(|| format!("{SEED} is not the seed of an account"))?,
        Err(_) => KeyPair::from_entropy(KeyKind::Account, rand::random()),
    };
    let signed = claims::sign(&unsigned, claims_of(&artifact)?, &key)?;
    write(&artifact, &signed)?;
    write(&folder.join("signer.pub"), format!("{}\n", key.public_key()).as_bytes())?;
    let lock = format!(
        "# Written by `cargo xtask guests`: which source counter.wasm was built from.\nsource = \"{}\"\nartifact = \"{}\"\n",
        sources(root, &SOURCES)?,
        model::Digest::of(&signed)
    );
    write(&folder.join("counter.lock"), lock.as_bytes())?;
    drift(root).context("the demo just built")?;
    Ok(true)
}

/// New claims; the component keeps the identity the earlier artifact had.
fn claims_of(earlier: &Path) -> Result<Claims> {
    let earlier = fs::read(earlier).ok().and_then(|bytes| claims::peek(&bytes).ok().flatten());
    let subject = earlier.and_then(|claims| PublicKey::parse(&claims.subject).ok());
    let subject = subject.unwrap_or_else(|| KeyPair::from_entropy(KeyKind::Module, rand::random()).public());
    Ok(Claims::new("counter", &subject, format!("{:032x}", rand::random::<u128>()), now()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demo and what it is built from, in a folder of its own.
    fn copy() -> tempfile::TempDir {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let copy = tempfile::tempdir().unwrap();
        for path in SOURCES.into_iter().chain([
            "examples/counter/counter.wasm",
            "examples/counter/counter.lock",
            "examples/counter/signer.pub",
        ]) {
            put(&root.join(path), &copy.path().join(path));
        }
        copy
    }

    fn put(from: &Path, to: &Path) {
        if from.is_dir() {
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                put(&entry.path(), &to.join(entry.file_name()));
            }
        } else {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
    }

    #[test]
    fn the_committed_demo_is_what_its_source_says() {
        check_drift(copy().path()).unwrap();
    }

    #[test]
    fn every_way_to_drift_is_noticed() {
        let other = KeyPair::from_entropy(KeyKind::Account, [5; 32]);
        let resigned = |bytes: Vec<u8>| claims::sign(&bytes, claims::peek(&bytes).unwrap().unwrap(), &other).unwrap();
        type Change<'a> = &'a dyn Fn(Vec<u8>) -> Vec<u8>;
        let changes: [(&str, Change<'_>, &str); 6] = [
            ("src/lib.rs", &|bytes| [&bytes[..], b"\n"].concat(), "source changed"),
            ("Cargo.lock", &|bytes| [&bytes[..], b"\n"].concat(), "source changed"),
            ("counter.wasm", &|bytes| bytes[..bytes.len() - 1].to_vec(), "not the one that was built"),
            ("counter.wasm", &resigned, "not the one that was built"),
            ("signer.pub", &|_| other.public_key().into_bytes(), "counter.wasm"),
            ("counter.lock", &|_| Vec::new(), "source changed"),
        ];
        for (file, change, why) in changes {
            let copy = copy();
            let path = copy.path().join(FOLDER).join(file);
            fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
            let error = format!("{:#}", check_drift(copy.path()).unwrap_err());
            assert!(error.contains(why) && error.contains("cargo xtask guests"), "{file}: {error}");
        }
    }
}
