//! Folders of the machine that the components of this host may use: named by whoever starts it, for a task whose scheduler
//! granted them. Without a word from there, there are none.

use std::sync::Arc;

use api::run::{FOLDERS_ENV, Folder};
use runtime::{Folders, Granted};

use crate::HostError;

/// What the environment grants.
///
/// # Errors
/// Where it cannot be read.
pub(crate) fn granted() -> Result<Option<Arc<Folders>>, HostError> {
    let Some(text) = std::env::var_os(FOLDERS_ENV) else { return Ok(None) };
    let read = text.to_str().and_then(|text| serde_json::from_str::<Vec<Folder>>(text).ok());
    let folders = read.ok_or(HostError::Folders)?;
    let folders = folders.into_iter().map(|Folder { path, name, writable }| Granted { path, name, writable });
    Ok(Some(Arc::new(Folders(folders.collect()))))
}
