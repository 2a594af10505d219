//! Comparison with committed text. `UPDATE=1 cargo test -p model` writes what was found instead; read the difference
//! before committing it.

use std::path::Path;

/// Compares `found` with the file at `path`; the difference, if there is one.
pub(crate) fn compare(path: &Path, found: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, found).unwrap();
        return Ok(());
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == found {
        return Ok(());
    }
    Err(format!("{} differs\n--- expected\n{expected}\n--- found\n{found}", path.display()))
}
