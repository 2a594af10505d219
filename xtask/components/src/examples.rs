//! Are the committed examples what their sources say? Their components are built and signed here, and a lock file beside
//! each lets a machine without a wasm toolchain notice when source and artifact have drifted apart.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

#[cfg(test)]
use anyhow::anyhow;
use anyhow::{Context, Result, bail, ensure};
use model::claims::keys::{KeyKind, KeyPair, PublicKey};
use model::claims::{self, Claims, TrustPolicy, Verdict};

use crate::guests::{Toolchain, component, sources, write};

/// A component that is committed, built and signed.
#[derive(Debug, Clone, Copy)]
struct Example {
    folder: &'static str,
    /// Of the component: the file without `.wasm`.
    name: &'static str,
    sources: &'static [&'static str],
    /// A file that is committed in two places: where it is from, and where its copy is.
    copy: Option<(&'static str, &'static str)>,
}

/// Three are providers made with the library in `sdk/`; the last two keep the notes of `examples/notes`.
const EXAMPLES: [Example; 5] = [
    Example {
        folder: "examples/counter",
        name: "counter",
        sources: &[
            "examples/counter/Cargo.toml",
            "examples/counter/Cargo.lock",
            "examples/counter/src",
            "wit/p2",
            "wit/keyvalue",
        ],
        copy: None,
    },
    Example {
        folder: "examples/notes",
        name: "notes",
        sources: &[
            "examples/notes/Cargo.toml",
            "examples/notes/Cargo.lock",
            "examples/notes/src",
            "wit/p2",
            "wit/keyvalue",
        ],
        copy: None,
    },
    Example {
        folder: "examples/prefix-keyvalue",
        name: "prefixer",
        sources: &[
            "examples/prefix-keyvalue/Cargo.toml",
            "examples/prefix-keyvalue/Cargo.lock",
            "examples/prefix-keyvalue/src",
            "sdk/keyvalue-provider/Cargo.toml",
            "sdk/keyvalue-provider/src",
            "wit/keyvalue",
            "wit/config",
        ],
        copy: Some(("examples/counter/counter.wasm", "examples/prefix-keyvalue/counter.wasm")),
    },
    Example {
        folder: "examples/encrypt-keyvalue",
        name: "encrypter",
        sources: &[
            "examples/encrypt-keyvalue/Cargo.toml",
            "examples/encrypt-keyvalue/Cargo.lock",
            "examples/encrypt-keyvalue/src",
            "sdk/keyvalue-provider/Cargo.toml",
            "sdk/keyvalue-provider/src",
            "wit/keyvalue",
            "wit/secrets",
            "wit/p2/deps/random.wit",
        ],
        copy: Some(("examples/notes/notes.wasm", "examples/encrypt-keyvalue/notes.wasm")),
    },
    Example {
        folder: "examples/cache-keyvalue",
        name: "cacher",
        sources: &[
            "examples/cache-keyvalue/Cargo.toml",
            "examples/cache-keyvalue/Cargo.lock",
            "examples/cache-keyvalue/src",
            "sdk/keyvalue-provider/Cargo.toml",
            "sdk/keyvalue-provider/src",
            "wit/keyvalue",
        ],
        copy: Some(("examples/notes/notes.wasm", "examples/cache-keyvalue/notes.wasm")),
    },
];
/// Copies of artifacts in examples that build none of their own: where each is from, and where its copy is.
const COPIES: [(&str, &str); 1] = [("examples/counter/counter.wasm", "examples/external-keyvalue/counter.wasm")];
/// The seed of the account that signs the demo; a new key is made where it is not set.
const SEED: &str = "SIDEREAL_DEMO_SEED";
/// The largest artifact the repository carries, bytes.
const MAX_SIZE: usize = 100 * 1024;

