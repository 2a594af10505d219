//! The tasks a driver tracks, and the state that outlives the plugin. The state is versioned: a newer plugin reads what an
//! older one wrote, or says that it cannot.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Failure;

/// Tasks by id.
#[derive(Debug)]
pub struct Tasks<T>(RwLock<BTreeMap<String, Arc<T>>>);

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T> Tasks<T> {
    /// A task.
    ///
    /// # Errors
    /// When it is unknown.
    pub fn get(&self, id: &str) -> Result<Arc<T>, Failure> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).cloned().ok_or_else(|| Failure::unknown_task(id))
    }

    /// Tracks a task; the one that is tracked already where there is one.
    pub fn add(&self, id: &str, task: Arc<T>) -> Result<(), Arc<T>> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match all.get(id) {
            Some(known) => Err(known.clone()),
            None => {
                all.insert(id.to_owned(), task);
                Ok(())
            }
        }
    }

    /// Forgets a task.
    pub fn remove(&self, id: &str) -> Option<Arc<T>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<S> {
    version: u32,
    state: S,
}

/// Writes a state.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn encode<S: Serialize>(version: u32, state: &S) -> Result<Vec<u8>, Failure> {
    let text = serde_json::to_vec(&Versioned { version, state });
    text.map_err(|cause| Failure::unrecoverable(format!("the state of the task cannot be written: {cause}")))
}

/// Reads a state of this version.
///
/// # Errors
/// When it is of another version, or none at all.
pub fn decode<S: DeserializeOwned>(version: u32, text: &[u8]) -> Result<S, Failure> {
    let unreadable = |cause| Failure::unrecoverable(format!("the state of the task cannot be read: {cause}"));
    let found: Versioned<serde_json::Value> = serde_json::from_slice(text).map_err(unreadable)?;
    if found.version != version {
        return Err(Failure::unrecoverable(format!(
            "the task was started by a plugin that writes version {} of its state, and this one reads {version}",
            found.version
        )));
    }
    serde_json::from_value(found.state).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_tracked_once_and_state_is_read_by_its_version() {
        let tasks = Tasks::default();
        tasks.add("a", Arc::new(1)).unwrap();
        assert_eq!(*tasks.add("a", Arc::new(2)).unwrap_err(), 1);
        assert_eq!((*tasks.get("a").unwrap(), tasks.len()), (1, 1));
        assert!(tasks.remove("a").is_some() && tasks.is_empty() && tasks.get("a").is_err());
        let state = encode(1, &"x".to_owned()).unwrap();
        assert_eq!(decode::<String>(1, &state).unwrap(), "x");
        assert!(decode::<String>(2, &state).unwrap_err().message.contains("version 1"));
        assert!(decode::<String>(1, b"").is_err());
    }
}
