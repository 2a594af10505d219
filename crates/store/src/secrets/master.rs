//! The master keys: one file beside the store, readable by its owner only. Whoever has the store without this file has
//! no secrets. More than one key is in it only while the key is being changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use zeroize::Zeroizing;

use super::crypto::Key;
use crate::disk::sync_dir;

/// The file's name in the folder of keys.
const FILE: &str = "secrets.key";
/// The largest file that is read, bytes.
const MAX_FILE: u64 = 64 << 10;

/// The master keys by id, and which of them wraps.
#[derive(Debug, Clone)]
pub(super) struct Masters {
    path: PathBuf,
    current: String,
    keys: BTreeMap<String, Arc<Key>>,
}

impl Masters {
    /// Where the keys are kept in a folder.
    pub(super) fn path(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// A first key, not written yet.
    pub(super) fn first(folder: &Path) -> Self {
        let mut masters = Self { path: Self::path(folder), current: String::new(), keys: BTreeMap::new() };
        masters.renew();
        masters
    }

    /// The keys that are kept in a folder; `None` where there is no such file.
    pub(super) fn read(folder: &Path) -> io::Result<Option<Self>> {
        let path = Self::path(folder);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(cause),
        };
        let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        if file.metadata()?.mode() & 0o077 != 0 {
            return Err(damaged("others than its owner may read or write it: `chmod 600` it"));
        }
        // As large as it can be: growing would leave copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let text = std::str::from_utf8(&text).map_err(|_| damaged("it is not a file of keys"))?;
        let (mut current, mut keys) = (None, BTreeMap::new());
        for line in text.lines() {
            let (id, key) = line.split_once(' ').ok_or_else(|| damaged("it is not a file of keys"))?;
            let bytes = BASE64.decode(key.as_bytes()).map(Zeroizing::new).ok();
            let key = bytes.and_then(|bytes| Key::of(&bytes)).ok_or_else(|| damaged("a key in it is damaged"))?;
            current.get_or_insert_with(|| id.to_owned());
            keys.insert(id.to_owned(), Arc::new(key));
        }
        let current = current.ok_or_else(|| damaged("it is empty"))?;
        Ok(Some(Self { path, current, keys }))
    }

    /// Replaces the file, whole or not at all; durable when this returns.
    pub(super) fn write(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // One line a key, the current one first. As large as it can be: growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize));
        let others = self.keys.iter().filter(|(id, _)| **id != self.current);
        for (id, key) in self.keys.get_key_value(&self.current).into_iter().chain(others) {
            text.push_str(id);
            text.push(' ');
            BASE64.encode_append(key.expose(), &mut text);
            text.push('\n');
        }
        let partial = self.path.with_extension(format!("{}.partial", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&partial, &self.path))
            .and_then(|()| sync_dir(folder));
        if written.is_err() {
            // Nothing of a key stays behind under another name.
            drop(fs::remove_file(&partial));
        }
        written
    }

    /// The file.
    pub(super) fn file(&self) -> &Path {
        &self.path
    }

    /// The id of the key that wraps from now on.
    pub(super) fn current(&self) -> &str {
        &self.current
    }

    /// A key by its id.
    pub(super) fn key(&self, id: &str) -> Option<&Arc<Key>> {
        self.keys.get(id)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.keys.len()
    }

    /// Adds a key that is the current one; the others stay.
    pub(super) fn renew(&mut self) {
        let id = HEXLOWER.encode(&rand::random::<[u8; 8]>());
        self.keys.insert(id.clone(), Arc::new(Key::random()));
        self.current = id;
    }

    /// Forgets all but the current key.
    pub(super) fn retire(&mut self) {
        let current = self.current.clone();
        self.keys.retain(|id, _| *id == current);
    }
}