/// Fails when an artifact was not built from the source as it is now, is not the one that was locked, or is not signed
/// by the key in `signer.pub`.
///
/// # Errors
/// What has drifted, and the command that mends it.
#[cfg(test)]
fn check_drift(root: &Path) -> Result<()> {
    EXAMPLES.iter().try_for_each(|example| {
        drift(root, example)
            .map_err(|what| anyhow!("{}: {what:#}; run `cargo xtask guests` and commit what changes", example.folder))
    })?;
    COPIES.iter().try_for_each(|(from, to)| {
        let same = fs::read(root.join(from))? == fs::read(root.join(to)).unwrap_or_default();
        ensure!(same, "{to} is no copy of {from}; run `cargo xtask guests` and commit what changes");
        Ok(())
    })
}

fn drift(root: &Path, example: &Example) -> Result<()> {
    let (folder, name) = (root.join(example.folder), example.name);
    let lock = fs::read_to_string(folder.join(format!("{name}.lock")));
    let lock = lock.with_context(|| format!("{name}.lock cannot be read"))?;
    let lock: toml::Table = lock.parse().with_context(|| format!("{name}.lock is not TOML"))?;
    let locked = |key: &str| lock.get(key).and_then(toml::Value::as_str).unwrap_or_default();
    ensure!(locked("source") == sources(root, example.sources)?, "the source changed after {name}.wasm was built");
    let artifact = fs::read(folder.join(format!("{name}.wasm")));
    let artifact = artifact.with_context(|| format!("{name}.wasm cannot be read"))?;
    ensure!(
        locked("artifact") == model::Digest::of(&artifact).to_string(),
        "{name}.wasm is not the one that was built"
    );
    ensure!(artifact.len() <= MAX_SIZE, "{name}.wasm has {} bytes, {MAX_SIZE} are allowed", artifact.len());
    let anchors =
        [fs::read_to_string(folder.join("signer.pub")).context("signer.pub cannot be read")?.trim().to_owned()];
    let policy = TrustPolicy { anchors: &anchors, revoked: &[], allow_unsigned: false };
    let Verdict::Signed(claims) = claims::verify(&artifact, &policy, now()).with_context(|| format!("{name}.wasm"))?
    else {
        bail!("{name}.wasm is not signed");
    };
    ensure!(claims.expires.is_none(), "the signature of {name}.wasm expires");
    if let Some((from, to)) = example.copy {
        let same = fs::read(root.join(from))? == fs::read(root.join(to)).with_context(|| to.to_owned())?;
        ensure!(same, "{to} is no copy of {from}");
    }
    Ok(())
}

/// Builds and signs the examples again that have drifted; says what became of each.
///
/// # Errors
/// When there is no toolchain, or one does not compile, or the seed is not an account's.
pub(crate) fn refresh(root: &Path) -> Result<Vec<(String, bool)>> {
    let refreshed =
        |example: &Example| Ok((format!("{}/{}.wasm", example.folder, example.name), build(root, example)?));
    let mut all: Vec<_> = EXAMPLES.iter().map(refreshed).collect::<Result<_>>()?;
    for (from, to) in COPIES {
        let (wanted, there) = (fs::read(root.join(from))?, fs::read(root.join(to)).unwrap_or_default());
        if wanted != there {
            write(&root.join(to), &wanted)?;
        }
        all.push((to.to_owned(), wanted != there));
    }
    Ok(all)
}

fn build(root: &Path, example: &Example) -> Result<bool> {
    if drift(root, example).is_ok() {
        return Ok(false);
    }
    let (folder, name) = (root.join(example.folder), example.name);
    if let Some((from, to)) = example.copy {
        write(&root.join(to), &fs::read(root.join(from))?)?;
        if drift(root, example).is_ok() {
            return Ok(true);
        }
    }
    let artifact = folder.join(format!("{name}.wasm"));
    let target = root.join("target/wasm");
    let module = Toolchain::find(&folder)?.cargo(root, &folder, &target, &[])?.join(format!("{name}.wasm"));
    let unsigned = component(&module).with_context(|| name.to_owned())?;
    let key = match std::env::var(SEED) {
        Ok(seed) => KeyPair::from_seed(seed.trim()).with_context(|| format!("{SEED} is not the seed of an account"))?,
        Err(_) => KeyPair::from_entropy(KeyKind::Account, rand::random()),
    };
    let signed = claims::sign(&unsigned, claims_of(name, &artifact)?, &key)?;
    write(&artifact, &signed)?;
    write(&folder.join("signer.pub"), format!("{}\n", key.public_key()).as_bytes())?;
    let lock = format!(
        "# Written by `cargo xtask guests`: which source {name}.wasm was built from.\nsource = \"{}\"\nartifact = \"{}\"\n",
        sources(root, example.sources)?,
        model::Digest::of(&signed)
    );
    write(&folder.join(format!("{name}.lock")), lock.as_bytes())?;
    drift(root, example).context("the example just built")?;
    Ok(true)
}

