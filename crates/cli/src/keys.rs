//! The signing keys of this machine: seeds in files that only this user can read, never printed.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use api::{Code, Problem};
use model::claims::keys::{KeyKind, KeyPair};
use model::name::ComponentName;
use serde::Serialize;

use crate::home::{Home, write_private};

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
    let seed = fs::read_to_string(&path).map_err(|cause| {
        Problem::new(Code::NotFound, format!("no key `{name}` at {}: {cause}", path.display()))
            .help(format!("`sidereal keys generate account {name}` makes one; `sidereal keys list` shows them"))
    })?;
    KeyPair::from_seed(seed.trim())
        .map_err(|_| Problem::new(Code::Internal, format!("{} holds no seed of an nkeys key", path.display())).into())
}

/// Makes a key; refuses to replace one.
///
/// # Errors
/// `conflict` when the name is taken.
pub fn generate(home: &Home, name: &str, kind: KeyKind) -> anyhow::Result<PublicKey> {
    home.create()?;
    let path = file(home, name)?;
    if path.exists() {
        return Err(Problem::new(Code::Conflict, format!("there is a key `{name}` already"))
            .help("choose another name: a lost key cannot be made again")
            .into());
    }
    let pair = KeyPair::from_entropy(kind, rand::random());
    write_private(&path, pair.seed().as_bytes())?;
    Ok(public(name, &pair))
}

/// Reads a key, or makes it on first use.
///
/// # Errors
/// When it can neither be read nor made.
pub fn ensure(home: &Home, name: &str, kind: KeyKind) -> anyhow::Result<KeyPair> {
    if !file(home, name)?.exists() {
        generate(home, name, kind)?;
    }
    load(home, name)
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
