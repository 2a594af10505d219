//! Time zones by their IANA name, from the data that is part of this program: what a schedule means does not depend on
//! the files of a machine.

use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::rules::{nearest, shown};

/// A name that is no time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{written}` is not a time zone; {help}")]
pub struct ZoneError {
    /// What stands there, escaped and cut.
    pub written: String,
    /// What was probably meant.
    pub help: String,
}

/// The time zone of that name.
///
/// # Errors
/// [`ZoneError`].
pub fn zone(name: &str) -> Result<TimeZone, ZoneError> {
    let zones = TimeZoneDatabase::bundled();
    if let Ok(zone) = zones.get(name) {
        return Ok(zone);
    }
    let names: Vec<String> = zones.available().map(|name| name.as_str().to_owned()).collect();
    let near = nearest(name, names.iter().map(String::as_str));
    // Most who do not write the region write the city.
    let lower = name.to_ascii_lowercase().replace(' ', "_");
    let city = || names.iter().map(String::as_str).find(|n| n.to_ascii_lowercase().rsplit('/').next() == Some(&lower));
    let help = match near.or_else(city) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "write one of the IANA names, for example `Europe/Berlin` or `UTC`".to_owned(),
    };
    Err(ZoneError { written: shown(name), help })
}