/// New claims; the component keeps the identity the earlier artifact had.
fn claims_of(name: &str, earlier: &Path) -> Result<Claims> {
    let earlier = fs::read(earlier).ok().and_then(|bytes| claims::peek(&bytes).ok().flatten());
    let subject = earlier.and_then(|claims| PublicKey::parse(&claims.subject).ok());
    let subject = subject.unwrap_or_else(|| KeyPair::from_entropy(KeyKind::Module, rand::random()).public());
    Ok(Claims::new(name, &subject, format!("{:032x}", rand::random::<u128>()), now()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demo and what it is built from, in a folder of its own.
    fn copy() -> tempfile::TempDir {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let copy = tempfile::tempdir().unwrap();
        for example in EXAMPLES {
            let files = [format!("{}.wasm", example.name), format!("{}.lock", example.name), "signer.pub".to_owned()];
            let files = files.map(|file| format!("{}/{file}", example.folder));
            let copies = example.copy.map(|(_, to)| to.to_owned());
            for path in example.sources.iter().map(|path| (*path).to_owned()).chain(files).chain(copies) {
                put(&root.join(&path), &copy.path().join(&path));
            }
        }
        for (from, to) in COPIES {
            put(&root.join(from), &copy.path().join(from));
            put(&root.join(to), &copy.path().join(to));
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
    fn every_artifact_that_is_locked_is_one_that_is_looked_at() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("examples");
        let entries =
            |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        for folder in entries(&examples).into_iter().filter(|path| path.is_dir()) {
            for lock in entries(&folder).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "lock"))
            {
                let stem = lock.file_stem().unwrap().to_str().unwrap();
                let is_known = EXAMPLES.iter().any(|known| known.name == stem && folder.ends_with(known.folder));
                assert!(stem == "Cargo" || is_known, "{}", lock.display());
            }
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
        let changes: [(&str, Change<'_>, &str); 10] = [
            ("counter/src/lib.rs", &|bytes| [&bytes[..], b"\n"].concat(), "source changed"),
            ("../sdk/keyvalue-provider/src/lib.rs", &|bytes| [&bytes[..], b"\n"].concat(), "source changed"),
            ("counter/Cargo.lock", &|bytes| [&bytes[..], b"\n"].concat(), "source changed"),
            ("counter/counter.wasm", &|bytes| bytes[..bytes.len() - 1].to_vec(), "not the one that was built"),
            ("counter/counter.wasm", &resigned, "not the one that was built"),
            ("counter/signer.pub", &|_| other.public_key().into_bytes(), "counter.wasm"),
            ("counter/counter.lock", &|_| Vec::new(), "source changed"),
            ("prefix-keyvalue/counter.wasm", &|_| Vec::new(), "no copy"),
            ("encrypt-keyvalue/notes.wasm", &|_| Vec::new(), "no copy"),
            ("external-keyvalue/counter.wasm", &|_| Vec::new(), "no copy"),
        ];
        for (file, change, why) in changes {
            let copy = copy();
            let path = copy.path().join("examples").join(file);
            fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
            let error = format!("{:#}", check_drift(copy.path()).unwrap_err());
            assert!(error.contains(why) && error.contains("cargo xtask guests"), "{file}: {error}");
        }
    }
}
