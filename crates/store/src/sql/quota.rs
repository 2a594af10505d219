//! What the databases of a tenant take of its room. A database is as large as its pages; the log beside it is not counted.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use model::{AppName, ProviderName};

use crate::room::{Full, Room};

type Place = (AppName, ProviderName);

/// Who counts what one database takes. Whoever runs its statements asks; it may be another process than the one that counts.
pub trait Account: Send + Sync + std::fmt::Debug {
    /// So large the database is; how many bytes its tenant may add.
    fn begin(&self, bytes: u64) -> u64;

    /// So large it is to become; how large it was.
    ///
    /// # Errors
    /// For people: there is no room.
    fn grow(&self, bytes: u64) -> Result<u64, String>;

    /// So large it is, whatever was counted.
    fn is(&self, bytes: u64);

    /// For people: there is no room for so many bytes more than there is room for.
    fn full(&self, beyond: u64) -> String;
}

/// The databases of one tenant, and how large each is as far as it was counted.
#[derive(Debug)]
pub(super) struct Sizes {
    room: Arc<Room>,
    known: Mutex<HashMap<Place, u64>>,
}

/// One database among them.
#[derive(Debug)]
pub(super) struct Share {
    sizes: Arc<Sizes>,
    place: Place,
}

impl Sizes {
    /// Counts the files below a tenant's directory.
    pub(super) fn of(dir: &Path, room: &Arc<Room>) -> io::Result<Self> {
        let mut known = HashMap::new();
        for app in entries(dir)? {
            for file in entries(&app)? {
                // What has another name is a log, or nobody's.
                let name = |path: &Path| path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
                let place = (name(&app).and_then(|n| n.parse().ok()), name(&file).and_then(|n| n.parse().ok()));
                if let ((Some(app), Some(provider)), true) =
                    (place, file.extension().is_some_and(|extension| extension == "db"))
                {
                    // What is only in the log yet may become pages: too much is set right by the first call, too little
                    // would be room that somebody else takes.
                    let log = fs::metadata(file.with_extension("db-wal")).map_or(0, |log| log.len());
                    known.insert((app, provider), fs::metadata(&file)?.len() + log);
                }
            }
        }
        room.found(known.values().sum());
        Ok(Self { room: room.clone(), known: Mutex::new(known) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The databases of an app are gone.
    pub(super) fn forget(&self, app: &AppName) {
        self.lock().retain(|(of, _), bytes| {
            if of == app {
                self.room.give(*bytes);
            }
            of != app
        });
    }
}

fn entries(dir: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(cause) => Err(cause),
    }
}

impl Share {
    pub(super) fn new(sizes: Arc<Sizes>, app: AppName, provider: ProviderName) -> Self {
        Self { sizes, place: (app, provider) }
    }
}

impl Account for Share {
    fn begin(&self, bytes: u64) -> u64 {
        self.is(bytes);
        self.sizes.room.left()
    }

    fn grow(&self, bytes: u64) -> Result<u64, String> {
        let mut all = self.sizes.lock();
        let known = all.entry(self.place.clone()).or_default();
        let before = *known;
        match bytes.checked_sub(before) {
            Some(more) => self.sizes.room.take(more).map_err(|full| full.to_string())?,
            None => self.sizes.room.give(before - bytes),
        }
        *known = bytes;
        Ok(before)
    }

    fn is(&self, bytes: u64) {
        let known = self.sizes.lock().insert(self.place.clone(), bytes).unwrap_or_default();
        match bytes.checked_sub(known) {
            Some(more) => self.sizes.room.found(more),
            None => self.sizes.room.give(known - bytes),
        }
    }

    fn full(&self, beyond: u64) -> String {
        let room = &self.sizes.room;
        let asked = room.left() + beyond;
        Full { used: room.used(), most: room.most().unwrap_or(u64::MAX), asked }.to_string()
    }
}
