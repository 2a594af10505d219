//! The signing keys of this machine: seeds in files that only this user can read, never printed.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context as _;
use api::{Code, Problem};
use model::claims::keys::{KeyKind, KeyPair};
use model::name::ComponentName;
use serde::Serialize;

use crate::home::{Home, write_new};

/// The account key that signs local builds.
pub const ACCOUNT: &str = "account";
/// The operator key of this machine.
pub const OPERATOR: &str = "operator";

/// A key as it may be shown.
#[derive(Debug, Clone, Serialize)]
pub struct PublicKey {
    /// Under which name it is kept.
    pub name: String,
    /// `account`, `module`, `operator`.
    pub kind: &'static str,
    /// The public key.
    pub key: String,
}

fn file(home: &Home, name: &str) -> anyhow::Result<PathBuf> {
    // The alphabet of names keeps the file inside the folder.
    let name: ComponentName =
        name.parse().map_err(|cause| Problem::new(Code::RequestInvalid, format!("no name for a key: {cause}")))?;
    Ok(home.keys().join(format!("{name}.nk")))
}

/// Reads a key of this machine.
///
/// # Errors
/// `not-found`, or when the file is no seed.
pub fn load(home: &Home, name: &str) -> anyhow::Result<KeyPair> {
    let path = file(home, name)?;
    let damaged = |why: &str| {
        Problem::new(Code::StoreUnavailable, format!("the key file {} is damaged: {why}", path.display()))
            .help("restore it from a backup, or move it away and trust a new key")
    };
    let seed = match fs::read_to_string(&path) {
        Ok(seed) => seed,
        Err(cause) if cause.kind() == ErrorKind::NotFound => {
            return Err(Problem::new(Code::NotFound, format!("no key `{name}` at {}", path.display()))
                .help(format!("`sidereal keys generate account {name}` makes one; `sidereal keys list` shows them"))
                .into());
        }
        Err(cause) if cause.kind() == ErrorKind::PermissionDenied => {
            return Err(Problem::new(Code::Forbidden, format!("cannot read the key file {}: {cause}", path.display()))
                .help("run the command as the user whose key it is")
                .into());
        }
        Err(cause) => return Err(damaged(&cause.to_string()).into()),
    };
    KeyPair::from_seed(seed.trim()).map_err(|_| damaged("it holds no seed of an nkeys key").into())
}

/// Makes a key; refuses to replace one.
///
/// # Errors
/// `conflict` when the name is taken.
pub fn generate(home: &Home, name: &str, kind: KeyKind) -> anyhow::Result<PublicKey> {
    let pair = KeyPair::from_entropy(kind, rand::random());
    if !keep(home, name, &pair)? {
        return Err(Problem::new(Code::Conflict, format!("there is a key `{name}` already"))
            .help("choose another name: a lost key cannot be made again")
            .into());
    }
    Ok(public(name, &pair))
}

/// Reads a key, or makes it on first use. Commands that run at once end with the same key.
///
/// # Errors
/// When it can neither be read nor made.
pub fn ensure(home: &Home, name: &str, kind: KeyKind) -> anyhow::Result<KeyPair> {
    if !file(home, name)?.exists() {
        // Whoever was first made the key that counts, so what is kept is read.
        keep(home, name, &KeyPair::from_entropy(kind, rand::random()))?;
    }
    load(home, name)
}

/// Writes a key unless there is one of that name; whether it did.
fn keep(home: &Home, name: &str, pair: &KeyPair) -> anyhow::Result<bool> {
    home.create()?;
    write_new(&file(home, name)?, pair.seed().as_bytes())
}

/// Every key of this machine, by name.
///
/// # Errors
/// When the folder cannot be read or a file in it is no seed.
pub fn list(home: &Home) -> anyhow::Result<Vec<PublicKey>> {
    let dir = home.keys();
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut keys = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "nk") {
            let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            keys.push(public(&name, &load(home, &name)?));
        }
    }
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(keys)
}

fn public(name: &str, pair: &KeyPair) -> PublicKey {
    let kind = match pair.kind() {
        KeyKind::Account => "account",
        KeyKind::Module => "module",
        KeyKind::Operator => "operator",
    };
    PublicKey { name: name.to_owned(), kind, key: pair.public_key() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_run_at_once_end_with_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(Some(dir.path())).unwrap();
        let start = std::sync::Barrier::new(8);
        let keys: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        ensure(&home, "module-x", KeyKind::Module).unwrap().public_key()
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(keys.len(), 1);
        assert_eq!(fs::read_dir(home.keys()).unwrap().count(), 1, "nothing unfinished is left");
        let taken = generate(&home, "module-x", KeyKind::Module).unwrap_err();
        assert_eq!(taken.downcast_ref::<Problem>().map(|p| p.code), Some(Code::Conflict));
    }

    #[test]
    fn a_damaged_key_file_is_said_to_be_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(Some(dir.path())).unwrap();
        home.create().unwrap();
        for content in [&b"no seed"[..], &[0xff, 0xfe], b""] {
            fs::write(home.keys().join("account.nk"), content).unwrap();
            let error = load(&home, ACCOUNT).unwrap_err();
            let problem = error.downcast_ref::<Problem>().unwrap();
            assert!(problem.code == Code::StoreUnavailable && problem.help.is_some(), "{problem:?}");
        }
    }
}
