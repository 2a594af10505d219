//! What registries sent, kept beside the code that was made of it: a task that is started again needs neither. By the digest
//! that pins it, so it is the same wherever it came from. It goes by the rules of the code ([`super::thin`]).
//!
//! The digest is that of the registry's manifest and says nothing of these bytes by itself, so they have a MAC as the code has
//! ([`super::cache`]): whoever can write the folder but not read the key can only make us ask the registry again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use model::Digest;

/// Where, beside the folders of engines; no engine is called so, for their names are numbers.
const FOLDER: &str = "pulled";
/// What stands before the component in a file: its MAC.
const HEAD: usize = blake3::OUT_LEN;
/// How the name of a file ends.
pub(super) const END: &str = ".wasm";

/// What was pulled by references of one digest. The folder is that of [`super::Artifacts::open_shared`].
#[derive(Debug, Clone)]
pub struct Pulled {
    path: PathBuf,
    key: PathBuf,
    pin: Digest,
}

impl Pulled {
    /// Of this digest, in this folder of shared code.
    pub fn of(code: &Path, pinned: &Digest) -> Self {
        let path = super::cache_of(code).join(FOLDER).join(format!("{}{END}", pinned.hex()));
        Self { path, key: super::cache::key_file(&super::keys_of(code)), pin: *pinned }
    }

    /// Over the pin and these bytes. What comes first is no engine's name, so no MAC of code is one of these.
    fn mac(&self, key: &[u8; blake3::KEY_LEN], bytes: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(key);
        for part in [FOLDER.as_bytes(), self.pin.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.update(bytes).finalize()
    }

    /// The component, if it is kept whole and is not larger than `most`. Blocks on the disk.
    pub fn get(&self, most: usize) -> Option<Vec<u8>> {
        let read = || -> io::Result<Option<Vec<u8>>> {
            let mut file = OpenOptions::new().read(true).append(true).open(&self.path)?;
            let Some(key) = super::cache::read_key(&self.key).map_err(io::Error::other)? else { return Ok(None) };
            let mut own = [0; HEAD];
            file.read_exact(&mut own)?;
            let mut bytes = Vec::new();
            (&mut file).take(most as u64 + 1).read_to_end(&mut bytes)?;
            // The comparison of two `blake3::Hash` takes the same time wherever they differ.
            if bytes.len() > most || self.mac(&key, &bytes) != blake3::Hash::from(own) {
                return Ok(None);
            }
            file.set_modified(SystemTime::now())?;
            Ok(Some(bytes))
        };
        match read() {
            Ok(Some(bytes)) => Some(bytes),
            Ok(None) => {
                tracing::error!(path = %self.path.display(), "what a registry sent is not ours or damaged, and is asked for again");
                None
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => {
                tracing::warn!(path = %self.path.display(), %cause, "what a registry sent cannot be read and is asked for again");
                None
            }
        }
    }

    /// Keeps that it is used now, where it is there: whoever runs it wants it again when it starts anew. Blocks on the disk.
    pub fn still_used(&self) {
        let used =
            OpenOptions::new().append(true).open(&self.path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(cause) = used {
            tracing::debug!(path = %self.path.display(), %cause, "that a component is used cannot be kept");
        }
    }

    /// Keeps it. It need not be synced: half of it does not have its MAC. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, bytes: &[u8]) -> io::Result<()> {
        for folder in [&self.path, &self.key].into_iter().filter_map(|file| file.parent()) {
            super::make_dir(folder)?;
        }
        let key = super::cache::read_or_make_key(&self.key).map_err(io::Error::other)?;
        // Of those that keep the same at once, each writes a file of its own.
        let partial = self.path.with_extension(format!("{}.partial", std::process::id()));
        let write = |mut file: File| {
            file.write_all(self.mac(&key, bytes).as_bytes())?;
            file.write_all(bytes)
        };
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        let written = opened.and_then(write).and_then(|()| fs::rename(&partial, &self.path));
        if written.is_err() {
            // What stays goes with the rest.
            drop(fs::remove_file(&partial));
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_as_long_as_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let kept = |name: &[u8]| Pulled::of(dir.path(), &Digest::of(name));
        let one = kept(b"one");
        assert_eq!(one.get(100), None);
        one.keep(b"component").unwrap();
        one.keep(b"component").unwrap();
        assert_eq!((one.get(100).as_deref(), one.get(8), kept(b"two").get(100)), (Some(&b"component"[..]), None, None));
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(1_000_000);
        File::open(&one.path).unwrap().set_modified(long_ago).unwrap();
        one.get(100).unwrap();
        let used = fs::metadata(&one.path).unwrap().modified().unwrap();
        assert!(used.elapsed().unwrap().as_secs() < 1000, "that it was used is kept");
        File::open(&one.path).unwrap().set_modified(long_ago).unwrap();
        one.still_used();
        let used = fs::metadata(&one.path).unwrap().modified().unwrap();
        assert!(used.elapsed().unwrap().as_secs() < 1000, "and that it still is");
        kept(b"two").still_used();
        assert!(!kept(b"two").path.exists(), "one that is gone is not there by that");
        let mut bytes = fs::read(&one.path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&one.path, &bytes).unwrap();
        assert_eq!(one.get(100), None, "it is damaged");
        fs::write(&one.path, &bytes[..20]).unwrap();
        assert_eq!(one.get(100), None, "it is half");
        // Whoever does not have the key can compute a digest, and move what was sent by another pin.
        fs::write(&one.path, [Digest::of(b"swapped").as_bytes(), &b"swapped"[..]].concat()).unwrap();
        assert_eq!(one.get(100), None, "it is not ours");
        let two = kept(b"two");
        two.keep(b"component").unwrap();
        fs::copy(&two.path, &one.path).unwrap();
        assert_eq!((one.get(100), two.get(100).as_deref()), (None, Some(&b"component"[..])), "it is another one's");
        fs::remove_file(&two.path).unwrap();
        assert_eq!(fs::read_dir(one.path.parent().unwrap()).unwrap().count(), 1, "nothing unfinished stays");
    }
}
